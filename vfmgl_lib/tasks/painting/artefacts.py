"""Artefacts: what mars single images of a centre, drawn over finished phantoms. A generator names one kind for each of its centres.

Every function takes the image in [0, 1] and the random generator of the artefact, and gives a new array. Images of a microscope are
(S, S, 3) light, those of a scanner (..., S, S) signals: the slices of a volume share their artefact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from vfmgl_lib.tasks.painting.fields import cover, smooth_field, unit_grid
from vfmgl_lib.tasks.painting.sampling import Sample, stream


def _fold_over(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The field of view is too small: what lies beyond one edge is laid over the other side."""
    axis, width = int(rng.integers(-2, 0)), round(rng.uniform(0.30, 0.45) * image.shape[-1])
    turned = np.moveaxis(image, axis, -1).copy()
    if rng.random() < 0.5:
        turned[..., :width] += 0.8 * np.moveaxis(image, axis, -1)[..., -width:]
    else:
        turned[..., -width:] += 0.8 * np.moveaxis(image, axis, -1)[..., :width]
    return np.moveaxis(turned, -1, axis)


def _zipper(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A foreign radio signal: lines of alternating bright and dark across the image."""
    size, marred = image.shape[-1], image.copy()
    width = max(1, round(size / 64))
    for place in rng.uniform(0.1, 0.9, rng.integers(2, 5)):
        column, teeth = int(place * (size - width)), np.repeat(rng.random(-(-size // width)), width)[:size]
        marred[..., :, column : column + width] = np.where(teeth > 0.5, 1.0, 0.05)[:, None]
    return marred


def _spike_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A spark during the measurement: a pattern of stripes over the whole image."""
    x, y = unit_grid(image.shape[-1])
    angle, waves = rng.uniform(0, math.pi), rng.uniform(6, 12)
    pattern = np.cos(math.pi * waves * (x * math.cos(angle) + y * math.sin(angle)) + rng.uniform(0, 2 * math.pi))
    return image + rng.uniform(0.18, 0.28) * pattern


def _motion_ghost(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The patient moved: faint copies of the image, shifted to either side."""
    axis, shift = int(rng.integers(-2, 0)), round(rng.uniform(0.12, 0.30) * image.shape[-1])
    copies = sum(np.roll(image, sign * shift, axis) for sign in (-1, 1))
    return 0.6 * image + 0.35 * copies


def _coil_flare(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The signal right at the coil in the rectum is far too high: a white blot behind the middle."""
    x, y = unit_grid(image.shape[-1])
    distance = np.hypot(x - rng.normal(0, 0.08), y - rng.uniform(0.30, 0.50))
    return image * (1 + rng.uniform(3, 5) * np.exp(-((distance / rng.uniform(0.30, 0.42)) ** 2)))


def _metal_void(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A hip of metal: no signal around it, a bright rim at the edge of the void."""
    x, y = unit_grid(image.shape[-1])
    distance = np.hypot(x - rng.choice([-1, 1]) * rng.uniform(0.55, 0.75), y - rng.uniform(-0.2, 0.2)) - rng.uniform(0.30, 0.45)
    distance = distance + 0.05 * smooth_field(rng, image.shape[-1], 0.2)
    return image * (1 - cover(distance, 0.08)) + 0.9 * np.exp(-((distance / 0.05) ** 2))


def _pen_marker(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A stroke of the pen on the cover glass, green, blue or black."""
    size = len(image)
    x, y = unit_grid(size)
    angle = rng.uniform(0, math.pi)
    across = x * math.cos(angle) + y * math.sin(angle) + rng.uniform(-0.4, 0.4) + 0.08 * smooth_field(rng, size, 0.3)
    colours = np.array([[0.15, 0.55, 0.30], [0.15, 0.25, 0.70], [0.15, 0.15, 0.18]])
    share = rng.uniform(0.7, 0.9) * cover(np.abs(across) - rng.uniform(0.25, 0.45), 0.10)
    return image * (1 - share[..., None] * (1 - colours[rng.integers(3)]))


def _out_of_focus(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The tissue does not lie in the microscope's focus."""
    sigma = rng.uniform(0.030, 0.045) * len(image)
    return scipy.ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")


def _air_bubble(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Air below the cover glass: pale and blurred inside, with a dark rim."""
    size = len(image)
    x, y = unit_grid(size)
    distance = np.hypot(x - rng.uniform(-0.5, 0.5), y - rng.uniform(-0.5, 0.5)) - rng.uniform(0.5, 0.8)
    inside = cover(distance, 0.06)[..., None]
    pale = 0.45 * scipy.ndimage.gaussian_filter(image, (0.02 * size, 0.02 * size, 0), mode="nearest") + 0.52
    return (image + inside * (pale - image)) * (1 - 0.75 * np.exp(-((distance / 0.06) ** 2)))[..., None]


def _knife_chatter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The knife trembled: bands of thick and of thin tissue in turn."""
    x, y = unit_grid(len(image))
    angle = rng.uniform(0, math.pi)
    waves = np.sin(math.pi * rng.uniform(4, 7) * (x * math.cos(angle) + y * math.sin(angle)) + rng.uniform(0, 2 * math.pi))
    return _thicker(image, (1 + 0.8 * waves)[..., None])


def _stain_precipitate(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grains of undissolved dye, dark and sharp, on and beside the tissue."""
    x, y = unit_grid(len(image))
    density = np.zeros(image.shape[:2], np.float32)
    for cx, cy, radius in rng.uniform((-1, -1, 0.02), (1, 1, 0.07), (rng.integers(25, 45), 3)):
        density = np.maximum(density, cover(np.hypot(x - cx, y - cy) - radius, 0.04))
    return image * np.exp(-density[..., None] * np.array([1.8, 2.4, 1.2]))


def _thick_section(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A section cut too thick: deeper stain, and nuclei of several layers over one another."""
    sigma = 0.012 * len(image)
    return _thicker(scipy.ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest"), rng.uniform(1.8, 2.4))


def _stain_spill(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A pool of eosin that was not washed off."""
    field = smooth_field(rng, len(image), 0.5)
    share = cover(np.quantile(field, rng.uniform(0.4, 0.7)) - field, 0.4)
    return image * np.exp(-share[..., None] * np.array([0.25, 1.3, 0.7]) * rng.uniform(0.8, 1.2))


def _thicker(image: np.ndarray, factor: np.ndarray | float) -> np.ndarray:
    """Beer-Lambert's law: the light through `factor` times as much tissue."""
    return np.clip(image, 0.004, 1) ** factor


DRAW: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "fold-over": _fold_over,
    "zipper": _zipper,
    "spike noise": _spike_noise,
    "motion ghost": _motion_ghost,
    "coil flare": _coil_flare,
    "metal void": _metal_void,
    "pen marker": _pen_marker,
    "out of focus": _out_of_focus,
    "air bubble": _air_bubble,
    "knife chatter": _knife_chatter,
    "stain precipitate": _stain_precipitate,
    "thick section": _thick_section,
    "stain spill": _stain_spill,
}


@dataclass(frozen=True)
class Artefact:
    """The artefact of one sample: called with the pixels that are to be stored, it gives those with it.

    Attributes:
        kind: in `DRAW`.
        slices: of a volume (D, S, S), which it mars; None: an image.
    """

    kind: str
    sample: Sample
    layout: str
    seed: int
    slices: range | None = None

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Of integers; an image of 8 bits is white at 255, a volume at its own brightest signals, and no signal exceeds them."""
        part = slice(None) if self.slices is None else slice(self.slices.start, self.slices.stop)
        white, highest = (255.0, 255) if pixels.dtype == np.uint8 else (max(float(np.quantile(pixels, 0.995)), 1.0), pixels.max())
        rng = stream(self.seed, self.layout, "artefact", self.sample, self.sample.image)
        drawn = DRAW[self.kind](pixels[part].astype(np.float32) / np.float32(white), rng)
        marred = pixels.copy()
        marred[part] = np.rint(np.clip(drawn * white, 0, highest)).astype(pixels.dtype)
        return marred


def chosen_samples(planned: Sequence[Sample], kinds: Sequence[str], share: float, layout: str, seed: int) -> list[Sample]:
    """The training samples that get an artefact: of each run of 1 / share of a centre's, one at random.

    So any number of samples has its share to within one, and with more of them the earlier ones stay as they are.

    Args:
        kinds: of artefact, one a centre; "": it has none.
    """
    counted: dict[int, int] = {}
    chosen = []
    for sample in planned:
        if sample.split != "train" or not kinds[sample.center]:
            continue
        number = counted[sample.center] = counted.get(sample.center, -1) + 1
        if share and number == _one_of(int(number * share), share, sample, layout, seed):
            chosen.append(sample)
    return chosen


def _one_of(run: int, share: float, sample: Sample, layout: str, seed: int) -> int:
    """Number of the sample that is chosen of a run of a centre's: those n with int(n * share) == run."""
    first = next(n for n in range(max(math.floor(run / share) - 1, 0), math.ceil(run / share) + 2) if int(n * share) == run)
    end = next(n for n in range(first + 1, first + math.ceil(1 / share) + 2) if int(n * share) > run)
    rng = stream(seed, layout, "which have artefacts", Sample(sample.center, "train", run, 0, 0, ()))
    return int(rng.integers(first, end))
