"""Endometrial phantoms: sagittal T2-weighted slices of a uterus with a tumour, in the endometrial layout.

The generative model, in this order:

1. Anatomy, per patient. A pear-shaped, bent uterus (myometrium: intermediate signal) holds a bright cavity, wrapped by
   the dark junctional zone. Around it: fat, bladder, rectum, bowel, sacrum, abdominal wall. A third of the patients have
   fibroids, a third bright foci in the myometrium.
2. Tumour, per patient: an irregular ellipse of intermediate signal at one side of the cavity. Position, size and signal
   have the same distribution in both classes; they differ in the junctional zone alone:
   0_NMI  it follows the tumour's outer border, thinned as a stretched band is: the tumour is confined to the
          endometrium;
   1_MI   it runs along the cavity and stops at the tumour, which lies in the myometrium behind it.
   The band has the same area in both. A mean or a histogram therefore says next to nothing about the class; the band's
   course says it all.
3. Rectangle, per patient and centre: the image is a square around the whole uterus with a margin, as the paper's region
   of interest is. The pelvis around it is drawn only as far as it lies in it.
4. Slice: one to three neighbouring slices per patient, slightly shifted and newly textured.
5. Scanner, per centre and patient: coil sensitivity, resolution, Rician noise, window, gamma, fat signal.
6. Record, per patient: age, FIGO stage and histologic type, drawn from the row of the paper's Table 1 for the centre,
   set and class; they stand in patients.csv and leave no trace in the image.

The centres of EXTERNAL_CENTERS take no part in training: they come on top of those asked for, with test images alone.

Lengths are in half sides of the whole pelvis, which spans [-1, 1]², signals are dimensionless with urine at about 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy

from vfmgl_lib.tasks.endometrial.cohorts import draw_record
from vfmgl_lib.tasks.painting.artefacts import Artefact
from vfmgl_lib.tasks.painting.fields import cover, ellipse_distance, paint, smooth_field, smooth_union, streaks, unit_grid
from vfmgl_lib.tasks.painting.sampling import Sample, blend, patient_name, spread_over_patients, stream

VERSION = 4
LAYOUT = "endometrial"
CENTER_NAMES = ("A", "B", "C", "D", "E", "F")
EXTERNAL_CENTERS = ("E", "F")
DEFAULT_CENTERS = 4
ARTEFACTS = ("fold-over", "zipper", "spike noise", "motion ghost", "", "")  # by centre; the external ones have no training images
CLASSES = ("0_NMI", "1_MI")
SPLIT_FOLDERS = {"train": "traindata", "test": "testdata"}
RECORDS = "patients.csv"
_MATRIX = 176  # pixels of the scanner along the whole pelvis
_LEAST_MARGIN = 0.02  # of the uterus's longer side, whatever the heterogeneity


@dataclass(frozen=True)
class Scanner:
    """What is a centre's own.

    Attributes:
        prevalence: share of patients with invasion. The centres rank as in the training sets of the paper's Table 1
            (E and F: their test sets), B lowest and E highest, but with 52 to 78 % in place of its 81 to 98 %, so
            that a small set has both classes; at heterogeneity 0 all have the 60 % of `COMMON`.
        bias: strength of the coil's sensitivity profile (logarithm of the signal between centre and edge).
        bias_tilt: the same from left to right.
        gamma: exponent of the display curve.  window: share of the brightest signal shown as white.
        noise: standard deviation of the Rician noise's channels.  blur: standard deviation of the point spread, in
            half sides of the pelvis.
        fat, myometrium, junction, tumor: signals.
        margin: mean distance of the rectangle from the uterus, as a share of the uterus's longer side.
        shift: mean position of the uterus in the pelvis (x, y).  retroverted: share of patients.
    """

    prevalence: float = 0.60
    bias: float = 0.30
    bias_tilt: float = 0.0
    gamma: float = 1.0
    window: float = 0.97
    noise: float = 0.025
    blur: float = 0.008
    fat: float = 0.70
    myometrium: float = 0.43
    junction: float = 0.13
    tumor: float = 0.66
    margin: float = 0.06
    shift: tuple[float, float] = (0.0, 0.0)
    retroverted: float = 0.10


COMMON = Scanner()
# fmt: off
CENTERS = (
    # A, the largest: 3 T, sharp, little noise, strong coil profile.
    Scanner(
        prevalence=0.62, bias=0.5, bias_tilt=0.15, gamma=0.85, window=0.97, noise=0.018, blur=0.005, fat=0.74,
        myometrium=0.45, junction=0.11, tumor=0.66, margin=0.03, shift=(-0.03, 0.0), retroverted=0.08,
    ),
    # B: 1.5 T, noisy and soft, flat contrast.
    Scanner(
        prevalence=0.52, bias=0.15, bias_tilt=-0.3, gamma=0.95, window=0.88, noise=0.032, blur=0.013, fat=0.62,
        myometrium=0.46, junction=0.16, tumor=0.66, margin=0.08, shift=(0.05, 0.04), retroverted=0.14,
    ),
    # C: fat partly saturated, dark display.
    Scanner(
        prevalence=0.74, bias=0.3, bias_tilt=0.05, gamma=1.4, window=0.97, noise=0.026, blur=0.007, fat=0.34,
        myometrium=0.42, junction=0.11, tumor=0.67, margin=0.05, shift=(0.02, -0.06), retroverted=0.06,
    ),
    # D: bright display, tilted sensitivity, large field of view.
    Scanner(
        prevalence=0.68, bias=0.25, bias_tilt=0.45, gamma=0.7, window=0.92, noise=0.022, blur=0.01, fat=0.8,
        myometrium=0.4, junction=0.11, tumor=0.64, margin=0.10, shift=(-0.05, 0.03), retroverted=0.16,
    ),
    # E, external: soft and dark.
    Scanner(
        prevalence=0.78, bias=0.55, bias_tilt=-0.2, gamma=1.2, window=0.9, noise=0.03, blur=0.014, fat=0.6,
        myometrium=0.41, junction=0.13, tumor=0.66, margin=0.07, shift=(0.06, -0.02), retroverted=0.10,
    ),
    # F, external: sharp, bright fat, strong tilt to the other side.
    Scanner(
        prevalence=0.66, bias=0.2, bias_tilt=-0.5, gamma=1.05, window=0.99, noise=0.02, blur=0.005, fat=0.85,
        myometrium=0.44, junction=0.1, tumor=0.68, margin=0.03, shift=(0.0, 0.05), retroverted=0.20,
    ),
)
# fmt: on


def check_samples(samples: dict[str, int]) -> None:
    """Raise ValueError where the layout has no folder for a split that is asked for."""
    if samples.get("val", 0):
        raise ValueError(
            f"samples['val'] must be 0 or absent in the endometrial layout, which has no validation folder, got "
            f"{samples['val']}; take validation patients from the training ones with data.divisions.with_validation"
        )


def plan(centers: int, samples: dict[str, int], heterogeneity: float, seed: int) -> list[Sample]:
    """All samples of a data set in writing order. Patients have one to three slices and one class.

    The first two patients of each centre and split have one slice each and different classes, so that two images are
    enough for both classes; after them the share of class 1 follows the centre's prevalence as closely as whole
    patients allow.

    Args:
        centers: participating centres, A onwards; the external ones follow, with as many test images each.
    """
    external = [CENTER_NAMES.index(name) for name in EXTERNAL_CENTERS]
    planned = []
    for center in [*range(centers), *external]:
        prevalence = min(max(_scanner(center, heterogeneity).prevalence, 0.15), 0.85)
        for split, folder in SPLIT_FOLDERS.items():
            if center in external and split != "test":
                continue
            slices = _slice_counter(center, split, seed)
            labels: list[int] = []
            for patient, image in spread_over_patients(samples.get(split, 0), slices):
                if patient == len(labels):
                    labels.append(_next_label(labels, prevalence))
                name = patient_name(center, split, patient)
                path = f"{CENTER_NAMES[center]}/{folder}/{CLASSES[labels[patient]]}/{name}/{image}.png"
                planned.append(Sample(center, split, patient, image, labels[patient], (path,)))
    return planned


def extra_files(planned: list[Sample], heterogeneity: float, seed: int) -> dict[str, bytes]:
    """patients.csv: patient, age in years with one decimal, FIGO stage I to IV, histologic type I or II; one row a patient."""
    lines = ["patient,age,figo,histology"]
    for sample in planned:
        if sample.image == 0:
            rng = stream(seed, LAYOUT, "record", sample)
            age, figo, histology = draw_record(CENTER_NAMES[sample.center], sample.split, sample.label, heterogeneity, rng)
            lines.append(f"{patient_name(sample.center, sample.split, sample.patient)},{age:.1f},{figo},{histology}")
    return {RECORDS: "".join(f"{line}\n" for line in lines).encode("utf-8")}


def render(
    sample: Sample,
    image_size: int,
    heterogeneity: float,
    seed: int,
    profile: Scanner | None = None,
    artefact: Artefact | None = None,
) -> tuple[np.ndarray]:
    """The rectangle of the slice as (image_size, image_size) uint8, one grey channel."""
    scanner = profile or _scanner(sample.center, heterogeneity)
    rng = stream(seed, LAYOUT, "slice", sample, sample.image)
    view, signal, _ = _draw_slice(stream(seed, LAYOUT, "anatomy", sample), rng, scanner, sample, image_size)
    image = _acquire(signal, view, stream(seed, LAYOUT, "scan", sample), rng, scanner)
    return (artefact(image) if artefact else image,)


def lesion(sample: Sample, image_size: int, heterogeneity: float, seed: int, profile: Scanner | None = None) -> np.ndarray:
    """Where the slice's tumour lies, drawn anew: (image_size, image_size) bool. Slices of either class have one."""
    rng = stream(seed, LAYOUT, "slice", sample, sample.image)
    scanner = profile or _scanner(sample.center, heterogeneity)
    return _draw_slice(stream(seed, LAYOUT, "anatomy", sample), rng, scanner, sample, image_size)[2]


def _scanner(center: int, heterogeneity: float) -> Scanner:
    return blend(COMMON, CENTERS[center], heterogeneity)


def _slice_counter(center: int, split: str, seed: int) -> Callable[[int], int]:
    def slices(patient: int) -> int:
        if patient < 2:
            return 1
        return int(stream(seed, LAYOUT, "count", Sample(center, split, patient, 0, 0, ())).integers(1, 4))

    return slices


def _next_label(labels: list[int], prevalence: float) -> int:
    if len(labels) < 2:
        return 1 - len(labels)
    return int(prevalence * (len(labels) + 1) - sum(labels) >= 0.5)


@dataclass(frozen=True)
class _Uterus:
    """Place and size of a uterus: its middle (x, y), the direction from the cervix to the fundus, how the axis bends, half axes."""

    center: np.ndarray
    axis: np.ndarray
    bend: float
    length: float
    width: float

    def coordinates(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of points of the pelvis: along the axis, towards the fundus, and across it."""
        x, y = x - self.center[0], y - self.center[1]
        along = x * self.axis[0] + y * self.axis[1]
        return along, y * self.axis[0] - x * self.axis[1] + self.bend * (along - 0.1) ** 2

    def distance(self, along: np.ndarray, across: np.ndarray) -> np.ndarray:
        """Signed distance to the outline: a pear, the cervix its narrow end."""
        return smooth_union(
            ellipse_distance(along - 0.22 * self.length, across, 0.78 * self.length, self.width),
            ellipse_distance(along + 0.54 * self.length, across, 0.36 * self.length, 0.50 * self.width),
            0.12,
        )


def _draw_uterus(patient: np.random.Generator, rng: np.random.Generator, scanner: Scanner) -> _Uterus:
    retroverted = patient.random() < scanner.retroverted
    center = np.array(scanner.shift) + patient.normal(0, 0.05, 2) + rng.normal(0, 0.015, 2)
    center += (0.16, -0.10) if retroverted else (0.0, 0.0)
    # From the cervix to the fundus: forwards and up, or backwards and up.
    angle = math.radians(patient.normal(62 if retroverted else 142, 6))
    axis = np.array([math.cos(angle), -math.sin(angle)], np.float32)
    return _Uterus(center, axis, patient.uniform(-0.30, 0.30), patient.uniform(0.56, 0.64), patient.uniform(0.42, 0.47))


@dataclass(frozen=True)
class _View:
    """The rectangle that the image shows: pixel centres (x, y) in the pelvis, each (S, S), and half its side."""

    x: np.ndarray
    y: np.ndarray
    half: float

    @property
    def pixel(self) -> float:
        return 2 * self.half / len(self.x)


def _view(uterus: _Uterus, patient: np.random.Generator, scanner: Scanner, size: int) -> _View:
    """A square around the whole uterus: the rectangle that a reader draws, its shorter side made as long as the other."""
    x, y = (1.5 * axis for axis in unit_grid(96))
    inside = uterus.distance(*uterus.coordinates(x, y)) < 0.02
    low = np.array([axis[inside].min() for axis in (x, y)])
    high = np.array([axis[inside].max() for axis in (x, y)])
    margins = max(scanner.margin, _LEAST_MARGIN) * (high - low).max() * patient.uniform(0.5, 1.5, (2, 2))
    low, high = low - margins[0], high + margins[1]
    middle, half = (low + high) / 2, float((high - low).max()) / 2
    x, y = unit_grid(size)
    return _View(middle[0] + half * x, middle[1] + half * y, half)


def _draw_slice(
    patient: np.random.Generator, rng: np.random.Generator, scanner: Scanner, sample: Sample, size: int
) -> tuple[_View, np.ndarray, np.ndarray]:
    """Noise-free signal of one slice and its tumour, both (S, S); `patient` draws what its slices share, `rng` what is the slice's own."""
    shape = _draw_uterus(patient, rng, scanner)
    view = _view(shape, patient, scanner, size)
    pixel, warp = view.pixel, 0.022
    x = view.x + warp * smooth_field(patient, size, 0.40) + 0.3 * warp * smooth_field(rng, size, 0.40)
    y = view.y + warp * smooth_field(patient, size, 0.40) + 0.3 * warp * smooth_field(rng, size, 0.40)
    fine, coarse = smooth_field(rng, size, 0.035), smooth_field(rng, size, 0.11)
    canvas = _draw_surroundings(patient, rng, x, y, scanner, pixel, coarse)

    along, across = shape.coordinates(x, y)
    length, width = shape.length, shape.width
    uterus = shape.distance(along, across)
    cavity_width = patient.uniform(0.045, 0.085)
    cavity = ellipse_distance(along - 0.27 * length, across, patient.uniform(0.44, 0.52) * length, cavity_width)
    canal = ellipse_distance(along + 0.50 * length, across, 0.34 * length, 0.022)

    tumor, tumor_signal = _draw_tumor(patient, rng, scanner, along, across, length, width, cavity_width, size)
    uterus = smooth_union(uterus, tumor - 0.15, 0.10)
    confined = sample.label == 0
    lining = smooth_union(cavity, tumor - 0.01, 0.05) if confined else cavity
    # A band stretched around the tumour keeps its area, so that the amount of dark tissue does not give the class away. It is thinner
    # then, and a little larger for its blurred borders; one that ends at the tumour is frayed, so that it has as much border.
    depth = lining / (1 - 0.22 * cover(tumor - 0.08, 0.10)) if confined else lining
    depth = depth + (0.0 if confined else 0.02) * smooth_field(rng, size, 0.05)
    wall = (uterus < 0) & (cavity > 0) & (tumor > 0)
    band = np.quantile(depth[wall], patient.uniform(0.28, 0.52) * (1.09 if confined else 1.0))
    junction = np.maximum(-lining, depth - band)

    muscle = streaks(rng, across + 0.06 * coarse, 0.035)
    myometrium = scanner.myometrium * patient.uniform(0.9, 1.1) * (1 + 0.05 * fine + 0.05 * coarse + 0.03 * muscle)
    paint(canvas, cover(uterus - 0.014, 2 * pixel), 0.20)
    inside = cover(uterus, 1.5 * pixel)
    paint(canvas, inside, myometrium)
    cervix = inside * cover(np.abs(across) - 0.085, 0.04) * cover(along + 0.40 * length, 0.12)
    paint(canvas, cervix, scanner.junction * 1.25)
    paint(canvas, inside * cover(canal, 0.02), 0.78)
    _draw_lesions(patient, canvas, along, across, uterus, tumor, junction, length, width, scanner, fine, pixel)
    paint(canvas, cover(junction, max(1.2 * pixel, 0.022)) * inside, scanner.junction * patient.uniform(0.7, 1.3) * (1 + 0.10 * coarse))
    paint(canvas, cover(cavity, max(1.2 * pixel, 0.02)), patient.uniform(0.78, 0.90) * (1 + 0.03 * fine))
    paint(canvas, cover(tumor, max(1.2 * pixel, 0.024)), tumor_signal * (1 + 0.06 * fine + 0.08 * coarse))
    return view, np.maximum(canvas, 0.01), tumor < 0


def _draw_tumor(
    patient: np.random.Generator,
    rng: np.random.Generator,
    scanner: Scanner,
    along: np.ndarray,
    across: np.ndarray,
    length: float,
    width: float,
    cavity_width: float,
    size: int,
) -> tuple[np.ndarray, float]:
    """Signed distance and signal of the tumour; knows nothing of the class."""
    scale = rng.uniform(0.93, 1.0)
    half_length, half_width = scale * patient.uniform(0.29, 0.36), scale * patient.uniform(0.20, 0.24)
    side = patient.choice([-1.0, 1.0])
    # The outer border lies between 55 and 75 % of the way from the cavity to the serosa.
    reach = cavity_width + patient.uniform(0.55, 0.75) * (width - cavity_width)
    u = along - patient.uniform(0.05, 0.35) * length
    v = across - side * (reach - half_width)
    turn = math.radians(patient.normal(0, 15))
    u, v = u * math.cos(turn) + v * math.sin(turn), v * math.cos(turn) - u * math.sin(turn)
    border = 0.014 * smooth_field(patient, size, 0.11) + 0.005 * smooth_field(rng, size, 0.055)
    # It does not grow past the cavity: the band at the other side is whole in both classes.
    shape = np.maximum(ellipse_distance(u, v, half_length, half_width), -side * across - 0.02)
    return shape + border, scanner.tumor * patient.uniform(0.93, 1.07)


def _draw_lesions(patient, canvas, along, across, uterus, tumor, junction, length, width, scanner, fine, pixel) -> None:
    """Fibroids (dark, round, whorled) and bright foci in the myometrium, equally often in both classes."""
    free = cover(0.035 - tumor, 0.03) * cover(0.03 - junction, 0.03) * cover(uterus + 0.01, 0.02)
    for _ in range(patient.choice(3, p=(0.7, 0.2, 0.1))):
        place, radius = patient.uniform(-0.1, 0.9) * length, patient.uniform(0.04, 0.09)
        offset = patient.choice([-1.0, 1.0]) * patient.uniform(0.75, 0.9) * width
        fibroid = ellipse_distance(along - place, across - offset, radius, 0.85 * radius)
        signal = scanner.junction * patient.uniform(1.0, 1.4) * (1 + 0.12 * fine)
        paint(canvas, free * cover(fibroid, 2 * pixel), signal)
    if patient.random() < 0.35:
        spots = cover(0.9 - smooth_field(patient, canvas.shape[0], 0.05) * 0.4, 0.2)
        paint(canvas, free * spots * cover(uterus + 0.05, 0.05), 0.7)


def _draw_surroundings(patient, rng, x, y, scanner, pixel, coarse) -> np.ndarray:
    """Fat with vessels, abdominal wall, sacrum, bowel, bladder and rectum: the canvas the uterus is painted on."""
    size = len(x)
    strands = np.abs(smooth_field(rng, size, 0.14)) + 0.25 * np.abs(coarse)
    canvas = scanner.fat * (0.88 + 0.06 * coarse) * (1 - 0.28 * np.exp(-((strands / 0.22) ** 2)))
    paint(canvas, 0.8 * cover(0.35 - smooth_field(patient, size, 0.32), 0.9), 0.34 * (1 + 0.12 * coarse))
    # Vessels beside the uterus: dark where blood flows fast, bright where it stands.
    vessels = smooth_field(patient, size, 0.07)
    paint(canvas, 0.8 * cover(2.3 - vessels, 0.5), 0.10)
    paint(canvas, 0.8 * cover(2.4 + vessels, 0.5), 0.85)

    # Abdominal wall: muscle between two layers of fat, at the left edge.
    wall = x + 0.90 + 0.10 * y * y + patient.normal(0, 0.03)
    paint(canvas, cover(np.abs(wall) - 0.06, 0.02), 0.20 * (1 + 0.1 * coarse))
    paint(canvas, cover(wall + 0.07, 0.02), scanner.fat * 1.1)

    _draw_sacrum(patient, canvas, x, y, scanner, coarse, pixel)
    for _ in range(patient.integers(2, 5)):
        loop = ellipse_distance(
            x - patient.uniform(-0.7, 0.5),
            y - patient.uniform(-1.05, -0.75),
            patient.uniform(0.12, 0.24),
            patient.uniform(0.08, 0.14),
        )
        paint(canvas, cover(loop, 2 * pixel), 0.26)
        paint(canvas, cover(loop + 0.035, 0.03), patient.uniform(0.15, 0.85))

    filling = patient.uniform(0.14, 0.28)
    bladder = ellipse_distance(
        x + patient.uniform(0.38, 0.52) - 0.25 * (y - 0.5),
        y - patient.uniform(0.55, 0.68),
        filling * 1.35,
        filling,
    )
    paint(canvas, cover(bladder - 0.035, 2 * pixel), 0.18)
    paint(canvas, cover(bladder, 2 * pixel), patient.uniform(0.94, 1.02))

    bend = x - patient.uniform(0.60, 0.70) + 0.10 * np.sin(2.2 * y + patient.uniform(-0.8, 0.8)) + 0.03 * coarse
    rectum = np.hypot(bend, np.maximum(patient.uniform(0.0, 0.3) - y, 0)) - patient.uniform(0.09, 0.13)
    paint(canvas, cover(rectum, 2 * pixel), 0.27)
    content = patient.choice([0.05, 0.45, 0.75]) * (1 + 0.25 * coarse)
    paint(canvas, cover(rectum + 0.045, 0.03), np.maximum(content, 0.03))
    return canvas


def _draw_sacrum(patient, canvas, x, y, scanner, coarse, pixel) -> None:
    """Vertebral bodies (fatty marrow, dark cortex) and discs along an arc at the right edge."""
    x, y = x - patient.normal(0.02, 0.03), y + patient.normal(0.10, 0.03)
    angle = np.arctan2(y, x)
    # The bodies grow smaller downwards, and the arc ends in the coccyx.
    half = 0.145 - 0.055 * np.clip(angle + 0.7, 0, 1.6)
    depth = np.abs(np.hypot(x, y) - 1.0) - half
    ends = cover(angle - 0.75, 0.08) * cover(-1.15 - angle, 0.08)
    phase = np.abs((angle / 0.32) % 1.0 - 0.5) * 0.32
    paint(canvas, ends * cover(depth - 0.02, 0.03), 0.16)
    body = np.maximum(depth, phase - 0.138) - 0.004 * coarse
    paint(canvas, ends * cover(body, 0.03), 0.55 * scanner.fat * (1 + 0.12 * coarse))
    disc = np.maximum(depth + 0.03, 0.150 - phase)
    paint(canvas, ends * cover(disc, 0.02), patient.uniform(0.25, 0.45))


def _acquire(signal: np.ndarray, view: _View, patient: np.random.Generator, rng: np.random.Generator, scanner: Scanner) -> np.ndarray:
    """Coil, point spread, Rician noise and display: (S, S) signal to (S, S) uint8."""
    size, x, y = len(signal), view.x, view.y
    # Surface coils lie in front of and behind the pelvis: bright at both sides, dark in the middle.
    sensitivity = (scanner.bias * patient.uniform(0.7, 1.3)) * (x * x + 0.3 * y * y - 0.45)
    sensitivity += (scanner.bias_tilt + patient.normal(0, 0.08)) * x + patient.normal(0, 0.08) * y
    sensitivity += 0.06 * smooth_field(patient, size, 1.0)
    signal = signal * np.exp(sensitivity)
    signal = scipy.ndimage.gaussian_filter(signal, scanner.blur * patient.uniform(0.85, 1.15) / view.pixel, truncate=3.0)

    level = max(scanner.noise, 0.004) * patient.uniform(0.8, 1.25)
    # A pixel of a large image is smaller than one of the scanner's matrix, so it shares its noise with its neighbours.
    real, imaginary = (level * smooth_field(rng, size, 1 / (_MATRIX * view.half)) for _ in range(2))
    signal = np.hypot(signal + real, imaginary)

    low, high = np.quantile(signal, (0.002, 0.995))
    shown = np.clip((signal - 0.5 * low) / (high - 0.5 * low), 0, 1) ** (scanner.gamma * patient.uniform(0.93, 1.07))
    return np.rint(255 * np.clip(scanner.window * shown, 0, 1)).astype(np.uint8)
