"""From manifest rows to batches: decode, resize, collate; every sample exactly once an epoch, none dropped."""

import copy
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vfmgl_lib.data.images import ImageError, decode_image, decode_mask
from vfmgl_lib.data.inspection import size_problem
from vfmgl_lib.data.manifest import Manifest
from vfmgl_lib.data.preprocessing import squashed, squashed_mask

CACHE_BYTES = 512 * 2**20
FIXED_BATCH = 16  # images that share a batch where batch normalisation's statistics are re-estimated
# Quarter turns and flips of an image: 0 as it is, 1-3 turned by so many quarters, 4-7 the same mirrored.
ORIENTATIONS = 8
TURNED_SHARE = 0.75  # of the training samples, where augmentation is asked for (released code: p 0.75); else they stay as they are


class ImageDataset(Dataset):
    """Samples of a table of the manifest, squashed to a square.

    An item is a dict:
        image          (3, S, S) float32 in [0, 1]; grayscale files have three equal channels
        target         () int64 of a classification, (S, S) int64 of a segmentation: class indices
        teacher_image  (3, G, G) float32 in [0, 1], its own resize of the original; absent without a teacher size
        row            int, position in `table`
        orientation    int, see `load_batches`

    Images are resized bilinearly with antialiasing, masks to the nearest pixel, both as the manifest's `reading.resize` says.

    Args:
        manifest: says where the files are and what the labels mean.
        table: rows of `manifest.table`, e.g. from `manifest.select`.
        image_size: S, pixels.
        teacher_size: G, pixels, or None.
        cache_bytes: memory for resized samples (as uint8) of this process; 0 turns the cache off. The values are the
            same with and without.
    Raises:
        ValueError: an empty table, a size below 1.
        ImageError: (by an item) a file that cannot be decoded, a mask that does not fit its image.
    """

    def __init__(
        self,
        manifest: Manifest,
        table: pd.DataFrame,
        image_size: int,
        teacher_size: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ):
        if not len(table):
            raise ValueError(f"{manifest.root}: the table has no rows, expected at least one sample")
        for name, size in (("image_size", image_size), ("teacher_size", teacher_size)):
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1 pixel, got {size}")
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes must be at least 0, got {cache_bytes}")
        self.table = table.reset_index(drop=True)
        self.image_size = image_size
        self.teacher_size = teacher_size
        self.classes, self.mask_values = manifest.classes, manifest.mask_values
        self._root, self._reading = manifest.root, manifest.reading
        self._paths = self.table["path"].tolist()
        self._labels = self.table["label"].tolist()
        self.is_segmentation = manifest.task_kind == "segmentation"
        self._cache: dict[int, dict[str, torch.Tensor]] = {}
        self._cache_limit = cache_bytes
        self._cache_used = 0

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int]:
        orientation, row = divmod(index, len(self))
        stored = self._cache.get(row)
        if stored is None:
            stored = self._read(row)
            self._keep(row, stored)
        images = {name: oriented(pixels, orientation).float() / 255 for name, pixels in stored.items() if name != "mask"}
        target = (
            oriented(stored["mask"], orientation).long() if self.is_segmentation else torch.tensor(self._labels[row], dtype=torch.int64)
        )
        return {**images, "target": target, "row": row, "orientation": orientation}

    def __getstate__(self) -> dict:
        # A copy sent to a worker process starts without the samples kept here: they would be copied for each worker.
        return self.__dict__ | {"_cache": {}, "_cache_used": 0}

    def _read(self, row: int) -> dict[str, torch.Tensor]:
        path = self._paths[row]
        original = self._decoded(partial(decode_image, reading=self._reading), path)
        stored = {"image": self._square(original, self.image_size)}
        if self.teacher_size is not None:
            stored["teacher_image"] = self._square(original, self.teacher_size)
        if self.is_segmentation:
            name = self._labels[row]
            pixels = self._decoded(partial(decode_mask, mask_values=self.mask_values), name)
            if problem := size_problem(path, original.size, name, pixels):
                raise ImageError(problem)
            stored["mask"] = torch.from_numpy(squashed_mask(pixels, self.image_size, self._reading.resize))
        return stored

    def _square(self, image: Image.Image, size: int) -> torch.Tensor:
        pixels = squashed(image, size, self._reading.resize, self._reading.background)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def _decoded(self, decode, name: str):
        try:
            return decode(self._root / name, str(self._root / name))
        except OSError as error:
            raise ImageError(f"{self._root / name}: cannot be read ({error.strerror or error})") from error

    def _keep(self, row: int, stored: dict[str, torch.Tensor]) -> None:
        # What came first stays: whole epochs in random order would throw out of a rotating cache what is needed next.
        # Worker processes end with their epoch, so theirs would only cost memory.
        size = sum(tensor.nbytes for tensor in stored.values())
        if get_worker_info() is None and self._cache_used + size <= self._cache_limit:
            self._cache[row] = stored
            self._cache_used += size


def joined(sets: Sequence[ImageDataset]) -> ImageDataset:
    """Several data sets of one manifest as one, in their order; no image is read."""
    whole = copy.copy(sets[0])
    whole.table = pd.concat([data.table for data in sets], ignore_index=True)
    whole._paths, whole._labels = whole.table["path"].tolist(), whole.table["label"].tolist()
    whole._cache, whole._cache_used = {}, 0
    return whole


def oriented(image: torch.Tensor, orientation: int) -> torch.Tensor:
    """(..., S, S) turned by `orientation` % 4 quarters and, from 4 on, then mirrored left to right; no pixel is resampled."""
    turned = torch.rot90(image, orientation % 4, (-2, -1))
    return turned.flip(-1) if orientation >= 4 else turned


def draw_orientations(n: int, seed: np.random.SeedSequence) -> list[int]:
    """An orientation for each of n samples: `TURNED_SHARE` of them get one of the seven turns and flips, each equally likely."""
    generator = np.random.default_rng(seed)
    turned = generator.random(n) < TURNED_SHARE
    return np.where(turned, generator.integers(1, ORIENTATIONS, n), 0).tolist()


def epoch_batches(n: int, batch_size: int, seed: np.random.SeedSequence) -> list[list[int]]:
    """Row numbers of one shuffled epoch, every row exactly once.

    A last batch of one sample joins the batch before it, because batch normalisation needs two values a channel; with
    n = 1 or batch_size = 1 it stays alone.

    Args:
        n: number of samples, at least 1.
        batch_size: at least 1; the last batch may be smaller, or larger by one.
        seed: of this centre's and this epoch's order.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"n and batch_size must be at least 1, got n = {n}, batch_size = {batch_size}")
    return _cut(np.random.default_rng(seed).permutation(n).tolist(), batch_size)


def fixed_batches(n: int, batch_size: int = FIXED_BATCH, join_last: bool = True) -> list[list[int]]:
    """Row numbers in the table's order, the same whenever asked for.

    Args:
        join_last: a last batch of one joins the one before, as in `epoch_batches`; no matter where no image depends on its neighbours.
    """
    return _cut(list(range(n)), batch_size, join_last)


def _cut(order: list[int], batch_size: int, join_last: bool = True) -> list[list[int]]:
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if join_last and batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        last = batches.pop()
        batches[-1] += last
    return batches


def load_batches(
    dataset: ImageDataset,
    batches: Sequence[list[int]],
    workers: int = 0,
    pin_memory: bool = False,
    orientations: Sequence[int] | None = None,
) -> DataLoader:
    """Loader of collated items, one dict a batch, in the order of `batches`; the same for any number of workers.

    Args:
        batches: row numbers, e.g. from `epoch_batches`, or in table order for an evaluation.
        workers: processes that read ahead; 0 reads in this one.
        pin_memory: page-locked tensors, for a GPU.
        orientations: of every row of the data set (`ORIENTATIONS`); None: all as they are.
    Raises: ValueError: an empty batch, a row that the dataset does not have, an orientation missing or out of range.
    """
    for position, batch in enumerate(batches):
        if not len(batch) or min(batch) < 0 or max(batch) >= len(dataset):
            raise ValueError(f"batch {position} is {list(batch)}, expected rows from 0 to {len(dataset) - 1}")
    if orientations is not None:
        if len(orientations) != len(dataset) or not all(0 <= orientation < ORIENTATIONS for orientation in orientations):
            found = f"{len(orientations)} from {min(orientations, default=None)} to {max(orientations, default=None)}"
            raise ValueError(f"orientations must be {len(dataset)} numbers from 0 to {ORIENTATIONS - 1}, one a row; got {found}")
        batches = [[row + len(dataset) * orientations[row] for row in batch] for batch in batches]
    # A generator of its own: otherwise every loader takes a number from torch's global one, and training would depend
    # on how often data were loaded before.
    generator = torch.Generator().manual_seed(0)
    return DataLoader(dataset, batch_sampler=batches, num_workers=workers, pin_memory=pin_memory, generator=generator)
