"""Other shared models than the plain weighted mean: against one centre that sends nonsense, or that says it has all the samples.

The coordinate-wise median and trimmed mean (Yin et al. 2018, "Byzantine-robust distributed learning: towards optimal statistical rates",
ICML) take every value of the model by itself. They bound what one centre can do to it, and cost accuracy where centres honestly differ. All
of these need the updates of a round at once: the server holds one model a centre.

    >>> [round(share, 3) for share in capped_shares([800, 150, 50], 0.5)]
    [0.5, 0.375, 0.125]
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vfmgl_lib.config import StudySettings
from vfmgl_lib.federation.servers import State, WeightedMean


class Gathered(WeightedMean):
    """A shared model that is made of all updates at once; this one is the mean in which no centre has more than a share.

    Args:
        weights: see `WeightedMean`.
        largest_share: of one centre, in (0, 1]; of fewer centres than its inverse all count alike.
    """

    def __init__(self, weights: str = "samples", largest_share: float = 1.0):
        super().__init__(weights)
        self.largest_share = largest_share
        self._states: list[State] = []
        self._counts: list[int] = []

    def _take(self, state: State, share: int) -> None:
        self._states.append(state)
        self._counts.append(share)

    def _value(self, name: str) -> Tensor:
        return self._combined(torch.stack([state[name].double() for state in self._states]))

    def _combined(self, values: Tensor) -> Tensor:
        """values (K, ...) of the centres, in float64 -> (...)."""
        shares = capped_shares(self._counts, self.largest_share)
        return sum((value * share for value, share in zip(values, shares, strict=True)), torch.zeros_like(values[0]))


class Median(Gathered):
    """The coordinate-wise median; of an even number of centres the mean of the middle two."""

    def _combined(self, values: Tensor) -> Tensor:
        ordered = values.sort(0).values
        return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2


class TrimmedMean(Gathered):
    """The coordinate-wise mean without the lowest and the highest values.

    Args:
        trimmed_share: of the centres, in [0, 0.5), left out at either end, rounded down.
    """

    def __init__(self, weights: str = "samples", trimmed_share: float = 0.1):
        super().__init__(weights)
        self.trimmed_share = trimmed_share

    def _combined(self, values: Tensor) -> Tensor:
        cut = int(self.trimmed_share * len(values))
        return values.sort(0).values[cut : len(values) - cut].mean(0)


def mean_of(settings: StudySettings) -> Callable[[str], WeightedMean]:
    """What a study's averaging server adds the updates of a round to, by its weights."""
    federation, largest = settings.federation, settings.faults.largest_share
    if federation.aggregation == "median":
        return Median
    if federation.aggregation == "trimmed_mean":
        return lambda weights: TrimmedMean(weights, federation.trimmed_share)
    return WeightedMean if largest == 1 else lambda weights: Gathered(weights, largest)


def capped_shares(counts: list[int], largest: float) -> list[float]:
    """Shares in proportion to `counts`, but none above `largest` (or 1/K, if that is more): what is cut goes to the others."""
    limit, capped = max(largest, 1 / len(counts)), set[int]()
    while True:
        left, rest = 1 - limit * len(capped), sum(count for place, count in enumerate(counts) if place not in capped)
        shares = [limit if place in capped else left * (count / rest) for place, count in enumerate(counts)]
        over = {place for place, share in enumerate(shares) if share > limit * (1 + 1e-9)}
        if not over:
            return shares
        capped |= over
