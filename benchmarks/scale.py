"""How an HGKT round's cost grows with centres, samples, image side and teacher grid, and what that means for Camelyon17 at full size.

    python benchmarks/scale.py [--device cpu] [--runs 3] [--batch 8]

Each axis is measured on whole training steps: HGKT with given teacher features and the task step (stage I), and a DDBL step (stage II),
of a ResNet18 at 224 px with ViT-B's shapes where the axis does not say otherwise. Centres and samples enter as the number of such steps, so
their rows check that the cost is proportional (the ratio to one centre, or to the fewest samples, divided by the factor: 1 is linear).
The last table multiplies the measured seconds a batch by the paper's batches; it is an extrapolation and called so.
"""

from __future__ import annotations

import math
import time

import torch
import torch.nn.functional as F
from measure import Row, command_line, measure, report
from torch import Tensor

from vfmgl_lib.method.ddbl import deduction_step
from vfmgl_lib.method.hgkt import HGKT
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.models.students import ResNet18
from vfmgl_lib.models.teachers import load_teacher

PATCHES, ROUNDS, TRAIN_SHARE = 455_954, 10, 0.64
BLOCKS, WIDTH = 4, 768  # ViT-B


class Center:
    """A student, what HGKT needs, and batches of random images."""

    def __init__(self, side: int, grid: int, batch: int, device: torch.device):
        torch.manual_seed(0)
        self.student = ResNet18(2, 64).to(device)
        self.settings = load_settings("camelyon17", "paper")
        self.hgkt = HGKT(self.student, [(BLOCKS, WIDTH, grid)], self.settings.transfer, 1e-3, F.cross_entropy)
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=1e-3, momentum=0.9)
        self.shared = ResNet18(2, 64).to(device).eval()
        self.images = torch.rand(batch, 3, side, side, device=device)
        self.target = torch.randint(0, 2, (batch,), device=device)
        self.stacks = [torch.randn(batch, BLOCKS, WIDTH, grid, grid, device=device)]

    def stage_one(self) -> Tensor:
        self.hgkt.step(self.images, self.target, self.stacks)
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.student(self.images), self.target)
        loss.backward()
        self.optimizer.step()
        return loss

    def stage_two(self) -> None:
        deduction_step(
            self.student,
            self.shared,
            self.images,
            self.target,
            optimizer=self.optimizer,
            task_loss=F.cross_entropy,
            threshold=math.inf,
            settings=self.settings.deduction,
        )

    def finite(self) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self.student.parameters())


def main() -> None:
    parser = command_line(__doc__, runs=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch", type=int, default=8, help="images a step (default 8)")
    parser.add_argument("--teacher", default="random:vit_base_patch14_dinov2.lvd142m", help="see vfmgl_lib.models.teachers")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    common = {"device": arguments.device, "packages": ("numpy", "torch", "timm"), "csv_file": arguments.csv}

    for name, values in {"side": (96, 160, 224), "grid": (8, 16, 32)}.items():
        sizes = {value: {"side": 224, "grid": 16} | {name: value} for value in values}
        centers = {value: Center(**size, batch=arguments.batch, device=device) for value, size in sizes.items()}
        seconds = measure({str(value): center.stage_one for value, center in centers.items()}, runs=arguments.runs)
        rows = [Row(f"{name} {value}, s an image", [s / arguments.batch for s in timed]) for value, timed in seconds.items()]
        checks = {"students stay finite": all(center.finite() for center in centers.values())}
        report("scale", f"{name}, stage I, B={arguments.batch}", rows, checks=checks, **common)

    small, counts = Center(96, 8, arguments.batch, device), (1, 2, 4, 8)
    seconds = measure({str(count): lambda count=count: [small.stage_one() for _ in range(count)] for count in counts}, runs=arguments.runs)
    linear = [
        Row(
            f"{count} times the steps, cost / {count}",
            [s / (count * base) for s, base in zip(seconds[str(count)], seconds["1"], strict=True)],
            "x",
        )
        for count in counts
    ]
    report("scale", "centres or samples, 96px g=8", linear, checks={"the student stays finite": small.finite()}, **common)

    full = Center(224, 16, arguments.batch, device)
    stages = measure({"stage I": full.stage_one, "stage II": full.stage_two}, runs=arguments.runs)
    teacher = load_teacher(arguments.teacher, grid=16).to(device)
    picture = torch.rand(1, 3, teacher.image_size, teacher.image_size, device=device)
    features = measure({"teacher": lambda: teacher(picture)}, runs=arguments.runs)["teacher"]
    per_image = {stage: [s / arguments.batch for s in timed] for stage, timed in stages.items()}
    images = PATCHES * TRAIN_SHARE
    hours = [
        (images * (ROUNDS * one + (ROUNDS - 1) * two + seen)) / 3600
        for one, two, seen in zip(per_image["stage I"], per_image["stage II"], features, strict=True)
    ]
    cache = images * sum(stack[0].numel() for stack in teacher(picture)) * 2 / 2**40
    report(
        "scale",
        f"Camelyon17, {PATCHES} patches, {ROUNDS} rounds, EXTRAPOLATED from B={arguments.batch}",
        [
            *(Row(f"{stage}, s an image", values) for stage, values in per_image.items()),
            Row("teacher, s an image", features),
            Row("training, all centres one after another", hours, "h"),
            Row("teacher features on disk", [cache], "TiB"),
        ],
        checks={"the student stays finite": full.finite()},
        **common,
    )


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"took {time.perf_counter() - started:.0f} s")
