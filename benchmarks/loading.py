"""Loading: images a second against decoding alone; and what a manifest of half a million rows costs in time and memory.

    python benchmarks/loading.py [--rows 455000] [--workers 0 2] [--runs 5]

`decoding alone` is decode_image and the resize, one image after the other; the loader adds tensors, batches and, with workers, other
processes, whose start counts. Its own cache is off, the files lie in a warm page cache. `start-up` is all between the CSV and the first
batch's order: read, check without the files, select every centre's splits, hash, and the order of an epoch.

The epoch over all rows reads tiny images, of which there are few: what is measured is what the rows cost. Memory is that of this process
and its workers together, without program files, less what was there when a tenth of the epoch was over.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from measure import Row, command_line, measure, ratios, report
from PIL import Image
from torch import Tensor

from vfmgl_lib.data.images import decode_image
from vfmgl_lib.data.loading import ImageDataset, epoch_batches, load_batches
from vfmgl_lib.data.manifest import COLUMNS, SPLITS, Manifest, check_manifest
from vfmgl_lib.data.manifest_files import read_manifest, write_manifest

BATCH = 32
SIZES = ((96, 224, 1024), (512, 256, 256))  # of the file, of the network's input, images an epoch: use cases 2 and 4
FILES, LINKS = 64, 100  # images on disk, and folders on either of two levels that lead to them: 640,000 paths
PACKAGES = ("numpy", "pandas", "pillow", "torch")


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--rows", type=int, default=455_000, help="of the simulated manifest (default 455000)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="processes that read ahead (default 0 2)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for side, size, count in SIZES:
            speed(Path(temporary) / str(side), side, size, count, arguments)
        large_manifest(Path(temporary) / "large", arguments)


def speed(root: Path, side: int, size: int, count: int, arguments) -> None:
    manifest = simulated(root, side, count)
    dataset = ImageDataset(manifest, manifest.table, size, cache_bytes=0)
    batches = epoch_batches(count, BATCH, np.random.SeedSequence(0))
    order = [row for batch in batches for row in batch]

    def decoding() -> list[np.ndarray]:
        paths = manifest.table["path"].tolist()
        return [np.array(decode_image(root / paths[row]).resize((size, size), Image.Resampling.BILINEAR)) for row in order]

    def epoch(workers: int) -> list[dict[str, Tensor]]:
        return list(load_batches(dataset, batches, workers))

    loaders: dict[str, Callable] = {f"{workers} workers": lambda workers=workers: epoch(workers) for workers in arguments.workers}
    expected = torch.from_numpy(np.stack(decoding())).permute(0, 3, 1, 2).float() / 255
    checks = {}
    for name, loader in loaders.items():
        found = loader()
        checks[f"{name}: every row once, in order"] = torch.cat([batch["row"] for batch in found]).tolist() == order
        checks[f"{name}: the very pixels"] = torch.equal(torch.cat([batch["image"] for batch in found]), expected)
    seconds = measure({"decoding alone": decoding, **loaders}, arguments.runs)
    report(
        "loading",
        f"png {side} -> {size} B={BATCH} n={count}",
        [Row(name, [count / time for time in times], "images/s") for name, times in seconds.items()]
        + [Row(f"{name} / decoding alone", ratios(seconds, "decoding alone", name), "x") for name in loaders],
        checks=checks,
        packages=PACKAGES,
        csv_file=arguments.csv,
    )


def large_manifest(root: Path, arguments) -> None:
    written = simulated(root, 8, arguments.rows)
    write_manifest(written, root / "manifest.csv")
    sha256 = written.sha256
    del written
    gc.collect()
    read: list[Manifest] = []

    def start_up() -> None:
        read[:] = [read_manifest(root / "manifest.csv", root)]
        check_manifest(read[0], files=False)
        parts = [read[0].select(center, split) for center in read[0].centers for split in SPLITS]
        counts.append(sum(map(len, parts)))
        hashes.append(read[0].sha256)
        dataset = ImageDataset(read[0], read[0].table, 8, cache_bytes=0)
        load_batches(dataset, epoch_batches(len(dataset), BATCH, np.random.SeedSequence(0)))

    counts: list[int] = []
    hashes: list[str] = []
    before = memory()
    seconds = measure({"start-up": start_up}, arguments.runs)
    rows = [Row("start-up", seconds["start-up"]), Row("memory of the manifest", [memory() - before], "MiB")]
    checks = {
        "the manifest read is the one written": set(hashes) == {sha256},
        "centres and splits hold every row": set(counts) == {arguments.rows},
    }
    dataset = ImageDataset(read[0], read[0].table, 8, cache_bytes=0)
    for workers in arguments.workers:
        seen, samples = memory_over_an_epoch(dataset, workers)
        checks[f"{workers} workers: every row once"] = seen == arguments.rows
        rows.append(Row(f"growth, {workers} workers", [sample - samples[0] for sample in samples[1:]], "MiB"))
    report("loading", f"manifest of {arguments.rows} rows B={BATCH}", rows, checks=checks, packages=PACKAGES, csv_file=arguments.csv)


def memory_over_an_epoch(dataset: ImageDataset, workers: int) -> tuple[int, list[float]]:
    """(different rows seen, memory in MiB after each tenth of an epoch)."""
    batches = epoch_batches(len(dataset), BATCH, np.random.SeedSequence(1))
    seen = np.zeros(len(dataset), bool)
    tenths = {len(batches) * part // 10 for part in range(1, 11)}
    samples = []
    for number, batch in enumerate(load_batches(dataset, batches, workers), 1):
        seen[batch["row"].numpy()] = True
        if number in tenths:
            samples.append(memory())
    return int(seen.sum()), samples


def memory() -> float:
    """MiB that this process and its children have for themselves; what they share counts once where Linux tells."""
    this = psutil.Process()
    total = 0
    for process in (this, *this.children(recursive=True)):
        rollup = Path(f"/proc/{process.pid}/smaps_rollup")
        # Not PSS as a whole: of the libraries' pages it counts more as soon as another program that has them ends.
        lines = rollup.read_text().splitlines() if rollup.is_file() else []
        shares = [int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:")]
        total += shares[0] if shares else process.memory_full_info().uss
    return total / 2**20


def simulated(root: Path, side: int, rows: int) -> Manifest:
    """A manifest like that of use case 2, over `FILES` images that its rows take in turn; each row has a hash of its own."""
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(FILES):
        grain = rng.integers(60, 220, (-(-side // 8), -(-side // 8), 3)).repeat(8, 0).repeat(8, 1)[:side, :side]
        noisy = np.clip(grain + rng.normal(0, 4, grain.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(root / f"{number}.png")
    table = pd.DataFrame({"number": np.arange(rows)})
    patient = table["number"] % 43
    center = patient % 5
    text = table["number"].astype(str)
    table["id"] = "hospital" + (center + 1).astype(str) + "/patch_patient_" + patient.astype(str) + "_node_4_x_3328_y_" + text
    # Every row has a path of its own, about as long as in the real set; these folders are links to where they lie.
    names = ["patient_{}_of_the_simulated_set", "slide_{}_of_this_patient"]
    for name, place in itertools.product(names, range(LINKS)):
        (root / name.format(place)).symlink_to(".")
    path = f"{names[0]}/{names[1]}/{{}}.png"
    table["path"] = [path.format(n // FILES // LINKS, n // FILES % LINKS, n % FILES) for n in range(rows)]
    table["sha256"] = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(rows)]
    table["center"] = "hospital" + (center + 1).astype(str)
    table["patient"] = "patient_" + patient.astype(str)
    table["split"] = np.array(["train", "val", "train", "test", "train"])[patient // 5 % 5]
    table["label"] = table["number"] // 43 % 2
    table["spacing"] = ""
    return Manifest(root, "classification", ("normal", "tumor"), table[list(COLUMNS)])


if __name__ == "__main__":
    main()
