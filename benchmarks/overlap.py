"""Soft Dice loss: as it serves and under torch.compile, forward and forward+backward.

    python benchmarks/overlap.py                 # on the GPU if there is one, else on the CPU
    python benchmarks/overlap.py --shapes 2,2,256,256

GB/s counts what must move: logits and target (int64) once forward; both again and the gradient for the backward pass. On a GPU a time
holds the launch of every kernel. results.csv also has a Triton form of commit b31334d, which was slower and is no more.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from measure import Row, command_line, measure, ratios, report
from torch import Tensor

from vfmgl_lib.kernels.overlap import soft_dice_loss

SHAPES = [f"{batch},2,{side},{side}" for side in (256, 384) for batch in (2, 8, 32)]
TOLERANCE = 1e-5  # of the loss, and of the gradient's norm, relative to the reference on float64 logits


def main() -> None:
    parser = command_line(__doc__, runs=20)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="logits as B,K,H,W (default: those of the study)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    for shape in arguments.shapes:
        compare(tuple(int(size) for size in shape.split(",")), arguments)


def compare(shape: tuple[int, ...], arguments) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).to(arguments.device).requires_grad_()
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator).to(arguments.device)
    torch._dynamo.reset()  # a graph for this very shape
    forms: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "reference": soft_dice_loss,
        "compiled": torch.compile(soft_dice_loss),
    }

    def forward(form: Callable) -> Tensor:
        return form(logits, target)

    def both(form: Callable) -> Tensor:
        return torch.autograd.grad(forward(form), logits)[0]

    exact = logits.detach().double().requires_grad_()
    loss = soft_dice_loss(exact, target)
    (gradient,) = torch.autograd.grad(loss, exact)
    checks = {}
    for name, form in forms.items():
        checks[f"{name}: loss within {TOLERANCE:g}"] = bool((forward(form).detach() - loss).abs() <= TOLERANCE * loss)
        checks[f"{name}: gradient within {TOLERANCE:g}"] = bool((both(form) - gradient).norm() <= TOLERANCE * gradient.norm())
    for label, function, passes in (("forward", forward, 1), ("forward+backward", both, 3)):
        seconds = measure({name: lambda f=form, g=function: g(f) for name, form in forms.items()}, arguments.runs, warm_up=3)
        reads = 1 if passes == 1 else 2
        moved = passes * logits.numel() * logits.element_size() + reads * target.numel() * target.element_size()
        rows = [Row("bytes", [moved], "B")]
        for name, times in seconds.items():
            rows += [Row(name, times), Row(f"{name} rate", [moved / time / 1e9 for time in times], "GB/s")]
        rows.append(Row("reference / compiled", ratios(seconds, "reference", "compiled"), "x"))
        text = f"{label} logits={'x'.join(map(str, shape))} float32"
        report("overlap", text, rows, checks=checks, device=arguments.device, packages=("torch",), csv_file=arguments.csv)


if __name__ == "__main__":
    main()
