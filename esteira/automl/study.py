"""Trials proposed and told, in memory or shared: whoever dies and resumes gets the same proposals, each counted once.

    study = Study.open(storage, name=name, seed=seed, spaces=spaces, fixed=fixed)
    study.queue("lightgbm", {"num_leaves": 31}, Recipe(), "portfolio")
    for proposal in study.ask(1, kinds=kinds, recipe=recipe):
        study.tell(proposal, score=...)

Nothing is fitted here, and no clock decides.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from esteira.automl.kinds.base import Space
from esteira.automl.prepare.recipe import Recipe
from esteira.automl.propose import Seen, content, plain, propose
from esteira.automl.trial_log import Entry, TrialLog

# Seconds between two looks at what other workers are at.
_LOOK = 0.5


@dataclass(frozen=True)
class Proposal:
    """A trial to be made.

    Attributes:
        number: from 1, in the order of proposals; a trial whose worker died keeps it.
        origin: portfolio, recipe or tpe.
    """

    number: int
    kind: str
    params: Mapping[str, Any]
    recipe: Recipe
    origin: str


@dataclass(frozen=True)
class Told:
    """How a trial went.

    Attributes:
        score: higher is better; None when it was pruned or failed.
        folds: the scores of the folds that were scored.
        seconds: of wall time; nothing is decided by it.
        why: why there is no score, in words.
        notes: whatever else a resumed search must know, as JSON.
    """

    proposal: Proposal
    score: float | None
    folds: tuple[float, ...] = ()
    seconds: float = 0.0
    why: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)


class Study:
    """The trials of one search. Made by `open`; use as a context manager, or close it."""

    def __init__(
        self, log: TrialLog, *, seed: int, spaces: Mapping[str, Space], fixed: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self._log, self._seed, self._spaces, self._fixed = log, seed, spaces, fixed
        self._entry_of: dict[int, int] = {}
        self._content_of: dict[int, str] = {}

    @classmethod
    def open(
        cls,
        storage: str = "",
        *,
        name: str,
        seed: int,
        spaces: Mapping[str, Space],
        fixed: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> "Study":
        """Begin a study, or go on with it.

        Args:
            storage: empty for memory; a path, or `journal:PATH`, for a file on this host; `postgresql://...` for many.
            name: of the search, see `esteira.automl.kept.search_name`; another name is another study.
            seed: of the proposals.
            spaces: kind -> what of its parameters is searched.
            fixed: kind -> parameters that every proposal of the kind has besides.

        Raises:
            ConfigError: no such storage.
            OutsideError: it cannot be reached, read or written.
        """
        return cls(TrialLog.open(storage, name), seed=seed, spaces=spaces, fixed=fixed or {})

    def __enter__(self) -> "Study":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def queue(self, kind: str, params: Mapping[str, Any], recipe: Recipe, origin: str) -> None:
        """Propose this before TPE proposes anything; what was proposed before, by whomever, is not repeated."""
        proposed = {"kind": kind, "params": plain(params), "recipe": recipe.named(), "origin": origin}
        with self._log.alone():
            if _content(proposed) not in {_content(entry.proposal) for entry in self._log.entries()}:
                self._log.add(proposed)

    def ask(
        self, count: int, *, kinds: Sequence[str], recipe: Recipe | None = None, limit: int | None = None
    ) -> list[Proposal]:
        """Trials for this process to make.

        What waits comes first: what a worker that died had, batch by batch as it had asked for them, then what was queued.
        Something new is never mixed with it. So a search goes on after a kill in the same steps as without.

        Args:
            count: at most so many.
            kinds: what TPE may propose.
            recipe: of what TPE proposes; none by default.
            limit: the highest number that is given out; no limit by default.

        Returns:
            In order of number. Empty when other processes are at the last ones, or nothing is left to propose.
        """
        taken: list[Proposal] = []
        begun: list[int] = []
        with self._log.alone():
            self._log.free_lost()
            known = self._known()
            batch, new = _oldest_batch(known), not any(_comes_first(entry) for _, entry in known)
            while len(taken) < count:
                waiting = [(at, entry) for at, entry in known if entry.state == "waiting" and entry.batch == batch]
                if waiting:
                    number, entry = waiting[0]
                    if limit is not None and number > limit:
                        break
                    if self._log.claim(entry.id):
                        self._entry_of[number] = entry.id
                        begun += [entry.id] if entry.batch is None else []
                        taken.append(_proposal(number, entry))
                elif not new or not self._add_new(known, kinds, recipe or Recipe(), limit):
                    break
                if len(taken) < count:
                    known = self._known()
            if begun:
                self._log.together(begun)
        return taken

    def left_behind(self) -> bool:
        """Whether there waits what a process that died had asked for and not told."""
        with self._log.alone():
            self._log.free_lost()
        return _oldest_batch(self._known()) is not None

    def _add_new(
        self, known: Sequence[tuple[int, Entry]], kinds: Sequence[str], recipe: Recipe, limit: int | None
    ) -> bool:
        number = len(known) + 1
        if limit is not None and number > limit:
            return False
        found = propose(
            [_seen(entry) for _, entry in known],
            number=number,
            seed=self._seed,
            kinds=kinds,
            spaces=self._spaces,
            fixed=self._fixed,
            recipe=recipe.named(),
            made={self._content_of[entry.id] for _, entry in known},
        )
        if found is None:
            return False
        kind, params = found
        # It waits until it is claimed, so that it is never without a sign of life; a worker that proposed the same at the
        # same time finds its own ignored, and proposes again.
        self._log.add({"kind": kind, "params": params, "recipe": recipe.named(), "origin": "tpe"})
        return True

    def tell(
        self,
        proposal: Proposal,
        *,
        score: float | None,
        folds: Sequence[float] = (),
        seconds: float = 0.0,
        why: str = "",
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Say how a trial that `ask` gave went; see `Told`. When another worker had it meanwhile, the first one counts.

        Raises:
            OutsideError: it could not be written; it may be told again.
        """
        told = {"folds": list(folds), "seconds": seconds, "why": why}
        score = None if score is None or score != score else float(score)
        self._log.finish(self._entry_of[proposal.number], score=score, told={**told, "notes": dict(notes or {})})
        del self._entry_of[proposal.number]

    def told(self) -> list[Told]:
        """What is known of the finished trials, in order of number."""
        return [_told(number, entry) for number, entry in self._known() if entry.state == "finished"]

    def wait(self) -> bool:
        """When `ask` gave nothing: wait a moment for what others are at, of which something may be lost yet.

        Returns:
            False when nobody is at anything, and all that was asked for is told.
        """
        if not any(entry.state == "running" for _, entry in self._known()):
            return False
        time.sleep(_LOOK)
        return True

    def close(self) -> None:
        """Let go of the storage; what was asked and not told waits for whoever comes next."""
        self._log.close()

    def _known(self) -> list[tuple[int, Entry]]:
        """Number and entry of every trial. Of the same proposal made twice at the same moment the first one counts."""
        first: dict[str, Entry] = {}
        for entry in self._log.entries():
            if entry.id not in self._content_of:
                self._content_of[entry.id] = _content(entry.proposal)
            first.setdefault(self._content_of[entry.id], entry)
        return list(enumerate(first.values(), 1))


def _oldest_batch(known: Sequence[tuple[int, Entry]]) -> int | None:
    """The first batch of which somebody died; None when nothing but what was never asked for waits."""
    return min(
        (entry.batch for _, entry in known if entry.state == "waiting" and entry.batch is not None), default=None
    )


def _comes_first(entry: Entry) -> bool:
    """Whether it waits and is not one of the new ones, of which a process died before it had all that it asked for."""
    return entry.state == "waiting" and (entry.batch is not None or entry.proposal["origin"] != "tpe")


def _content(proposed: Mapping[str, Any]) -> str:
    return content(proposed["kind"], proposed["params"], proposed["recipe"])


def _proposal(number: int, entry: Entry) -> Proposal:
    return Proposal(number=number, **{**entry.proposal, "recipe": Recipe.of(entry.proposal["recipe"])})


def _told(number: int, entry: Entry) -> Told:
    told = entry.told
    return Told(
        _proposal(number, entry), entry.score, tuple(told["folds"]), told["seconds"], told["why"], told["notes"]
    )


def _seen(entry: Entry) -> Seen:
    return Seen(
        kind=entry.proposal["kind"],
        params=entry.proposal["params"],
        score=entry.score,
        folds=entry.told.get("folds", ()),
        pending=entry.state != "finished",
    )
