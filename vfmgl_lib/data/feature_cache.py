"""Teacher features on disk: each image goes through the frozen teacher once, whatever the number of epochs, rounds and studies.

    <folder>/<teacher identity, 16 digits>/<2 digits of the key>/<key>.bin        one small file an image

    key      SHA-256 of: layout of the file, preparation of the image, software and device that compute the teacher, its identity, the image
             file's SHA-256, orientation
    content  8 bytes MAGIC, 32 bytes key, 32 bytes SHA-256 of key and features, then the features: float16, one stack (M, C_t, g, g)
             after the other

A file is written whole or not at all and proves its content whenever it is read; one that fails is reported, computed again and replaced.
Two processes that compute the same image write the same bytes, the later file replaces the earlier. Nothing is ever evicted: at the limit
further features are computed as without the cache. Old teachers' folders can be deleted while nothing runs.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vfmgl_lib.base.files import write_bytes

log = logging.getLogger(__name__)
MAGIC = b"VFMGLF01"
PREPARATION = "2"  # to be raised when `data.images` or `data.loading` change what a teacher sees of an image file
HEADER = len(MAGIC) + 32 + 32
GIB = 2**30
RECOUNT = 1 / 20  # share of the limit that this process writes before it looks again at what others have written
LARGEST = torch.finfo(torch.float16).max


class FeatureRangeError(ValueError):
    """A feature that float16 cannot hold; the message names the value."""


def teacher_stacks(
    teacher: Callable[[Tensor], list[Tensor]],
    images: Tensor,
    image_hashes: Sequence[str],
    cache: FeatureCache | None = None,
    orientations: Sequence[int] | None = None,
) -> list[Tensor]:
    """The teacher's features of a batch, rounded to float16 whether or not they come from the cache.

    Args:
        teacher: (B, 3, G, G) -> stacks (B, M, C_t, g, g); called once, with the images the cache does not have, or not at all.
        images: (B, 3, G, G) float32 in [0, 1], on the teacher's device.
        image_hashes: B times the SHA-256 of the image file; not looked at without a cache.
        orientations: B times how the image was turned (`FeatureCache.key`); None: all as they are.
    Returns: stacks (B, M, C_t, g, g), float32, on the device of `images`.
    Raises: FeatureRangeError: for a feature beyond float16's range or not a number.
    """
    if cache is None:
        return [stack.float() for stack in _rounded(teacher(images))]
    stacks = cache.stacks(image_hashes, lambda positions: _rounded(teacher(images[positions])), orientations)
    return [stack.to(images.device).float() for stack in stacks]


class FeatureCache:
    """The features of one teacher.

    What is read is what this process would compute: software versions, device and number of CPU threads are part of the key, since the
    last bits depend on them. Not told apart are machines with different processors of one instruction set that share a folder, and the
    batches in which an image was computed: runs with and without the cache are bitwise the same where the teacher's features of an image
    do not depend on the images beside it (`benchmarks/teacher_cache.py` counts the values that do).

    Args:
        folder: of all teachers; is made when the first features are written.
        teacher_identity: `Teacher.identity`: architecture, weights, normalisation, image size, blocks.
        stack_shapes: (M, C_t, g) per stack.
        limit_bytes: what `folder` may hold, all teachers together. Processes that write at the same time may each exceed it by a twentieth.
        device: where the teacher computes.
        arithmetic: what else decides on the features' last bits, e.g. that the teacher is compiled; part of the key.
        setting: what the message about a reached limit names.
    """

    def __init__(
        self,
        folder: Path,
        teacher_identity: str,
        stack_shapes: Sequence[tuple[int, int, int]],
        limit_bytes: int,
        device: torch.device | None = None,
        arithmetic: str = "",
        setting: str = "teacher.cache_gib",
    ):
        if not re.fullmatch(r"[0-9a-f]{16,}", teacher_identity):
            raise ValueError(f"teacher_identity must be a hash of at least 16 hex digits, got {teacher_identity!r}")
        if limit_bytes < 1:
            raise ValueError(f"limit_bytes must be at least 1, got {limit_bytes}; a study without cache has none")
        self.folder, self.limit_bytes, self.setting = Path(folder), limit_bytes, setting
        self._identity = teacher_identity
        self._shapes = [(blocks, channels, side, side) for blocks, channels, side in stack_shapes]
        self._sizes = [int(np.prod(shape)) for shape in self._shapes]
        self._computation = f"{_computation(device or torch.device('cpu'))} {arithmetic}"
        self._used = _bytes_below(self.folder)
        self._written = 0  # since `_used` was counted
        self._stores = True

    def key(self, image_hash: str, orientation: int = 0) -> str:
        """Key of one version of an image.

        Args:
            image_hash: SHA-256 of the image file, 64 hex digits.
            orientation: 0 as it is, 1-7 the other flips and quarter turns. Each has features of its own: a network's maps of a turned
                image are not its turned maps.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", image_hash):
            raise ValueError(f"image_hash must be a SHA-256, 64 hex digits, got {image_hash!r}")
        if not 0 <= orientation <= 7:
            raise ValueError(f"orientation must be 0 to 7, got {orientation}")
        parts = (MAGIC.decode(), PREPARATION, self._computation, str(torch.get_num_threads()), self._identity, image_hash, str(orientation))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def file(self, key: str) -> Path:
        """Where the features of a key lie or would lie."""
        return self.folder / self._identity[:16] / key[:2] / f"{key}.bin"

    def stacks(
        self, image_hashes: Sequence[str], compute: Callable[[list[int]], list[Tensor]], orientations: Sequence[int] | None = None
    ) -> list[Tensor]:
        """The features of a batch, from disk where they are there.

        Args:
            image_hashes: B times the SHA-256 of the image file.
            compute: positions in the batch -> stacks (len(positions), M, C_t, g, g) float16; called once, or not at all.
            orientations: of the images, B of them; None: all 0.
        Returns: stacks (B, M, C_t, g, g), float16, on the CPU.
        """
        keys = [self.key(*pair) for pair in zip(image_hashes, orientations or [0] * len(image_hashes), strict=True)]
        batch = [torch.empty((len(keys), *shape), dtype=torch.float16) for shape in self._shapes]
        missing = []
        for position, key in enumerate(keys):
            features = self._read(key)
            if features is None:
                missing.append(position)
                continue
            for stack, part, shape in zip(batch, np.split(features, np.cumsum(self._sizes)[:-1]), self._shapes, strict=True):
                stack.numpy()[position] = part.reshape(shape)
        if missing:
            computed = [stack.cpu() for stack in compute(missing)]
            shapes = [(len(missing), *shape) for shape in self._shapes]
            if [tuple(stack.shape) for stack in computed] != shapes or any(stack.dtype != torch.float16 for stack in computed):
                raise ValueError(f"the teacher must give float16 stacks {shapes}, got {[(tuple(s.shape), s.dtype) for s in computed]}")
            for index, position in enumerate(missing):
                for stack, new in zip(batch, computed, strict=True):
                    stack[position] = new[index]
                self._store(keys[position], b"".join(new[index].numpy().tobytes() for new in computed))
        return batch

    def _read(self, key: str) -> np.ndarray | None:
        """All features of a key, (sum of the stacks' sizes,) float16, mapped from disk; None: not there, or not to be trusted."""
        file, size = self.file(key), HEADER + 2 * sum(self._sizes)
        try:
            content = np.memmap(file, dtype=np.uint8, mode="r")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            log.warning("teacher cache: %s cannot be read (%s); computed again", file, error)
            return None
        features = content[HEADER:]
        if len(content) != size or content[:HEADER].tobytes() != _header(key, features.data):
            log.warning("teacher cache: %s is truncated or altered (%d bytes, expected %d); computed again", file, len(content), size)
            return None
        return features.view(np.float16)

    def _store(self, key: str, features: bytes) -> None:
        if not self._stores:
            return
        file, size = self.file(key), HEADER + len(features)
        if self._used + size > self.limit_bytes or self._written > RECOUNT * self.limit_bytes:
            self._used, self._written = _bytes_below(self.folder), 0
        if self._used + size > self.limit_bytes:
            self._stores = False
            log.warning(
                "teacher cache %s: %s, its limit of %g GiB, is reached; what is in it stays in use, features of further images are "
                "computed whenever they are needed. Raise %s or delete the folders of teachers that are no longer used",
                self.folder,
                self.setting,
                self.limit_bytes / GIB,
                self.setting,
            )
            return
        try:
            write_bytes(file, _header(key, features) + features)
        except OSError as error:
            self._stores = False
            log.warning("teacher cache %s: cannot be written (%s); further features are not kept", self.folder, error)
            return
        self._used += size
        self._written += size


def _rounded(stacks: list[Tensor]) -> list[Tensor]:
    halves = [stack.half() for stack in stacks]
    for index, half in enumerate(halves):
        if not half.isfinite().all():
            value = stacks[index].abs().max().item()  # NaN if there is one
            raise FeatureRangeError(
                f"teacher stack {index}: features must be finite and within ±{LARGEST:g}, the range of float16 they are rounded to; "
                f"the largest magnitude is {value:g}. Choose other blocks or another teacher (teacher.blocks, teacher.source)"
            )
    return halves


def _header(key: str, features: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(bytes.fromhex(key))
    digest.update(features)
    return MAGIC + bytes.fromhex(key) + digest.digest()


def _computation(device: torch.device) -> str:
    """What, besides the number of CPU threads, decides on the last bits of a feature."""
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    packages = " ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", "pillow"))
    return f"{packages} {device.type} {processor} {torch.get_float32_matmul_precision()}"


def _bytes_below(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):  # a folder that is not there has nothing in it
        for name in names:
            try:
                total += os.stat(os.path.join(path, name)).st_size
            except FileNotFoundError:  # another process has just given it its name: counted next time
                continue
    return total
