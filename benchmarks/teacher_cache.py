"""Teacher features: computed for a batch, computed image by image, read from the cache; and whether the three agree.

    python benchmarks/teacher_cache.py [--teacher NAME|FILE|NAME=FILE|random:NAME] [--grid 16] [--batch 16] [--device cpu] [--runs 5]

The cache stays honest only if an image's features do not depend on the images beside it in the batch: the last rows count the float16
values that do. `write` is the first epoch (computing and writing), `read` every later one, in a warm page cache.
"""

import itertools
import tempfile
from pathlib import Path

import torch
from measure import Row, command_line, measure, ratios, report
from torch import Tensor

from vfmgl_lib.data.feature_cache import FeatureCache, teacher_stacks
from vfmgl_lib.models.teachers import Teacher, load_teacher


def smooth_images(count: int, side: int) -> Tensor:
    """(count, 3, side, side) in [0, 1]: noise of 8 pixels' grain."""
    noise = torch.rand(count, 3, max(1, side // 8), max(1, side // 8), generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, size=side, mode="bilinear")


def in_batches(teacher: Teacher, images: Tensor, size: int) -> list[Tensor]:
    """Rounded features of all images, computed `size` at a time."""
    parts = [teacher_stacks(teacher, part, []) for part in images.split(size)]
    return [torch.cat(stack) for stack in zip(*parts, strict=True)]


def differing(one: list[Tensor], other: list[Tensor]) -> float:
    """Share of values that are not equal, 0 to 1."""
    return sum((a != b).sum().item() for a, b in zip(one, other, strict=True)) / sum(a.numel() for a in one)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--teacher", default="random:vit_small_patch14_dinov2.lvd142m", help="see vfmgl_lib.models.teachers")
    parser.add_argument("--grid", type=int, default=16, help="tokens along a side (default 16)")
    parser.add_argument("--batch", type=int, default=16, help="images (default 16)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    teacher = load_teacher(arguments.teacher, grid=arguments.grid).to(device)
    images = smooth_images(arguments.batch, teacher.image_size).to(device)
    hashes = [f"{number:064x}" for number in range(len(images))]
    numbers = itertools.count()

    with tempfile.TemporaryDirectory() as temporary:

        def cache(name: str) -> FeatureCache:
            return FeatureCache(Path(temporary) / name, teacher.identity, teacher.stack_shapes, 2**34, device)

        warm = cache("warm")
        computed = teacher_stacks(teacher, images, hashes, warm)
        read = teacher_stacks(lambda missing: [], images, hashes, warm)
        seconds = measure(
            {
                "batch": lambda: teacher_stacks(teacher, images, hashes),
                "image by image": lambda: in_batches(teacher, images, 1),
                "write": lambda: teacher_stacks(teacher, images, hashes, cache(f"new {next(numbers)}")),
                "read": lambda: teacher_stacks(teacher, images, hashes, warm),
            },
            runs=arguments.runs,
        )
        entry = next(Path(temporary, "warm").rglob("*.bin")).stat().st_size

    by_image = in_batches(teacher, images, 1)
    sizes = sorted({size for size in (2, 4, 5, arguments.batch) if size <= arguments.batch})
    name = Path(arguments.teacher.partition("=")[2] or arguments.teacher).name.removeprefix("random:")
    report(
        "teacher_cache",
        f"{name} {teacher.image_size}px B={arguments.batch}",
        [Row(kind, values) for kind, values in seconds.items()]
        + [
            Row("batch / read", ratios(seconds, "batch", "read"), "x"),
            Row("write / batch", ratios(seconds, "write", "batch"), "x"),
            Row("image by image / batch", ratios(seconds, "image by image", "batch"), "x"),
            Row("disk per image", [entry / 2**20], "MiB"),
        ]
        + [Row(f"differs, B={size} from B=1", [differing(in_batches(teacher, images, size), by_image)], "share") for size in sizes],
        checks={
            "features read are bitwise those computed": differing(read, computed) == 0,
            "computing them again gives the same bits": differing(teacher_stacks(teacher, images, hashes), computed) == 0,
        },
        device=arguments.device,
        packages=("numpy", "torch", "torchvision", "timm", "pillow"),
        csv_file=arguments.csv,
    )


if __name__ == "__main__":
    main()
