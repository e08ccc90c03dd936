"""The centres that have joined a study, and what each has declared: compared before the first round in which it takes part.

What was declared is kept on the server's disk. A number of samples is a centre's weight in the mean, and the teacher's weights must be the
same everywhere: neither changes without the coordinator.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vfmgl_lib import __version__
from vfmgl_lib.base.files import content_of, write_json
from vfmgl_lib.config import StudySettings
from vfmgl_lib.federation.servers import Update, UpdateError, is_count

log = logging.getLogger(__name__)
MEMBERS = "members.json"
REMEDY = "remove it, and all centres declare anew what they have"
MOST_SAMPLES = 10**8  # of one centre; the largest public sets have some millions


class Members:
    """Who has joined.

    Args:
        settings: the study's.
        file: where it is kept over a restart; None: nowhere.
    Raises: ValueError: a file that is damaged.
    """

    def __init__(self, settings: StudySettings, file: Path | None = None):
        self.settings, self.file = settings, file
        self.joined: set[str] = set()  # since this server was started
        self.teacher = ""
        self.samples: dict[str, int] = {}
        if file and file.is_file():
            with content_of(file, REMEDY):
                content = json.loads(file.read_text(encoding="utf-8"))
                self.teacher, self.samples = str(content["teacher"]), dict(content["samples"])
                if not all(map(is_count, self.samples.values())):
                    raise TypeError("numbers of samples must be whole numbers")

    def agree_on_teacher(self, declared: Mapping[str, Mapping[str, Any]]) -> None:
        """Takes the teacher that most of these centres have, before any has joined; none where there is no such one."""
        counts = Counter(str(found.get("teacher", ""))[:80] for found in declared.values()).most_common(2)
        if not self.teacher and (len(counts) == 1 or (len(counts) == 2 and counts[0][1] > counts[1][1])):
            self.teacher = counts[0][0]

    def admit(self, center: str, found: Mapping[str, Any]) -> None:
        """Compares what a centre declares with the study and with the others; it has joined when this returns.

        Raises: UpdateError: naming what differs, and the remedy.
        """
        expected = {"center": center, "study": self.settings.key(), "vfmgl_lib": __version__}
        for name, value in expected.items():
            if found.get(name) != value:
                raise UpdateError(f"its {name} must be {value}, it says {found.get(name)!r:.80}; give it this study's settings and version")
        teacher, samples = str(found.get("teacher", ""))[:80], found.get("samples")
        if self.teacher and teacher != self.teacher:
            raise UpdateError(f"its teacher must be {self.teacher}, it says {teacher}; all need the same weights")
        least, most = (1, MOST_SAMPLES) if self.settings.exchange.share_counts else (0, 0)
        if not is_count(samples) or not least <= int(samples or 0) <= most:
            raise UpdateError(f"its number of samples must be a whole number from {least} to {most}, it says {samples!r:.80}")
        if self.samples.get(center, samples) != samples:
            before, place = self.samples[center], self.file or "the memory of this server"
            raise UpdateError(
                f"it declares {samples} samples and declared {before} before; if the coordinator agrees, take it out of {place} and start "
                "the server again"
            )
        self.teacher = self.teacher or teacher
        self.samples[center] = int(samples or 0)
        self.joined.add(center)
        if self.file:
            write_json(self.file, {"teacher": self.teacher, "samples": self.samples})
        log.info("centre %s has joined%s", center, f" with {samples} samples" if samples else "")

    def check(self, update: Update) -> None:
        """Raises: UpdateError: another number of samples than the centre has declared."""
        declared = self.samples[update.center]
        if update.samples != declared:
            raise UpdateError(f"update of centre {update.center}: {update.samples} samples, it declared {declared} when it joined")
