"""What a search found, as the files of a bundle: graph, decoder, answers to hold it to, card, leaderboard. It trains nothing.

The step train writes `model_files` and leaves sealing to evaluate; AutoML without a project seals here, in one go.
"""

import errno
import json
import os
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esteira import bundle as bundles
from esteira.automl.model_files import dumped, leaderboard, model_files
from esteira.automl.search_page import judged_rows
from esteira.automl.table import FAMILY, Table
from esteira.card import make_card, to_markdown
from esteira.errors import ConfigError, OutsideError, Refused
from esteira.features.metrics import Classified, Estimated, baseline, bootstrap, interval, per_class, scores, statistic
from esteira.origin import code_revision, dependencies
from esteira.probe import difference

if TYPE_CHECKING:
    from esteira.automl.engine import Result

_TOLERANCE = 1e-6
RESAMPLES, MOST_RESAMPLED = 200, 100_000
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def sealed_files(
    table: Table, found: "Result", *, line: str, seed: int, source: Mapping[str, str]
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """All files of a bundle without a project, and its manifest.

    Args:
        table: what was learned from.
        found: what the search found.
        line: what the model is called.
        seed: of the search.
        source: `name`, `source` (without secrets or folders) and `content_hash` of the rows.
    """
    files = model_files(
        table.family, line, table.contract, table.featurizer.files(), found, table.y,
        rows=table.rows, held=table.rows, seed=seed,
    )  # fmt: skip
    post = json.loads(files["post.json"])
    versions = {"code_revision": code_revision(), **dependencies()}
    _, judged = judged_rows(table.contract, table.y, found)
    card = _card(table, found, judged, line, source, versions, json.loads(files["golden.json"])["rows"][0])
    files["leaderboard.json"] = dumped(leaderboard(found))
    files["card.json"] = dumped(card)
    files["card.md"] = to_markdown(card).encode()
    files["record.json"] = dumped(found.record)
    overall = card["metrics"]["overall"]
    manifest = {
        "family": table.family.name,
        "line": line,
        "artefact_kind": table.family.artefact_kind,
        **table.family.manifest(table.contract, post),
        "method": found.best["kind"],
        "model": {"kind": found.best["kind"], "params": dict(found.best["params"])},
        "simulated": False,
        "confidence_kind": post.get("confidence_kind", "heuristic"),
        "data_hash": source["content_hash"],
        "code_revision": versions.pop("code_revision"),
        "seed": seed,
        "dependencies": versions,
        "metrics": {name: score["value"] for name, score in overall.items()},
        "baseline": {name: score["baseline"] for name, score in overall.items()},
    }
    return files, manifest


def _card(
    table: Table,
    found: "Result",
    y: Classified | Estimated,
    line: str,
    source: Mapping[str, str],
    versions: Mapping[str, str],
    example: Mapping[str, Any],
) -> dict[str, Any]:
    """The model card, with scores that are out of fold, because no rows were held back from the search."""
    target = table.contract.target
    own, beside = scores(y), scores(baseline(table.y, y))
    ends = _interval(found.metric, y)
    overall = {
        name: {"value": score.value, "interval": ends if name == found.metric else None, "baseline": beside[name].value,
               "reason": score.reason}
        for name, score in own.items()
    }  # fmt: skip
    everything = {
        "segment": "all rows, out of fold", "n": len(y), "metric": found.metric, "value": own[found.metric].value,
        "interval": ends, "reason": own[found.metric].reason, "weak": False,
    }  # fmt: skip
    segments = [everything] + [
        {"segment": f"{target.name}={row['class']}", "n": row["support"], "metric": "recall", "value": row["recall"],
         "interval": None, "reason": row["warning"], "weak": False}
        for row in (per_class(y) if isinstance(y, Classified) else [])
    ]  # fmt: skip
    readme = resources.files(f"families.{FAMILY}") / "README.md"
    limits = [
        "Its scores are of the folds of the search, on rows that its trials were chosen by: expect a little less on new rows.",
        *(f"{finding.column}: {finding.message}" for finding in table.findings if finding.rule == "leak"),
    ]
    return make_card(
        line=line,
        answers=f"Answers `{target.name}` of a row like those of `{source['name']}`.",
        readme=readme.read_text(encoding="utf-8") if readme.is_file() else "",
        overrides={
            "data": "Rows of one table; the contract in the manifest says what each column holds. None were held back.",
            "metric": "Scores are out of fold: of rows that the model which answered them had not seen.",
        },
        data={
            "name": source["name"],
            "source": source["source"],
            "content_hash": source["content_hash"],
            "source_rows": len(table.rows) + table.left_out,
            "training_rows": len(table.rows),
            "test_rows": 0,
            "label": target.name,
            "columns": [column.name for column in table.contract.columns],
            "left_out": [f"{column.name}: {column.reason}" for column in table.contract.dropped],
        },
        metrics={"primary": found.metric, "overall": overall, "segments": segments},
        found_limits=limits,
        versions=versions,
        example=example,
        former=None,
    )


def _interval(metric: str, y: Classified | Estimated) -> list[float] | None:
    """Ends of the score's 95 % interval by the bootstrap; None beyond so many rows that the interval is a line."""
    if len(y) > MOST_RESAMPLED:
        return None
    drawn = bootstrap({metric: statistic(metric, y)}, len(y), count=RESAMPLES, seed=0)[metric]
    ends = interval(drawn)
    return None if ends is None else list(ends)


def check_place(folder: Path, *, force: bool = False) -> None:
    """Refuse a place where a bundle may not go, before time is spent on a search.

    Args:
        folder: where the bundle shall lie: absent or empty; with `force` also a bundle, which is then replaced.
        force: whether a sealed bundle may be replaced; nothing else ever is.

    Raises:
        Refused: something else lies there.
        OutsideError: the folder above cannot be written.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise _taken(folder, "it is no folder", "name another place")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / bundles.MANIFEST).is_file() or not (folder / bundles.SEAL).is_file():
            raise _taken(folder, "it holds other files", "name an empty or a new folder")
        if not force:
            raise _taken(folder, "it holds a bundle", "name another folder, or say --force to replace the bundle")
    _require_writable(folder)


def check_page(page: Path, folder: Path) -> None:
    """Refuse a place where a page may not go, before time is spent on a search.

    Args:
        page: the file.
        folder: of the bundle, which is sealed: nothing may be put there beside it.

    Raises:
        ConfigError: it lies in the bundle's folder.
        OutsideError: the folder above cannot be written.
    """
    if folder.resolve() in page.resolve().parents:
        raise ConfigError(
            "a bundle's folder holds nothing but the bundle, but the page is to lie there",
            code="page_in_bundle", where=str(page), cure="name a file elsewhere",
        )  # fmt: skip
    _require_writable(page)


def _require_writable(path: Path) -> None:
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise OutsideError(
            f"the folder above must be writable, but {above.name or above} may not be written to",
            code="cannot_write", where=str(path), cure="name another place, or ask for the right to write there",
        )  # fmt: skip


def _taken(folder: Path, what: str, cure: str) -> Refused:
    return Refused(
        f"a bundle goes into a new or empty folder, but {what}", code="place_taken", where=str(folder), cure=cure
    )


def write(folder: Path, files: Mapping[str, bytes], manifest: Mapping[str, Any], *, force: bool = False) -> str:
    """Write and seal a bundle under another name, hold it to the native answers, and rename it: whole or not at all.

    Returns:
        The bundle_id.

    Raises:
        Refused: something lies there, see `check_place`; or the graph answers otherwise than the native model.
        OutsideError: the disk is full, or the folder cannot be written.
    """
    check_place(folder, force=force)
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            draft = Path(scratch) / "bundle"
            draft.mkdir()
            for name, content in files.items():
                with (draft / name).open("wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
            bundle_id = bundles.seal(draft, manifest=manifest)
            _hold_to_golden(draft)
            former = Path(scratch) / "former"
            if folder.exists():
                # Moved aside first: a rename onto a folder that is not empty is refused by the system.
                folder.replace(former)
            try:
                draft.replace(folder)
            except OSError:
                if former.exists():
                    former.replace(folder)
                raise
    except OSError as error:
        if error.errno in _FULL:
            raise OutsideError(
                f"a bundle of {sum(map(len, files.values())):,} bytes must fit on the disk, but it is full",
                code="disk_full", where=str(folder), cure="free space, or name a place on another disk",
            ) from error  # fmt: skip
        raise OutsideError(
            f"a bundle's folder must be writable, but: {error.strerror or error}",
            code="cannot_write", where=str(folder), cure="name another place, or ask for the right to write there",
        ) from error  # fmt: skip
    return bundle_id


def _hold_to_golden(folder: Path) -> None:
    """Refuse a bundle whose graph answers its golden rows otherwise than the native model did.

    Raises:
        Refused: another label, or a number that is not the same within 1e-6.
    """
    golden = json.loads((folder / "golden.json").read_bytes())
    found = bundles.answerer(bundles.open_bundle(folder, "cpu")).answer(golden["rows"])
    for at, (wanted, answer) in enumerate(zip(golden["answers"], found, strict=True)):
        said = difference(wanted, answer, _TOLERANCE)
        if said:
            raise Refused(
                f"the exported graph must answer as the native model, but of golden row {at} {said}",
                code="export_differs", where="graph.onnx", cure="this is a fault of ours: report the table and the seed",
            )  # fmt: skip
