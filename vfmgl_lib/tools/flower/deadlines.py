"""How long a round waits for its centres: a multiple of the longest time that any of them has taken, and never more than the bound."""

from __future__ import annotations

from collections.abc import Iterable

from vfmgl_lib.config.sections import FaultSettings

LEAST = 600.0  # seconds: a site that was started again needs some minutes to be back, however short the rounds are


def joining_time(wait: float, last_round: int) -> float:
    """Seconds that a server which goes on after a round waits for its centres; those that come later join in the rounds.

    Args:
        wait: what the coordinator has set for the start of the study.
    """
    return min(wait, LEAST) if last_round else wait


class Deadlines:
    """The times that the centres of a study have taken, and the deadline that follows.

    Args:
        settings: `deadline` is the bound, `deadline_factor` the multiple.
        seconds: centre -> the longest time of an answer in earlier rounds.
    """

    def __init__(self, settings: FaultSettings, seconds: dict[str, float] | None = None):
        self.settings, self.seconds = settings, dict(seconds or {})

    def took(self, center: str, seconds: float) -> None:
        """An answer came after so many seconds. The longest counts: a round can be short for once."""
        self.seconds[center] = max(seconds, self.seconds.get(center, 0.0))

    def limit(self, centers: Iterable[str]) -> float:
        """Seconds from the start of a round of these centres until it ends without those that have not answered.

        The bound, before any centre has answered. The multiple twice, while there is one among them whose own time is not known: it may
        have more images or a slower machine than the others.
        """
        if not self.seconds:
            return self.settings.deadline
        factor = self.settings.deadline_factor
        unknown = any(center not in self.seconds for center in centers)
        return min(self.settings.deadline, max(LEAST, (factor**2 if unknown else factor) * max(self.seconds.values())))
