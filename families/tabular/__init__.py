"""The family `tabular`: any table with a label column, binary, multiclass or regression. See README.md beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from esteira.family import (
    Answer,
    Answerer,
    ArtefactKind,
    Candidate,
    Finding,
    Fitted,
    OpenBundle,
    Sample,
    Score,
    Search,
    Searched,
)
from esteira.features import answers
from esteira.features.answers import post_of
from esteira.features.decode import Decoder
from families.tabular.answer import STAGES, TableAnswerer

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from esteira.features.contract import ContractOptions, TableContract, Task

LABEL = "__label__"


class Params(BaseModel):
    """How a table is fitted when it is fitted in one go (the steps have parameters of their own)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["binary", "multiclass", "regression"] | None = None
    kinds: Mapping[str, Literal["number", "integer", "boolean", "category", "date", "text"]] = Field(
        default_factory=dict
    )
    drop: tuple[str, ...] = ()
    metric: str = ""
    trials: int = Field(default=4, ge=1, le=1000)


class TableFitted(TableAnswerer):
    """A fitted table model, answering natively."""

    def __init__(
        self, contract: "TableContract", decoder: Decoder, post: Mapping[str, Any], searched: Searched
    ) -> None:
        super().__init__(decoder, post, searched.predict)
        self.contract = contract
        self.searched = searched

    def export(self) -> dict[str, bytes]:
        """`graph.onnx` and `decoder.json`."""
        return {"graph.onnx": self.searched.graph(), "decoder.json": self.decoder.to_json().encode()}

    def manifest(self) -> dict[str, Any]:
        """`task`, `schema`, `units`, `stages`, `post` of the bundle's manifest."""
        return manifest_of(self.contract, self.post)


def manifest_of(contract: "TableContract", post: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's part that this family owns."""
    return answers.manifest_of(contract, post, STAGES)


def fit_contract(contract: "TableContract", frame: "pd.DataFrame", truths: Any, **search_with: Any) -> TableFitted:
    """Fit by a given contract.

    Args:
        contract: of the rows.
        frame: training rows.
        truths: their labels.
        search_with: `search`, `metric`, `trials`, `seed`.

    Raises:
        DataError: a cell or a label cannot be decoded.
    """
    from esteira.features.decode import fit_decoder
    from esteira.features.labels import encode_labels
    from families.tabular import model

    search: Search = search_with.pop("search")
    decoder = fit_decoder(frame, contract)
    x = decoder.frame(frame)
    y = encode_labels(truths, contract.target)
    task = contract.target.task
    metric = search_with.pop("metric", "") or model.PRIMARY[task]
    searched = search(
        x,
        y,
        task=task,
        categorical=decoder.categorical,
        candidates=model.candidates(),
        metric=metric,
        **search_with,
    )
    return TableFitted(contract, decoder, post_of(contract.target, y, searched.out_of_fold), searched)


@dataclass(frozen=True)
class Tabular:
    """The family's words; see esteira.family.Family for what each promises."""

    name: str = "tabular"
    artefact_kind: ArtefactKind = "onnx"
    deterministic: bool = True
    params: type[BaseModel] = field(default=Params)
    row_rules: None = None
    # A table may be anybody's first: it is released at once, where nobody may be serving yet. A line may say otherwise.
    approval_mode: Literal["required", "notify", "automatic"] = "automatic"
    rollout: Literal["staged", "direct"] = "direct"

    def sample(self) -> Sample:
        """Deliveries of a small parcel service, made up (see sample.py); rows without the label `late`."""
        rows = _lines("rows.jsonl")
        broken = _lines("broken.jsonl")
        return Sample(
            rows=[line["row"] for line in rows],
            truths=[line["truth"] for line in rows],
            broken=[(line["row"], line["column"]) for line in broken],
        )

    def golden(self) -> Sequence[Answer]:
        """Answers of the native model fitted on the sample with seed 42; rewritten by `python -m families.tabular.sample`."""
        return _lines("answers.jsonl")

    def fit(self, rows: Any, truths: Sequence[Any], *, params: BaseModel, seed: int, search: Search) -> Fitted:
        """Infer the contract, then fit.

        Args:
            rows: a sequence of rows, or a DataFrame of typed or text cells.
            truths: their labels.
            params: a `Params`.
            seed: of every random choice.
            search: the AutoML engine.

        Raises:
            DataError: a cell or a label cannot be decoded, or the label has one class.
        """
        from families.tabular.contract import infer

        settings = Params.model_validate(params.model_dump())
        frame = _framed(rows)
        contract, _ = infer(
            frame.assign(**{LABEL: list(truths)}),
            LABEL,
            self.name,
            kinds=settings.kinds,
            task=settings.task,
            drop=settings.drop,
        )
        return fit_contract(
            contract, frame, truths, search=search, metric=settings.metric, trials=settings.trials, seed=seed
        )

    def baseline(self, rows: Any, truths: Sequence[Any]) -> Answerer:
        """Answers the classes' frequencies, or the mean, whatever the row."""
        import numpy as np

        from esteira.features.decode import fit_decoder
        from esteira.features.labels import encode_labels
        from families.tabular.contract import infer

        frame = _framed(rows)
        contract, _ = infer(frame.assign(**{LABEL: list(truths)}), LABEL, self.name)
        y = encode_labels(truths, contract.target)
        classes = contract.target.classes
        constant = np.array([y.mean()]) if classes is None else np.bincount(y, minlength=len(classes)) / len(y)

        def predict(x: "NDArray[np.float32]") -> "NDArray[Any]":
            return np.repeat(constant, len(x)) if classes is None else np.tile(constant, (len(x), 1))

        return TableAnswerer(fit_decoder(frame, contract), post_of(contract.target, y, predict(y)), predict)

    # What the steps need beyond that; see esteira.family.Trainable.

    def contract(
        self, frame: "pd.DataFrame", target: str, line: str, options: "ContractOptions"
    ) -> "tuple[TableContract, list[Finding]]":
        """The contract inferred from the rows; see contract.py."""
        from families.tabular.contract import infer

        given = options.model_dump(exclude_none=True)
        return infer(frame, target, line, **given)

    def featurizer(self, frame: "pd.DataFrame", contract: "TableContract") -> Decoder:
        """The typed decoder, with the categories, words and ranges of these rows."""
        from esteira.features.decode import fit_decoder

        return fit_decoder(frame, contract)

    def candidates(self, task: "Task", n_rows: int) -> list[Candidate]:
        """What model.py declares."""
        from families.tabular import model

        return model.candidates()

    def metric(self, task: "Task") -> str:
        """roc_auc (two classes), f1_macro (more) or r2 (regression)."""
        from families.tabular import model

        return model.PRIMARY[task]

    def post(
        self, contract: "TableContract", truth: "NDArray[Any]", out_of_fold: "NDArray[np.float64]"
    ) -> dict[str, Any]:
        """The classes, or the half width of the interval."""
        return post_of(contract.target, truth, out_of_fold)

    def manifest(self, contract: "TableContract", post: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest's part that this family owns."""
        return manifest_of(contract, post)

    def features(self, rows: Any, fitted: Fitted) -> "NDArray[np.float32]":
        """Features of shape (rows, features) of a sequence of rows or a DataFrame."""
        from families.tabular.features import decode

        assert isinstance(fitted, TableAnswerer)
        return decode(rows, fitted.decoder)

    def open(self, bundle: OpenBundle) -> Answerer:
        """An answerer over `decoder.json` and `graph.onnx` of a bundle; `manifest["post"]` turns its output into answers."""
        run = bundle.run
        decoder = Decoder.from_json(bundle.read("decoder.json"))
        return TableAnswerer(decoder, bundle.manifest["post"], lambda x: run("graph.onnx", x)["y"])

    def metrics(self, truths: Sequence[Any], answers: Sequence[Answer]) -> dict[str, Score]:
        """Every score of K-50; the first is roc_auc (two classes), f1_macro (more) or r2 (regression)."""
        from families.tabular import metrics

        return metrics.scores(truths, answers)

    def outcome(self, truth: Any, answer: Answer, *, manifest: Mapping[str, Any] | None = None) -> float:
        """1 for the right class, else 0; for regression how near, by the manifest's interval or a declared tolerance."""
        from families.tabular import metrics

        return metrics.outcome(truth, answer, manifest=manifest)


def _framed(rows: Any) -> "pd.DataFrame":
    import pandas as pd

    return rows if isinstance(rows, pd.DataFrame) else pd.DataFrame([dict(row) for row in rows])


def _lines(name: str) -> list[dict[str, Any]]:
    import json

    text = (resources.files(__package__) / "sample" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


__all__ = ["FAMILY", "LABEL", "Params", "TableFitted", "Tabular", "fit_contract", "manifest_of"]

FAMILY = Tabular()
