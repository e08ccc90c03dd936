"""How light a model is: parameters and multiply-accumulates, counted; latency and memory, measured in a process of its own.

A MAC is one multiplication with one addition; a FLOP is either of them, so FLOPs = 2 MACs. `torch.utils.flop_counter` counts the FLOPs
of convolutions and matrix products; normalisation, activation and pooling are left out. The paper's "GFLOPs" (1.82 for the ResNet18,
21.96 for the ViT-B/14) are MACs; those of the ViT are what is left without the two products inside attention (23.16 − 1.22).
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vfmgl_lib.base.places import LIBRARY
from vfmgl_lib.config import StudySettings
from vfmgl_lib.config.sections import FootprintSettings
from vfmgl_lib.models.networks import network_for_counting, network_form
from vfmgl_lib.models.students import build_student
from vfmgl_lib.models.teachers import architecture

# The two products inside attention, as operators of its plain and its fused forms.
ATTENTION = ("aten.bmm", "aten.baddbmm", "aten._scaled_dot_product")


def count(model: nn.Module, image_size: int) -> dict[str, int]:
    """Counts for one image, on a copy without content: nothing is computed.

    Args:
        model: takes (B, 3, S, S).
        image_size: S, pixels.
    Returns: parameters; macs; attention_macs, those of them inside attention; flops, 2 MACs; bytes of the weights and statistics.
    """
    empty = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        empty(torch.zeros(1, 3, image_size, image_size, device="meta"))
    operators = counter.get_flop_counts().get("Global", {})
    attention = sum(flops for operator, flops in operators.items() if str(operator).startswith(ATTENTION))
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs": counter.get_total_flops() // 2,
        "attention_macs": attention // 2,
        "flops": counter.get_total_flops(),
        "bytes": sum(tensor.nbytes for tensor in model.state_dict().values()),
    }


def student_shape(settings: StudySettings) -> nn.Module:
    """A student of these settings without content."""
    with torch.device("meta"):
        return build_student(settings.student.name, settings.data.class_count, settings.student.width)


def teacher_shape(source: str, image_size: int | None = None) -> nn.Module:
    """The network of a timm teacher without content.

    Args:
        image_size: of its images; None: the one that it was built for.
    Raises: TeacherError: a file that does not say what network it is of.
    """
    name, arguments, _ = architecture(source)
    with torch.device("meta"):
        return network_for_counting(name, arguments, image_size or network_form(name, arguments).own)


def _teacher_side(settings: StudySettings) -> int:
    """Pixels along a side of what the teacher sees."""
    name, arguments, _ = architecture(settings.teacher.source)
    return network_form(name, arguments).side(name, settings.teacher.grid, settings.teacher.image_size)


def counted(settings: StudySettings, what: str) -> pd.DataFrame:
    """Teacher and student of these settings, counted: model, network, image_size, and the columns of `count`.

    Args:
        what: which settings these are, e.g. "paper": the column `settings`.
    """
    source, student = settings.teacher.source, settings.student
    side = _teacher_side(settings)
    rows = [
        {"model": "teacher", "network": architecture(source)[0], "image_size": side, **count(teacher_shape(source, side), side)},
        {
            "model": "student",
            "network": student.network,
            "image_size": settings.data.image_size,
            **count(student_shape(settings), settings.data.image_size),
        },
    ]
    return pd.DataFrame(rows).assign(settings=what)


def measured(
    settings: StudySettings, exported: Path, device: str = "cpu", footprint_settings: FootprintSettings | None = None
) -> pd.DataFrame:
    """Teacher and student under torch, and the student exported, at the sizes of these settings; with a GPU, the first two there too.

    Args:
        settings: whose networks and sizes, e.g. the paper's.
        exported: the student as ONNX.
        footprint_settings: how much is measured; None: as `settings` says.
    Returns: as `footprint`.
    """
    how = footprint_settings or settings.footprint
    name, arguments, _ = architecture(settings.teacher.source)
    size, student, seen = settings.data.image_size, settings.student, _teacher_side(settings)
    teachers = {"teacher": {"teacher": name, "arguments": arguments, "image_size": seen}}
    students = {"student": {"student": student.name, "classes": settings.data.class_count, "width": student.width, "image_size": size}}
    tables = []
    for place in dict.fromkeys(("cpu", device)):
        tables.append(footprint(teachers, batches=how.teacher_batches, device=place, seconds=how.seconds))
        tables.append(footprint(students, batches=how.student_batches, device=place, seconds=how.seconds))
    onnx = {"student, exported": {"onnx": str(exported)}}
    tables.append(footprint(onnx, batches=how.student_batches, seconds=how.seconds))
    return pd.concat(tables, ignore_index=True)


def footprint(
    models: dict[str, dict], *, batches: Sequence[int] = (1, 32), device: str = "cpu", threads: int | None = None, seconds: float = 5.0
) -> pd.DataFrame:
    """Latency and peak memory, each model and batch size in a fresh process, so that none pays for what another left.

    Args:
        models: name -> what to load, see `evaluation.process_footprint`.
        batches: images at once.
        device: "cpu" or "cuda".
        threads: None: as this process has.
        seconds: how long each is repeated; a run that takes longer is made once, without warming up.
    Returns: model, runtime, device, threads, batch, runs, p50_ms, p95_ms (NaN of fewer than five runs), images_per_second,
        peak_bytes (the whole process at its highest), added_bytes (above what the process had before the model was loaded), gpu_bytes
        (highest allocated; NaN on a CPU).
    Raises: RuntimeError: a process that failed; the message holds its last line.
    """
    threads = threads or torch.get_num_threads()
    rows = []
    for name, spec in models.items():
        for batch in batches:
            order = spec | {"batch": batch, "device": device, "threads": threads, "seconds": seconds}
            command = [sys.executable, "-m", "vfmgl_lib.evaluation.process_footprint"]
            root = str(LIBRARY.parent)
            done = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True, cwd=root)
            if done.returncode:
                said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
                raise RuntimeError(f"measuring {name} at batch {batch} failed: {said[-1]}")
            rows.append({"model": name, "device": device, "threads": threads, "batch": batch, **json.loads(done.stdout.splitlines()[-1])})
    table = pd.DataFrame(rows)
    table["images_per_second"] = table["batch"] * 1000 / table["p50_ms"]
    columns = ["model", "runtime", "device", "threads", "batch", "runs", "p50_ms", "p95_ms", "images_per_second"]
    return table[[*columns, "peak_bytes", "added_bytes", "gpu_bytes"]]
