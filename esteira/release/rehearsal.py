"""The rehearsal: before a candidate gets live traffic, the line's last requests are replayed on it in the real server.

Its answers, errors and latency, beside the champion's on the same requests, and a trace of every request become gate
evidence (moment `canary`) and an entry of the ledger. What it asks and measures is `esteira.release.replay`; no service of
the line takes part, and no traffic moves.
"""

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from esteira import gate, ledger, locks, outputs, probe
from esteira.errors import EsteiraError, GateHeld, Refused
from esteira.family import Line
from esteira.gate import Fact, Facts, Rule
from esteira.release import replay
from esteira.release.replay import Call, Requests, Said
from esteira.release.spans import Spans, exporter

if TYPE_CHECKING:
    from esteira.access import Actor
    from esteira.registry import Registry
    from esteira.settings import Settings
    from esteira.store import Store

KIND = "rehearsal"
SLOWER = 0.2
"""How much longer than the champion's a candidate's 95th percentile may be, as a share of it."""
FOLDER = "rehearsals"
"""Folder below `$ESTEIRA_HOME` for the traces, a folder a line."""
RULES: tuple[Rule, ...] = (
    Rule(
        rule="rehearsal_took_place", metric="rehearsal_requests", op=">=", threshold=1, moment="canary",
        why="what nobody asked has shown nothing",
    ),
    Rule(
        rule="rehearsal_without_errors", metric="rehearsal_errors", op="==", threshold=0, moment="canary",
        why="a request that is refused, breaks, hangs or gets no number would be a caller's",
    ),
    Rule(
        rule="rehearsal_in_time", metric="rehearsal_p95_ms", op="<=", threshold=100, min_n=20, moment="canary",
        why="milliseconds; the objective of a live route (S-25)",
    ),
    Rule(
        rule="rehearsal_not_slower_than_champion", metric="rehearsal_p95_gain", champion_tolerance=SLOWER, min_n=20,
        moment="canary", why="95th percentile at most 1.2 times the champion's; below 5 ms it is noise",
    ),
    Rule(
        rule="rehearsal_traced", metric="rehearsal_traces_missing", op="==", threshold=0, moment="canary",
        why="every answer of staging left its trace (S-20)",
    ),
)  # fmt: skip
"""What holds for every line; a family's gate.yaml may replace a rule by its name, or add some, at the moment `canary`."""
_CURES = {
    "rehearsal_took_place": "keep requests of the line (ESTEIRA_REQUEST_LOG=200), or see why its server does not start",
    "rehearsal_without_errors": "see what the candidate said to these requests; the champion goes on serving",
    "rehearsal_in_time": "use a smaller model, or raise the bound in the family's gate.yaml (moment canary)",
    "rehearsal_not_slower_than_champion": "use a smaller model, or raise the tolerance in the family's gate.yaml (moment canary)",
    "rehearsal_traced": "install esteira[serving], and see that nothing of the service drops spans",
}
_RESAMPLES = 400
_ROUNDS = 4


class Options(BaseModel):
    """How a rehearsal is held.

    Attributes:
        requests: most requests that are replayed, the last ones.
        calls: least requests that are timed; fewer requests are asked again from the first.
        request_seconds: that an answer may take.
        patience_s: seconds until a server must be ready.
        floor_ms: a 95th percentile of the champion below this counts as this: less is noise of the machine.
        tolerance: how far two numbers may be apart and be the same answer, relative above 1.
        compare: also ask the champion; without it nothing is said against it.
        trace_seconds: to wait for the spans of the last answers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    requests: int = Field(default=500, ge=1, le=100_000)
    calls: int = Field(default=200, ge=20, le=100_000)
    request_seconds: float = Field(default=10.0, gt=0, le=3600)
    patience_s: float = Field(default=60.0, gt=0, le=3600)
    floor_ms: float = Field(default=5.0, ge=0)
    tolerance: float = Field(default=1e-6, ge=0)
    compare: bool = True
    trace_seconds: float = Field(default=10.0, ge=0, le=3600)


@dataclass(frozen=True)
class Pace:
    """How fast a server answered: nearest-rank percentiles in milliseconds over `n` answers (None without one).

    Attributes:
        boot_seconds: from its start to its READY line.
    """

    n: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    boot_seconds: float = 0.0


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal showed.

    Attributes:
        source: of the requests; `log` or `golden`.
        requests: that were asked, each counted once.
        calls: how often the candidate was asked in all.
        rows: of the requests.
        errors: calls that the candidate did not answer, answered late, or answered with what is no number or label. One that
            the champion refuses likewise is the request's own fault and counts nowhere.
        examples: what it said to five of them.
        compared: rows that both answered; `differing` are those with another prediction (another label, or numbers further
            apart than the tolerance).
        max_difference: largest difference between two numbers of these answers (values, probabilities, bounds); None
            where nothing was compared.
        candidate, champion: how fast; champion is None where it was not asked.
        gain: 1 less the ratio of the 95th percentiles, candidate to champion (at least the floor), so that more is better;
            -0.2 is 1.2 times as slow. None where one of the two is not known. `interval`: its 95 % interval by bootstrap over pairs.
        spans, traces_missing: of the candidate's answers: spans that came, and answers without any; None where nothing could
            trace, `traces_reason` says why.
        skipped: lines of the log that are no request.
        reason: why nothing could be asked; empty when it could.
        champion_reason: why there is nothing to compare with though there is a champion.
    """

    source: Literal["log", "golden"]
    requests: int = 0
    calls: int = 0
    rows: int = 0
    errors: int = 0
    examples: tuple[str, ...] = ()
    compared: int = 0
    differing: int = 0
    max_difference: float | None = None
    candidate: Pace = field(default_factory=Pace)
    champion: Pace | None = None
    gain: float | None = None
    interval: tuple[float, float] | None = None
    spans: int = 0
    traces_missing: int | None = None
    traces_reason: str = ""
    skipped: int = 0
    reason: str = ""
    champion_reason: str = ""


@dataclass(frozen=True)
class Report:
    """A rehearsal that passed.

    Attributes:
        ledger_seq: number of its entry.
        traces: file of the traces, OTLP JSON lines.
    """

    line: str
    version: int
    bundle_id: str
    verdict: Literal["pass"]
    ledger_seq: int
    rehearsal: Rehearsal
    traces: Path


def assess(requests: Requests, calls: Sequence[Call], options: Options) -> Rehearsal:
    """What these calls show; boot times, traces and reasons are not in them."""
    wrong: list[str] = []
    errors, compared, differing, largest = 0, 0, 0, None
    seen: set[int] = set()
    ours: list[float] = []
    theirs: list[float] = []
    both: list[tuple[float, float]] = []
    for call in calls:
        said, other = call.candidate, call.champion
        if said.fault and not _requests_own(said, other):
            errors += 1
            if len(wrong) < 5 and (text := f"request {call.request}: {said.fault}"[:300]) not in wrong:
                wrong.append(text)
        if not said.fault:
            ours.append(said.seconds * 1e3)
        if other is not None and not other.fault:
            theirs.append(other.seconds * 1e3)
            if not said.fault:
                both.append((ours[-1], theirs[-1]))
        if call.request in seen:
            continue
        seen.add(call.request)
        if other is None or said.fault or other.fault:
            continue
        for a, b in zip(other.rows, said.rows, strict=True):
            compared += 1
            alike = {"prediction": a.get("prediction")}, {"prediction": b.get("prediction")}
            differing += bool(probe.difference(*alike, options.tolerance))
            apart = max(furthest(a.get(part), b.get(part)) for part in ("prediction", "probabilities", "interval"))
            largest = apart if largest is None else max(largest, apart)
    gain = _gain(ours, theirs, options.floor_ms)
    return Rehearsal(
        source=requests.source,
        requests=len(seen),
        calls=len(calls),
        rows=sum(len(requests.rows[k]) for k in seen),
        errors=errors,
        examples=tuple(wrong),
        compared=compared,
        differing=differing,
        max_difference=largest,
        candidate=_pace(ours),
        champion=_pace(theirs) if any(call.champion is not None for call in calls) else None,
        gain=gain,
        interval=None if gain is None else _interval(both, options.floor_ms),
        skipped=requests.skipped,
    )


def furthest(a: Any, b: Any) -> float:
    """The largest difference between two numbers at the same place of two answers; 0 where there are none."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return max((furthest(a[key], b[key]) for key in a.keys() & b.keys()), default=0.0)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return max((furthest(u, v) for u, v in zip(a, b, strict=False)), default=0.0)
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in (a, b)):
        return 0.0
    return abs(float(a) - float(b))


def undecided(rehearsal: Rehearsal) -> bool:
    """Whether the interval of the gain has the bound of `rehearsal_not_slower_than_champion` in it, so that more calls would tell."""
    low, high = rehearsal.interval or (0.0, 0.0)
    return low < -SLOWER < high


def facts(rehearsal: Rehearsal, *, has_champion: bool) -> Facts:
    """What the gate judges, names beginning with `rehearsal_`.

    Args:
        has_champion: the line has one, and it was to be asked.
    """
    done = rehearsal
    why = done.reason

    def told(value: float | None, n: int, reason: str = "") -> Fact:
        return Fact(value=None if why else value, n=n, higher_is_better=False, reason=why or reason)

    share = done.differing / done.compared if done.compared else None
    nothing = "nothing was compared with a champion"
    metrics = {
        "rehearsal_requests": told(float(done.requests), done.requests),
        "rehearsal_errors": told(float(done.errors), done.calls),
        "rehearsal_differing_share": told(share, done.compared, nothing),
        "rehearsal_max_difference": told(done.max_difference, done.compared, nothing),
        "rehearsal_p50_ms": told(done.candidate.p50_ms, done.candidate.n, "nothing was answered"),
        "rehearsal_p95_ms": told(done.candidate.p95_ms, done.candidate.n, "nothing was answered"),
        "rehearsal_boot_seconds": told(done.candidate.boot_seconds, 1),
        "rehearsal_traces_missing": told(
            None if done.traces_missing is None else float(done.traces_missing), done.calls, done.traces_reason
        ),
    }
    gain = Fact(
        value=None if why else done.gain,
        n=min(done.candidate.n, done.champion.n) if done.champion is not None else 0,
        interval=None if why else done.interval,
        reason=why or done.champion_reason or "one of the two answered nothing",
    )
    return Facts(
        primary="rehearsal_errors",
        metrics=metrics,
        against_champion={"rehearsal_p95_gain": gain},
        has_champion=has_champion,
    )


def rules_of(line: str) -> tuple[Rule, ...]:
    """The rules of a line's rehearsal: ours, with those of the family's gate.yaml for the moment `canary` in their place.

    Raises:
        ConfigError: the family's gate.yaml cannot be read.
    """
    name = Line.parse(line).family
    file = resources.files(f"families.{name}") / "gate.yaml"
    where = f"families/{name}/gate.yaml"
    own = gate.read_rules(file.read_text(encoding="utf-8"), where=where).select() if file.is_file() else ()
    return gate.RuleBook(rules=RULES).select(extra=[rule for rule in own if rule.moment == "canary"])


def perform(
    requests: Requests,
    candidate: Path,
    champion: Path | None,
    spans: Spans,
    *,
    options: Options,
    command: Sequence[str] = probe.COMMAND,
) -> Rehearsal:
    """Boot the servers, both at once, and replay; a candidate that cannot be asked is a rehearsal with a reason.

    While the calls do not tell whether the candidate is slower than the champion by more than it may, there are more of them,
    four times as many at most.

    Args:
        candidate, champion: folders of verified bundles.
        spans: takes the traces.
        command: as `esteira.probe.Server` takes it.
    """
    if not requests.rows:
        return Rehearsal(
            requests.source, reason="there is no request to replay: no log, and no golden row in the bundle"
        )
    untraced = exporter()
    with ExitStack() as stack:

        def start(bundle: Path, name: str) -> probe.Server:
            return stack.enter_context(
                probe.Server(
                    bundle, patience=options.patience_s, command=command,
                    environment={**_ALONE, **({} if untraced else spans.environment(f"esteira-rehearsal-{name}"))},
                )
            )  # fmt: skip

        ours = start(candidate, "candidate")
        theirs = None if champion is None else start(champion, "champion")
        if reason := ours.wait():
            return Rehearsal(requests.source, reason=reason[:1000], skipped=requests.skipped)
        champion_reason = "" if theirs is None else theirs.wait()
        calls: list[Call] = []
        for _ in range(_ROUNDS):
            calls += replay.replay(
                requests.rows, ours, None if champion_reason else theirs,
                calls=options.calls, seconds=options.request_seconds,
            )  # fmt: skip
            done = assess(requests, calls, options)
            # On a machine that does other things too, 200 calls may not tell whether one is slower.
            if done.errors or not undecided(done):
                break
        answered = [call.candidate.trace for call in calls if call.candidate.status is not None]
        missing = None if untraced else len(spans.missing(answered, options.trace_seconds))
        boots = ours.boot_seconds, 0.0 if theirs is None else theirs.boot_seconds
    return replace(
        done,
        candidate=replace(done.candidate, boot_seconds=boots[0]),
        champion=None if done.champion is None else replace(done.champion, boot_seconds=boots[1]),
        spans=spans.count(answered),
        traces_missing=missing,
        traces_reason=untraced,
        champion_reason=champion_reason and f"the champion could not be asked: {champion_reason}"[:500],
    )


def rehearse(
    registry: "Registry",
    line: str,
    version: int,
    *,
    settings: "Settings",
    actor: "Actor",
    now: datetime | None = None,
    options: Options | None = None,
    command: Sequence[str] = probe.COMMAND,
) -> Report:
    """Hold the rehearsal of a registered version, and write it down, whatever came of it. Takes some seconds.

    Args:
        actor: who asked for it.
        now: time of the entry; the present by default.

    Raises:
        Refused: code `unknown_version`; `locked`, another rehearsal of the line is under way; the bundle is not what was sealed.
        GateHeld: code `rehearsal_failed`; a rule did not pass. The entry and the traces are written.
        ConfigError: the family's gate.yaml cannot be read.
    """
    options = options or Options()
    rules = rules_of(line)
    wanted = registry.get(line, version)
    if wanted is None:
        raise Refused(
            f"a version that is rehearsed is registered, but {line} has no version {version}",
            code="unknown_version", where=line, cure="see `esteira release show LINE` for its versions",
        )  # fmt: skip
    with locks.hold(settings.home, f"rehearsal {line}", what=f"the rehearsal of {line}"):
        folder = registry.fetch(wanted)
        former = registry.resolve(line) if options.compare else None
        if former is not None and former.bundle_id == wanted.bundle_id:
            former = None
        theirs, gone = None, ""
        if former is not None:
            try:
                theirs = registry.fetch(former)
            except EsteiraError as error:
                gone = f"the champion's bundle cannot be had: {error.message}"
        requests = replay.logged(settings.home, line, options.requests)
        if not requests.rows:
            requests = replace(replay.golden(folder, options.requests), skipped=requests.skipped)
        with Spans() as spans:
            done = perform(requests, folder, theirs, spans, options=options, command=command)
        done = replace(done, champion_reason=done.champion_reason or gone)
        verdict = gate.judge(rules, facts(done, has_champion=former is not None), "canary")
        traces = spans.file()
        # By its hash, so that a later rehearsal leaves alone what an entry names.
        digest = hashlib.sha256(traces).hexdigest()
        name = f"{version}-{digest}.traces.jsonl"
        outputs.write(settings.home / FOLDER / line, {name: traces})
        entry = ledger.append(
            registry.store,
            kind=KIND,
            line=line,
            version=version,
            bundle_id=wanted.bundle_id,
            actor=actor.name,
            evidence={
                **evidence(done, verdict),
                **actor.told(),
                "champion": None if former is None else {
                    "version": former.version, "bundle_id": former.bundle_id, **asdict(done.champion or Pace()),
                },
                "traces": {
                    "spans": done.spans, "missing": done.traces_missing, "reason": done.traces_reason,
                    "file": f"{FOLDER}/{line}/{name}", "sha256": digest,
                },
            },
            now=now,
        )  # fmt: skip
    if not verdict.released:
        raise held(verdict, done, line, version)
    return Report(
        line, version, wanted.bundle_id, "pass", entry.seq, done, settings.home / FOLDER / line / name
    )  # fmt: skip


def evidence(rehearsal: Rehearsal, verdict: gate.Verdict) -> dict[str, Any]:
    """What an entry of the ledger says of a rehearsal, but for the champion and the traces."""
    told = asdict(rehearsal)
    for name in ("champion", "spans", "traces_missing", "traces_reason"):
        del told[name]
    judged = verdict.to_json()
    return {"verdict": judged["verdict"], "summary": judged["summary"], "rules": judged["rules"], **told}


def held(verdict: gate.Verdict, rehearsal: Rehearsal, line: str, version: int) -> GateHeld:
    """The letter of a rehearsal that did not pass: which rules, and what the candidate said."""
    first = verdict.held_by[0].rule if verdict.held_by else ""
    cure = _CURES.get(first, "see the entry of the ledger for every rule, its value and its bound")
    if rehearsal.champion_reason and first == "rehearsal_not_slower_than_champion":
        cure = "mend or roll back the champion, or rehearse without comparing (Options.compare)"
    examples = "; ".join(rehearsal.examples[:2])
    return GateHeld(
        f"version {version} did not pass its rehearsal: {verdict.summary()}" + (f" ({examples})" if examples else ""),
        code="rehearsal_failed",
        where=f"{line}, moment canary",
        cure=cure,
    )


def rehearsed(store: "Store", line: str, version: int, bundle_id: str) -> dict[str, Any] | None:
    """Evidence of the last rehearsal of exactly this bundle as this version; its `verdict` is `pass` or `held`. None without one."""
    return _last(store, line, version, bundle_id)[1]


def require(store: "Store", line: str, version: int, bundle_id: str) -> int:
    """The ledger's number of the rehearsal that a version passed; what was not rehearsed with success is refused.

    Raises:
        Refused: code `not_rehearsed`.
    """
    seq, found = _last(store, line, version, bundle_id)
    if found is not None and found.get("verdict") == "pass":
        return seq
    why = "it was not rehearsed" if found is None else f"its last rehearsal says: {str(found.get('summary'))[:300]}"
    raise Refused(
        f"a version runs in staging before it gets live traffic, but of version {version}: {why}",
        code="not_rehearsed", where=line, cure=f"esteira release stage {line} {version} --reason TEXT, then try again",
    )  # fmt: skip


def _last(store: "Store", line: str, version: int, bundle_id: str) -> tuple[int, dict[str, Any] | None]:
    found: tuple[int, str | None] = 0, None
    for seq, of, of_bundle, said in store.ledger_tuples(
        "seq", "version", "bundle_id", "evidence", line=line, kinds=(KIND,)
    ):
        if (of, of_bundle) == (version, bundle_id):
            found = seq, said
    return found[0], None if found[1] is None else json.loads(found[1])


# A server of a rehearsal answers nobody else, keeps nothing and tells nobody.
_ALONE: Mapping[str, str | None] = {
    "ESTEIRA_ANSWER_CACHE": "0",  # a request that comes again is to be computed again
    "ESTEIRA_WORKERS": "1",
    "ESTEIRA_READY_NEEDS": "lines",
    "ESTEIRA_REQUEST_LOG": None,
    "ESTEIRA_ACCESS_LOG": None,
    "ESTEIRA_ALIAS": None,
    "ESTEIRA_TARGET": None,
    "ESTEIRA_KEY": None,
    "SENTRY_DSN": None,
}


def _requests_own(said: Said, other: Said | None) -> bool:
    """Whether the champion refuses the request just so: the fault is the request's, or of the question."""
    if other is None or not other.fault or said.status is None or said.status != other.status:
        return False
    return 400 <= said.status < 500 or (said.status == 200 and said.fault == other.fault)


def _pace(milliseconds: Sequence[float]) -> Pace:
    return Pace(len(milliseconds), _percentile(milliseconds, 0.5), _percentile(milliseconds, 0.95))


def _percentile(values: Sequence[float], share: float) -> float | None:
    """Nearest rank; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(round(share * len(ordered), 9)) - 1)]


def _gain(ours: Sequence[float], theirs: Sequence[float], floor: float) -> float | None:
    a, b = _percentile(ours, 0.95), _percentile(theirs, 0.95)
    if a is None or b is None:
        return None
    # Below the floor both are as fast as need be.
    low = max(b, floor)
    return 1 - max(a, floor) / low if low else 0.0


def _interval(pairs: Sequence[tuple[float, float]], floor: float) -> tuple[float, float] | None:
    """95 % interval of the gain: percentiles of 400 resamples of the pairs, by seed 42; None below 20 pairs."""
    if len(pairs) < 20:
        return None
    drawn = random.Random(42)
    found = []
    for _ in range(_RESAMPLES):
        sample = drawn.choices(pairs, k=len(pairs))
        gain = _gain([a for a, _ in sample], [b for _, b in sample], floor)
        assert gain is not None
        found.append(gain)
    found.sort()
    return found[int(0.025 * _RESAMPLES)], found[int(0.975 * _RESAMPLES) - 1]
