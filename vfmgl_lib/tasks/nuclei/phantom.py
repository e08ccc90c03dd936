"""Nuclei phantoms: haematoxylin and eosin tiles with full nuclear masks, in the nuclei layout.

The generative model, in this order:

1. Tissue, per tile: epithelium and stroma by a smooth random map, lumina and clefts of empty glass, collagen fibres,
   bluish mucin, a section of uneven thickness, in some tiles folded.
2. Nuclei: epithelial (large, pale inside with a dark rim, clumped chromatin, nucleoli), lymphocytes (small, round,
   dense) and spindle cells along the fibres. Outlines are ellipses with random harmonics; size, density, overlap and
   mixture are the organ's, that is the centre's.
3. What is dark without being a nucleus: red blood cells, brown pigment, smudged debris. None of it, nor folds or
   mucin, is in the mask, so that a threshold, on brightness or on the red channel, is a weak segmentation.
4. Stain, per centre and patient: concentrations of haematoxylin and eosin turn into colour by Beer-Lambert's law with
   optical-density vectors around Ruifrok and Johnston's (2001), turned and scaled per centre; colour of the glass.
5. Microscope: point spread, noise.

Lengths are in micrometres. A tile of 256 pixels shows 110 µm; a smaller one shows less of the tissue at a coarser
grid (side in µm proportional to the square root of the pixels), so that a nucleus has about nine pixels at 64.
The mask is 255 where the undistorted shape of a nucleus covers the pixel's centre, 0 elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy

from vfmgl_lib.tasks.painting.artefacts import Artefact
from vfmgl_lib.tasks.painting.fields import cover, paint, smooth_field, streaks, unit_grid
from vfmgl_lib.tasks.painting.sampling import SPLITS, Sample, blend, patient_name, spread_over_patients, stream

VERSION = 2
LAYOUT = "nuclei"
CENTER_NAMES = ("SiteA", "SiteB", "SiteC", "SiteD", "SiteE", "SiteF")
DEFAULT_CENTERS = 4
ARTEFACTS = ("thick section", "stain spill", "knife chatter", "air bubble", "pen marker", "out of focus")  # by centre
_EPITHELIAL, _LYMPHOCYTE, _SPINDLE = 0, 1, 2
# Optical density per unit of stain in red, green and blue.
_BLOOD = np.array([0.10, 0.72, 0.62], np.float32)
_PIGMENT = np.array([0.55, 0.75, 0.95], np.float32)


@dataclass(frozen=True)
class Stain:
    """A centre's stain and microscope.

    Attributes:
        haematoxylin, eosin: optical-density vectors (red, green, blue), scaled to length 1 when used.
        depth_h, depth_e: stain concentration.  glass: colour of empty glass, in [0, 1].
        blur: standard deviation of the point spread in µm.  noise: standard deviation of the pixel noise, in [0, 1].
    """

    haematoxylin: tuple[float, float, float] = (0.65, 0.70, 0.33)
    eosin: tuple[float, float, float] = (0.20, 0.92, 0.42)
    depth_h: float = 1.00
    depth_e: float = 1.00
    glass: tuple[float, float, float] = (0.955, 0.945, 0.955)
    blur: float = 0.42
    noise: float = 0.014


@dataclass(frozen=True)
class Laboratory(Stain):
    """What is a centre's own: its organ beside stain and microscope.

    Attributes:
        radius: mean radius of epithelial nuclei in µm.  variation: its coefficient of variation.
        elongation: mean ratio of the axes of epithelial nuclei.  pale: how empty their interior is, in [0, 1].
        density: share of the places in epithelium that hold a nucleus.  overlap: how far nuclei may overlap, as a share
            of the sum of their radii.
        lymphocytes: share of lymphocytes among the nuclei of the stroma.
        epithelium: share of epithelium.  lumen: share of empty glass.  clear: how clear the cytoplasm is, in [0, 1].
        fibres: contrast of the collagen.  blood, debris: mean number of red cells and of dark specks per 1000 µm².
    """

    radius: float = 4.3
    variation: float = 0.17
    elongation: float = 1.30
    pale: float = 0.50
    density: float = 0.75
    overlap: float = 0.10
    lymphocytes: float = 0.40
    epithelium: float = 0.55
    lumen: float = 0.07
    clear: float = 0.30
    fibres: float = 0.30
    blood: float = 0.45
    debris: float = 0.50


COMMON = Laboratory()
# fmt: off
CENTERS = (
    # A, breast: bluish, thin stain, cool glass, sharp.
    Laboratory(
        haematoxylin=(0.72, 0.63, 0.28), eosin=(0.28, 0.88, 0.3), depth_h=0.95, depth_e=0.62,
        glass=(0.93, 0.95, 0.955), blur=0.32, noise=0.01, radius=4.5, variation=0.18, elongation=1.25, pale=0.45,
        density=0.7, overlap=0.08, lymphocytes=0.55, epithelium=0.5, lumen=0.1, clear=0.35, fibres=0.25,
        blood=0.3, debris=0.5,
    ),
    # B, prostate: pink, glands of regular, pale, round nuclei, wavy collagen.
    Laboratory(
        haematoxylin=(0.58, 0.74, 0.34), eosin=(0.22, 0.88, 0.46), depth_h=1.02, depth_e=1.18,
        glass=(0.975, 0.96, 0.965), blur=0.4, noise=0.012, radius=4.0, variation=0.12, elongation=1.2, pale=0.72,
        density=0.85, overlap=0.1, lymphocytes=0.25, epithelium=0.58, lumen=0.09, clear=0.2, fibres=0.45,
        blood=0.35, debris=0.4,
    ),
    # C, kidney: clear cells, small dark round nuclei, many vessels.
    Laboratory(
        haematoxylin=(0.64, 0.71, 0.3), eosin=(0.16, 0.93, 0.4), depth_h=1.12, depth_e=0.92,
        glass=(0.97, 0.955, 0.965), blur=0.5, noise=0.018, radius=3.4, variation=0.14, elongation=1.15,
        pale=0.32, density=0.62, overlap=0.04, lymphocytes=0.45, epithelium=0.64, lumen=0.07, clear=0.85,
        fibres=0.28, blood=0.85, debris=0.35,
    ),
    # D, lung: purple and deep, large pleomorphic crowded nuclei, thick and blurred sections.
    Laboratory(
        haematoxylin=(0.5, 0.79, 0.36), eosin=(0.24, 0.9, 0.4), depth_h=1.22, depth_e=1.1,
        glass=(0.965, 0.94, 0.96), blur=0.75, noise=0.016, radius=5.4, variation=0.27, elongation=1.5, pale=0.4,
        density=0.85, overlap=0.2, lymphocytes=0.4, epithelium=0.6, lumen=0.05, clear=0.2, fibres=0.3, blood=0.5,
        debris=0.65,
    ),
    # E, liver, external: brownish eosin, round nuclei in wide cytoplasm.
    Laboratory(
        haematoxylin=(0.66, 0.68, 0.32), eosin=(0.14, 0.8, 0.6), depth_h=0.95, depth_e=1.25,
        glass=(0.96, 0.95, 0.93), blur=0.45, noise=0.022, radius=4.0, variation=0.12, elongation=1.12, pale=0.62,
        density=0.48, overlap=0.03, lymphocytes=0.3, epithelium=0.8, lumen=0.04, clear=0.1, fibres=0.2,
        blood=0.6, debris=0.8,
    ),
    # F, bladder, external: pale and blurred, yellowish glass.
    Laboratory(
        haematoxylin=(0.7, 0.66, 0.26), eosin=(0.3, 0.86, 0.36), depth_h=0.74, depth_e=0.75,
        glass=(0.96, 0.95, 0.91), blur=0.8, noise=0.012, radius=4.8, variation=0.2, elongation=1.55, pale=0.55,
        density=0.78, overlap=0.12, lymphocytes=0.35, epithelium=0.55, lumen=0.08, clear=0.3, fibres=0.35,
        blood=0.4, debris=0.4,
    ),
)
# fmt: on


@dataclass
class _Nuclei:
    """All nuclei of a tile, arrays of length N: positions and radii in µm, angle in rad, kind."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    ratio: np.ndarray
    angle: np.ndarray
    kind: np.ndarray


def check_samples(samples: dict[str, int]) -> None:
    """The layout has a folder for every split: nothing to refuse."""


def plan(centers: int, samples: dict[str, int], heterogeneity: float, seed: int) -> list[Sample]:
    """All samples of a data set in writing order. Patients have one to four tiles and belong to one split."""
    planned = []
    for center in range(centers):
        for split in SPLITS:

            def tiles(patient: int, center: int = center, split: str = split) -> int:
                return int(stream(seed, LAYOUT, "count", Sample(center, split, patient, 0, 0, ())).integers(1, 5))

            for patient, image in spread_over_patients(samples.get(split, 0), tiles):
                name = f"{patient_name(center, split, patient)}_{image}.png"
                folder = f"{CENTER_NAMES[center]}/{split}"
                paths = (f"{folder}/images/{name}", f"{folder}/labels/{name}")
                planned.append(Sample(center, split, patient, image, 0, paths))
    return planned


def render(
    sample: Sample,
    image_size: int,
    heterogeneity: float,
    seed: int,
    profile: Laboratory | None = None,
    artefact: Artefact | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The tile, (image_size, image_size, 3) uint8, and its mask, (image_size, image_size) uint8, 0 or 255."""
    laboratory = profile or blend(COMMON, CENTERS[sample.center], heterogeneity)
    patient = stream(seed, LAYOUT, "patient", sample)
    rng = stream(seed, LAYOUT, "tile", sample, sample.image)
    side = 110 * math.sqrt(image_size / 256)
    tissue = _Tissue(rng, laboratory, image_size, side)
    nuclei = _place_nuclei(rng, laboratory, tissue, patient.uniform(0.90, 1.10))
    haematoxylin, eosin, mask = _draw_nuclei(rng, laboratory, tissue, nuclei)
    density = _stain(patient, laboratory, haematoxylin, eosin) * tissue.thickness[..., None]
    _draw_distractors(rng, laboratory, tissue, mask, density)
    image = _photograph(rng, laboratory, density, tissue.pixel)
    return artefact(image) if artefact else image, np.where(mask, np.uint8(255), np.uint8(0))


class _Field:
    """What a microscope shows: `size` pixels a side, each `pixel` µm; x and y (size, size) in µm from the centre."""

    def __init__(self, size: int, side: float) -> None:
        self.size, self.side, self.pixel = size, side, side / size
        x, y = unit_grid(size)
        self.x, self.y = x * (side / 2), y * (side / 2)

    def at(self, values: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Values of a map at points in µm; points outside take the nearest pixel."""
        column = np.clip((x + self.side / 2) / self.pixel, 0, self.size - 1).astype(int)
        row = np.clip((y + self.side / 2) / self.pixel, 0, self.size - 1).astype(int)
        return values[row, column]


class _Tissue(_Field):
    """Maps of one tile: `epithelium`, `glass` in [0, 1], fibre direction and texture."""

    def __init__(self, rng: np.random.Generator, laboratory: Laboratory, size: int, side: float) -> None:
        super().__init__(size, side)
        field = smooth_field(rng, size, 38 / side) + 0.25 * smooth_field(rng, size, 12 / side)
        level = np.quantile(field, np.clip(1 - laboratory.epithelium + rng.normal(0, 0.18), 0.02, 0.98))
        self.epithelium = cover(level - field, 0.25)
        gap = smooth_field(rng, size, 24 / side) + 0.3 * smooth_field(rng, size, 8 / side)
        share = laboratory.lumen * rng.gamma(2.0, 0.5)
        self.glass = cover(np.quantile(gap, 1 - min(max(share, 0.0), 0.4)) - gap, 0.22)
        self.angle = rng.uniform(0, math.pi)
        bend = 5.0 * smooth_field(rng, size, 30 / side) + 1.2 * smooth_field(rng, size, 10 / side)
        across = self.x * -math.sin(self.angle) + self.y * math.cos(self.angle) + bend
        across = across + 0.4 * smooth_field(rng, size, 4 / side)
        self.fibres = 0.5 * streaks(rng, across, 3.6) + 0.35 * streaks(rng, across, 1.0)
        # Where two bundles part, the section tears: narrow clefts along the fibres.
        torn = cover(streaks(rng, across, 1.7) + 1.75 + 0.55 * smooth_field(rng, size, 12 / side), 0.45)
        self.glass = np.maximum(self.glass, 0.85 * torn * (1 - self.epithelium) * (laboratory.fibres > 0))
        # Mucin and cell-rich cytoplasm take up haematoxylin; the amount differs from tile to tile.
        haze = smooth_field(rng, size, 16 / side) + 0.4 * smooth_field(rng, size, 6 / side)
        self.basophilia = rng.uniform(0.10, 0.48) * cover(0.55 - haze, 1.3)
        self.thickness = np.exp(0.17 * smooth_field(rng, size, 45 / side) + rng.normal(0, 0.05))
        if rng.random() < 0.2:
            turn, width = rng.uniform(0, math.pi), rng.uniform(3, 7)
            line = self.x * math.cos(turn) + self.y * math.sin(turn) + bend + rng.uniform(-0.4, 0.4) * side
            self.thickness = self.thickness * (1 + rng.uniform(0.4, 0.8) * cover(np.abs(line) - width, 2.5))
        self.crowding = smooth_field(rng, size, 20 / side)
        self.grain = smooth_field(rng, size, 1.3 / side)
        self.clumps = smooth_field(rng, size, 2.6 / side)


def _place_nuclei(rng: np.random.Generator, laboratory: Laboratory, tissue: _Tissue, patient_size: float) -> _Nuclei:
    """Candidates in random order; one is kept where it fits the tissue and does not overlap its neighbours too far."""
    half = tissue.side / 2 + 4
    mean = laboratory.radius * patient_size
    count = int(3.2 * (2 * half) ** 2 / (math.pi * mean**2))
    x, y = rng.uniform(-half, half, (2, count))
    epithelial = rng.random(count) < tissue.at(tissue.epithelium, x, y)
    lymphoid = rng.random(count) < laboratory.lymphocytes
    kind = np.where(epithelial, _EPITHELIAL, np.where(lymphoid, _LYMPHOCYTE, _SPINDLE))
    spread = np.exp(rng.normal(0, max(laboratory.variation, 0.02), count))
    radius = np.select(
        [kind == _EPITHELIAL, kind == _LYMPHOCYTE],
        [mean * spread, 2.7 * spread**0.4],
        2.5 * spread**0.6,
    )
    ratio = np.select(
        [kind == _EPITHELIAL, kind == _LYMPHOCYTE],
        [1 + (laboratory.elongation - 1) * rng.gamma(4.0, 0.25, count), 1 + 0.12 * rng.random(count)],
        2.0 + 1.4 * rng.random(count),
    )
    along = tissue.angle + rng.normal(0, 0.25, count)
    angle = np.where(kind == _SPINDLE, along, rng.uniform(0, math.pi, count))
    chance = np.where(kind == _EPITHELIAL, laboratory.density, 0.13) * (tissue.at(tissue.glass, x, y) < 0.3)
    chance = chance * np.clip(0.75 + 0.5 * tissue.at(tissue.crowding, x, y), 0.08, 1.4)
    wanted = rng.random(count) < np.minimum(chance, 1.0)
    # The area a neighbour must keep free: cytoplasm around epithelial nuclei.
    reach = radius * np.where(kind == _EPITHELIAL, 1.12 + 0.35 * laboratory.clear, 1.0) * ratio**0.25
    reach = reach * rng.uniform(0.8, 1.12, count)
    kept = np.empty(count, int)
    points, number = np.empty((3, count)), 0
    for index in np.flatnonzero(wanted):
        near_x, near_y, near_reach = points[:, :number]
        distance = np.hypot(near_x - x[index], near_y - y[index])
        if np.all(distance > (1 - laboratory.overlap) * (near_reach + reach[index])):
            kept[number], points[:, number] = index, (x[index], y[index], reach[index])
            number += 1
    kept = kept[:number]
    return _Nuclei(x[kept], y[kept], radius[kept], ratio[kept], angle[kept], kind[kept])


def _draw_nuclei(
    rng: np.random.Generator, laboratory: Laboratory, tissue: _Tissue, nuclei: _Nuclei
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Concentrations of both stains and the mask, each (S, S)."""
    haematoxylin, eosin = _draw_ground(laboratory, tissue, nuclei)
    mask = np.zeros((tissue.size, tissue.size), bool)
    count = len(nuclei.x)
    phases, waves = rng.uniform(0, 2 * math.pi, (count, 3)), rng.normal(0, 1, (count, 3)) * (0.06, 0.045, 0.025)
    shade = np.exp(rng.normal(-0.04, 0.24, count))
    paleness = np.clip(laboratory.pale + rng.normal(0, 0.18, count), 0, 0.95)
    spots = rng.uniform(-0.45, 0.45, (count, 2, 2))
    for i in range(count):
        a, b = nuclei.radius[i] * math.sqrt(nuclei.ratio[i]), nuclei.radius[i] / math.sqrt(nuclei.ratio[i])
        window = _window(tissue, nuclei.x[i], nuclei.y[i], 1.25 * a + 1)
        if window is None:
            continue
        dx, dy = tissue.x[window] - nuclei.x[i], tissue.y[window] - nuclei.y[i]
        c, s = math.cos(nuclei.angle[i]), math.sin(nuclei.angle[i])
        u, v = (dx * c + dy * s) / a, (dy * c - dx * s) / b
        level, theta = np.sqrt(u * u + v * v), np.arctan2(v, u)
        outline = 1 + sum(waves[i, k] * np.cos((k + 2) * theta + phases[i, k]) for k in range(3))
        distance = (level / outline - 1) * nuclei.radius[i]
        inside = cover(distance, 0.7)
        content = _chromatin(nuclei.kind[i], distance, paleness[i], tissue, window)
        if nuclei.kind[i] == _EPITHELIAL:
            for cx, cy in spots[i][: 1 + (shade[i] > 1)]:
                nucleolus = 0.75 - np.hypot((u - cx) * a, (v - cy) * b)
                content = content + 0.55 * np.clip(nucleolus / 0.5, 0, 1)
        # Mucin lies over and under the nucleus too; where two nuclei overlap, the denser one shows.
        content = shade[i] * content + 0.6 * tissue.basophilia[window]
        paint(haematoxylin[window], inside, np.maximum(content, 0.9 * haematoxylin[window] * mask[window]))
        paint(eosin[window], inside, 0.30)
        mask[window] |= distance <= 0
    return haematoxylin, eosin, mask


def _chromatin(kind: int, distance: np.ndarray, paleness: float, tissue: _Tissue, window) -> np.ndarray:
    """Haematoxylin inside a nucleus; `distance` in µm, negative inside."""
    grain, clumps = tissue.grain[window], tissue.clumps[window]
    if kind == _LYMPHOCYTE:
        return 1.30 + 0.18 * clumps + 0.10 * grain
    if kind == _SPINDLE:
        return 1.05 + 0.12 * clumps + 0.10 * grain
    rim = np.exp(-(((distance + 0.35) / 0.55) ** 2))
    return 0.95 - 0.62 * paleness + (0.20 + 0.45 * paleness) * rim + 0.17 * clumps + 0.17 * grain


def _draw_ground(laboratory: Laboratory, tissue: _Tissue, nuclei: _Nuclei) -> tuple[np.ndarray, np.ndarray]:
    """Stains outside the nuclei: cytoplasm with cell borders in epithelium, collagen in stroma, nothing on glass."""
    stroma_e = 0.62 + laboratory.fibres * 0.55 * tissue.fibres + 0.06 * tissue.grain
    mucin = tissue.basophilia * (1 + 0.15 * tissue.clumps)
    stroma_h = 0.06 + 0.02 * tissue.fibres + 0.7 * mucin
    border, body = _cell_pattern(tissue, nuclei)
    clear = laboratory.clear
    cell_e = (0.50 - 0.36 * clear) * (1 + 0.22 * tissue.clumps) + 0.07 * tissue.grain + (0.10 + 0.32 * clear) * border
    cell_h = (0.20 - 0.13 * clear) * (1 + 0.25 * tissue.clumps) * body + 0.06 * border + (1 - 0.6 * clear) * mucin
    share = tissue.epithelium
    tissue_share = 1 - tissue.glass
    eosin = np.maximum(stroma_e + share * (cell_e - stroma_e), 0.05) * tissue_share
    haematoxylin = np.maximum(stroma_h + share * (cell_h - stroma_h), 0.0) * tissue_share
    return haematoxylin.astype(np.float32), eosin.astype(np.float32)


def _cell_pattern(tissue: _Tissue, nuclei: _Nuclei) -> tuple[np.ndarray, np.ndarray]:
    """Cell borders (half-way between neighbouring nuclei) and cell bodies (fading away from the nucleus), in [0, 1]."""
    if len(nuclei.x) < 2:
        return np.zeros_like(tissue.x), np.ones_like(tissue.x)
    step = max(1, tissue.size // 128)
    warped = [g + 0.9 * f for g, f in ((tissue.x, tissue.clumps), (tissue.y, tissue.grain))]
    points = np.stack([g[::step, ::step].ravel() for g in warped], 1)
    tree = scipy.spatial.cKDTree(np.stack([nuclei.x, nuclei.y], 1))
    near, far = tree.query(points, k=2)[0].T.reshape(2, -(-tissue.size // step), -1)
    border = np.exp(-(((far - near) / 1.1) ** 2)) * (near < 11)
    body = np.exp(-((near / 9.0) ** 2))
    if step > 1:
        border, body = (_enlarge(g, tissue.size) for g in (border, body))
    return border.astype(np.float32), body.astype(np.float32)


def _enlarge(values: np.ndarray, size: int) -> np.ndarray:
    return scipy.ndimage.zoom(values, size / len(values), order=1, grid_mode=True, mode="nearest")


def _window(tissue: _Field, x: float, y: float, reach: float) -> tuple[slice, slice] | None:
    """The pixels within `reach` µm of a point, None where the tile has none."""
    bounds = []
    for value in (y, x):
        low = math.floor((value - reach + tissue.side / 2) / tissue.pixel)
        high = math.ceil((value + reach + tissue.side / 2) / tissue.pixel)
        low, high = max(low, 0), min(high, tissue.size)
        if low >= high:
            return None
        bounds.append(slice(low, high))
    return bounds[0], bounds[1]


def _stain(patient: np.random.Generator, laboratory: Stain, haematoxylin: np.ndarray, eosin: np.ndarray) -> np.ndarray:
    """Optical density (S, S, 3) of both stains, with the patient's own depth and hue."""
    vectors = np.array([laboratory.haematoxylin, laboratory.eosin]) + patient.normal(0, 0.025, (2, 3))
    vectors = np.clip(vectors, 0.02, None)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    depth = np.array([laboratory.depth_h, laboratory.depth_e]) * np.exp(patient.normal(0, 0.09, 2))
    vectors = (vectors * np.maximum(depth, 0.2)[:, None]).astype(np.float32)
    return haematoxylin[..., None] * vectors[0] + eosin[..., None] * vectors[1]


def _draw_distractors(rng: np.random.Generator, laboratory: Laboratory, tissue: _Tissue, mask: np.ndarray, density: np.ndarray) -> None:
    """Red blood cells, pigment and smudged debris, painted into the optical density beside and under the nuclei."""
    area = tissue.side**2 / 1000
    half = tissue.side / 2
    free = ~mask
    groups = rng.poisson(max(laboratory.blood, 0) * area / 3)
    for x, y in rng.uniform(-half, half, (groups, 2)):
        for _ in range(rng.integers(2, 6)):
            cx, cy, radius = x + rng.normal(0, 5), y + rng.normal(0, 5), rng.uniform(2.4, 3.3)
            window = _window(tissue, cx, cy, radius + 1)
            if window is not None:
                distance = np.hypot(tissue.x[window] - cx, (tissue.y[window] - cy) * rng.uniform(0.9, 1.25)) - radius
                # Flat discs, thinner in the middle.
                value = (0.95 + 0.12 * np.clip(distance / radius, -1, 0)) * _BLOOD[:, None, None]
                _paint_density(density, window, cover(distance, 0.7) * free[window], value * laboratory.depth_e)
    for x, y in rng.uniform(-half, half, (rng.poisson(max(laboratory.debris, 0) * area), 2)):
        radius = rng.uniform(0.8, 2.6)
        pigment = rng.random() < 0.4
        window = _window(tissue, x, y, 1.8 * radius + 1)
        if window is not None:
            ragged = np.hypot(tissue.x[window] - x, tissue.y[window] - y) - radius
            ragged = ragged + 0.45 * radius * tissue.grain[window]
            colour = _PIGMENT if pigment else np.array([0.75, 0.95, 0.55], np.float32)
            value = np.broadcast_to((rng.uniform(0.7, 1.2) * colour)[:, None, None], (3, *ragged.shape))
            _paint_density(density, window, cover(ragged, 0.6 if pigment else 1.6) * free[window], value)


def _paint_density(density: np.ndarray, window: tuple[slice, slice], share: np.ndarray, value: np.ndarray) -> None:
    paint(density[window], share[..., None], np.moveaxis(np.asarray(value, np.float32), 0, -1))


def _photograph(rng: np.random.Generator, laboratory: Stain, density: np.ndarray, pixel: float) -> np.ndarray:
    """Beer-Lambert's law, point spread and noise: (S, S, 3) optical density to (S, S, 3) uint8."""
    glass = np.array(laboratory.glass, np.float32) + rng.normal(0, 0.006, 3).astype(np.float32)
    light = glass * np.exp(-density)
    sigma = max(laboratory.blur, 0.05) / pixel
    light = scipy.ndimage.gaussian_filter(light, (sigma, sigma, 0), truncate=3.0)
    light += max(laboratory.noise, 0.0) * rng.standard_normal(light.shape, dtype=np.float32)
    return np.rint(255 * np.clip(light, 0, 1)).astype(np.uint8)
