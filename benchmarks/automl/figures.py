"""What the runs come to: losses, their normalisation, wins and ties, the targets, and the tables in markdown. Measures nothing."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

TIE = 0.001  # relative difference of two losses below which neither has won
LEAST = 1e-4  # a loss below it counts as it in ratios: an area of 0.99999 against 0.99998 is not twice as good

Rows = Sequence[Mapping[str, Any]]


def scores(task: str, truth: "pd.Series[Any]", answers: "pd.DataFrame") -> dict[str, float]:
    """The loss that AMLB goes by (Gijsbers et al. 2024), and one more figure for reading.

    Args:
        truth: labels of the test rows.
        answers: as many rows in the same order: `prediction`, or `proba_<class>` of each class.

    Returns:
        `loss`: 1 - area under the ROC curve (binary), log loss (multiclass) or root mean squared error; and `accuracy` or `r2`.
    """
    from sklearn.metrics import r2_score, roc_auc_score

    if len(answers) != len(truth):
        raise ValueError(f"as many answers as rows, {len(truth)}, but got {len(answers)}")
    if task == "regression":
        values, predicted = truth.to_numpy(np.float64), answers["prediction"].to_numpy(np.float64)
        loss = math.sqrt(float(np.mean((values - predicted) ** 2)))
        return {"loss": loss, "r2": float(r2_score(values, predicted))}
    classes, codes = np.unique(truth.astype(str), return_inverse=True)
    p = np.column_stack([_probability(answers, name) for name in classes])
    accuracy = float((p.argmax(axis=1) == codes).mean())
    loss = 1.0 - float(roc_auc_score(codes, p[:, 1])) if task == "binary" else _log_loss(codes, p)
    return {"loss": loss, "accuracy": accuracy}


def _probability(answers: "pd.DataFrame", name: str) -> NDArray[np.float64]:
    column = f"proba_{name}"
    # A class that the training rows lack is one that no peer can answer.
    return answers[column].to_numpy(np.float64) if column in answers else np.zeros(len(answers))


def _log_loss(codes: NDArray[Any], p: NDArray[np.float64]) -> float:
    shares = np.clip(p / np.maximum(p.sum(axis=1, keepdims=True), 1e-15), 1e-15, 1.0)
    return float(-np.log(shares[np.arange(len(codes)), codes]).mean())


def constant_loss(task: str, train: "pd.Series[Any]", test: "pd.Series[Any]") -> float:
    """What the training rows' class shares, or their mean, would lose."""
    if task == "regression":
        return math.sqrt(float(np.mean((test.to_numpy(np.float64) - float(train.mean())) ** 2)))
    if task == "binary":
        return 0.5
    shares = train.astype(str).value_counts(normalize=True)
    classes, codes = np.unique(test.astype(str), return_inverse=True)
    return _log_loss(codes, np.tile([float(shares.get(name, 0.0)) for name in classes], (len(codes), 1)))


def losses(rows: Rows) -> dict[str, dict[str, float]]:
    """Set -> peer -> mean loss over its seeds; a failed run loses as the constant does. Sets where some peer lacks a seed are left out."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for row in rows:
        by_seed = found.setdefault(row["set"], {}).setdefault(row["peer"], {})
        by_seed[row["seed"]] = row["constant"] if "failed" in row else row["loss"]
    everyone = {row["peer"] for row in rows}
    return {
        name: {peer: statistics.fmean(by_seed.values()) for peer, by_seed in peers.items()}
        for name, peers in found.items()
        if set(peers) == everyone and len({frozenset(by_seed) for by_seed in peers.values()}) == 1
    }


def normalised(found: Mapping[str, Mapping[str, float]], constant: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """(loss - best) / (constant - best) of each set and peer: 0 is the best of the peers, 1 the constant."""
    shown: dict[str, dict[str, float]] = {}
    for name, peers in found.items():
        best = min(peers.values())
        span = max(constant[name] - best, 1e-12)
        shown[name] = {peer: (loss - best) / span for peer, loss in peers.items()}
    return shown


def duel(found: Mapping[str, Mapping[str, float]], one: str, other: str) -> tuple[int, int, int]:
    """On how many sets `one` wins, ties, loses."""
    won = tied = lost = 0
    for peers in found.values():
        apart = (peers[one] - peers[other]) / max(peers[other], LEAST)
        won, tied, lost = won + (apart < -TIE), tied + (abs(apart) <= TIE), lost + (apart > TIE)
    return won, tied, lost


def excess(found: Mapping[str, Mapping[str, float]], one: str, other: str) -> dict[str, float]:
    """How much more `one` loses than `other`, relatively: `mean` over sets, and `ratio`, the geometric mean of ratios less 1."""
    ratios = [max(peers[one], LEAST) / max(peers[other], LEAST) for peers in found.values()]
    return {"mean": statistics.fmean(ratios) - 1.0, "ratio": statistics.geometric_mean(ratios) - 1.0}


def targets(rows: Rows, budget: float) -> list[str]:
    """Issue 4's targets, each with what was measured; those whose peer was not run are left out."""
    found = losses(rows)
    constant = _constants(rows)
    peers = {row["peer"] for row in rows}
    if "ours" not in peers or not found:
        return []
    mean = {peer: statistics.fmean(each[peer] for each in normalised(found, constant).values()) for peer in peers}
    row_us = {peer: _median(rows, peer, "row_us") for peer in peers}
    lines = []
    if "flaml" in peers:
        won, tied, lost = duel(found, "ours", "flaml")
        share = (won + tied) / (won + tied + lost)
        lines.append(
            _target(
                "mean normalised loss below FLAML's",
                f"{mean['ours']:.4f} to {mean['flaml']:.4f}",
                mean["ours"] < mean["flaml"],
            )
        )
        lines.append(_target("at least as good as FLAML on 60 % of the sets", f"{share:.0%}", share >= 0.6))
        lines.append(_faster(row_us, "flaml", "FLAML", 5))
    if "autogluon_medium" in peers:
        more = excess(found, "ours", "autogluon_medium")["mean"]
        lines.append(_target("loss within 2 % of AutoGluon's medium_quality on average", f"{more:+.1%}", more <= 0.02))
        lines.append(_faster(row_us, "autogluon_medium", "AutoGluon", 20))
    if "autogluon_best" in peers:
        more = excess(found, "ours", "autogluon_best")["mean"]
        lines.append(_target("moonshot: loss equal to AutoGluon's best_quality", f"{more:+.1%}", more <= 0.0))
    longest = max(row["fit_seconds"] for row in rows if row["peer"] == "ours")
    limit = max(1.1 * budget + 5.0, 20.0)
    lines.append(_target(f"the whole process within {limit:.0f} s", f"longest {longest:.1f} s", longest <= limit))
    beyond = [
        row["peak_mb"] - row["imports_mb"] - 4 * row["frame_mb"] - 500 for row in rows if row["peer"] == "ours"
    ]  # fmt: skip
    lines.append(
        _target(
            "peak memory at most imports + 4 frames + 500 MB",
            f"{-max(beyond):.0f} MB to spare at worst",
            max(beyond) <= 0,
        )
    )
    size = max(row.get("bytes", 0) for row in rows if row["peer"] == "ours") / 1e6
    lines.append(_target("a bundle of at most 50 MB", f"largest {size:.1f} MB", size <= 50.0))
    return lines


def _faster(row_us: Mapping[str, float], peer: str, name: str, times: int) -> str:
    ratio = row_us[peer] / row_us["ours"]
    return _target(f"one row at least {times} times faster than {name}'s", f"{ratio:.0f} times", ratio >= times)


def _target(what: str, value: str, held: bool) -> str:
    return f"- {'met' if held else '**missed**'}: {what} ({value})"


def _constants(rows: Rows) -> dict[str, float]:
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row["set"], {})[row["seed"]] = row["constant"]
    return {name: statistics.fmean(by_seed.values()) for name, by_seed in found.items()}


def _values(rows: Rows, peer: str, key: str) -> list[float]:
    return [float(row[key]) for row in rows if row["peer"] == peer and key in row]


def _median(rows: Rows, peer: str, key: str) -> float:
    values = _values(rows, peer, key)
    return statistics.median(values) if values else math.nan


def markdown(rows: Rows, budget: float, machine: Mapping[str, Any]) -> str:
    """Two tables and the targets, with the machine they were measured on."""
    found, constant = losses(rows), _constants(rows)
    shown = normalised(found, constant)
    peers = list(dict.fromkeys(row["peer"] for row in rows))
    # More than one where results of several days stand together: that should be seen.
    versions = {peer: " / ".join(sorted({row["version"] for row in rows if row["peer"] == peer})) for peer in peers}
    other = [peer for peer in ("flaml", "autogluon_medium", "autogluon_best") if peer in peers]
    head = [
        "System", "Normalised loss", *(f"to {peer}: won/tied/lost, loss" for peer in other), "Fit, s (longest)",
        "One row, µs (p95)", "MB on disk", "Peak MB (after imports)", "Failed",
    ]  # fmt: skip
    lines = [_row(head), _row(["---"] * len(head))]
    for peer in peers:
        duels = ["" if peer == each or not found else _duel(found, peer, each) for each in other]
        fit, row_us = _values(rows, peer, "fit_seconds"), _values(rows, peer, "row_us")
        mean = f"{statistics.fmean(each[peer] for each in shown.values()):.4f}" if shown else ""
        lines.append(
            _row([
                f"{peer} {versions[peer]}", mean, *duels,
                f"{statistics.median(fit):.1f} ({max(fit):.1f})",
                f"{_median(rows, peer, 'row_us'):,.0f} ({_median(rows, peer, 'row_p95_us'):,.0f})" if row_us else "",
                _number(_median(rows, peer, "bytes") / 1e6, "{:.1f}"),
                f"{max(_values(rows, peer, 'peak_mb')):.0f} ({_median(rows, peer, 'imports_mb'):.0f})",
                str(sum("failed" in row for row in rows if row["peer"] == peer)),
            ])
        )  # fmt: skip
    lines += ["", _row(["Set", "Measure", "Constant", *peers]), _row(["---"] * (len(peers) + 3))]
    measure = {"binary": "1 - ROC AUC", "multiclass": "log loss", "regression": "RMSE"}
    tasks = {row["set"]: row["task"] for row in rows}
    for name, by_peer in found.items():
        best = min(by_peer.values())
        cells = [f"**{loss:.4g}**" if loss == best else f"{loss:.4g}" for loss in (by_peer[peer] for peer in peers)]
        lines.append(_row([name, measure[tasks[name]], f"{constant[name]:.4g}", *cells]))
    at, loads = sorted(row["at"] for row in rows), [row["load"] for row in rows]
    runs = (
        f"{len(rows)} runs on {len(found)} sets, {at[0][:16].replace('T', ' ')} to {at[-1][:16].replace('T', ' ')} UTC"
    )
    lines += [
        "",
        f"{runs}; {budget:g} s each on 2 of {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB; load of the"
        f" machine before a run {statistics.median(loads):.1f} (median), {max(loads):.1f} (most).",
    ]
    asked = targets(rows, budget)
    return "\n".join([*lines, *(["", *asked] if asked else [])])


def _duel(found: Mapping[str, Mapping[str, float]], peer: str, other: str) -> str:
    won, tied, lost = duel(found, peer, other)
    more = excess(found, peer, other)
    return f"{won}/{tied}/{lost}, {more['mean']:+.1%} (geometric {more['ratio']:+.1%})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else form.format(value)


def around(path: Path, name: str) -> tuple[str, str]:
    """What stands before and after `<!-- NAME -->` and `<!-- end of NAME -->`, with the markers.

    Raises:
        ValueError: the file does not have both markers, once each.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    whole = path.read_text(encoding="utf-8")
    if whole.count(begin) != 1 or whole.count(end) != 1 or whole.index(begin) > whole.index(end):
        raise ValueError(f"{path.name} has {begin!r} and {end!r} once each, in this order, but not here")
    before, rest = whole.split(begin)
    return before + begin, end + rest.split(end)[1]


def put(path: Path, name: str, text: str) -> None:
    """Replace what stands between the markers; raises as `around`."""
    before, after = around(path, name)
    path.write_text(f"{before}\n{text}\n{after}", encoding="utf-8")
