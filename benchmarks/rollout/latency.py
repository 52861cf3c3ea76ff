"""How often two equal arms exceed the rules' bound on the 95th percentile of latency by chance alone; see README.md beside it.

Prints a markdown table and, last, one JSON line. The figures depend on seed and looks alone.
"""

import argparse
import json

import numpy as np

from esteira.gate import Outcome
from esteira.latency import BOUNDS
from esteira.rollout.posterior import wilson
from esteira.rollout.rules import Rules
from esteira.rollout.rules import latency as judged
from esteira.rollout.sums import Sums

SIGMAS = (0.35, 0.6, 1.0)
"""Spread of a lognormal latency: as most services', wide, very wide."""
TIMED = ((500, 500), (500, 100), (5000, 1000))
"""Answers timed of the candidate and of the control."""
_MEDIAN = 0.03  # seconds


def arm(chance: np.random.Generator, timed: int, sigma: float) -> Sums:
    """So many answers of one arm."""
    places = np.searchsorted(BOUNDS, chance.lognormal(np.log(_MEDIAN), sigma, timed), side="right")
    buckets, counts = np.unique(places, return_counts=True)
    latency = {int(bucket): int(count) for bucket, count in zip(buckets, counts, strict=True)}
    return Sums(served=timed, latency=latency)


def exceeded(sigma: float, timed: tuple[int, int], *, looks: int, seed: int) -> int:
    """Looks at which the candidate's 95th percentile is judged too far above an equal control's."""
    chance, bound = np.random.default_rng(seed), Rules().stable_latency
    return sum(
        judged("latency", arm(chance, timed[0], sigma), arm(chance, timed[1], sigma), bound).outcome is Outcome.FAIL
        for _ in range(looks)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--looks", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    found = []
    print("| Sigma | Timed, candidate and control | Above the bound, % | 95 % interval |\n|---|---|---|---|")
    for sigma in SIGMAS:
        for timed in TIMED:
            count = exceeded(sigma, timed, looks=asked.looks, seed=asked.seed)
            low, high = wilson(count, asked.looks)
            found.append({"sigma": sigma, "timed": timed, "share": count / asked.looks, "interval": [low, high]})
            share = 100 * count / asked.looks
            print(f"| {sigma:g} | {timed[0]}, {timed[1]} | {share:.1f} | {100 * low:.1f} to {100 * high:.1f} |")
    print(json.dumps({"looks": asked.looks, "seed": asked.seed, "bound": Rules().stable_latency, "rows": found}))


if __name__ == "__main__":
    main()
