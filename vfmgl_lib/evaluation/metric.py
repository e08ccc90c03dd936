"""One number of a result table, with its count and, where it is not defined, the reason."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A named value over n samples, a share with its counts; `reason` says why a value is NaN."""

    name: str
    value: float
    n: int
    reason: str = ""
    numerator: float = math.nan
    denominator: float = math.nan

    @classmethod
    def share(cls, name: str, part: int, whole: int, reason: str) -> Metric:
        """part / whole, NaN with `reason` where whole is 0."""
        return cls(name, part / whole if whole else math.nan, whole, "" if whole else reason, part, whole)
