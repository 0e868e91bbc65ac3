"""the verdicts of two judges on the same answers -> how far they agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memory_r1.bench.score import Verdicts


@dataclass(frozen=True)
class Agreement:
    """How far two judges agree on the answers that both decided on."""

    n: int
    both_correct: int
    both_wrong: int
    only_first: int
    """The first judge says CORRECT, the second WRONG."""
    only_second: int

    @property
    def agreed(self) -> float | None:
        """Share (0..100) of equal verdicts, one decimal; None of none."""
        return round(100 * (self.both_correct + self.both_wrong) / self.n, 1) if self.n else None

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa: agreement beyond chance, at most 1; 0 is chance.

        None where it is not defined: nothing was judged by both, or each judge has only one
        verdict for everything, and it is the same.
        """
        first, second = (self.both_correct + n for n in (self.only_first, self.only_second))
        # Times n squared, so that all is whole numbers.
        chance = first * second + (self.n - first) * (self.n - second)
        seen = self.n * (self.both_correct + self.both_wrong)
        return (seen - chance) / (self.n**2 - chance) if self.n**2 != chance else None

    def as_json(self) -> dict[str, Any]:
        """All numbers."""
        return {**vars(self), "agreed": self.agreed, "kappa": self.kappa}


def agreement(a: Verdicts, b: Verdicts) -> Agreement:
    """Compare the verdicts of two judges on the same answers; the unscored are left out."""
    pairs = [(a[key], b[key]) for key in a.keys() & b.keys()]
    both = [pair for pair in pairs if None not in pair]
    return Agreement(
        n=len(both),
        both_correct=both.count((True, True)),
        both_wrong=both.count((False, False)),
        only_first=both.count((True, False)),
        only_second=both.count((False, True)),
    )
