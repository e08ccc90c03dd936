"""Phantoms for pre-training: every image, of the prostate every volume, from a centre of its own, whose properties are drawn far beyond
those of the studies' centres.

The seeds start at `FIRST_SEED`; a study's, with which its phantoms are drawn, end before it (`config.StudySettings`).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nibabel as nib
import numpy as np
import safetensors
import safetensors.numpy
from tqdm import tqdm

from vfmgl_lib.base.files import write_bytes
from vfmgl_lib.base.randomness import seed_sequence
from vfmgl_lib.data.preprocessing import volume_slices
from vfmgl_lib.tasks.painting.sampling import Sample, scattered
from vfmgl_lib.tasks.phantoms import generator_of
from vfmgl_lib.tasks.records import TASKS

# A phantom's structure: endometrial tumour, metastasis, gland, nucleus.
LAYOUTS = tuple(name for name, record in TASKS.items() if record.is_built_in)
FIRST_SEED = 2**31
CHUNK = 16  # images drawn by a process at a time; a volume gives as many slices as it has, up to this
NO_LABEL = -1


class PretrainError(ValueError):
    """A run that cannot be had as asked for; the message says what would have been right."""


def phantom_bank(file: Path, count: int, side: int, processes: int) -> dict[str, np.ndarray]:
    """Draws `count` phantoms of every layout, or reads them where the file has them already.

    Args:
        file: safetensors, written whole or not at all.
    Returns: `image` (N, 3, side, side) uint8, `mask` (N, side, side) uint8 of 0 and 1 (the layout's structure), `layout` (N,) uint8,
        index in LAYOUTS, `label` (N,) int8, the class or NO_LABEL where the layout has none.
    Raises: PretrainError: the file holds other phantoms, or is damaged.
    """
    versions = {name: generator_of(name).VERSION for name in LAYOUTS}
    made_with = {"count": str(count), "side": str(side), "versions": json.dumps(versions)}
    if file.is_file():
        try:
            with safetensors.safe_open(file, framework="numpy") as opened:
                found = opened.metadata()
                bank = {name: opened.get_tensor(name) for name in ("image", "mask", "layout", "label")}
        except safetensors.SafetensorError as error:
            raise PretrainError(f"{file}: not a whole file of phantoms ({error}); remove it, it is drawn anew") from error
        if found != made_with:
            raise PretrainError(f"{file}: holds phantoms of {found}, expected {made_with}; remove it or choose another folder")
        return bank
    chunks = [(layout, side, start, min(CHUNK, count - start)) for layout in range(len(LAYOUTS)) for start in range(0, count, CHUNK)]
    parts: dict[str, list[np.ndarray]] = {"image": [], "mask": [], "layout": [], "label": []}
    # spawn: a process that has used a GPU, or threads, must not be forked.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for drawn in tqdm(pool.map(_draw, chunks), total=len(chunks), desc="phantoms", unit="chunk", disable=None):
            for name, array in drawn.items():
                parts[name].append(array)
    bank = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    write_bytes(file, safetensors.numpy.save(bank, made_with))
    return bank


def _draw(chunk: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    layout, side, start, count = chunk
    name = LAYOUTS[layout]
    draw = _volume if "volume" in TASKS[name].reads else _images
    drawn = list(draw(name, side, start, count))
    images, masks, labels = zip(*drawn, strict=True)
    return {
        "image": np.stack([np.moveaxis(np.broadcast_to(i if i.ndim == 3 else i[..., None], (side, side, 3)), -1, 0) for i in images]),
        "mask": np.stack(masks).astype(np.uint8),
        "layout": np.full(len(drawn), layout, np.uint8),
        "label": np.array(labels, np.int8),
    }


def _images(name: str, side: int, start: int, count: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    generator = generator_of(name)
    for index in range(start, start + count):
        profile = scattered(generator.COMMON, generator.CENTERS, np.random.default_rng(seed_sequence(FIRST_SEED + index, "center", name)))
        sample = Sample(0, "train", 0, 0, index % 2, ("",))
        image, *mask = generator.render(sample, side, 1.0, FIRST_SEED + index, profile)
        if mask:
            yield image, mask[0] > 0, NO_LABEL
        else:
            yield image, generator.lesion(sample, side, 1.0, FIRST_SEED + index, profile), sample.label


def _volume(name: str, side: int, start: int, count: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """`count` slices of as many volumes as it takes, as the network sees them."""
    generator, given, volume = generator_of(name), 0, 0
    while given < count:
        seed = FIRST_SEED + start * CHUNK + volume
        profile = scattered(generator.COMMON, generator.CENTERS, np.random.default_rng(seed_sequence(seed, "center", name)))
        files = generator.render(Sample(0, "train", 0, 0, 0, ("", "")), side, 1.0, seed, profile)
        signal, gland = (np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(file)).dataobj).T for file in files)
        for piece in volume_slices(signal, gland)[: count - given]:
            assert piece.mask is not None  # as the gland was given
            yield piece.image, piece.mask > 0, NO_LABEL
            given += 1
        volume += 1
