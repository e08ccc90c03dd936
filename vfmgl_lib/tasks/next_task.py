"""The task that a table's labels are for: its classes in order, its use, and the command that writes it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from vfmgl_lib.tasks.words import NEGATIVE_WORDS, folder_word


def class_order(labels: Iterable[str]) -> list[str]:
    """The classes of a table in the order of their numbers: those that mean no disease first, then by name."""
    return sorted(set(labels) - {""}, key=lambda name: (not NEGATIVE_WORDS & set(folder_word(name).split("_")), name))


def use_of(classes: Sequence[str]) -> str:
    """What a model of these classes does, after "it"."""
    return f"tells {classes[-1]} from {', '.join(classes[:-1])}"


def next_step(labels: Iterable[str]) -> str:
    """The command that writes a task of these labels, ready to copy."""
    classes = class_order(labels)
    if len(classes) < 2:
        return f"the task is not written yet: the images have one class only, {classes[0]}, expected at least two"
    if any("," in name or "/" in name for name in classes):
        return "the task is not written yet, and classes are called without ',' and '/': write other words into the list and join it again"
    command = ["vfmgl", "data", "new-task", "my_task.yaml", "--kind", "classification", "--classes", ",".join(classes)]
    command += ["--use", use_of(classes)]
    positive = f" (the last, {classes[-1]}, is the positive one: check it)" if len(classes) == 2 else ""
    return f"the task is not written yet{positive}: {shlex.join(command)}"
