"""A family that declares its contract and whose features are a pure function of rows: every word of the protocol, from five files.

It infers nothing from data and fits nothing but what the search fits; a family that must is written by hand, as `tabular` is.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from esteira.errors import ConfigError, DataError
from esteira.family import (
    Answer,
    Answerer,
    ArtefactKind,
    Candidate,
    Finding,
    Fitted,
    OpenBundle,
    Row,
    Sample,
    Score,
    Search,
    Searched,
)
from esteira.features.answers import FeatureAnswerer, manifest_of, post_of
from esteira.features.contract import ContractOptions, TableContract, Task
from esteira.features.decode import Decoder, checker, clean_rows
from esteira.features.labels import encode_labels
from esteira.features.stateless import PROBE, StatelessFeaturizer

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

GRAPH = "graph.onnx"
STAGES = ("features", GRAPH, "post")


class Params(BaseModel):
    """How a model is fitted in one go (the steps have parameters of their own)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int = Field(default=2, ge=1, le=1000)


class ContractModule(Protocol):
    """`contract.py`: what rows look like; `check` adds rules of its own to the contract's."""

    @property
    def CONTRACT(self) -> TableContract: ...
    def check(self, rows: Sequence[Row], /) -> list[Finding]: ...


class FeaturesModule(Protocol):
    """`features.py`: `MADE_OF` says of each feature, in order, the columns it is made of; `CODES` are codes of categories."""

    @property
    def MADE_OF(self) -> Mapping[str, Sequence[str]]: ...
    @property
    def CODES(self) -> Sequence[str]: ...
    def features(self, rows: Sequence[Row], /) -> "NDArray[np.float32]": ...


class ModelModule(Protocol):
    """`model.py`: what may be tried, and the score that the search goes by."""

    @property
    def METRIC(self) -> str: ...
    def candidates(self, n_rows: int, /) -> list[Candidate]: ...


class MetricsModule(Protocol):
    """`metrics.py`: named scores, the primary first, and the one outcome."""

    def scores(self, truths: Sequence[Any], answers: Sequence[Answer], /) -> dict[str, Score]: ...
    def outcome(self, truth: Any, answer: Answer, /) -> float: ...


class NativeModel(FeatureAnswerer):
    """A fitted model, answering natively."""

    def __init__(self, family: "DeclaredFamily", contract: TableContract, post: Mapping[str, Any], searched: Searched):
        super().__init__(family.made_of_rows, family.check, post, searched.predict)
        self.contract = contract
        self.searched = searched

    def export(self) -> dict[str, bytes]:
        """`graph.onnx`."""
        return {GRAPH: self.searched.graph()}

    def manifest(self) -> dict[str, Any]:
        """The manifest's part that the family owns."""
        return manifest_of(self.contract, self.post, STAGES)


@dataclass(frozen=True)
class DeclaredFamily:
    """The family's words; see esteira.family.Family and Trainable for what each promises.

    Attributes:
        package: of the family; its sample lies in the folder `sample` there.
        contract_py, features_py, model_py, metrics_py: the family's own four files.
        approval_mode, rollout: how its lines are released unless they say otherwise; see esteira.release.policy.
    """

    name: str
    package: str
    contract_py: ContractModule
    features_py: FeaturesModule
    model_py: ModelModule
    metrics_py: MetricsModule
    artefact_kind: ArtefactKind = "onnx"
    deterministic: bool = True
    params: type[BaseModel] = field(default=Params)
    approval_mode: Literal["required", "notify", "automatic"] = "required"
    rollout: Literal["staged", "direct"] = "staged"

    @property
    def declared(self) -> TableContract:
        """What contract.py says."""
        return self.contract_py.CONTRACT

    @property
    def row_rules(self) -> Callable[[Sequence[Row]], list[Finding]] | None:
        """`check` of contract.py."""
        return self.contract_py.check

    def check(self, rows: Sequence[Row]) -> list[Finding]:
        """Findings of the declared columns, and of `check` for the rows in which those found no error."""
        found = self._columns.check(rows)
        broken = {finding.row for finding in found if finding.severity == "error"}
        whole = [at for at in range(len(rows)) if at not in broken]
        own = self.contract_py.check(clean_rows([rows[at] for at in whole], self.declared))
        return found + [
            Finding(one.rule, one.column, None if one.row is None else whole[one.row], one.message, one.severity)
            for one in own
        ]

    @cached_property
    def _columns(self) -> Decoder:
        return checker(self.declared)

    @cached_property
    def _stateless(self) -> StatelessFeaturizer:
        return self._featurizer(self.declared)

    def made_of_rows(self, rows: Sequence[Row]) -> "NDArray[np.float32]":
        """Features of JSON rows, by features.py."""
        return self._stateless.rows(rows)

    def sample(self) -> Sample:
        """Rows of `sample/rows.jsonl`, broken ones of `sample/broken.jsonl`."""
        made, broken = self._lines("rows.jsonl"), self._lines("broken.jsonl")
        return Sample(
            rows=[line["row"] for line in made],
            truths=[line["truth"] for line in made],
            broken=[(line["row"], line["column"]) for line in broken],
        )

    def golden(self) -> Sequence[Answer]:
        """Answers of the native model in `sample/answers.jsonl`."""
        return self._lines("answers.jsonl")

    def fit(self, rows: Any, truths: Sequence[Any], *, params: BaseModel, seed: int, search: Search) -> Fitted:
        """Fit on rows and their truths.

        Raises:
            DataError: a truth is no label of the contract.
        """
        target = self.declared.target
        y = encode_labels(truths, target)
        x = self.made_of_rows(rows)
        searched = search(
            x,
            y,
            task=target.task,
            categorical=self._stateless.categorical,
            candidates=self.candidates(target.task, len(x)),
            metric=self.metric(target.task),
            trials=Params.model_validate(params.model_dump()).trials,
            seed=seed,
        )
        return NativeModel(self, self.declared, post_of(target, y, searched.out_of_fold), searched)

    def baseline(self, rows: Any, truths: Sequence[Any]) -> Answerer:
        """Answers the classes' frequencies, or the mean, whatever the row."""
        target = self.declared.target
        y = encode_labels(truths, target)
        constant: Any = y.mean() if target.classes is None else np.bincount(y, minlength=len(target.classes)) / len(y)

        def predict(x: "NDArray[np.float32]") -> "NDArray[Any]":
            return np.repeat(constant[None], len(x), axis=0)

        post = post_of(target, y, predict(np.empty((len(y), 0), dtype=np.float32)))
        return FeatureAnswerer(self.made_of_rows, self.check, post, predict)

    def features(self, rows: Any, fitted: Fitted) -> "NDArray[np.float32]":
        """Features of shape (rows, features)."""
        return self.made_of_rows(rows)

    def open(self, bundle: OpenBundle) -> Answerer:
        """An answerer over `graph.onnx` of a bundle.

        Raises:
            ConfigError: this code's contract or features are not those that the model learned from.
        """
        self._refuse_other_code(bundle)
        run = bundle.run
        return FeatureAnswerer(self.made_of_rows, self.check, bundle.manifest["post"], lambda x: run(GRAPH, x)["y"])

    def metrics(self, truths: Sequence[Any], answers: Sequence[Answer]) -> dict[str, Score]:
        """Named scores, the primary one first."""
        return self.metrics_py.scores(truths, answers)

    def outcome(self, truth: Any, answer: Answer) -> float:
        """How good one answer was, in [0, 1]."""
        return self.metrics_py.outcome(truth, answer)

    # What the steps need beyond that.

    def contract(
        self, frame: "pd.DataFrame", target: str, line: str, options: ContractOptions
    ) -> tuple[TableContract, list[Finding]]:
        """The declared contract, for this line.

        Raises:
            ConfigError: another label, or an option that only a contract inferred from the rows can follow.
        """
        declared = self.declared
        if target != declared.target.name:
            raise ConfigError(
                f"the label of family {self.name!r} is declared, {declared.target.name!r}, but got {target!r}",
                code="other_label",
                where=f"{line}, families/{self.name}/contract.py",
                cure=f"--target {declared.target.name}, or declare another label",
            )
        given = options.model_dump(exclude_defaults=True)
        declares = sorted(given.keys() & {"kinds", "task", "drop"})
        if declares:
            raise ConfigError(
                f"the contract of family {self.name!r} is declared, so it takes no validate.{declares[0]}",
                code="declared_contract",
                where=f"{line}, params.yaml",
                cure=f"say it in families/{self.name}/contract.py",
            )
        return declared.model_copy(update={"line": line, **given}), []

    def featurizer(self, frame: "pd.DataFrame", contract: TableContract) -> StatelessFeaturizer:
        """Learns nothing; keeps the features of some of these rows, by which a bundle knows its code again."""
        return self._featurizer(contract).remembering(frame)

    def _featurizer(self, contract: TableContract) -> StatelessFeaturizer:
        features = self.features_py
        return StatelessFeaturizer(contract, features.features, features.MADE_OF, features.CODES)

    def candidates(self, task: Task, n_rows: int) -> list[Candidate]:
        """What model.py declares."""
        return self.model_py.candidates(n_rows)

    def metric(self, task: Task) -> str:
        """What model.py declares."""
        return self.model_py.METRIC

    def post(
        self, contract: TableContract, truth: "NDArray[Any]", out_of_fold: "NDArray[np.float64]"
    ) -> dict[str, Any]:
        """The classes, or the half width of the interval."""
        return post_of(contract.target, truth, out_of_fold)

    def manifest(self, contract: TableContract, post: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest's part that the family owns."""
        return manifest_of(contract, post, STAGES)

    def _refuse_other_code(self, bundle: OpenBundle) -> None:
        # Features are computed by this code, not by the bundle, so code that has moved on must not answer for the model.
        learned = TableContract.model_validate(bundle.manifest["schema"])
        what = ""
        if (learned.target, learned.columns) != (self.declared.target, self.declared.columns):
            what = "contract.py declares other columns or another label"
        else:
            try:
                what = self._stateless.differs(bundle.read(PROBE))
            except KeyError:  # fitted in one go: without the steps there is no probe
                return
        if what:
            raise ConfigError(
                f"a model answers with the code it was trained with, but {what}",
                code="other_code",
                where=f"{bundle.manifest.get('line', self.name)}, families/{self.name}",
                cure="train the line again, open a new one with --as NAME, or serve with the code of the bundle's"
                " code_revision",
            )

    def _lines(self, name: str) -> list[dict[str, Any]]:
        file = resources.files(self.package) / "sample" / name
        if not file.is_file():
            raise DataError(
                f"a family has a golden sample, but sample/{name} is not there",
                code="no_sample",
                where=f"families/{self.name}",
                cure=f"python -m {self.package}.sample",
            )
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
