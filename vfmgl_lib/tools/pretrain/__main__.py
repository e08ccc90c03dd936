"""vfmgl pretrain: trains the pocket teacher; what was interrupted goes on when the same call is made again."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from vfmgl_lib.base.checkpoint import CheckpointError
from vfmgl_lib.base.surroundings import print_anything
from vfmgl_lib.models.teachers import load_teacher
from vfmgl_lib.tools.pretrain.phantom_bank import PretrainError
from vfmgl_lib.tools.pretrain.training import Schedule, pretrain

HELP = {
    "steps": "of the optimiser",
    "scenes": "drawn for a step",
    "phantoms": "of a step",
    "bank": "phantoms of every layout to choose from",
    "lr": "learning rate of AdamW, which a cosine lowers from the first step to the last",
    "weight_decay": "of matrices",
    "warmup": "steps at the beginning in which the rate rises to it",
    "seed": "of everything",
}


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vfmgl pretrain", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("runs/pretrain"), metavar="DIR", help="of this run (default: runs/pretrain)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: cpu")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that draw the phantoms (default: the cores)")
    for field in fields(Schedule):
        text = f"{HELP[field.name]} (default: {field.default})"
        parser.add_argument("--" + field.name.replace("_", "-"), type=type(field.default), default=field.default, help=text)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains.

    Returns: 0, 1 if the run cannot be had as asked for, 130 if interrupted.
    """
    print_anything()
    parser = command_line()
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU that torch can use")
    if given.processes < 1:
        parser.error(f"--processes must be at least 1, got {given.processes}")
    try:
        schedule = Schedule(**{field.name: getattr(given, field.name) for field in fields(Schedule)})
        weights = pretrain(given.out, schedule, torch.device(given.device), given.processes)
    except (PretrainError, CheckpointError, FloatingPointError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted; the same call goes on after the last checkpoint\n")
        return 130
    teacher = load_teacher(str(weights), grid=8)
    sys.stdout.write(f"{weights}: {weights.stat().st_size / 2**20:.2f} MiB, {teacher.description}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
