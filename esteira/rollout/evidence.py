"""How strong the evidence for a claim is, at every look: bets against its opposite, whose winnings are the evidence. Pure.

A claim is "the candidate's mean lies above (or below) the control's by more than a bound". Somebody who doubts it sells bets
that are fair if it is wrong; what one unit of money has become is the evidence e. If the claim is wrong, e ever reaches 1 / alpha
with a probability of at most alpha, **however often and whenever one looks** (Ville 1939), so that hourly looks, late ones and
stopping at the best moment cost no error. It holds for any outcomes in [0, 1], at any sample size, with a base rate that moves
from hour to hour, and needs no variance to be known.

Sources: I. Waudby-Smith and A. Ramdas, "Estimating means of bounded random variables by betting", Journal of the Royal
Statistical Society B 86(1), 2024, 1-27 (the wealth process; section 4). R. Turner, A. Ly and P. Grünwald, "Generic E-variables for
exact sequential k-sample tests that allow for optional stopping", Journal of Statistical Planning and Inference 230, 2024, 106116 (two
arms, in blocks of given sizes), and R. Turner and P. Grünwald, "Safe sequential testing and effect estimation in stratified
count data", AISTATS 2023 (strata). S. R. Howard, A. Ramdas, J. McAuliffe and J. Sekhon, "Time-uniform, nonparametric,
nonasymptotic confidence sequences", Annals of Statistics 49(2), 2021, 1055-1080 (mixtures; the set of bounds that are not
yet rejected is a confidence sequence).

The proof, for one block of `n` candidate and `k` control units with a = k / (n + k), b = n / (n + k) and a bet l > 0 on "above d": the
wealth is multiplied by the product of 1 + l a (x - m - d) over the candidate's outcomes x and of 1 - l b (y - m) over the
control's outcomes y, for any guess m of the control's mean. By 1 + z <= exp(z) and independence its expectation is at most
exp(l h (mean x - mean y - d)) with h = n k / (n + k), which is at most 1 where the claim is wrong. l and m come from what was seen before
the block.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

_MOST_LOST = 0.75
"""Of the wealth, at a single unit."""
_STRONGEST = 700.0
"""Logarithm of the strongest evidence that is told as a number."""


class Part(NamedTuple):
    """What an arm did between two looks.

    Attributes:
        n: units.
        total: sum of their outcomes, each in [0, 1].
        squares: sum of the squares of these.
    """

    n: int
    total: float
    squares: float


@dataclass(frozen=True)
class Claim:
    """A claim and how it is bet on.

    Attributes:
        bound: of the difference candidate less control, or of the candidate's mean where there is no control.
        above: the difference is claimed to lie above the bound; else below.
        alpha: probability, at most, of ever believing the claim where it is wrong.
        gaps: (distance of the difference from the bound that the bet is best for, its share of the money); shares sum to 1.
    """

    bound: float
    above: bool
    alpha: float
    gaps: tuple[tuple[float, float], ...]

    @property
    def enough(self) -> float:
        """Evidence from which on the claim is believed."""
        return 1.0 / self.alpha

    def first(self) -> list[float]:
        """Logarithm of the winnings of each bet before the first unit."""
        return [0.0] * len(self.gaps)

    def bet(
        self, winnings: list[float], candidate: Part, control: Part | None, *, mean: float = 0.0, variance: float
    ) -> list[float]:
        """Logarithm of the winnings after a block; the list itself is not changed.

        Args:
            winnings: before it.
            candidate, control: the block; a block without units of one arm teaches nothing. No control: the candidate's mean is held
                against the bound itself.
            mean: of the control's outcomes, as known before the block; 0 without a control.
            variance: of an outcome, as known before the block, above 0.
        """
        if candidate.n == 0 or (control is not None and control.n == 0):
            return winnings
        of_candidate, of_control = 1.0, 0.0
        if control is not None:
            of_candidate = control.n / (candidate.n + control.n)
            of_control = 1.0 - of_candidate
        centre = mean + self.bound
        # What a single unit may cost at most decides how much may be bet.
        if self.above:
            worst = max(of_candidate * centre, of_control * (1.0 - mean))
        else:
            worst = max(of_candidate * (1.0 - centre), of_control * mean)
        most = _MOST_LOST / worst if worst > 0 else math.inf
        side = 1.0 if self.above else -1.0
        after = []
        for before, (gap, _) in zip(winnings, self.gaps, strict=True):
            size = side * min(gap / variance, most)
            gain = _won(size * of_candidate, centre, candidate)
            if control is not None:
                gain += _won(-size * of_control, mean, control)
            after.append(before + gain)
        return after

    def strength(self, winnings: list[float]) -> float:
        """The evidence: all money together, in units of what it was; at most exp(700)."""
        highest = max(winnings)
        together = sum(share * math.exp(won - highest) for won, (_, share) in zip(winnings, self.gaps, strict=True))
        return math.exp(min(_STRONGEST, highest + math.log(together)))


def _won(size: float, centre: float, part: Part) -> float:
    """Logarithm of the product of 1 + size (x - centre) over a part's outcomes x, or less.

    Of outcomes that are 0 or 1 it is exact. Of others only the sums are known: the logarithm is concave in x, so it lies
    above its chord from 0 to 1, and above z - c z^2 with z = size (x - centre) and the c that fits the least z; the better of the two
    bounds is taken (the second is the empirical-Bernstein one of Waudby-Smith and Ramdas, section 3.2).
    """
    at_one, at_zero = size * (1.0 - centre), -size * centre
    chord = part.total * math.log1p(at_one) + (part.n - part.total) * math.log1p(at_zero)
    if part.squares >= part.total - 1e-9:
        return chord
    least = min(at_one, at_zero)
    curve = (least - math.log1p(least)) / (least * least) if least < -1e-6 else 0.500001
    spread = part.squares - 2.0 * centre * part.total + part.n * centre * centre
    return max(chord, size * (part.total - part.n * centre) - curve * size * size * spread)
