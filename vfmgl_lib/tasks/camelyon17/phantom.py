"""CAMELYON17 phantoms: patches of lymph nodes stained with haematoxylin and eosin, in the WILDS layout.

The generative model, in this order:

1. Tissue, per patch: a lymph node packed with lymphocytes, in places a germinal centre, with bands of collagen and with
   clefts and vessels of empty glass.
2. Class, per patch:
   0 normal   lymphocytes (small, round, dense) and the cells of germinal centres (of medium size, pale);
   1 tumor    a nest of metastasis covers the central third, and beyond it between a quarter and all of the patch: large
              pleomorphic nuclei with coarse chromatin and nucleoli in wide cytoplasm, here and there around a lumen.
   What a patch holds of either stain is drawn from the same distribution in both classes, and so is its glass: a mean or
   a histogram says next to nothing about the class; size and arrangement of the nuclei say it all.
3. Patients have up to ten patches of one or two slides, as many of either class, and share their stain.
4. Stain and microscope, per centre and patient: Beer-Lambert's law, point spread and noise as in the nuclei phantoms.

Lengths are in micrometres. A patch of 96 pixels shows 93 µm, as in the real set; a smaller one shows less of the tissue
at a coarser grid (side in µm proportional to the square root of the pixels), so that a lymphocyte has four pixels at 32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vfmgl_lib.tasks.nuclei.phantom import Stain, _Field, _Nuclei, _photograph, _stain, _window
from vfmgl_lib.tasks.painting.artefacts import Artefact
from vfmgl_lib.tasks.painting.fields import cover, paint, smooth_field, streaks
from vfmgl_lib.tasks.painting.sampling import Sample, blend, stream

VERSION = 2
LAYOUT = "camelyon17"
CENTER_NAMES = ("hospital1", "hospital2", "hospital3", "hospital4", "hospital5")
DEFAULT_CENTERS = 5
ARTEFACTS = ("pen marker", "out of focus", "air bubble", "knife chatter", "stain precipitate")  # by centre
METADATA = "metadata.csv"
_PATIENTS = 6  # at once: as many as it takes for whole patients in each split
_PAIRS = 5  # of patches a patient, one of either class
_LYMPHOCYTE, _FOLLICLE, _TUMOR, _SPINDLE = range(4)
# Concentration of each stain in a patch without glass, least to most in tenths: the mean of both classes as they are drawn.
_HAEMATOXYLIN = np.array([0.08, 0.17, 0.21, 0.25, 0.32, 0.51, 0.70, 0.86, 1.00, 1.19, 2.10])
_EOSIN = np.array([0.14, 0.20, 0.22, 0.23, 0.25, 0.28, 0.32, 0.36, 0.41, 0.49, 0.85])


@dataclass(frozen=True)
class Laboratory(Stain):
    """What is a centre's own: its stain, its microscope, and a little of its tissue.

    Attributes:
        radius: mean radius of tumor nuclei in µm.  variation: its coefficient of variation.
        crowding: share of the places that hold a lymphocyte.  follicles: share of patches with a germinal centre.
        lumen: mean share of empty glass.  fibres: contrast of the collagen.
    """

    glass: tuple[float, float, float] = (0.95, 0.94, 0.955)
    blur: float = 0.55
    radius: float = 5.6
    variation: float = 0.22
    crowding: float = 0.85
    follicles: float = 0.45
    lumen: float = 0.05
    fibres: float = 0.30


COMMON = Laboratory()
# fmt: off
CENTERS = (
    # 1: violet, deep, sharp.
    Laboratory(
        haematoxylin=(0.60, 0.74, 0.30), eosin=(0.26, 0.90, 0.36), depth_h=1.15, depth_e=0.95,
        glass=(0.945, 0.93, 0.955), blur=0.45, noise=0.012, radius=5.4, variation=0.20, crowding=0.88, follicles=0.5,
        lumen=0.05, fibres=0.3,
    ),
    # 2: thin and pink, with much collagen.
    Laboratory(
        haematoxylin=(0.62, 0.72, 0.34), eosin=(0.16, 0.92, 0.46), depth_h=0.80, depth_e=1.30,
        glass=(0.96, 0.945, 0.95), blur=0.60, noise=0.016, radius=5.8, variation=0.25, crowding=0.80, follicles=0.4,
        lumen=0.07, fibres=0.45,
    ),
    # 3: another scanner: blue, pale, hard and noisy.
    Laboratory(
        haematoxylin=(0.76, 0.60, 0.26), eosin=(0.30, 0.86, 0.30), depth_h=0.85, depth_e=0.70,
        glass=(0.91, 0.93, 0.95), blur=0.35, noise=0.024, radius=5.6, variation=0.22, crowding=0.84, follicles=0.45,
        lumen=0.04, fibres=0.25,
    ),
    # 4: between the others, softly focused.
    Laboratory(
        haematoxylin=(0.64, 0.70, 0.32), eosin=(0.22, 0.90, 0.40), depth_h=1.00, depth_e=0.90,
        glass=(0.965, 0.95, 0.96), blur=0.85, noise=0.010, radius=5.9, variation=0.24, crowding=0.86, follicles=0.5,
        lumen=0.06, fibres=0.3,
    ),
    # 5: a third scanner: brownish, warm glass, strong contrast.
    Laboratory(
        haematoxylin=(0.56, 0.70, 0.46), eosin=(0.14, 0.82, 0.58), depth_h=1.10, depth_e=1.15,
        glass=(0.965, 0.945, 0.91), blur=0.50, noise=0.015, radius=5.5, variation=0.20, crowding=0.87, follicles=0.4,
        lumen=0.05, fibres=0.35,
    ),
)
# fmt: on


def check_samples(samples: dict[str, int]) -> None:
    """Raise ValueError where the patients would be too few to be divided into training, validation and test."""
    count = sum(samples.values())
    if count < 2 * _PATIENTS:
        raise ValueError(
            f"samples must add up to at least {2 * _PATIENTS} images a center in the camelyon17 layout, two of each of"
            f" {_PATIENTS} patients, got {count}"
        )


def plan(centers: int, samples: dict[str, int], heterogeneity: float, seed: int) -> list[Sample]:
    """All samples of a data set in writing order: per centre as many as the splits together, which the layout does not name.

    Six patients take turns, two patches each time, one of either class, until they have ten; then come the next six. So
    any number of patches lies on at least six patients, and each of them has both classes (with an odd number perhaps not
    the last one).
    """
    planned = []
    for center in range(centers):
        for number in range(sum(samples.values())):
            group, turn = divmod(number // 2, _PATIENTS * _PAIRS)
            patient = group * _PATIENTS + turn % _PATIENTS
            image = 2 * (turn // _PATIENTS) + number % 2
            name, node, x, y = _place(center, patient, image)
            slide = f"patient_{name}_node_{node}"
            path = f"patches/{slide}/patch_{slide}_x_{x}_y_{y}.png"
            planned.append(Sample(center, "train", patient, image, image % 2, (path,)))
    return planned


def _place(center: int, patient: int, image: int) -> tuple[str, int, int, int]:
    """The patient's name (centre digit, number), the node, and where the patch lies on the slide: x and y in pixels."""
    return f"{center + 1}{patient:02d}", image // 6, 3072 + 96 * image, 9216 + 96 * patient


def extra_files(planned: list[Sample], heterogeneity: float, seed: int) -> dict[str, bytes]:
    """`metadata.csv` as WILDS has it; its own split is 0 throughout."""
    lines = [",patient,node,x_coord,y_coord,tumor,slide,center,split"]
    slides: dict[tuple[str, int], int] = {}
    for number, sample in enumerate(planned):
        patient, node, x, y = _place(sample.center, sample.patient, sample.image)
        slide = slides.setdefault((patient, node), len(slides))
        lines.append(f"{number},{patient},{node},{x},{y},{sample.label},{slide},{sample.center},0")
    return {METADATA: ("\n".join(lines) + "\n").encode()}


def render(
    sample: Sample,
    image_size: int,
    heterogeneity: float,
    seed: int,
    profile: Laboratory | None = None,
    artefact: Artefact | None = None,
) -> tuple[np.ndarray]:
    """The patch, (image_size, image_size, 3) uint8."""
    laboratory = profile or blend(COMMON, CENTERS[sample.center], heterogeneity)
    patient = stream(seed, LAYOUT, "patient", sample)
    rng = stream(seed, LAYOUT, "patch", sample, sample.image)
    tissue = _Tissue(rng, laboratory, image_size, _side(image_size), sample.label)
    nuclei = _place_nuclei(rng, laboratory, tissue)
    haematoxylin, eosin = _draw(rng, laboratory, tissue, nuclei)
    stains = [_matched(rng, *stain, tissue) for stain in ((haematoxylin, _HAEMATOXYLIN), (eosin, _EOSIN))]
    density = _stain(patient, laboratory, *stains)
    image = _photograph(rng, laboratory, density, tissue.pixel)
    return (artefact(image) if artefact else image,)


def lesion(sample: Sample, image_size: int, heterogeneity: float, seed: int, profile: Laboratory | None = None) -> np.ndarray:
    """Where the patch's nest of metastasis lies, drawn anew: (image_size, image_size) bool, empty in a normal patch."""
    rng = stream(seed, LAYOUT, "patch", sample, sample.image)
    laboratory = profile or blend(COMMON, CENTERS[sample.center], heterogeneity)
    tissue = _Tissue(rng, laboratory, image_size, _side(image_size), sample.label)
    return tissue.tumor > 0.5


def _side(image_size: int) -> float:
    """Side of a patch in µm."""
    return 93 * math.sqrt(image_size / 96)


def _matched(rng: np.random.Generator, stain: np.ndarray, deciles: np.ndarray, tissue: _Tissue) -> np.ndarray:
    """The concentration (S, S) with another histogram: over the tissue that of `deciles`, a little deeper or paler in each patch."""
    filled = tissue.glass < 0.5
    values = stain[filled]
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.linspace(0, 1, len(values))
    curve = (deciles / deciles.mean()) ** math.exp(rng.normal(0, 0.10)) * deciles.mean() * math.exp(rng.normal(0, 0.12))
    matched = np.zeros_like(stain)
    matched[filled] = np.interp(ranks, np.linspace(0, 1, len(deciles)), curve)
    return matched * (1 - tissue.glass)


class _Tissue(_Field):
    """Maps of one patch, in [0, 1]: `tumor`, `follicle`, `collagen`, `glass`; textures."""

    def __init__(self, rng: np.random.Generator, laboratory: Laboratory, size: int, side: float, label: int) -> None:
        super().__init__(size, side)
        gap = smooth_field(rng, size, 26 / side) + 0.3 * smooth_field(rng, size, 9 / side)
        share = min(max(laboratory.lumen, 0.0) * rng.gamma(1.5, 1 / 1.5), 0.3)
        self.glass = cover(np.quantile(gap, 1 - share) - gap, 0.25)
        self.angle = rng.uniform(0, math.pi)
        across = self.y * math.cos(self.angle) - self.x * math.sin(self.angle) + 5 * smooth_field(rng, size, 35 / side)
        self.fibres = 0.6 * streaks(rng, across, 3.5) + 0.4 * streaks(rng, across, 1.2)
        band = smooth_field(rng, size, 45 / side)
        self.collagen = cover(np.quantile(band, 1 - min(rng.gamma(1.5, 0.08), 0.45)) - band, 0.2)
        self.tumor = self._nest(rng, size, side) if label else np.zeros_like(self.x)
        center = smooth_field(rng, size, 60 / side)
        self.follicle = cover(rng.uniform(-1.5, 0.5) - center, 0.4) * (rng.random() < laboratory.follicles) * (1 - self.tumor)
        self.thickness = np.exp(0.12 * smooth_field(rng, size, 45 / side))
        self.grain = smooth_field(rng, size, 1.6 / side)
        self.clumps = smooth_field(rng, size, 3.2 / side)

    def _nest(self, rng: np.random.Generator, size: int, side: float) -> np.ndarray:
        x, y = rng.uniform(-side / 8, side / 8, 2)
        reach = rng.uniform(0.30, 0.75) * side
        distance = np.hypot(self.x - x, self.y - y) - reach + 0.10 * side * smooth_field(rng, size, 22 / side)
        return cover(np.minimum(distance, np.maximum(np.abs(self.x), np.abs(self.y)) - side / 6), 3.0)


def _place_nuclei(rng: np.random.Generator, laboratory: Laboratory, tissue: _Tissue) -> _Nuclei:
    """Candidates in random order, tumor first; one is kept where it fits the tissue and overlaps no other too far."""
    half = tissue.side / 2 + 5
    count = int(3.5 * (2 * half) ** 2 / (math.pi * 3.0**2))
    x, y = rng.uniform(-half, half, (2, count))
    draw = rng.random((3, count))
    kind = np.where(draw[0] < 0.95 * tissue.at(tissue.tumor, x, y), _TUMOR, _LYMPHOCYTE)
    kind = np.where((kind == _LYMPHOCYTE) & (draw[1] < 0.85 * tissue.at(tissue.follicle, x, y)), _FOLLICLE, kind)
    collagen = tissue.at(tissue.collagen, x, y)
    kind = np.where((kind != _TUMOR) & (draw[2] < collagen), _SPINDLE, kind)
    spread = rng.normal(0, 1, count)
    size = [laboratory.radius * np.exp(max(laboratory.variation, 0.05) * spread), 3.9 * np.exp(0.12 * spread), 2.2 * np.exp(0.1 * spread)]
    radius = np.select([kind == _TUMOR, kind == _FOLLICLE, kind == _SPINDLE], size, 2.9 * np.exp(0.08 * spread))
    slender = rng.gamma(4.0, 0.25, count)
    ratio = np.select(
        [kind == _TUMOR, kind == _FOLLICLE, kind == _SPINDLE], [1 + 0.35 * slender, 1 + 0.20 * slender, 2 + slender], 1 + 0.1 * slender
    )
    angle = np.where(kind == _SPINDLE, tissue.angle + rng.normal(0, 0.25, count), rng.uniform(0, math.pi, count))
    chance = np.select([kind == _TUMOR, kind == _FOLLICLE, kind == _SPINDLE], [0.9, 0.8, 0.12], laboratory.crowding)
    chance = chance * (tissue.at(tissue.glass, x, y) < 0.3) * np.where((kind == _TUMOR) & (collagen > 0.7), 0.1, 1.0)
    reach = radius * np.select([kind == _TUMOR, kind == _FOLLICLE], [1.12, 1.1], 1.0) * rng.uniform(0.85, 1.12, count)
    wanted = np.flatnonzero(rng.random(count) < chance)
    kept, points, number = [], np.empty((3, count)), 0
    for index in wanted[np.argsort(kind[wanted] != _TUMOR, kind="stable")]:
        near_x, near_y, near_reach = points[:, :number]
        if ((near_x - x[index]) ** 2 + (near_y - y[index]) ** 2 > (0.92 * (near_reach + reach[index])) ** 2).all():
            points[:, number] = x[index], y[index], reach[index]
            number += 1
            kept.append(index)
    return _Nuclei(x[kept], y[kept], radius[kept], ratio[kept], angle[kept], kind[kept])


def _draw(rng: np.random.Generator, laboratory: Laboratory, tissue: _Tissue, nuclei: _Nuclei) -> tuple[np.ndarray, np.ndarray]:
    """Concentrations of both stains, each (S, S)."""
    haematoxylin, eosin = _draw_ground(laboratory, tissue)
    count = len(nuclei.x)
    wild = np.where(nuclei.kind == _TUMOR, 1.8, 1.0)[:, None]
    phases, waves = rng.uniform(0, 2 * math.pi, (count, 3)), rng.normal(0, 1, (count, 3)) * (0.06, 0.045, 0.025) * wild
    shade = np.exp(rng.normal(0, np.where(nuclei.kind == _TUMOR, 0.18, 0.13)))
    pale = np.clip(rng.normal(0.35, 0.18, count), 0, 0.8)
    spots = rng.uniform(-0.4, 0.4, (count, 2, 2))
    for i in range(count):
        a, b = nuclei.radius[i] * math.sqrt(nuclei.ratio[i]), nuclei.radius[i] / math.sqrt(nuclei.ratio[i])
        window = _window(tissue, nuclei.x[i], nuclei.y[i], 1.35 * a + 1)
        if window is None:
            continue
        dx, dy = tissue.x[window] - nuclei.x[i], tissue.y[window] - nuclei.y[i]
        c, s = math.cos(nuclei.angle[i]), math.sin(nuclei.angle[i])
        u, v = (dx * c + dy * s) / a, (dy * c - dx * s) / b
        theta = np.arctan2(v, u)
        outline = 1 + sum(waves[i, k] * np.cos((k + 2) * theta + phases[i, k]) for k in range(3))
        distance = (np.hypot(u, v) / outline - 1) * nuclei.radius[i]
        inside = cover(distance, 1.0)
        content = _chromatin(nuclei.kind[i], distance, pale[i], tissue, window)
        if nuclei.kind[i] in (_TUMOR, _FOLLICLE):
            for cx, cy in spots[i][: 1 + (shade[i] > 1)]:
                nucleolus = 0.18 * nuclei.radius[i] - np.hypot((u - cx) * a, (v - cy) * b)
                content = content + 0.5 * np.clip(nucleolus / 0.6 + 0.5, 0, 1)
        paint(haematoxylin[window], inside, shade[i] * content)
        paint(eosin[window], inside, 0.22)
    return haematoxylin * tissue.thickness, eosin * tissue.thickness


def _chromatin(kind: int, distance: np.ndarray, pale: float, tissue: _Tissue, window: tuple[slice, slice]) -> np.ndarray:
    """Haematoxylin inside a nucleus; `distance` in µm, negative inside."""
    grain, clumps = tissue.grain[window], tissue.clumps[window]
    if kind == _LYMPHOCYTE:
        return 1.10 + 0.12 * clumps + 0.12 * grain
    if kind == _SPINDLE:
        return 0.95 + 0.10 * grain
    rim = np.exp(-(((distance + 0.5) / 0.8) ** 2))
    if kind == _FOLLICLE:
        return 0.62 + 0.35 * rim + 0.10 * grain
    return 1.05 - 0.60 * pale + 0.45 * pale * rim + 0.20 * clumps + 0.14 * grain


def _draw_ground(laboratory: Laboratory, tissue: _Tissue) -> tuple[np.ndarray, np.ndarray]:
    """Stains outside the nuclei: scant cytoplasm of lymphocytes, wide cytoplasm of tumor, collagen, nothing on glass."""
    collagen_e = 0.70 + laboratory.fibres * 0.5 * tissue.fibres
    eosin = 0.30 + 0.05 * tissue.clumps + tissue.tumor * 0.16 + tissue.follicle * 0.05
    haematoxylin = 0.22 + 0.04 * tissue.clumps + tissue.tumor * 0.03
    share = tissue.collagen * (1 - 0.6 * tissue.tumor)
    eosin = np.maximum(eosin + share * (collagen_e - eosin), 0.05) * (1 - tissue.glass)
    haematoxylin = (haematoxylin + share * (0.08 - haematoxylin)) * (1 - tissue.glass)
    return haematoxylin.astype(np.float32), eosin.astype(np.float32)
