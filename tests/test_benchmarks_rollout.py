"""The comparison of policies counts what it says it counts; its figures can be checked by hand."""

import json
from pathlib import Path

import pytest

from benchmarks.rollout import operating
from esteira.rollout.simulate import Row, Run
from esteira.rollout.traffic import RATES, SCENARIOS, Scenario

GOOD, BAD = Scenario("equal", "as good", True), Scenario("errors", "bad", False)


def row(name: str, promoted: int, rolled_back: int, hours: int = 100, harm: float = 2.0) -> Row:
    endings = ["promoted"] * promoted + ["rolled_back"] * rolled_back
    return Row(name, tuple(Run(RATES[k % 2], ending, hours, harm) for k, ending in enumerate(endings)))


def test_the_table_has_a_line_for_each_scenario_and_policy_with_intervals() -> None:
    rows = {
        "rules": [row("equal", 8, 2), row("errors", 0, 10)],
        "sequential": [row("equal", 10, 0), row("errors", 0, 10)],
    }
    lines = operating.table(rows, [GOOD, BAD]).splitlines()

    assert 2 + 4 == len(lines)
    assert (
        "| equal | rules | 80.0 % (49.0 to 94.3) | 20.0 % (5.7 to 51.0) | 0.0 % (0.0 to 27.8) | 100 | 100, 100 | 2 |"
        == lines[2]
    )


def test_a_mistake_is_a_good_candidate_not_promoted_or_a_bad_one_promoted() -> None:
    rows = {"strict": [row("equal", 4, 4), row("errors", 0, 8)], "mild": [row("equal", 8, 0), row("errors", 8, 0)]}
    lines = operating.limits_table(rows, [GOOD, BAD]).splitlines()

    # Of eight runs, the first four were promoted: two at each rate of four.
    assert "| strict | 50.0 %, 50.0 % | 0.0 %, 0.0 % |" == lines[2]
    assert "| mild | 0.0 %, 0.0 % | 100.0 %, 100.0 % |" == lines[3]


@pytest.mark.parametrize(("promoted", "word"), [(95, "met"), (80, "MISSED")])
def test_a_bound_is_told_as_met_or_missed(promoted: int, word: str) -> None:
    names = [scenario.name for scenario in SCENARIOS]
    rows = {
        policy: [
            row(name, promoted, 100 - promoted) if name in ("equal", "better") else row(name, 0, 100) for name in names
        ]
        for policy in ("rules", "sequential")
    }
    lines = operating.told(rows)

    assert lines[0].startswith(f"- {word}: rules: equal promoted")
    assert "- met: rules: ten points worse rolled back, % 100.0 (>= 95)" in lines


@pytest.mark.slow
def test_the_command_prints_tables_and_one_line_of_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == operating.main(["--runs", "2", "--workers", "1", "--out", str(tmp_path / "table.md")])

    *_, last = capsys.readouterr().out.splitlines()
    told = json.loads(last)
    assert {*operating.MAIN, *operating.VARIANTS} == set(told["policies"])
    assert (tmp_path / "table.md").read_text().startswith("| Scenario | Policy |")
