"""What the gate is told of a measured model, and the letter when it says no. The rules themselves are `esteira.gate`'s."""

from collections.abc import Mapping, Sequence
from typing import Any

from esteira import probe
from esteira.errors import GateHeld
from esteira.gate import Fact, Facts, Verdict


def facts_of(
    document: Mapping[str, Any],
    against_baseline: Mapping[str, Fact],
    against_champion: Mapping[str, Fact] | None,
    measured: probe.Measured,
    *,
    bundle_id: str,
    missing: Sequence[str],
) -> Facts:
    """What the gate judges.

    Args:
        document: metrics.json.
        against_champion: None when the line has no champion.
        measured: what the real server showed.
        missing: what the card lacks.
    """
    n = document["rows"]["test"]
    found: dict[str, Fact] = {}
    for name, value in document["metrics"].items():
        span = document["intervals"].get(name)
        found[name] = Fact(
            value=value,
            n=n,
            interval=None if span is None else (span[0], span[1]),
            higher_is_better=document["higher_is_better"][name],
            reason=document["reasons"].get(name, ""),
        )
    for name in ("ece",):
        if document.get("calibration"):
            found[name] = Fact(value=document["calibration"][name], n=n, higher_is_better=False)
    found["test_rows"] = Fact(value=n, n=n)
    same = document["parity"]
    found["parity_difference"] = Fact(value=same["difference"], n=n, higher_is_better=False, reason=same["reason"])
    found["labels_differing"] = Fact(value=same["labels_differing"], n=n, higher_is_better=False, reason=same["reason"])
    cost = document["row_cost"]
    found["row_cost_share"] = Fact(value=cost["share"], n=1, higher_is_better=False, reason=cost["reason"])
    reason = measured.reason
    if not reason and measured.bundle_id != bundle_id:
        reason = f"the server says that it serves bundle {measured.bundle_id[:12]!r}, not {bundle_id[:12]!r}"
    differing = None if reason else float(measured.differing)
    found["golden_differing"] = Fact(value=differing, n=measured.golden, higher_is_better=False, reason=reason)
    for share, name in ((0.5, "latency_p50_ms"), (0.95, "latency_p95_ms")):
        found[name] = Fact(
            value=None if reason else measured.percentile(share),
            n=len(measured.milliseconds),
            higher_is_better=False,
            reason=reason or "no request was timed",
        )
    found["card_missing"] = Fact(
        value=len(missing),
        n=1,
        higher_is_better=False,
        reason=f"the card lacks {', '.join(missing)}" if missing else "",
    )
    cut = {
        part["segment"]: {
            part["metric"]: Fact(
                value=part["value"],
                n=part["n"],
                interval=None if part["interval"] is None else (part["interval"][0], part["interval"][1]),
                higher_is_better=document["higher_is_better"][part["metric"]],
                reason=part["reason"],
            )
        }
        for part in document["slices"]
    }
    return Facts(
        primary=document["primary"],
        metrics=found,
        against_baseline=dict(against_baseline),
        against_champion=dict(against_champion or {}),
        has_champion=against_champion is not None,
        slices=cut,
    )


def held(verdict: Verdict, line: str, measured: probe.Measured) -> GateHeld:
    """The letter of a gate that said no: which rules, and what to do about the first of them."""
    first = verdict.held_by[0].rule if verdict.held_by else ""
    cures = {
        "better_than_baseline": "look for columns that tell more, or bring more rows; report.html shows where it errs",
        "not_worse_than_champion": "the champion goes on serving; more trials or newer data may beat it",
        "enough_rows": "bring more rows",
        "export_answers_as_native": "this is a fault of ours: the export must answer as the model does",
        "export_labels_equal": "this is a fault of ours: the export must answer as the model does",
        "served_answers_equal": f"look at what the server said: {measured.reason or '; '.join(measured.examples)}"[
            :400
        ],
        "served_in_time": "use a smaller model, or raise the bound for this line",
        "card_complete": "write the missing sections into the family's README.md or under evaluate.card in params.yaml",
    }
    return GateHeld(
        f"the gate held this release: {verdict.summary()}",
        code="gate_held",
        where=f"{line}, step evaluate",
        cure=cures.get(first, "see gate.json and report.html of this run for every rule, its value and its bound"),
    )
