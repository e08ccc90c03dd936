"""Which notebooks may run side by side, and running them so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vfmgl_lib.tasks.records import find_task

# Notebook -> those of its task that it waits for, since it loads their studies or reads their tables. One that is not here, such as one of
# your own, waits for all before it.
NEEDS = {
    "01_data_preparation": (),
    "02_hgkt": (),
    "03_ddbl": (),
    "04_federated_rounds": ("03_ddbl",),
    "05_comparison": ("03_ddbl",),
    "06_generalization": ("05_comparison",),
    "07_interpretability": ("03_ddbl",),
}
# These run when all those before them have, of every task, and one at a time: latency is measured with nothing beside it, and the paper's
# comparison reads the tables of all tasks.
ALONE = ("08_lightweight", "09_paper_vs_measured")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Step:
    """One notebook for one task, by its name or file."""

    task: str
    notebook: Path

    @property
    def stem(self) -> str:
        return self.notebook.stem

    @property
    def name(self) -> str:
        return f"{find_task(self.task).name} {self.stem}"


def waits_for(steps: Sequence[Step]) -> dict[Step, set[Step]]:
    """Step -> the steps that must have ended, well or not, before it begins; a step that is not among `steps` is not waited for."""
    waits = {}
    for place, step in enumerate(steps):
        before = steps[:place]
        if step.stem in ALONE:
            waits[step] = {other for other in steps if other.stem < step.stem} | {other for other in before if other.stem == step.stem}
        else:
            own = [other for other in before if other.task == step.task]
            waits[step] = {other for other in own if other.stem in NEEDS.get(step.stem, [one.stem for one in own])}
    return waits


def run_side_by_side(
    run: Callable[[Step], Result],
    waits: Mapping[Step, Collection[Step]],
    jobs: int,
    finished: Callable[[Step, Result], object],
    stopping: threading.Event,
) -> None:
    """Runs all steps, at most `jobs` at a time, each in a thread; first those on which the longest chains of others wait.

    Args:
        waits: of `waits_for`.
        finished: called with every step that has ended, in this thread.
        stopping: set when this is interrupted or something raises; `run` is to end then, and is waited for.
    """
    heights = _heights(waits)
    waiting, running, ended = sorted(waits, key=lambda step: -heights[step]), dict[Future[Result], Step](), set[Step]()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                ready = [step for step in waiting if ended.issuperset(waits[step])]
                for step in ready[: jobs - len(running)]:
                    waiting.remove(step)
                    running[pool.submit(run, step)] = step
                done = wait(running, return_when=FIRST_COMPLETED).done
                for future in [future for future in running if future in done]:
                    step = running.pop(future)
                    ended.add(step)
                    finished(step, future.result())
        except BaseException:
            stopping.set()
            raise


def _heights(waits: Mapping[Step, Collection[Step]]) -> dict[Step, int]:
    """Step -> how many steps the longest chain has that waits for it; `waits` names earlier steps first or later, but no circle."""
    heights: dict[Step, int] = {}

    def height(step: Step) -> int:
        if step not in heights:
            heights[step] = max((1 + height(other) for other in waits if step in waits[other]), default=0)
        return heights[step]

    for step in waits:
        height(step)
    return heights
