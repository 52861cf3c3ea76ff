"""Simulated rollouts: the same seed gives the same figures, all policies see the same traffic, and the rules keep what H-43 asks."""

import dataclasses
import itertools
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esteira.cli.simulate import COMPARED, lines
from esteira.errors import ConfigError
from esteira.rollout import simulate_page
from esteira.rollout.policies import POLICIES, planned
from esteira.rollout.sequential import Sequential
from esteira.rollout.simulate import (
    MOST_HOURS,
    PLANS,
    Ending,
    Row,
    Run,
    play,
    shares_of,
    simulate,
)
from esteira.rollout.state import Decision, Policy, Rollout
from esteira.rollout.thresholds import Thresholds
from esteira.rollout.traffic import RATES, SCENARIOS, SHARES, Scenario, Stream
from tests.serving_process import gone

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
TWO: dict[str, Policy] = {"sequential": Sequential(), "thresholds": Thresholds()}


def some(*names: str) -> list[Scenario]:
    return [BY_NAME[name] for name in names]


class Recorder:
    """A policy that keeps what it sees and goes on each day."""

    name = "recorder"
    stages = (10.0, 25.0, 50.0)

    def __init__(self) -> None:
        self.seen: list[Rollout] = []

    def decide(self, state: Rollout, now: object) -> Decision:
        from dataclasses import replace

        from esteira.gate import Outcome

        self.seen.append(state)
        stage = min(2, len(self.seen) // 24)
        later = replace(state, stage=stage, percent=self.stages[stage])
        action = "inconclusive" if len(self.seen) == 96 else "hold"
        return Decision(action, later.percent, Outcome.NO_DATA, "", (), later)


def recorded(name: str, run: int = 1, seed: int = 3) -> list[Rollout]:
    policy = Recorder()
    play(policy, Stream(BY_NAME[name], seed, run))
    return policy.seen


def test_the_same_seed_gives_the_same_figures_whatever_the_workers_and_the_company() -> None:
    scenarios = some("errors", "ten_points_worse")
    together = simulate(TWO, runs=24, seed=11, scenarios=scenarios)
    shared_out = simulate(TWO, runs=24, seed=11, scenarios=scenarios, workers=2)
    alone = simulate({"sequential": Sequential()}, runs=24, seed=11, scenarios=scenarios[::-1])

    assert together == shared_out
    assert together["sequential"] == alone["sequential"][::-1]


def test_more_runs_begin_with_the_same_runs() -> None:
    few = simulate(TWO, runs=5, seed=2, scenarios=some("errors"))
    more = simulate(TWO, runs=25, seed=2, scenarios=some("errors"))

    assert few["thresholds"][0].runs == more["thresholds"][0].runs[:5]


def test_another_seed_scenario_or_run_is_other_traffic() -> None:
    def traffic(scenario: str, seed: int, run: int) -> list[int]:
        return Stream(BY_NAME[scenario], seed, run).totals(20, 0)[0]

    drawn = [traffic("equal", 1, 0), traffic("equal", 2, 0), traffic("equal", 1, 2), traffic("better", 1, 0)]

    assert 4 == len({tuple(each) for each in drawn})
    assert drawn[0] == traffic("equal", 1, 0)


def test_traffic_is_the_same_however_far_it_is_asked_for() -> None:
    near, far = Stream(BY_NAME["bursts"], 4, 1), Stream(BY_NAME["bursts"], 4, 1)
    far.totals(500, 0)

    for hours in (0, 1, 24, 25, 200):
        assert near.totals(hours, 2) == far.totals(hours, 2)


def test_units_come_at_the_named_rate_and_in_the_named_shares() -> None:
    for run, rate in enumerate(RATES):
        stream = Stream(BY_NAME["equal"], 9, run)
        assert rate == stream.rate
        for place, share in enumerate(SHARES):
            counts = stream.totals(480, place)[0]
            candidate, control = counts[0], counts[stream.arm_fields]
            assert (candidate + control) / 480 == pytest.approx(rate, rel=0.02)
            assert candidate / (candidate + control) == pytest.approx(share / 100, abs=0.01)


def test_a_larger_share_keeps_the_units_of_the_smaller_one() -> None:
    """The sticky router of H-40: in no hour and in no bucket of latency has a larger share fewer of the candidate's answers."""
    stream = Stream(BY_NAME["equal"], 1, 1)
    for hours in range(48):
        for smaller, larger in itertools.pairwise(range(len(SHARES))):
            more = [
                [
                    one - other
                    for one, other in zip(
                        stream.totals(hours + 1, place)[0], stream.totals(hours, place)[0], strict=True
                    )
                ]
                for place in (smaller, larger)
            ]
            width = stream.arm_fields
            assert all(few <= many for few, many in zip(more[0][:width], more[1][:width], strict=True))
            assert all(few >= many for few, many in zip(more[0][width:], more[1][width:], strict=True))


@pytest.mark.parametrize(
    ("name", "accuracy"),
    [
        ("equal", (0.75, 0.75)),
        ("better", (0.78, 0.75)),
        ("at_margin", (0.73, 0.75)),
        ("ten_points_worse", (0.65, 0.75)),
    ],
)
def test_a_candidate_is_as_good_as_its_scenario_says(name: str, accuracy: tuple[float, float]) -> None:
    arms = [recorded(name, run)[-1].sums[2] for run in range(1, 40, 2)]
    for arm, true in zip(("candidate", "control"), accuracy, strict=True):
        labelled = sum(each[arm].labelled for each in arms)
        right = sum(each[arm].outcome for each in arms)
        assert right / labelled == pytest.approx(true, abs=4 * (0.25 / labelled) ** 0.5)


def test_errors_latency_and_confidence_are_what_the_scenario_says() -> None:
    errors, slow = recorded("errors")[-1].sums[2], recorded("slow")[-1].sums[2]

    assert errors["candidate"].error_rate == pytest.approx(0.085, abs=0.01)
    assert errors["control"].error_rate == pytest.approx(0.005, abs=0.003)
    assert errors["candidate"].labelled == errors["candidate"].served - errors["candidate"].errors
    ratio = slow["candidate"].latency_at(0.95) / slow["control"].latency_at(0.95)  # type: ignore[operator]
    assert 1.3 < ratio < 1.75
    assert slow["candidate"].mean_confidence == pytest.approx(0.8, abs=0.01)
    for arm in slow.values():
        assert arm.sure == sum(arm.latency.values())
        assert arm.confidence**2 / arm.sure <= arm.confidence_sq <= arm.confidence


def test_late_labels_count_for_the_stage_that_served_them() -> None:
    seen = recorded("delayed_labels")

    assert 0 == seen[11].sums[0]["candidate"].labelled
    assert 0 < seen[12].sums[0]["candidate"].labelled
    # The first stage ended after 24 hours; its labels come until hour 72, and then all units of it are labelled.
    assert seen[71].sums[0]["candidate"].labelled > seen[30].sums[0]["candidate"].labelled
    first = seen[-1].sums[0]["candidate"]
    assert first.labelled == first.served - first.errors
    assert first.served == seen[24].sums[0]["candidate"].served


def test_the_base_rate_falls_when_it_is_said_to_and_for_both() -> None:
    stream = Stream(BY_NAME["base_rate_shift"], 2, 1)
    before, after = stream.totals(60, 2)[0], stream.totals(180, 2)[0]
    for first in (3, stream.arm_fields + 3):
        assert before[first + 1] / before[first] == pytest.approx(0.75, abs=0.02)
        assert (after[first + 1] - before[first + 1]) / (after[first] - before[first]) == pytest.approx(0.69, abs=0.02)


def test_no_traffic_is_none_and_traffic_that_stops_has_stopped() -> None:
    assert 0 == recorded("no_traffic")[-1].sums[0]["control"].served
    stopped = recorded("traffic_stops")
    assert 0 < stopped[29].sums[1]["control"].served
    assert stopped[30].sums[1]["control"].served == stopped[-1].sums[1]["control"].served
    assert 0 == stopped[-1].sums[2]["control"].served


def test_bursts_come_and_the_mean_stays() -> None:
    stream = Stream(BY_NAME["bursts"], 6, 0)
    totals = [stream.totals(hours, len(SHARES) - 1)[0][0] for hours in range(1201)]
    units = [after - before for before, after in itertools.pairwise(totals)]

    assert sum(units) / len(units) == pytest.approx(RATES[0], rel=0.15)
    assert max(units) > 4 * sorted(units)[len(units) // 2]


def test_harm_counts_what_the_candidate_lost() -> None:
    assert 0.0 == play(Thresholds(), Stream(BY_NAME["better"], 1, 1)).harm
    run = play(Recorder(), Stream(BY_NAME["ten_points_worse"], 1, 1))
    served = sum(arms["candidate"].served for arms in recorded("ten_points_worse", 1, 1)[-1].sums.values())

    assert run.harm == pytest.approx(0.1 * served)


def test_a_share_that_was_never_drawn_is_refused() -> None:
    policy = Recorder()
    policy.stages = (7.0, 25.0, 50.0)

    with pytest.raises(ConfigError) as refused:
        play(policy, Stream(BY_NAME["equal"], 1, 1))
    assert "unknown_share" == refused.value.code


def test_a_rollout_that_does_not_end_is_told_as_running() -> None:
    class Never(Recorder):
        def decide(self, state: Rollout, now: object) -> Decision:
            from esteira.gate import Outcome

            return Decision("hold", state.percent, Outcome.NO_DATA, "", (), state)

    run = play(Never(), Stream(BY_NAME["no_traffic"], 1, 1))

    assert ("running", MOST_HOURS) == (run.ending, run.hours)
    assert None is Row("no_traffic", (run,)).median_hours


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_comes_to_its_own_end(name: str) -> None:
    """An experiment waits four weeks for its units, longer than any rollout by stages."""
    policy = POLICIES[name]()
    run = play(policy, Stream(BY_NAME["no_traffic"], 1, 1, shares_of([policy])), planned(name, PLANS.get(name, {})))

    assert "running" != run.ending
    assert run.hours == (672 if name == "ab" else min(run.hours, MOST_HOURS))


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_can_be_played(name: str) -> None:
    policy = POLICIES[name]()
    stream = Stream(BY_NAME["errors"], 1, 1, shares_of([policy]))

    assert "rolled_back" == play(policy, stream, planned(name, PLANS.get(name, {}))).ending


def test_the_quick_way_to_new_sums_is_the_usual_one() -> None:
    state = recorded("equal")[30]
    sums = recorded("errors")[30].sums

    assert dataclasses.replace(state, sums=sums) == state.with_sums(sums)
    assert state != state.with_sums(sums)
    with pytest.raises(TypeError, match="a rollout has no shares"):
        state.changed({"shares": {}})


def test_a_row_counts_endings_and_gives_each_share_its_interval() -> None:
    runs = tuple(Run(RATES[k % 2], "promoted" if k < 8 else "rolled_back", 100 + k, 1.5) for k in range(10))
    told = Row("equal", runs).to_dict()

    assert (10, 8, 2, 0) == tuple(told[key] for key in ("runs", "promoted", "rolled_back", "inconclusive"))
    assert 104.5 == told["median_hours"]
    assert 0.8 == told["shares"]["promoted"]
    assert [0.4902, 0.9433] == told["intervals"]["promoted"]
    assert 1.5 == told["mean_harm"]
    assert {"100": 5, "400": 5} == {rate: row["runs"] for rate, row in told["by_rate"].items()}


def test_progress_reaches_its_end() -> None:
    told: list[tuple[int, int]] = []
    simulate(
        TWO, runs=3, scenarios=some("errors", "no_traffic"), progress=lambda done, total: told.append((done, total))
    )

    assert (12, 12) == told[-1]


# ------------------------------------------------------------------------------------------- what the policies keep

BAD = ("at_margin", "ten_points_worse", "slow", "errors")


def share(row: Row, ending: Ending) -> float:
    return row.count(ending) / len(row.runs)


@pytest.mark.slow
@pytest.mark.requirement("H-43")
def test_the_rules_keep_their_error_rates() -> None:
    """H-43, Done when: a seeded simulation of ≥ 500 runs gives: equal candidate falsely rolled back ≤ 5 % and promoted ≥ 90 %;
    at-margin candidate promoted ≤ 8 %; 10-points-worse rolled back ≥ 95 %.

    On any seed: this one is drawn. At the margin 6.1 % are promoted (95 % interval 5.8 to 6.4, 20,000 runs), so near to 8 % that
    500 runs would say more on one seed in 30; 3600 do so on less than one in 10,000, were it 6.4 %.
    """
    seed = secrets.randbelow(2**32)
    rules: dict[str, Policy] = {"rules": POLICIES["rules"]()}
    equal, worse = simulate(rules, runs=500, seed=seed, scenarios=some("equal", "ten_points_worse"), workers=2)["rules"]
    (at_margin,) = simulate(rules, runs=3600, seed=seed, scenarios=some("at_margin"), workers=2)["rules"]

    assert (500, 500, 3600) == (len(equal.runs), len(worse.runs), len(at_margin.runs))
    assert share(equal, "rolled_back") <= 0.05, seed
    assert share(equal, "promoted") >= 0.90, seed
    assert share(at_margin, "promoted") <= 0.08, seed
    assert share(worse, "rolled_back") >= 0.95, seed


@pytest.fixture(scope="module")
def played() -> dict[str, dict[str, Row]]:
    """Policy -> scenario -> 200 runs."""
    rows = simulate({name: POLICIES[name]() for name in COMPARED}, runs=200, seed=4, workers=2)
    return {name: {row.scenario: row for row in each} for name, each in rows.items()}


@pytest.mark.slow
def test_no_policy_promotes_without_data(played: dict[str, dict[str, Row]]) -> None:
    for name in COMPARED:
        assert 0 == played[name]["no_traffic"].count("promoted"), name
        assert 0 == played[name]["traffic_stops"].count("promoted"), name


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [scenario.name for scenario in SCENARIOS if scenario.good])
def test_sequential_promotes_a_good_candidate_no_later_and_rarely_takes_one_back(
    scenario: str, played: dict[str, dict[str, Row]]
) -> None:
    """The moonshot's promise: at most 5 % false rollbacks under hourly looks, no later in the median, at either rate."""
    ours, rules = played["sequential"][scenario], played["rules"][scenario]

    assert share(ours, "rolled_back") <= 0.05
    assert share(ours, "promoted") >= 0.90
    for rate in RATES:
        mine, theirs = ours.of_rate(rate).median_hours, rules.of_rate(rate).median_hours
        assert mine is not None
        assert theirs is not None
        assert mine <= theirs


@pytest.mark.slow
@pytest.mark.parametrize("scenario", BAD)
def test_sequential_rarely_promotes_a_bad_candidate(scenario: str, played: dict[str, dict[str, Row]]) -> None:
    assert share(played["sequential"][scenario], "promoted") <= 0.05


@pytest.mark.slow
def test_sequential_sees_through_a_bad_one(played: dict[str, dict[str, Row]]) -> None:
    ours = played["sequential"]

    assert share(ours["ten_points_worse"], "rolled_back") >= 0.95
    assert share(ours["errors"], "rolled_back") >= 0.95
    assert share(ours["slow"], "rolled_back") >= 0.95


@pytest.mark.slow
def test_fixed_limits_keep_no_such_promise(played: dict[str, dict[str, Row]]) -> None:
    """What the comparison is for: limits on the last hour take back good candidates or let bad ones through."""
    limits = played["thresholds"]
    taken_back = max(share(limits[scenario.name], "rolled_back") for scenario in SCENARIOS if scenario.good)
    let_through = max(share(limits[name], "promoted") for name in BAD)

    assert max(taken_back, let_through) > 0.2


# ------------------------------------------------------------------------------------------------- the command line


def command(*arguments: str, cwd: Path, code: int = 0) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "-m", "esteira.cli", "simulate", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=120, env={**os.environ, "ESTEIRA_HOME": ".esteira"},
    )  # fmt: skip
    assert code == done.returncode, done.stderr
    return done


def test_the_command_prints_one_document_and_keeps_no_state(tmp_path: Path) -> None:
    done = command("rollout", "--runs", "2", "--seed", "3", "--json", "--html", "page.html", cwd=tmp_path)
    told = json.loads(done.stdout)

    assert ("rules", 2, 3) == (told["policy"], told["runs"], told["seed"])
    assert [scenario.name for scenario in SCENARIOS] == [row["scenario"] for row in told["scenarios"]]
    for row in told["scenarios"]:
        assert 2 == row["runs"] == row["promoted"] + row["rolled_back"] + row["inconclusive"] + row["running"]
        assert row["median_hours"] is not None
    assert {"sequential", "thresholds"} == set(told["compare"])
    assert ["page.html"] == [path.name for path in tmp_path.iterdir()]
    assert "rollouts" in done.stderr


def test_one_policy_alone_is_told_alone(tmp_path: Path) -> None:
    policy = ("--policy", "sequential", "--scenario", "errors", "--scenario", "equal")
    first = json.loads(command("rollout", "--runs", "4", *policy, "--json", cwd=tmp_path).stdout)
    again = json.loads(command("rollout", "--runs", "4", *policy, "--json", cwd=tmp_path).stdout)

    assert first == again
    assert {} == first["compare"]
    assert ["equal", "errors"] == [row["scenario"] for row in first["scenarios"]]


def test_people_get_a_table(tmp_path: Path) -> None:
    done = command("rollout", "--runs", "2", "--policy", "thresholds", "--scenario", "no_traffic", cwd=tmp_path)
    head, names, row = done.stdout.splitlines()

    assert head.startswith("2 runs of each scenario")
    assert ["promoted", "rolled", "back", "inconclusive", "median", "hours"] == names.split()
    assert row.startswith("no_traffic")
    assert "100.0 % (34.2 to 100.0)" in row
    assert "rollouts in" in done.stderr


def test_the_table_tells_of_runs_that_did_not_end() -> None:
    ended, running = Run(100, "promoted", 90, 0.0), Run(100, "running", MOST_HOURS, 0.0)
    head, row = lines({"rules": [Row("equal", (ended, running))]})

    assert "running" in head
    assert 2 == row.count("50.0 % (9.5 to 90.5)")


def test_the_traffic_and_the_plan_may_be_named(tmp_path: Path) -> None:
    few = ("rollout", "--runs", "2", "--policy", "rules", "--scenario", "equal", "--units-per-hour", "5", "--json")
    plan = ("--option", 'rules={"served": 20, "labelled": 20}')
    told, planned_so = (json.loads(command(*few, *more, cwd=tmp_path).stdout) for more in ((), plan))

    assert [5] == told["units_per_hour"]
    assert ["5"] == list(told["scenarios"][0]["by_rate"])
    assert {} == told["options"]
    assert {"rules": {"served": 20, "labelled": 20}} == planned_so["options"]
    assert told["scenarios"] != planned_so["scenarios"]


def test_a_policy_that_cannot_decide_in_this_traffic_is_told_with_its_reason(tmp_path: Path) -> None:
    good = ("rollout", "--runs", "4", "--policy", "flags", "--scenario", "equal", "--scenario", "slow")
    done = command(*good, cwd=tmp_path)
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]

    assert 2 == len(notes)
    for rate, note in zip(RATES, notes, strict=True):
        assert note.startswith(f"note: flags at {rate} units an hour: all 2 runs of candidates as good or better ended")
        assert re.search(r"because internal after 96\.0 h, .*: \d{2,3} units served and", note)
    assert [note.removeprefix("note: ") for note in notes] == json.loads(command(*good, "--json", cwd=tmp_path).stdout)[
        "notes"
    ]
    assert [] == json.loads(command(*good, "--units-per-hour", "4000", "--json", cwd=tmp_path).stdout)["notes"]


@pytest.mark.parametrize(
    ("arguments", "where"),
    [(("--policy", "nope"), "--policy"), (("--option", "foo=1"), "--option foo"), (("--option", "rules=7"), "--option rules")],
    ids=["policy", "option", "value"],
)  # fmt: skip
def test_what_is_said_wrongly_is_wrong_where_it_was_said(
    arguments: tuple[str, str], where: str, tmp_path: Path
) -> None:
    done = command("rollout", *arguments, "--json", cwd=tmp_path, code=2)

    assert where == json.loads(done.stdout)["error"]["where"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--policy", "guess"), "unknown_policy"), (("--scenario", "rain"), "unknown_scenario"),
        (("--runs", "0"), "usage"), (("--runs", "2", "--seed", "-1"), "usage"), (("--html", "none/page.html"), "no_folder"),
    ],
    ids=["policy", "scenario", "runs", "seed", "folder"],
)  # fmt: skip
def test_bad_arguments_are_refused_before_anything_is_played(
    arguments: tuple[str, ...], code: str, tmp_path: Path
) -> None:
    done = command("rollout", *arguments, "--json", cwd=tmp_path, code=2)

    assert code == json.loads(done.stdout)["error"]["code"]
    assert [] == list(tmp_path.iterdir())


@pytest.mark.slow
def test_ctrl_c_ends_it_and_its_workers(tmp_path: Path) -> None:
    started = subprocess.Popen(
        [sys.executable, "-m", "esteira.cli", "simulate", "rollout", "--runs", "100000", "--workers", "2"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    children: list[int] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(children) < 3:  # two workers and the resource tracker
        time.sleep(0.2)
        text = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text()
        children = [int(each) for each in text.split()]
    time.sleep(2)
    os.killpg(started.pid, signal.SIGINT)
    said = started.communicate(timeout=60)[1]

    assert 1 == started.returncode, said
    assert "stopped before its end" in said
    assert "Traceback" not in said
    assert gone(children)


def test_the_page_shows_every_scenario_and_policy_and_needs_no_network() -> None:
    scenarios = some("equal", "ten_points_worse", "no_traffic")
    page = simulate_page.render(simulate(TWO, runs=6, scenarios=scenarios), scenarios, runs=6, seed=0)

    for word in ("equal", "ten points worse", "no traffic", "sequential", "thresholds", "rolled back"):
        assert word in page
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
