"""Pair matching: ResNet18's five stages x four ViT-B blocks, against the direct definition.

    python benchmarks/matching.py                # B = 4, teacher grid 16: some minutes, nearly all of them the reference's
    python benchmarks/matching.py --grid 64      # the released code's grid
    python benchmarks/matching.py --parts forms  # where Gram and direct form break even, without the reference

`forward+backward` is the loss and its gradients by student, weight, bias, channel weights and pair weights; `double backward` is that
with the graph kept, and a Hessian-vector product: the derivative of <gradients, directions> by all five. Both sides hold the graph of
all stages at once, as a step does. The teacher's terms are prepared once outside the timing (a step needs them T + 1 times and a run
more often); `+terms` has them inside. Correctness is held against the reference in float64, sample by sample. Memory is what the double
backward adds at its peak to a new process that holds the inputs.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import vfmgl_lib  # noqa: F401  before torch: it says how torch's threads wait

# isort: split
import torch
from measure import Row, command_line, measure, ratios, report
from torch import Tensor

from vfmgl_lib.kernels import matching
from vfmgl_lib.kernels.matching import TeacherTerms, matching_form, pair_matching, pair_matching_reference, prepare_teacher

STAGES = {"stem": (64, 112), "layer1": (64, 56), "layer2": (128, 28), "layer3": (256, 14), "layer4": (512, 7)}  # channels, side
BLOCKS, CHANNELS = 4, 768  # ViT-B
LOSS, GRADIENT = 1e-6, 1e-5  # of the loss, and of a derivative's norm, relative
SMALL = ((64, 8), (64, 14), (128, 16), (128, 18), (128, 20), (256, 14), (256, 20), (256, 24), (512, 7))  # channels, side: near break-even
SHARED = (1, 2)  # weight and bias belong to all samples
KINDS = ("forward+backward", "double backward")
PARTS = (*KINDS, "memory", "forms")

Matching = Callable[..., Tensor]


class Stage(NamedTuple):
    """student, weight, bias, channel_weights and pair_weights of `pair_matching`, and a direction for each."""

    leaves: tuple[Tensor, ...]
    directions: tuple[Tensor, ...]


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--batch", type=int, default=4, help="images (default 4)")
    parser.add_argument("--grid", type=int, default=16, help="teacher tokens along a side (default 16)")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES), help="student stages (default: all five)")
    parser.add_argument("--parts", nargs="+", default=list(PARTS[:3]), choices=PARTS, help="default: all but forms")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    if "forms" in arguments.parts:
        break_even(arguments)
    if set(PARTS[:3]) & set(arguments.parts):
        against_reference(arguments)


def against_reference(arguments) -> None:
    where = arguments.batch, arguments.grid, tuple(arguments.stages), arguments.device
    teacher, stages = problem(*where)
    terms = {name: prepare(teacher, stage) for name, stage in stages.items()}
    print("forms: " + ", ".join(f"{name} {stage.form}" for name, stage in terms.items()))
    checks, rows = correctness(teacher, stages, terms), []
    for kind in (kind for kind in KINDS if kind in arguments.parts):
        rows += speed(kind, teacher, stages, terms, arguments.runs)
    if "memory" in arguments.parts:
        memory = {side: peak_memory(one_product, side, *where).growth for side in ("reference", "ours")}
        rows += [Row(f"peak extra memory, {side}", [size / 2**20], "MiB") for side, size in memory.items()]
        rows.append(Row("peak extra memory, ratio", [memory["reference"] / memory["ours"]], "x"))
    some = "" if list(stages) == list(STAGES) else " stages=" + "+".join(stages)
    report(
        "matching",
        f"B={arguments.batch} M={BLOCKS} C_t={CHANNELS} g={arguments.grid}{some} float32",
        rows,
        checks=checks,
        device=arguments.device,
        packages=("torch",),
        csv_file=arguments.csv,
    )


def speed(kind: str, teacher: Tensor, stages: dict[str, Stage], terms: dict[str, TeacherTerms], runs: int) -> list[Row]:
    functions = {
        "reference": lambda: work(kind, pair_matching_reference, dict.fromkeys(stages, teacher), stages),
        "ours": lambda: work(kind, pair_matching, terms, stages),
        "ours+terms": lambda: work(kind, pair_matching, dict.fromkeys(stages, teacher), stages),
    }
    seconds = measure(functions, runs)
    return [
        *(Row(f"{kind}, {name}", values) for name, values in seconds.items()),
        Row(f"{kind}, ratio", ratios(seconds, "reference", "ours"), "x"),
        Row(f"{kind}, ratio+terms", ratios(seconds, "reference", "ours+terms"), "x"),
    ]


def break_even(arguments) -> None:
    """Where one form becomes cheaper than the other; `PASSES` in the kernel rests on this."""
    for channels, side in SMALL:
        name = f"{channels}@{side}"
        teacher, stages = problem(arguments.batch, arguments.grid, (name,), arguments.device)
        terms = {}
        for form in ("direct", "gram"):
            with patch.object(matching, "matching_form", lambda *sizes, form=form: form):
                terms[form] = {name: prepare(teacher, stages[name])}
        derivatives = {form: work(KINDS[1], pair_matching, part, stages)[name] for form, part in terms.items()}
        equal = [distance(a, b) <= GRADIENT for part in zip(*derivatives.values(), strict=True) for a, b in zip(*part, strict=True)]
        rows = []
        for kind in KINDS:
            functions = {
                form: lambda kind=kind, part=part, stages=stages: work(kind, pair_matching, part, stages) for form, part in terms.items()
            }
            rows.append(Row(f"{kind}, direct / gram", ratios(measure(functions, arguments.runs, warm_up=2), "direct", "gram"), "x"))
        pixels = side**2
        even = channels * (min(arguments.grid**2, pixels) + channels) / pixels - channels
        chosen = matching_form(arguments.grid, (side, side), channels)
        report(
            "matching forms",
            f"C_n={channels} side={side} B={arguments.batch} g={arguments.grid}, equal at PASSES = {even:.0f}, chosen: {chosen}",
            rows,
            checks={f"both forms within {GRADIENT:g}": all(equal)},
            device=arguments.device,
            packages=("torch",),
            csv_file=arguments.csv,
        )


def problem(batch: int, grid: int, names: tuple[str, ...], device: str) -> tuple[Tensor, dict[str, Stage]]:
    """Teacher maps (B, M, C_t, g, g), and student stages by name with projections and weights; "C@side" is a stage too."""
    generator = torch.Generator().manual_seed(0)

    def uniform(bound: float, *shape: int) -> Tensor:
        return (2 * torch.rand(shape, generator=generator) - 1) * bound

    teacher, stages = torch.randn(batch, BLOCKS, CHANNELS, grid, grid, generator=generator).to(device), {}
    for name in names:
        width, side = STAGES[name] if name in STAGES else map(int, name.split("@"))
        tensors = (
            torch.randn(batch, width, side, side, generator=generator).relu(),
            uniform(width**-0.5, BLOCKS, CHANNELS, width),
            uniform(width**-0.5, BLOCKS, CHANNELS),
            torch.randn(batch, BLOCKS, CHANNELS, generator=generator).softmax(-1),
            6 * torch.rand(batch, BLOCKS, generator=generator),
        )
        directions = tuple(torch.randn(tensor.shape, generator=generator).to(device) for tensor in tensors)
        stages[name] = Stage(tuple(tensor.to(device).requires_grad_() for tensor in tensors), directions)
    return teacher, stages


def prepare(teacher: Tensor, stage: Stage) -> TeacherTerms:
    student = stage.leaves[0]
    return prepare_teacher(teacher, student.shape[2:], student.shape[1])


def work(kind: str, function: Matching, teachers: dict, stages: dict[str, Stage]) -> dict[str, tuple]:
    """Loss, gradients and, for a Hessian-vector product, second derivatives of every stage, from one graph over all stages."""
    losses = {name: function(teachers[name], *stage.leaves) for name, stage in stages.items()}
    leaves, along = ([tensor for stage in stages.values() for tensor in stage[part]] for part in (0, 1))
    first = torch.autograd.grad(sum(losses.values()).sum(), leaves, create_graph=kind == KINDS[1])
    second = torch.autograd.grad(first, leaves, along) if kind == KINDS[1] else first
    places = {name: slice(5 * n, 5 * (n + 1)) for n, name in enumerate(stages)}
    return {name: ([losses[name].detach()], [g.detach() for g in first[place]], second[place]) for name, place in places.items()}


def exact(teacher: Tensor, stage: Stage) -> tuple:
    """As `work` gives for one stage, by the reference in float64 on one sample after another: it separates over the samples."""
    losses, firsts, seconds = [], [], []
    for b in range(len(teacher)):
        own, along = ([(x if n in SHARED else x[b : b + 1]).detach().double() for n, x in enumerate(part)] for part in stage)
        own = [leaf.requires_grad_() for leaf in own]
        loss = pair_matching_reference(teacher[b : b + 1].double(), *own)
        first = torch.autograd.grad(loss.sum(), own, create_graph=True)
        seconds.append(torch.autograd.grad(first, own, along))
        losses.append(loss.detach())
        firsts.append([gradient.detach() for gradient in first])

    def joined(parts: list) -> list[Tensor]:
        return [sum(part) if n in SHARED else torch.cat(part) for n, part in enumerate(zip(*parts, strict=True))]

    return [torch.cat(losses)], joined(firsts), joined(seconds)


def correctness(teacher: Tensor, stages: dict[str, Stage], terms: dict[str, TeacherTerms]) -> dict[str, bool]:
    """Loss, gradients and Hessian-vector products of every stage against `exact`; a failed check says by how much."""
    checks = {}
    ours = work(KINDS[1], pair_matching, terms, stages)
    for name, stage in stages.items():
        labels, tolerances = ("loss", "gradients", KINDS[1]), (LOSS, GRADIENT, GRADIENT)
        for label, tolerance, one, other in zip(labels, tolerances, ours[name], exact(teacher, stage), strict=True):
            error = max(distance(a, b) for a, b in zip(one, other, strict=True))
            checks[f"{name}: {label} within {tolerance:g} of the reference, is {error:.1e}"] = error <= tolerance
    return checks


def distance(one: Tensor, other: Tensor) -> float:
    """Norm of the difference relative to the norm of `other`."""
    return ((one.double() - other.double()).norm() / other.double().norm()).item()


def one_product(side: str, batch: int, grid: int, names: tuple[str, ...], device: str) -> Callable[[], object]:
    teacher, stages = problem(batch, grid, names, device)
    if side == "reference":
        return lambda: work(KINDS[1], pair_matching_reference, dict.fromkeys(stages, teacher), stages)
    terms = {name: prepare(teacher, stage) for name, stage in stages.items()}
    return lambda: work(KINDS[1], pair_matching, terms, stages)


class Peak(NamedTuple):
    """Bytes: what a call added at its peak to the memory held before it, and the peak itself (CPU: of the whole process)."""

    growth: int
    total: int


def peak_memory(prepare: Callable[..., Callable[[], object]], *arguments: object) -> Peak:
    """Memory of the second call of `prepare(*arguments)()` in a new process (the first loads libraries and fills their caches).

    Args:
        prepare: a module's function (a new process finds it by name): builds the inputs, returns what is to be called.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, prepare, arguments).result()


def _peak(prepare: Callable[..., Callable[[], object]], arguments: tuple) -> Peak:
    function = prepare(*arguments)
    function()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return Peak(torch.cuda.max_memory_allocated() - before, torch.cuda.max_memory_allocated())
    # Linux with glibc: free blocks go back, and the peak that the kernel keeps starts anew. getrusage's ru_maxrss cannot be set
    # back, and starts at what the parent process held.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    function()
    peak = _resident("VmHWM")
    return Peak(peak - before, peak)


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
