"""The family protocol: what a kind of model must say so that every step and every service can carry it.

Typed over rows: `list[Row] -> list[Answer]`, so that nested rows (plans), text, images, series, rankings and policies fit
the same words. The optional columnar batch (`fit`, `features` may take a pandas DataFrame where the family says so) is for
speed only and must give what rows give. A family is pure: it imports no kfp, mlflow, bentoml or database.
"""

import importlib
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable
from unicodedata import combining, normalize

from esteira.errors import ConfigError, EsteiraError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from pydantic import BaseModel

    from esteira.features.contract import ContractOptions, TableContract, Task

Row = Mapping[str, Any]
Answer = dict[str, Any]
ArtefactKind = Literal["onnx", "onnx+tokenizer", "policy"]


@dataclass(frozen=True)
class Finding:
    """One rule that one value broke.

    Attributes:
        rule: short name of the rule, e.g. `type`, `required`, `range`, `category`.
        column: the column or dotted field path.
        row: position in the batch, from 0; None when the whole column is meant.
        message: rule and value in words.
        severity: an `error` refuses the row, a `warning` travels with its answer.
    """

    rule: str
    column: str
    row: int | None
    message: str
    severity: Literal["error", "warning"] = "error"

    @property
    def told(self) -> str:
        """The message with its column, for a list of findings."""
        return f"column {self.column!r}: {self.message}" if self.column else self.message


class Score(NamedTuple):
    """A named metric's value (None when undefined, with `reason`) and its direction."""

    value: float | None
    higher_is_better: bool = True
    reason: str = ""


@dataclass(frozen=True)
class Sample:
    """A small set of rows that obeys the family's rules, and what must go wrong with broken ones.

    Attributes:
        rows: rows without the label.
        truths: the label of each row, same order.
        broken: pairs of a row that breaks a rule and the column its finding must name.
    """

    rows: Sequence[Row]
    truths: Sequence[Any]
    broken: Sequence[tuple[Row, str]]


@runtime_checkable
class OpenBundle(Protocol):
    """What a family sees of a verified bundle: its manifest, its files and its runnable stages."""

    manifest: Mapping[str, Any]

    def read(self, name: str) -> bytes:
        """The verified bytes of a listed file."""
        ...

    def run(self, stage: str, x: "NDArray[np.float32]") -> "dict[str, NDArray[Any]]":
        """Run an ONNX stage on x of shape (rows, features); output name -> array with rows first."""
        ...


@dataclass(frozen=True)
class Candidate:
    """What AutoML may try: a kind of estimator it knows, and the space of its parameters.

    Attributes:
        kind: a name of `esteira.automl.kinds.KINDS`, such as `lightgbm` or `linear`.
        space: parameter -> ("int" | "log_int" | "float" | "log", low, high) or ("choice", values); everything else is fixed
            by `defaults`.
        defaults: the first trial's parameters; every key of `space` has one. Empty means that the engine starts from what
            it knows to do well, and searches the space that the kind offers.
    """

    kind: str
    space: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Searched(Protocol):
    """What a search found: the best estimator fitted on all given rows, its exact graph, and what was tried.

    Attributes:
        best: `{"kind", "params", "score"}` of the winner.
        leaderboard: one dict a trial, best first: number, kind, params, score (mean over folds), deviation, weight in the
            blend, row_us, state, why, fit_seconds.
        out_of_fold: predictions on the training rows by models that did not see them; `(rows, classes)` or `(rows,)`.
    """

    best: Mapping[str, Any]
    leaderboard: Sequence[Mapping[str, Any]]
    out_of_fold: "NDArray[np.float64]"

    def predict(self, x: "NDArray[np.float32]") -> "NDArray[np.float64]":
        """Natively: probabilities `(rows, classes)`, or values `(rows,)` for regression."""
        ...

    def graph(self) -> bytes:
        """The same as an ONNX graph: input `x`, output `y` (double), equal to `predict` within 1e-6."""
        ...


class Search(Protocol):
    """The AutoML engine as a family sees it; injected, because families import no engine."""

    def __call__(
        self,
        x: "NDArray[np.float32]",
        y: "NDArray[Any]",
        *,
        task: str,
        categorical: Sequence[int],
        candidates: Sequence[Candidate],
        metric: str,
        trials: int,
        seed: int,
    ) -> Searched:
        """Search on x `(rows, features)`; y holds class codes 0..k-1 or values; `categorical` are columns of codes."""
        ...


@runtime_checkable
class Answerer(Protocol):
    """Answers rows of one line; n rows in, n answers out, same order. Safe to call from several threads."""

    def check(self, rows: Sequence[Row]) -> list[Finding]:
        """Findings of the line's contract; an `error` finding means the row must be refused."""
        ...

    def answer(self, rows: Sequence[Row]) -> list[Answer]:
        """One answer a row: `prediction`, `probabilities` or `interval`, `confidence`, `warnings`."""
        ...


@runtime_checkable
class Fitted(Answerer, Protocol):
    """A natively fitted model that can be exported. `answer` is computed by the native model, not by the export."""

    def export(self) -> dict[str, bytes]:
        """File name -> bytes of every stage in a safe format, and nothing else."""
        ...

    def manifest(self) -> dict[str, Any]:
        """The manifest's part that the family owns: `task`, `schema`, `units`, `stages`, `post`."""
        ...


@runtime_checkable
class Family(Protocol):
    """A kind of model. One folder below `families/`, one object named FAMILY in its `__init__`.

    A family may have a word more, `unit(row) -> str | None`: the name of what must see one version while a rollout's share
    grows, such as a plan's intent (H-40); rows without one, and families without the word, are told apart by their request.
    Its `outcome` may take `manifest`, of the champion's bundle, by which the answers of both versions are measured.

    Attributes:
        deterministic: a row that comes again gets the same answer, so that a service may keep it; False for what samples.
        approval_mode, rollout: not every family says them; without them its lines are `required` and `staged`
            (esteira.release.policy).
    """

    name: str
    artefact_kind: ArtefactKind
    deterministic: bool
    params: "type[BaseModel]"

    def sample(self) -> Sample:
        """The golden sample's rows, truths and broken rows."""
        ...

    def golden(self) -> Sequence[Answer]:
        """The answers of the sample's rows, written by the native model fitted on the sample with seed 42."""
        ...

    def fit(self, rows: Any, truths: Sequence[Any], *, params: "BaseModel", seed: int, search: Search) -> Fitted:
        """Fit one native model on rows (a sequence of rows, or a DataFrame where the family takes one)."""
        ...

    def baseline(self, rows: Any, truths: Sequence[Any]) -> Answerer:
        """The constant (trivial) answerer that a model must beat."""
        ...

    def features(self, rows: Any, fitted: Fitted) -> "NDArray[np.float32]":
        """Features of shape (rows, features); one row alone gets what it gets in a batch."""
        ...

    def open(self, bundle: OpenBundle) -> Answerer:
        """An answerer over the exported stages; needs no training library."""
        ...

    def metrics(self, truths: Sequence[Any], answers: Sequence[Answer]) -> dict[str, Score]:
        """Named scores, the primary one first."""
        ...

    def outcome(self, truth: Any, answer: Answer) -> float:
        """The one per-unit outcome in [0, 1] that canaries compare; 1 is good."""
        ...


@runtime_checkable
class Featurizer(Protocol):
    """Turns rows into features. What it has learned, it learned from training rows.

    Attributes:
        names: one a feature.
        categorical: positions of the features that are codes of categories.
        groups: source column -> positions of the features that are made of it; a feature may be made of several columns.
    """

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def categorical(self) -> Sequence[int]: ...
    @property
    def groups(self) -> Mapping[str, Sequence[int]]: ...

    def rows(self, rows: Sequence[Row]) -> "NDArray[np.float32]":
        """Features of shape (rows, len(names)) of JSON rows; NaN is missing."""
        ...

    def frame(self, frame: "pd.DataFrame") -> "NDArray[np.float32]":
        """The same of typed rows as validate writes them, bit for bit; other columns are ignored."""
        ...

    def files(self) -> Mapping[str, bytes]:
        """What of it travels in the bundle: file name -> bytes in a safe format."""
        ...


@runtime_checkable
class Trainable(Family, Protocol):
    """A family that the DAG can run from rows to a release; its bundle is ONNX: `graph.onnx`, input `x`, output `y`.

    Attributes:
        row_rules: what a row must obey beyond its columns' kinds, as findings; a row with an `error` is quarantined. It is
            asked of rows whose cells have the contract's types. None when the contract says all.
    """

    @property
    def row_rules(self) -> Callable[[Sequence[Row]], list[Finding]] | None: ...

    def contract(
        self, frame: "pd.DataFrame", target: str, line: str, options: "ContractOptions"
    ) -> "tuple[TableContract, list[Finding]]":
        """What rows of a line look like, inferred from the first data or declared; and notes for people.

        Args:
            frame: raw rows of the source, the label among them; not changed.
            target: name of the label column.
            line: the line the contract is for.
            options: what people know better than the cells.
        """
        ...

    def featurizer(self, frame: "pd.DataFrame", contract: "TableContract") -> Featurizer:
        """Fitted on these typed training rows, and on nothing else."""
        ...

    def candidates(self, task: "Task", n_rows: int) -> Sequence[Candidate]:
        """What the search may try, best first trial first."""
        ...

    def metric(self, task: "Task") -> str:
        """The score that the search goes by; the first of `metrics`."""
        ...

    def post(
        self, contract: "TableContract", truth: "NDArray[Any]", out_of_fold: "NDArray[np.float64]"
    ) -> dict[str, Any]:
        """What turns the graph's output into an answer, JSON; `out_of_fold` as in `Searched`, `truth` codes or values."""
        ...

    def manifest(self, contract: "TableContract", post: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest's part that the family owns: `task`, `schema`, `units`, `stages`, `post`."""
        ...


TRAINABLE = ("row_rules", "contract", "featurizer", "candidates", "metric", "post", "manifest")
"""The words that the DAG needs beyond those of every family."""


@dataclass(frozen=True)
class Line:
    """A model line: `FAMILY` or `FAMILY@NAME`. Contract, champion, aliases and registered model belong to it."""

    family: str
    name: str = field(default="")

    _FORM = re.compile(r"([a-z][a-z0-9_]*)(?:@([a-z0-9][a-z0-9._-]{0,79}))?")

    @classmethod
    def parse(cls, text: str) -> "Line":
        """Read `FAMILY[@NAME]`.

        Raises:
            ConfigError: the text has another form.
        """
        match = cls._FORM.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"a line is FAMILY or FAMILY@NAME in lower case letters, digits, '-', '_' and '.', but got {text!r}",
                code="bad_line",
                where="LINE",
                cure="see `esteira families` for families and `esteira lines` for lines",
            )
        return cls(match[1], match[2] or "")

    @classmethod
    def opened_by(cls, family: str, source: str, target: str) -> "Line":
        """The line that a source and a label open when no name is given: `FAMILY@<file stem>-<label>`, without accents.

        Raises:
            ConfigError: neither has a letter or digit of ASCII.
        """
        stem = re.split(r"[?#]", source.rstrip("/"))[0].rsplit("/", 1)[-1].split(".")[0]
        plain = "".join(sign for sign in normalize("NFKD", f"{stem}-{target}".lower()) if not combining(sign))
        name = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:80]
        if not name:
            raise ConfigError(
                f"a line's name is made of its source and label in letters a to z and digits, but got {source!r} and {target!r}",
                code="bad_line",
                where="--as",
                cure=f"name it: --as NAME opens {family}@NAME",
            )
        return cls.parse(f"{family}@{name}")

    def __str__(self) -> str:
        return f"{self.family}@{self.name}" if self.name else self.family

    @property
    def registered_name(self) -> str:
        """The registry's name for this line; MLflow reads `@` as an alias and `/`, `:` as paths."""
        return f"{self.family}--{self.name}" if self.name else self.family


def load_family(name: str) -> Family:
    """Load `families.<name>` by name.

    Raises:
        ConfigError: there is no such family, or its code cannot be imported.
    """
    try:
        family: Family = importlib.import_module(f"families.{name}").FAMILY
    except EsteiraError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in {"families", f"families.{name}"}:
            raise ConfigError(
                f"a family is a folder below families/, but there is no {name!r}",
                code="unknown_family",
                where=f"families/{name}",
                cure="see `esteira families` for what there is; `make family NAME=x` adds one",
            ) from error
        raise _broken(name, error) from error
    return family


def _broken(name: str, error: Exception) -> ConfigError:
    """A family is its writer's code: what importing it raises is his, with the last line of it that was reached."""
    folder = f"families/{name}/"
    lines = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if folder in frame.filename
    ]
    if isinstance(error, SyntaxError):
        lines.append((error.filename or "", error.lineno))
    place = f"{folder}{lines[-1][0].rpartition(folder)[2]}, line {lines[-1][1]}" if lines else f"{folder}__init__.py"
    return ConfigError(
        f"a family can be imported and has an object FAMILY, but {type(error).__name__}: {str(error)[:300]}",
        code="broken_family",
        where=place,
        cure="correct it; docs/families/new.md shows what each file says",
    )


def load_trainable(name: str) -> Trainable:
    """Load a family that the DAG can run.

    Raises:
        ConfigError: there is no such family, its artefact is no ONNX graph, or it lacks a word that the steps need.
    """
    family = load_family(name)
    missing = [word for word in TRAINABLE if not hasattr(family, word)]
    if family.artefact_kind == "onnx" and not missing and isinstance(family, Trainable):
        return family
    why = (
        f"its artefact is of kind {family.artefact_kind!r}"
        if family.artefact_kind != "onnx"
        else f"it has no {', '.join(missing)}"
    )
    raise ConfigError(
        f"the steps run a family whose artefact is an ONNX graph and which has {', '.join(TRAINABLE)}, but {name!r} cannot"
        f" run: {why}",
        code="family_cannot_run",
        where=f"families/{name}",
        cure="fit and seal it from its own code, or give it the words; see esteira.family.Trainable",
    )
