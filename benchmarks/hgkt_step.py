"""One whole HGKT step against the student's own forward+backward on the task loss.

    python benchmarks/hgkt_step.py                     # ResNet18, 224 px, B = 4: a minute or two
    python benchmarks/hgkt_step.py --direct            # also the direct form with replayed virtual steps: about a minute a step
    python benchmarks/hgkt_step.py --student unet      # UNet, 256 px, B = 2, Dice loss

Teacher features are given: random (B, 4, 768, 16, 16), as ViT-B's. T = 2 and the other settings are the paper's. Baselines, all with the
same kept step, meta-networks and optimisers:

    unrolled   the virtual steps as one graph, differentiated by autograd through the meta-networks (`HGKT.unrolled_outer_loss`)
    direct     pair matching by its definition, torch's own convolutions and batch normalisation, the virtual steps walked without a graph
               and each replayed with one on the way back, as L2T-ww does

The breakdown is the whole step with less in it: without hypergradient ("kept step and phi"), and the hypergradient alone without virtual
steps on the matching loss (T = 0: one on the task loss, and the outer loss) and with one. `products` are multiplications in convolutions
and in matrix products, counted as they are dispatched, against those in the base's convolutions. Memory is the peak of a new process at
twice the batch, and what of it the step adds.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from statistics import median

import vfmgl_lib  # noqa: F401  before torch: it says how torch's threads wait

# isort: split
import torch
import torch.nn.functional as F
from matching import distance, peak_memory
from measure import Row, command_line, measure, ratios, report
from torch import Tensor
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vfmgl_lib.kernels.matching import pair_matching_reference
from vfmgl_lib.kernels.overlap import soft_dice_loss
from vfmgl_lib.method.hgkt import HGKT, Pairing, TeacherBatch, TransferModel
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.models.students import ResNet18, UNet

STACK = (4, 768, 16)  # ViT-B: blocks, channels, grid
TOLERANCE = 1e-5  # of the hypergradient's norm
# student -> task of the settings, model, task loss, input side, batch
STUDENTS = {
    "resnet18": ("endometrial", lambda: ResNet18(2, 64), F.cross_entropy, 224, 4),
    "unet": ("nuclei", lambda: UNet(2, 32), soft_dice_loss, 256, 2),
}
MATRIX_PRODUCTS = {getattr(torch.ops.aten, name) for name in ("mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_")}
Batch = tuple[Tensor, Tensor, list[Tensor]]


class Unrolled(HGKT):
    """The hypergradient by one graph through all virtual steps."""

    def hypergradient(self, images, target, teacher, pairing, outer):
        weights = [tensor.detach().requires_grad_() for part in pairing for tensor in part]
        halves = weights[: len(pairing[0])], weights[len(pairing[0]) :]
        loss = self.unrolled_outer_loss(images, target, teacher, halves, outer)
        return loss.detach(), list(torch.autograd.grad(loss, weights))


class KeptOnly(HGKT):
    """No virtual steps: what is left is the kept step and phi's update."""

    def hypergradient(self, images, target, teacher, pairing, outer):
        return images.new_zeros(()), [torch.zeros_like(tensor) for part in pairing for tensor in part]


class DirectModel(TransferModel):
    """Pair matching by its definition."""

    def forward(self, images: Tensor, teacher: TeacherBatch | None, pairing: Pairing | None, head: bool = True) -> tuple:
        maps = self.student.encode(images)
        logits = self.student.head_from_stages(maps) if head else None
        if teacher is None or pairing is None:
            return logits, None
        loss = images.new_zeros(len(images))
        for k, (channel_weights, pair_weights) in enumerate(zip(*pairing, strict=True)):
            for n, (stage, stage_map) in enumerate(zip(self.student.stage_channels, maps, strict=True)):
                pair = self.weight[f"{k}_{stage}"], self.bias[f"{k}_{stage}"], channel_weights[:, :, n], pair_weights[:, :, n]
                loss = loss + pair_matching_reference(teacher.stacks[k], stage_map, *pair)
        return logits, loss


class Direct(HGKT):
    """The hypergradient by replayed virtual steps, with the direct form of the matching loss and torch's own layers."""

    def __init__(self, student, stack_shapes, settings, lr, task_loss):
        super().__init__(student, stack_shapes, settings, lr, task_loss)
        state = self.model.state_dict()
        reference = next(student.parameters())
        self.model = DirectModel(student, stack_shapes).to(reference.device, reference.dtype)
        self.model.load_state_dict(state)

    def hypergradient(self, images, target, teacher, pairing, outer):
        settings, names = self.settings, list(self.momenta)
        weights = [tensor.detach().requires_grad_() for part in pairing for tensor in part]
        halves = weights[: len(pairing[0])], weights[len(pairing[0]) :]
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}

        def gradients(step: int, leaves: list[Tensor], graph: bool) -> list[Tensor]:
            state = dict(zip(names, leaves, strict=True)), buffers
            if step < settings.inner_steps:
                loss = settings.beta * functional_call(self.model, state, (images, teacher, halves, False))[1].mean()
            else:
                loss = self.task_loss(functional_call(self.model, state, (images, None, None))[0], target)
            return list(torch.autograd.grad(loss, leaves, create_graph=graph, materialize_grads=True))

        positions = [[p.detach().requires_grad_() for p in self.model.parameters()]]
        momenta = [momentum.clone() for momentum in self.momenta.values()]
        for step in range(settings.inner_steps + 1):
            moves = gradients(step, positions[-1], graph=False)
            with torch.no_grad():
                following = [p.clone() for p in positions[-1]]
                self._sgd_step(following, moves, momenta)
            positions.append([p.requires_grad_() for p in following])

        last = positions.pop()
        logits, _ = functional_call(self.model, (dict(zip(names, last, strict=True)), buffers), (outer[0], None, None))
        outer_loss = self.task_loss(logits, outer[1])
        adjoint = torch.autograd.grad(outer_loss, last, materialize_grads=True)
        momentum_adjoint = [torch.zeros_like(p) for p in last]
        derivatives = [torch.zeros_like(weight) for weight in weights]
        for step in reversed(range(settings.inner_steps + 1)):
            leaves = positions[step]
            momentum_adjoint = [settings.momentum * v - self.lr * a for v, a in zip(momentum_adjoint, adjoint, strict=True)]
            reached = [(g, v) for g, v in zip(gradients(step, leaves, graph=True), momentum_adjoint, strict=True) if g.requires_grad]
            outputs, directions = zip(*reached, strict=True)
            products = torch.autograd.grad(outputs, [*leaves, *weights], directions, materialize_grads=True)
            own, of_weights = products[: len(leaves)], products[len(leaves) :]
            adjoint = [a + p + settings.weight_decay * v for a, p, v in zip(adjoint, own, momentum_adjoint, strict=True)]
            derivatives = [d + p for d, p in zip(derivatives, of_weights, strict=True)]
        return outer_loss.detach(), derivatives


FORMS: dict[str, type[HGKT]] = {"step": HGKT, "unrolled": Unrolled, "direct": Direct, "kept": KeptOnly}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--student", default="resnet18", choices=list(STUDENTS))
    parser.add_argument("--batch", type=int, help="images (default: 4 for resnet18, 2 for unet)")
    parser.add_argument("--direct", action="store_true", help="also the direct form (needs about 10 GiB)")
    parser.add_argument("--parts", nargs="+", default=["speed", "memory"], choices=("speed", "memory"), help="default: both")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # the checks are those of full float32
    batch_size = arguments.batch or STUDENTS[arguments.student][-1]
    where = arguments.student, batch_size, arguments.device

    checks, rounding = agreement(*where, direct=arguments.direct)
    if "speed" in arguments.parts:
        report_on(where, speed(*where, arguments.direct, arguments.runs) + rounding, checks, arguments)
    if "memory" in arguments.parts:
        where = arguments.student, 2 * batch_size, arguments.device
        report_on(where, memory(*where), checks, arguments)


def speed(student: str, size: int, device: str, direct: bool, runs: int) -> list[Row]:
    batch, where = data(student, size, device), (student, size, device)
    functions = {"base": base(transfer("step", *where), batch)}
    functions |= {name: step(transfer(name, *where), batch) for name in FORMS if name != "direct" or direct}
    functions |= {f"hypergradient, T={inner}": hypergradient(transfer("step", *where), batch, inner) for inner in range(2)}
    counts = {name: products(functions[name]) for name in ("base", "step")}
    seconds = measure(functions, runs)
    titles = {"base": "student forward+backward", "kept": "kept step and phi"}
    rows = [Row(titles.get(name, name), values) for name, values in seconds.items()]
    rows += [Row(f"{titles.get(name, name)} / base", ratios(seconds, name, "base"), "x") for name in functions if name != "base"]
    rows += [Row(f"{name} / step", ratios(seconds, name, "step"), "x") for name in ("unrolled", "direct") if name in seconds]
    for kind in ("convolutions", "matrices"):
        rows.append(Row(f"products, {kind} / base", [getattr(counts["step"], kind) / counts["base"].convolutions], "x"))
    if device == "cpu":  # on a GPU an operation is over before its work is
        rows.append(Row("time of base in convolutions", [counts["base"].seconds / median(seconds["base"])], "share"))
    return rows


def memory(student: str, size: int, device: str) -> list[Row]:
    rows = []
    for name in ("step", "unrolled"):
        peak = peak_memory(one_step, name, student, size, device)
        rows += [Row(f"peak memory, {name}", [peak.total / 1e9], "GB"), Row(f"{name} alone", [peak.growth / 1e9], "GB")]
    return rows


def report_on(where: tuple[str, int, str], rows: list[Row], checks: dict[str, bool], arguments) -> None:
    name, size, device = where
    shape = f"{name} {STUDENTS[name][3]}px B={size} T=2 M={STACK[0]} C_t={STACK[1]} g={STACK[2]} float32"
    packages = ("torch", "timm")
    report("hgkt_step", shape, rows, checks=checks, device=device, packages=packages, csv_file=arguments.csv)


def data(student: str, size: int, device: str, dtype: torch.dtype = torch.float32) -> Batch:
    """Images, target and teacher stacks, all random."""
    side, generator = STUDENTS[student][3], torch.Generator().manual_seed(0)
    images = torch.rand(size, 3, side, side, generator=generator)
    target = torch.randint(0, 2, (size, side, side) if student == "unet" else (size,), generator=generator)
    blocks, channels, grid = STACK
    stack = torch.randn(size, blocks, channels, grid, grid, generator=generator)
    return images.to(device, dtype), target.to(device), [stack.to(device, dtype)]


def transfer(form: str, student: str, size: int, device: str, dtype: torch.dtype = torch.float32) -> HGKT:
    """A form of the step, from the same initial weights each time; with momenta, as after a first step."""
    task, make, loss, *_ = STUDENTS[student]
    torch.manual_seed(0)
    settings = load_settings(task, "paper")
    hgkt = FORMS[form](make().to(device, dtype), [STACK], settings.transfer, settings.optimizer.lr, loss)
    generator = torch.Generator().manual_seed(1)
    for momentum in hgkt.momenta.values():
        momentum.copy_(1e-3 * torch.randn(momentum.shape, generator=generator))
    return hgkt


def base(hgkt: HGKT, batch: Batch) -> Callable[[], object]:
    images, target, _ = batch
    student = copy.deepcopy(hgkt.model.student)

    def run() -> None:
        student.zero_grad(set_to_none=True)
        hgkt.task_loss(student(images), target).backward()

    return run


def step(hgkt: HGKT, batch: Batch) -> Callable[[], object]:
    return lambda: hgkt.step(*batch)


def hypergradient(hgkt: HGKT, batch: Batch, inner_steps: int) -> Callable[[], object]:
    """The hypergradient alone with T = inner_steps; moves nothing."""
    images, target, stacks = batch
    teacher, pairing = TeacherBatch(stacks), tuple([w.detach() for w in part] for part in hgkt.meta(stacks))
    some = copy.copy(hgkt)  # the same model and momenta
    some.settings = hgkt.settings.model_copy(update={"inner_steps": inner_steps})
    return lambda: some.hypergradient(images, target, teacher, pairing, (images, target))


def agreement(student: str, size: int, device: str, direct: bool) -> tuple[dict[str, bool], list[Row]]:
    """Hypergradients by channel and by pair weights, of every form against that of the unrolled graph; a check says how far off.

    In float64 on a GPU: there the forms' forward passes are different kernels, whose last bits decide on which side of a kink a ReLU or a
    maximum falls, and a hypergradient jumps there. How far float32 is from float64 is a row of the table for either form.
    """
    exact = device == "cuda"
    expected, *others = (
        _hypergradient(name, student, size, device, torch.float64 if exact else torch.float32)
        for name in ("unrolled", "step", *["direct"] * direct)
    )
    checks = {}
    for name, derivatives in zip(("step", "direct"), others, strict=False):
        error = _furthest(derivatives, expected)
        checks[f"{name}: hypergradient within {TOLERANCE:g} of the unrolled graph's, is {error:.1e}"] = error <= TOLERANCE
    rows = [
        Row(f"float32 off float64, {name}", [_furthest(_hypergradient(name, student, size, device, torch.float32), expected)], "share")
        for name in ("step", "unrolled")
        if exact
    ]
    return checks, rows


def _hypergradient(form: str, student: str, size: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    images, target, stacks = data(student, size, device, dtype)
    hgkt = transfer(form, student, size, device, dtype)
    pairing = tuple([w.detach() for w in part] for part in hgkt.meta(stacks))
    return hgkt.hypergradient(images, target, TeacherBatch(stacks), pairing, (images, target))[1]


def _furthest(some: list[Tensor], others: list[Tensor]) -> float:
    return max(distance(one.double(), other.double()) for one, other in zip(some, others, strict=True))


class Products(TorchDispatchMode):
    """Counts multiplications as they are dispatched, in convolutions and in matrix products. (torch's FlopCounterMode also follows
    modules, by hooks that stand in the way of `torch.autograd.grad`.)
    """

    def __init__(self):
        super().__init__()
        self.convolutions = self.matrices = 0
        self.seconds = 0.0  # in convolutions

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        start = time.perf_counter()
        result = function(*args, **(kwargs or {}))
        seconds, operation = time.perf_counter() - start, function.overloadpacket
        if operation in (torch.ops.aten.convolution, torch.ops.aten.convolution_backward):
            self.seconds += seconds
            self.convolutions += flop_registry[operation](*args, **(kwargs or {}), out_val=result) // 2
        elif operation in MATRIX_PRODUCTS:
            self.matrices += result.numel() * args[-1].shape[-2]
        return result


def products(function: Callable[[], object]) -> Products:
    """Of a second call."""
    function()
    with Products() as counter:
        function()
    return counter


def one_step(form: str, student: str, size: int, device: str) -> Callable[[], object]:
    return step(transfer(form, student, size, device), data(student, size, device))


if __name__ == "__main__":
    main()
