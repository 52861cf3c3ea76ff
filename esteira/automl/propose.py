"""What to try next: a pure function of seed, number and what was tried before, whoever ran it and whenever.

First the kind, then its parameters, each by TPE (Bergstra et al., "Algorithms for hyper-parameter optimization", 2011) on
what was told: the parameters of a kind are proposed from the trials of that kind alone. No storage is read here.
"""

import copy
import itertools
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from esteira.automl.kinds.base import Space
from esteira.errors import ConfigError

# Random trials of a kind of which nothing is known yet; a kind with so many in its portfolio needs none.
_STARTUP = 4
# So many trials tell TPE what it asks; of more, the latest and the best, because to ask of all takes longer than small fits.
_LATEST, _BEST = 75, 25
# What was proposed before is no news; after so many tries in a row, what is left of a small space is looked for.
_ATTEMPTS = 5
_SMALL = 4096
# Every so many proposals look at the whole space; the others at the neighbourhood of the kind's best trial so far.
_WIDE = 3
_NEAR_FACTOR, _NEAR_SHARE = 3.0, 0.2


@dataclass(frozen=True)
class Seen:
    """A trial that is known: told, or under way.

    Attributes:
        score: higher is better; None when there is none.
        folds: how many folds were scored, for those without a score: the further they came, the better they are.
        pending: under way; it keeps other proposals away from itself.
    """

    kind: str
    params: Mapping[str, Any]
    score: float | None
    folds: Sequence[float]
    pending: bool


def plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as they come back from a storage, so that a search in memory proposes the same ones."""
    read: dict[str, Any] = json.loads(json.dumps(dict(params)))
    return read


def content(kind: str, params: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """One text for one content, by which two proposals are the same."""
    return json.dumps([kind, dict(params), dict(recipe)], sort_keys=True)


def propose(
    seen: Sequence[Seen],
    *,
    number: int,
    seed: int,
    kinds: Sequence[str],
    spaces: Mapping[str, Space],
    fixed: Mapping[str, Mapping[str, Any]],
    recipe: Mapping[str, Any],
    made: Collection[str],
) -> tuple[str, dict[str, Any]] | None:
    """Kind and parameters of a trial.

    Args:
        seen: in order of number.
        number: of the proposal.
        kinds: which may be proposed.
        spaces: of each kind; a kind without one has its fixed parameters only.
        fixed: parameters that a proposal of the kind goes over.
        recipe: what `made` tells apart.
        made: contents that were proposed before.

    Returns:
        None when everything that can be found was proposed before.
    """
    left = list(dict.fromkeys(kinds))
    while left:
        kind = _kind(seen, left, _state(seed, number, len(left)))
        axes = {name: _Axis(name, spec) for name, spec in spaces.get(kind, {}).items()}
        base = fixed.get(kind, {})
        if number % _WIDE:
            axes = dict(_around(_placed(seen, kind, base, axes), axes))
        known = _placed(seen, kind, base, axes)
        for attempt in range(_ATTEMPTS if axes else 0):
            params = plain({**base, **_params(known, axes, _state(seed, number, attempt, 1))})
            if content(kind, params, recipe) not in made:
                return kind, params
        for values in _all({name: _Axis(name, spec) for name, spec in spaces.get(kind, {}).items()}):
            params = plain({**base, **values})
            if content(kind, params, recipe) not in made:
                return kind, params
        left.remove(kind)
    return None


def _around(known: Sequence[tuple[Seen, Mapping[str, Any]]], axes: Mapping[str, "_Axis"]) -> Mapping[str, "_Axis"]:
    """The neighbourhood of the kind's best trial; everything while there is none with a score."""
    scored = [(one.score, placed) for one, placed in known if one.score is not None and math.isfinite(one.score)]
    if not scored:
        return axes
    _, best = max(scored, key=lambda pair: pair[0])
    return {name: axis.around(best[name]) for name, axis in axes.items()}


def _state(*parts: int) -> int:
    """A seed of 32 bits for one decision."""
    return int(np.random.SeedSequence([part % 2**64 for part in parts]).generate_state(1)[0])


def _kind(seen: Sequence[Seen], kinds: Sequence[str], state: int) -> str:
    if len(kinds) == 1:
        return kinds[0]
    from optuna.distributions import CategoricalDistribution

    space = {"kind": CategoricalDistribution(tuple(kinds))}
    known = [(one, {"kind": one.kind}) for one in seen if one.kind in kinds]
    return str(_ask(known, space, state, startup=1)["kind"])


def _placed(
    seen: Sequence[Seen], kind: str, base: Mapping[str, Any], axes: Mapping[str, "_Axis"]
) -> list[tuple[Seen, dict[str, Any]]]:
    """The trials of a kind that have a place on every axis."""
    known = []
    for one in seen:
        if one.kind == kind:
            whole = {**base, **one.params}
            placed = {name: axis.place(whole.get(name)) for name, axis in axes.items()}
            if None not in placed.values():
                known.append((one, placed))
    return known


def _params(known: Sequence[tuple[Seen, Mapping[str, Any]]], axes: Mapping[str, "_Axis"], state: int) -> dict[str, Any]:
    found = _ask(known, {name: axis.distribution for name, axis in axes.items()}, state, startup=_STARTUP)
    return {name: axis.value(found[name]) for name, axis in axes.items()}


def _all(axes: Mapping[str, "_Axis"]) -> Iterator[dict[str, Any]]:
    """Every point of a small space; nothing of a large one, in which there is always more to find."""
    ranges = [axis.places() for axis in axes.values()]
    if math.prod(len(places) if places is not None else _SMALL + 1 for places in ranges) <= _SMALL:
        for point in itertools.product(*(places or () for places in ranges)):
            yield {name: axis.value(at) for (name, axis), at in zip(axes.items(), point, strict=True)}


def _ask(
    known: Sequence[tuple[Seen, Mapping[str, Any]]], space: Mapping[str, Any], state: int, *, startup: int
) -> dict[str, Any]:
    """What TPE proposes, in a study made for this one question: its answer depends on nothing else."""
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if len(known) > _LATEST + _BEST:
        scores = [-math.inf if one.score is None else one.score for one, _ in known]
        order = sorted(range(len(known)), key=scores.__getitem__)
        kept = {*range(len(known) - _LATEST, len(known)), *order[-_BEST:]}
        known = [known[at] for at in sorted(kept)]
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=state, n_startup_trials=startup)
    )
    for one, placed in known:
        finished = one.score is not None and not math.isnan(one.score)
        study.add_trial(
            create_trial(
                state=TrialState.RUNNING if one.pending else TrialState.COMPLETE if finished else TrialState.PRUNED,
                value=one.score if finished and not one.pending else None,
                params=dict(placed),
                distributions=dict(space),
                intermediate_values={len(one.folds): float(np.mean(one.folds))}
                if one.folds and not finished and not one.pending
                else None,
            )
        )
    params: dict[str, Any] = study.ask(dict(space)).params
    return params


class _Axis:
    """One parameter of a space, between its values and what TPE works on: choices are numbered."""

    def __init__(self, name: str, spec: tuple[Any, ...]) -> None:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        self._choices: list[str] | None = None
        match spec:
            case ("int" | "log_int" as kind, int(low), int(high)):
                self.distribution: Any = IntDistribution(low, high, log=kind == "log_int")
            case ("float" | "log" as kind, float(low) | int(low), float(high) | int(high)):
                self.distribution = FloatDistribution(float(low), float(high), log=kind == "log")
            case ("choice", values):
                self._choices = [json.dumps(value) for value in values]
                self.distribution = CategoricalDistribution(tuple(range(len(self._choices))))
            case _:
                raise ConfigError(
                    "a space is ('int' | 'log_int' | 'float' | 'log', low, high) or ('choice', values), "
                    f"but {name!r} has {spec!r}",
                    code="bad_space", where="candidate", cure="write one of these forms",
                )  # fmt: skip

    def around(self, place: Any) -> "_Axis":
        """The part of the axis that is near a place: on a log scale up to _NEAR_FACTOR away, else _NEAR_SHARE of the whole."""
        if self._choices is not None:
            return self
        low, high = self.distribution.low, self.distribution.high
        if self.distribution.log:
            least, most = place / _NEAR_FACTOR, place * _NEAR_FACTOR
        else:
            least, most = place - _NEAR_SHARE * (high - low), place + _NEAR_SHARE * (high - low)
        near = copy.copy(self)
        whole = isinstance(low, int)
        near.distribution = type(self.distribution)(
            max(low, math.floor(least) if whole else least),
            min(high, math.ceil(most) if whole else most),
            log=self.distribution.log,
        )
        return near

    def place(self, value: Any) -> Any:
        """Where a value stands; None for none. A number outside counts at the nearest end: it was tried beyond it."""
        if self._choices is not None:
            text = json.dumps(value)
            return self._choices.index(text) if text in self._choices else None
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            return None
        kept = min(max(value, self.distribution.low), self.distribution.high)
        return type(self.distribution.low)(kept)

    def places(self) -> range | None:
        """All places, where they can be counted."""
        if self._choices is not None:
            return range(len(self._choices))
        low, high = self.distribution.low, self.distribution.high
        return range(low, high + 1) if isinstance(low, int) else None

    def value(self, placed: Any) -> Any:
        """The value that stands there."""
        return json.loads(self._choices[placed]) if self._choices is not None else placed
