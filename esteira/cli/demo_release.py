"""`esteira demo-release`: releases on a synthetic clock, in a home of their own: a good, a bad and an unseen candidate, told in a minute.

Real are the models and their scores, the registry, the approvals, the rollout engine with its rules, the split and its router, the
store and the ledger. Simulated are the clock and the units: who asks, and whether the answer was right.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import click

from esteira.cli import emit, say

if TYPE_CHECKING:
    from esteira.access import Actor
    from esteira.registry import Registry, Version
    from esteira.release.policy import ReleasePolicy
    from esteira.rollout.state import Rollout
    from esteira.rollout.sums import Sums
    from esteira.settings import Settings

LINE = "tabular@demo"
_BACK = timedelta(days=30)
"""How long ago the synthetic clock begins, so that all of it is past when the demo ends."""
_HOUR = timedelta(hours=1)
_LOOK = 2
"""Hours between two looks. A service of one's own has `esteira tick --every 60`; what is decided is the same."""
_LONGEST = 24 * 40
"""Hours after which a rollout that has not ended is a fault."""


@dataclass(frozen=True)
class Candidate:
    """A version and what its traffic will be like.

    Attributes:
        columns: how many of the table's its one model, trained for real, may see.
        accuracy: share of its answers that prove right, simulated; the champion's is what it was as a candidate.
        units: that ask in an hour, simulated.
        ends: how its rollout must end.
    """

    name: str
    columns: int
    accuracy: float
    units: int
    ends: str


FIRST = Candidate("the first", 12, 0.75, 0, "approved")
CANDIDATES = (
    Candidate("a good one", 30, 0.79, 400, "approved"),
    Candidate("a bad one", 4, 0.69, 400, "rolled_back"),
    Candidate("one that nobody asks", 29, 0.79, 0, "inconclusive"),
)


@click.command("demo-release")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Keep the home and the release records here."
)
@click.option("--seed", default=1, show_default=True, type=int, help="Of the simulated units.")
def demo_release(out: Path | None, seed: int) -> int:
    """Release on a synthetic clock: a good candidate gets through, a bad and an unseen one go back; then undo the good one.

    Nothing outside of a temporary folder is touched, unless --out names another: there the home (ESTEIRA_HOME=OUT/home), the keys
    of its people (OUT/keys.json) and the release records are kept. The last line is one JSON document; the exit code is 1 when a
    candidate did not end as it should.

    \b
    Example:
      esteira demo-release
      esteira demo-release --out demo
    """
    began = time.perf_counter()
    logging.getLogger("esteira").addHandler(logging.NullHandler())  # alerts are told below, once
    with _place(out) as folder:
        document = _demo(folder, seed)
        if out is not None:
            document["records"] = [str(path) for path in sorted(out.glob("*.html"))]
    document["seconds"] = round(time.perf_counter() - began, 1)
    emit(document)
    return 0 if document["ok"] else 1


@contextlib.contextmanager
def _place(out: Path | None) -> Iterator[Path]:
    from esteira.errors import Refused

    if out is None:
        with tempfile.TemporaryDirectory(prefix="esteira-demo-") as folder:
            yield Path(folder)
        return
    if out.exists() and any(out.iterdir()):
        raise Refused(
            "a demo is kept in a folder of its own, but this one is not empty",
            code="not_empty", where=str(out), cure="name an empty or a new folder",
        )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    yield out.absolute()


# The play


@dataclass(frozen=True)
class _Stage:
    """Who plays, and where."""

    home: Path
    settings: "Settings"
    registry: "Registry"
    author: "Actor"
    approver: "Actor"
    policy: "ReleasePolicy"
    keys: Mapping[str, str]
    random: Random


def _keep(keys: Mapping[str, str], path: Path) -> None:
    """Write the keys down for whoever acts in the home afterwards; only its owner may read them."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as stream:
        json.dump(keys, stream, indent=1)


def _demo(folder: Path, seed: int) -> dict[str, Any]:
    from esteira import ledger

    now = (datetime.now(UTC) - _BACK).replace(minute=0, second=0, microsecond=0)
    stage = _stage(folder, seed, now)
    _keep(stage.keys, folder / "keys.json")
    say("training four small models on a real table ...")
    bundles = _bundles(folder, [one.columns for one in (FIRST, *CANDIDATES)])

    _title("the first release: registered by ana, refused to ana, approved by bob")
    first = _registered(stage, bundles[0], now)
    _refused_to_author(stage, first, now)
    now = _approved(stage, first, now + _HOUR)
    evidence = {"approval": True}
    stage.registry.promote(LINE, first.version, actor=stage.approver, reason="the first", evidence=evidence, now=now)
    say(f"  {_clock(now)}  version {first.version} takes 100 %")
    released, control = now, FIRST.accuracy

    ends: dict[str, Any] = {}
    for candidate, bundle in zip(CANDIDATES, bundles[1:], strict=True):
        _title(
            f"{candidate.name}: {candidate.units} units an hour, {candidate.accuracy:.0%} right against {control:.0%}"
        )
        now += 2 * _HOUR
        version = _registered(stage, bundle, now)
        now = _approved(stage, version, now + _HOUR)
        state, now, why = _rollout(stage, candidate, version, control, now)
        hours = round((now - state.started_at) / _HOUR)
        ends[candidate.name] = {
            "version": version.version, "status": state.status, "should": candidate.ends, "hours": hours,
            "reason": why,
        }  # fmt: skip
        control = candidate.accuracy if state.status == "approved" else control

    _title("what served when, asked of the ledger")
    good = _started(stage, 2)
    moments = {
        "before the first": released - _HOUR, "after it": released + _HOUR, "the good one's first day": good + 2 * _HOUR,
        "its second stage": good + 30 * _HOUR, "its third stage": good + 80 * _HOUR, "after it won": good + 145 * _HOUR,
    }  # fmt: skip
    told = {name: _at(stage, at) for name, at in moments.items()}

    _title("somebody finds a fault in it: one command takes it back")
    undone = _ask(stage, "rollback", LINE, "--reason", "prices are off since noon")
    after = _ask(stage, "ledger", "at", "now")
    pages = _pages(stage, folder, len(bundles))
    _title("and the record holds")
    anchor = ledger.add_anchor(stage.registry.store, folder / "anchors.jsonl", now=datetime.now(UTC))
    say(f"  anchored: {anchor.count} entries, head {anchor.hash[:12]}")
    verdict = _ask(stage, "ledger", "verify", "--anchor", str(folder / "anchors.jsonl"))
    as_they_should = all(one["status"] == one["should"] for one in ends.values())
    serving = [(one["version"], one["share"]) for one in after["serving"]]
    return {
        "ok": bool(as_they_should and verdict["ok"] and serving == [(first.version, 1.0)]),
        "candidates": ends,
        "ledger_at": told,
        "rollback": undone,
        "serving": after["serving"],
        "ledger": {name: verdict[name] for name in ("ok", "entries", "broken_at", "anchors")},
        "pages": pages,
    }


def _stage(folder: Path, seed: int, now: datetime) -> _Stage:
    from pydantic import SecretStr

    from esteira import access
    from esteira.registry import Registry
    from esteira.release.policy import ReleasePolicy
    from esteira.settings import Settings

    home = folder / "home"
    home.mkdir()
    settings = Settings(home=home)
    registry = Registry(settings)
    keys: dict[str, str] = {}
    for name, role in (("rita", "admin"), ("ana", "data_scientist"), ("bob", "approver")):
        made: list[str] = []
        giver = settings.model_copy(update={"key": SecretStr(keys["rita"])}) if keys else settings
        access.give(giver, name, role, store=registry.store, show=made.append, now=now)
        (keys[name],) = made
    author, approver = (settings.model_copy(update={"key": SecretStr(keys[name])}) for name in ("ana", "bob"))
    policy = ReleasePolicy(
        approval_mode="required", rollout="staged", rollout_policy="rules", approval_hours=168, rehearse=False,
        # The real table is small; H-39's 10,000 rows are for real traffic.
        min_samples=500, rollout_options={},
    )  # fmt: skip
    return _Stage(
        home=home,
        settings=author,
        registry=Registry(author),
        author=access.who(author),
        approver=access.who(approver),
        policy=policy,
        keys=keys,
        random=Random(seed),
    )


def _bundles(folder: Path, columns: list[int]) -> list[Path]:
    """A bundle for each number of columns: one linear model, trained for real on so many columns of one real table."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before OpenMP is loaded: threads that spin slow small fits
    import pandas as pd

    from esteira.automl import fit
    from esteira.datasets import write_data

    table = next(one for one in write_data(folder / "data") if one["name"] == "breast_cancer")
    frame = pd.read_csv(table["path"])
    source = {"name": table["name"], "source": Path(table["path"]).name, "content_hash": table["sha256"]}
    found = []
    features = [name for name in frame.columns if name != table["label"]]
    for number, count in enumerate(columns, start=1):
        part = frame[[*features[:count], table["label"]]]
        model = fit(part, table["label"], trials=1, kinds=("linear",), seed=7, line=LINE, source=source)
        model.export(folder / "bundles" / f"v{number}")
        say(f"  version {number}: linear on {count} columns, {model.metric} {model.best['score']:.4f}")
        found.append(folder / "bundles" / f"v{number}")
    return found


def _registered(stage: _Stage, bundle: Path, now: datetime) -> "Version":
    """Judge a bundle by what its card measured, and register it as the author."""
    from esteira.bundle import MANIFEST, SEAL

    manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    card = json.loads((bundle / "card.json").read_text(encoding="utf-8"))
    verdict = _judged(card) | {"bundle_id": (bundle / SEAL).read_text(encoding="ascii").strip()}
    stage.registry.store.register_dataset(
        name=str(card["data"]["name"]), content_hash=manifest["data_hash"], created_by=stage.author.name,
        row_count=int(card["data"]["training_rows"]), column_count=len(card["data"]["columns"]),
        source_config={"source": card["data"]["source"]},
    )  # fmt: skip
    version = stage.registry.register(
        LINE, bundle, run_id=f"demo-{bundle.name}", data_hash=manifest["data_hash"],
        code_revision=str(manifest["code_revision"]), params_hash="0" * 64,
        metrics={**manifest["metrics"], "baseline": manifest["baseline"]},
        params={"model": manifest["model"], "seed": manifest["seed"]}, verdict=verdict, actor=stage.author, policy=stage.policy, now=now,
    )  # fmt: skip
    say(f"  {_clock(now)}  ana registers version {version.version}: {verdict['summary']}")
    return version


def _judged(card: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict on a model without a project: its score, out of fold, and its card."""
    from esteira.card import card_missing
    from esteira.gate import Fact, Facts, Rule, judge

    primary = str(card["metrics"]["primary"])
    overall = next(one for one in card["metrics"]["segments"] if one["metric"] == primary)
    ends = overall["interval"]
    score = Fact(value=overall["value"], n=overall["n"], interval=None if ends is None else (ends[0], ends[1]))
    missing = Fact(value=float(len(card_missing(card))), n=1)
    rules = (
        Rule(rule="good_enough", metric="primary", op=">=", threshold=0.9, min_n=30, whole_interval=True),
        Rule(rule="card_complete", metric="card_missing", op="==", threshold=0),
    )
    facts = Facts(primary=primary, metrics={primary: score, "card_missing": missing})
    return judge(rules, facts).to_json()


def _refused_to_author(stage: _Stage, version: "Version", now: datetime) -> None:
    from esteira.errors import Refused
    from esteira.release import approvals

    _requested(stage, version, now)
    try:
        approvals.approve(stage.registry, LINE, version.version, actor=stage.author, reason="mine", now=now)
    except Refused as error:
        say(f"  {_clock(now)}  ana may not approve: {error.message}")


def _requested(stage: _Stage, version: "Version", now: datetime) -> None:
    from esteira.release import approvals

    stage.registry.set_alias(LINE, "staging", version.version, actor=stage.author, reason="to be approved", now=now)
    approvals.request(
        stage.registry.store, version, actor=stage.author, policy=stage.policy.model_dump(), hours=stage.policy.approval_hours,
        now=now, reason="the gate released it",
    )  # fmt: skip


def _approved(stage: _Stage, version: "Version", now: datetime) -> datetime:
    from esteira.release import approvals

    _requested(stage, version, now)
    later = now + timedelta(minutes=20)
    approvals.approve(
        stage.registry, LINE, version.version, actor=stage.approver, reason="read the card and the gate", now=later
    )
    say(f"  {_clock(later)}  bob approves version {version.version}")
    return later


# Traffic


def _rollout(
    stage: _Stage, candidate: Candidate, version: "Version", control: float, now: datetime
) -> tuple["Rollout", datetime, str]:
    """Begin a rollout and look at it until it ends: its state, when, and why."""
    from esteira.errors import OutsideError
    from esteira.rollout import control as rollouts
    from esteira.rollout import engine, files
    from esteira.rollout import split as splits
    from esteira.store.rollouts import Rollouts

    common: dict[str, Any] = {"settings": stage.settings, "registry": stage.registry}
    state = rollouts.start(
        LINE, now=now, actor=stage.approver, reason="approved", version=version.version, release=stage.policy, **common
    )
    say(f"  {_clock(now)}  {state.percent:g} % of the traffic")
    store, counted, why = Rollouts(stage.registry.store), _Counted(), ""
    for _ in range(_LONGEST // _LOOK):
        split = splits.read(splits.path(stage.home, LINE))
        if split is not None and candidate.units:
            counted.serve(stage.random, split, candidate, control, number=int(now.timestamp()))
            store.put_all(state.test_id, "demo", counted.sums, at=now)
        now += _LOOK * _HOUR
        decision = engine.tick(LINE, now=now, **common)
        if decision is not None and decision.action != "hold":
            why = decision.reason
            say(f"  {_clock(now)}  {decision.action.replace('_', ' ')} to {decision.percent:g} %: {_cut(why)}")
        elif decision is not None and decision.state.alert and decision.state.alert != state.alert:
            say(f"  {_clock(now)}  alert: {_cut(decision.state.alert)}")
        state = files.load(stage.home, LINE) or state
        if state.status not in ("running", "paused"):
            return state, now, why
    raise OutsideError(
        f"a rollout ends within {_LONGEST} hours, but this one is {state.status}",
        code="endless", where=state.test_id, cure="this is a fault of ours: see `esteira rollout status`",
    )  # fmt: skip


class _Counted:
    """What the arms of one rollout did, by stage: the running totals that a serving process would write."""

    def __init__(self) -> None:
        self.sums: dict[tuple[int, Any], Sums] = {}

    def serve(self, random: Random, split: Any, candidate: Candidate, control: float, *, number: int) -> None:
        """Send the units until the next look through the router, answer them, and let their truths be known at once."""
        from bisect import bisect_right

        from esteira.latency import BOUNDS
        from esteira.rollout.router import routed
        from esteira.rollout.sums import Sums

        arms: dict[Any, list[int]] = {"candidate": [0, 0], "control": [0, 0]}
        for unit in range(_LOOK * candidate.units):
            taken = routed(split.salt, split.test_id, split.percent, f"unit-{number}-{unit}")
            arm = arms["candidate" if taken else "control"]
            arm[0] += 1
            arm[1] += random.random() < (candidate.accuracy if taken else control)
        for name, (served, right) in arms.items():
            sure = 0.85
            served_now = Sums(
                served=served, labelled=served, outcome=float(right), outcome_sq=float(right), sure=served,
                confidence=sure * served, confidence_sq=sure * sure * served,
                latency={bisect_right(BOUNDS, 0.004): served} if served else {},
            )  # fmt: skip
            before = self.sums.get((split.stage, name), Sums())
            self.sums[split.stage, name] = before + served_now


def _started(stage: _Stage, version: int) -> datetime:
    """When a version's rollout began, by the ledger."""
    from esteira import ledger

    entry = next(
        one for one in ledger.entries(stage.registry.store, LINE)
        if (one.kind, one.version, one.evidence.get("action")) == ("rollout", version, "started")
    )  # fmt: skip
    return datetime.fromisoformat(entry.at)


# Doors


def _at(stage: _Stage, time: datetime) -> list[dict[str, Any]]:
    """What `esteira ledger at` says of a time; asked in this process, which saves six starts of another."""
    from esteira import ledger

    found = [vars(one) for one in ledger.at(stage.registry.store, time)]
    say(f"  $ esteira ledger at {time:%Y-%m-%dT%H:%M}")
    say(f"    {_short({'serving': found})}")
    return found


def _ask(stage: _Stage, *words: str) -> dict[str, Any]:
    """What the real command answers, as bob, in a process of its own."""
    from esteira.errors import OutsideError

    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")}
    done = subprocess.run(
        [sys.executable, "-m", "esteira.cli", *words, "--json"], cwd=stage.home, capture_output=True, text=True, check=False,
        env={**kept, "PYTHONPATH": os.pathsep.join(sys.path), "ESTEIRA_HOME": str(stage.home), "ESTEIRA_KEY": stage.keys["bob"]},
    )  # fmt: skip
    shown = " ".join(
        f'"{word}"' if " " in word else Path(word).name if word.startswith("/") else word for word in words
    )
    try:
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise OutsideError(
            f"`esteira {shown}` answers in JSON, but it said: {done.stderr.strip()[-300:]}",
            code="bad_answer", where="demo-release", cure="this is a fault of ours",
        ) from error  # fmt: skip
    say(f"  $ esteira {shown}")
    say(f"    {_short(found)}")
    return found


def _short(found: Mapping[str, Any]) -> str:
    if "serving" in found:
        shares = ", ".join(f"version {one['version']} {100 * one['share']:g} %" for one in found["serving"])
        return shares or "nothing served"
    if "entries" in found:
        return f"{'holds' if found['ok'] else 'broken'}: {found['entries']} entries"
    if "ledger_entry" in found:
        return f"version {found['from']} -> {found['to']}, ledger entry {found['ledger_entry']}"
    return json.dumps(found)


def _pages(stage: _Stage, folder: Path, versions: int) -> int:
    """Write each version's release record beside the home; how many."""
    from esteira import outputs
    from esteira.release.page import render
    from esteira.release.record import record

    for number in range(1, versions + 1):
        page = render(record(stage.registry, LINE, number))
        outputs.write(folder, {f"version-{number}.html": page.encode("utf-8")})
    return versions


def _title(text: str) -> None:
    say("")
    say(click.style(text[:1].upper() + text[1:], bold=True))


def _clock(now: datetime) -> str:
    return f"{now:%Y-%m-%d %H:%M}"


def _cut(text: str) -> str:
    """The first clauses of a reason; all of it lies in the ledger."""
    return text if len(text) <= 120 else f"{text[:120].rpartition(' ')[0]} ..."
