"""One number of a result table, with its count and, where it is not defined, the reason."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A named value over n samples; `reason` says why a value is NaN."""

    name: str
    value: float
    n: int
    reason: str = ""

    @classmethod
    def share(cls, name: str, part: int, whole: int, reason: str) -> Metric:
        """part / whole, NaN with `reason` where whole is 0."""
        return cls(name, part / whole, whole) if whole else cls(name, math.nan, 0, reason)
