"""Temperature KL: the reference (float64), torch.compile of it, and the Triton form, forward and forward+backward.

    python benchmarks/distillation.py                 # on the GPU if there is one, else on the CPU
    python benchmarks/distillation.py --shapes 2,2,256,256 32,2

On a CPU the reference is what serves: it is timed beside torch.compile of it, and there is no Triton row. GB/s counts what must move:
both logit tensors once forward; both again and the gradient for the backward pass. On a GPU a time holds the launch of every kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from measure import Row, command_line, measure, ratios, report
from torch import Tensor

from vfmgl_lib.kernels.distillation import temperature_kl, temperature_kl_form, temperature_kl_reference

SHAPES = [f"{batch},2,{side},{side}" for side in (256, 384) for batch in (2, 8, 32)] + ["32,2", "32,8"]
TEMPERATURE = 500.0
TOLERANCE = 1e-5  # of the KL and of the gradient's norm, relative to the reference on float64 logits


def main() -> None:
    parser = command_line(__doc__, runs=20)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="logits as B,K or B,K,H,W (default: those of the study)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if not arguments.device.startswith("cuda"):
        print(f"device {arguments.device}: reference and torch.compile of it only, the Triton form needs a GPU")
    for shape in arguments.shapes:
        compare(tuple(int(size) for size in shape.split(",")), arguments)


def compare(shape: tuple[int, ...], arguments) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(shape, generator=generator).to(arguments.device) for _ in range(2))
    student.requires_grad_()
    torch._dynamo.reset()  # a graph for this very shape
    forms: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
        "reference": temperature_kl_reference,
        "compiled": torch.compile(temperature_kl_reference),
    }
    if temperature_kl_form(student, teacher) == "triton":
        forms["triton"] = temperature_kl

    def forward(form: Callable) -> Tensor:
        return form(student, teacher, TEMPERATURE)

    def both(form: Callable) -> Tensor:
        return torch.autograd.grad(forward(form).sum(), student)[0]

    exact = student.detach().double().requires_grad_()
    value = temperature_kl_reference(exact, teacher, TEMPERATURE)
    (gradient,) = torch.autograd.grad(value.sum(), exact)
    checks = {}
    for name, form in forms.items():
        checks[f"{name}: KL within {TOLERANCE:g}"] = bool(((forward(form).detach() - value).abs() <= TOLERANCE * value).all())
        checks[f"{name}: gradient within {TOLERANCE:g}"] = bool((both(form) - gradient).norm() <= TOLERANCE * gradient.norm())
    for label, function, tensors in (("forward", forward, 2), ("forward+backward", both, 5)):
        seconds = measure({name: lambda f=form, g=function: g(f) for name, form in forms.items()}, arguments.runs, warm_up=3)
        moved = tensors * student.numel() * student.element_size()
        rows = [Row("bytes", [moved], "B")]
        for name, times in seconds.items():
            rows += [Row(name, times), Row(f"{name} rate", [moved / time / 1e9 for time in times], "GB/s")]
        if "triton" in forms:
            rows.append(Row("compiled / triton", ratios(seconds, "compiled", "triton"), "x"))
        text = f"{label} logits={'x'.join(map(str, shape))} float32"
        report("distillation", text, rows, checks=checks, device=arguments.device, packages=packages(forms), csv_file=arguments.csv)


def packages(forms: dict) -> tuple[str, ...]:
    return ("torch", "triton") if "triton" in forms else ("torch",)


if __name__ == "__main__":
    main()
