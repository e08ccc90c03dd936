"""Endometrial phantoms: sagittal T2-weighted slices of a uterus with a tumour, in the endometrial layout.

The generative model, in this order:

1. Anatomy, per patient. A pear-shaped, bent uterus (myometrium: intermediate signal) holds a bright cavity, wrapped by
   the dark junctional zone. Around it: fat, bladder, rectum, bowel, sacrum, abdominal wall. Half of the patients have
   fibroids, a third bright foci in the myometrium.
2. Tumour, per patient: an irregular ellipse of intermediate signal at the cavity's wall. Position, size and signal
   have the same distribution in both classes; they differ in the junctional zone alone:
   0_NMI  it follows the tumour's outer border, thinned as a stretched band is: the tumour is confined to the
          endometrium;
   1_MI   it runs along the cavity and stops at the tumour, which lies in the myometrium behind it.
   A mean or a histogram therefore says next to nothing about the class; the band's course says it all.
3. Slice: one to three neighbouring slices per patient, slightly shifted, scaled and newly textured.
4. Scanner, per centre and patient: coil sensitivity, resolution, Rician noise, window, gamma, fat signal.
5. Record, per patient: age, FIGO stage and histologic type, drawn from the row of the paper's Table 1 for the centre,
   set and class; they stand in patients.csv and leave no trace in the image.

The centres of EXTERNAL_CENTERS take no part in training: they come on top of those asked for, with test images alone.

Lengths are in half image sides (the image spans [-1, 1]²), signals are dimensionless with urine at about 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import scipy

from vfmgl_lib.tasks.painting.fields import cover, ellipse_distance, paint, smooth_field, smooth_union, streaks, unit_grid
from vfmgl_lib.tasks.painting.sampling import Sample, blend, patient_name, spread_over_patients, stream

VERSION = 2
LAYOUT = "endometrial"
CENTER_NAMES = ("A", "B", "C", "D", "E", "F")
EXTERNAL_CENTERS = ("E", "F")
DEFAULT_CENTERS = 4
CLASSES = ("0_NMI", "1_MI")
SPLIT_FOLDERS = {"train": "traindata", "test": "testdata"}
RECORDS = "patients.csv"
FIGO, HISTOLOGY = ("I", "II", "III", "IV"), ("I", "II")
_AGES = (20.0, 95.0)  # years; a normal distribution has no ends
_MATRIX = 176


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
            half image sides.
        fat, myometrium, junction, tumor: signals.
        zoom: magnification.  shift: mean position of the uterus (x, y).  retroverted: share of patients.
    """

    prevalence: float = 0.60
    bias: float = 0.30
    bias_tilt: float = 0.0
    gamma: float = 1.0
    window: float = 0.97
    noise: float = 0.030
    blur: float = 0.008
    fat: float = 0.70
    myometrium: float = 0.43
    junction: float = 0.19
    tumor: float = 0.60
    zoom: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    retroverted: float = 0.20


COMMON = Scanner()
# fmt: off
CENTERS = (
    # A, the largest: 3 T, sharp, little noise, strong coil profile.
    Scanner(
        prevalence=0.62, bias=0.5, bias_tilt=0.15, gamma=0.85, window=0.97, noise=0.018, blur=0.005, fat=0.74,
        myometrium=0.45, junction=0.16, tumor=0.6, zoom=1.05, shift=(-0.03, 0.0), retroverted=0.15,
    ),
    # B: 1.5 T, noisy and soft, flat contrast.
    Scanner(
        prevalence=0.52, bias=0.15, bias_tilt=-0.3, gamma=0.95, window=0.8, noise=0.045, blur=0.013, fat=0.62,
        myometrium=0.46, junction=0.23, tumor=0.59, zoom=0.92, shift=(0.05, 0.04), retroverted=0.25,
    ),
    # C: fat partly saturated, dark display.
    Scanner(
        prevalence=0.74, bias=0.3, bias_tilt=0.05, gamma=1.4, window=0.97, noise=0.03, blur=0.007, fat=0.34,
        myometrium=0.42, junction=0.15, tumor=0.61, zoom=1.1, shift=(0.02, -0.06), retroverted=0.15,
    ),
    # D: bright display, tilted sensitivity, large field of view.
    Scanner(
        prevalence=0.68, bias=0.25, bias_tilt=0.45, gamma=0.7, window=0.92, noise=0.025, blur=0.01, fat=0.8,
        myometrium=0.4, junction=0.16, tumor=0.58, zoom=0.86, shift=(-0.05, 0.03), retroverted=0.3,
    ),
    # E, external: soft and dark.
    Scanner(
        prevalence=0.78, bias=0.55, bias_tilt=-0.2, gamma=1.2, window=0.85, noise=0.04, blur=0.014, fat=0.6,
        myometrium=0.41, junction=0.19, tumor=0.6, zoom=0.98, shift=(0.06, -0.02), retroverted=0.2,
    ),
    # F, external: sharp, bright fat, strong tilt to the other side.
    Scanner(
        prevalence=0.66, bias=0.2, bias_tilt=-0.5, gamma=1.05, window=0.99, noise=0.022, blur=0.005, fat=0.85,
        myometrium=0.44, junction=0.14, tumor=0.62, zoom=1.0, shift=(0.0, 0.05), retroverted=0.35,
    ),
)


@dataclass(frozen=True)
class Cohort:
    """Patients of one class: mean and SD of their age in years, and how often each FIGO stage and histologic type occurs."""

    age_mean: float
    age_std: float
    figo: tuple[float, ...]
    histology: tuple[float, ...]


# Table 1 of the paper by centre and set, NMI before MI; NaN where it gives no age. A copy of
# data_manifests/table1_endometrial_patients.csv: what a version of the phantoms is drawn from must not change under it.
TABLE_1 = {
    ("A", "train"): (Cohort(50.3673, 9.4001, (46, 0, 2, 1), (42, 7)), Cohort(55.9335, 8.1279, (261, 31, 61, 8), (336, 25))),
    ("A", "test"): (Cohort(47.5588, 7.2413, (34, 0, 0, 0), (34, 0)), Cohort(54.8423, 7.8782, (168, 21, 50, 2), (216, 25))),
    ("B", "train"): (Cohort(48.3750, 5.8294, (8, 0, 0, 0), (8, 0)), Cohort(52.8824, 7.9839, (28, 2, 3, 1), (32, 2))),
    ("B", "test"): (Cohort(45.5000, 10.4451, (6, 0, 0, 0), (6, 0)), Cohort(55.5652, 10.2772, (16, 3, 4, 0), (22, 1))),
    ("C", "train"): (Cohort(math.nan, math.nan, (1, 0, 0, 0), (0, 1)), Cohort(60.9524, 8.1944, (15, 2, 3, 1), (19, 2))),
    ("C", "test"): (Cohort(math.nan, math.nan, (1, 0, 0, 0), (1, 0)), Cohort(60.1429, 10.2421, (9, 3, 2, 0), (14, 0))),
    ("D", "train"): (Cohort(51.1818, 11.7883, (11, 0, 0, 0), (10, 1)), Cohort(54.6788, 8.1195, (127, 5, 31, 2), (148, 17))),
    ("D", "test"): (Cohort(51.0000, 3.1168, (7, 0, 1, 0), (8, 0)), Cohort(54.4636, 7.8503, (91, 3, 14, 2), (101, 9))),
    ("E", "test"): (Cohort(math.nan, math.nan, (1, 0, 0, 0), (1, 0)), Cohort(55.0968, 8.9511, (42, 11, 7, 2), (60, 2))),
    ("F", "test"): (Cohort(54.6250, 13.7730, (8, 0, 0, 0), (7, 1)), Cohort(54.9358, 8.9134, (91, 2, 15, 1), (99, 10))),
}
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
            age, figo, histology = _draw_record(sample, heterogeneity, seed)
            lines.append(f"{patient_name(sample.center, sample.split, sample.patient)},{age:.1f},{figo},{histology}")
    return {RECORDS: "".join(f"{line}\n" for line in lines).encode("utf-8")}


def render(sample: Sample, image_size: int, heterogeneity: float, seed: int, profile: Scanner | None = None) -> tuple[np.ndarray]:
    """The slice as (image_size, image_size) uint8, one grey channel."""
    scanner = profile or _scanner(sample.center, heterogeneity)
    rng = stream(seed, LAYOUT, "slice", sample, sample.image)
    signal, _ = _draw_slice(stream(seed, LAYOUT, "anatomy", sample), rng, scanner, sample, image_size)
    return (_acquire(signal, stream(seed, LAYOUT, "scan", sample), rng, scanner),)


def lesion(sample: Sample, image_size: int, heterogeneity: float, seed: int, profile: Scanner | None = None) -> np.ndarray:
    """Where the slice's tumour lies, drawn anew: (image_size, image_size) bool. Slices of either class have one."""
    rng = stream(seed, LAYOUT, "slice", sample, sample.image)
    scanner = profile or _scanner(sample.center, heterogeneity)
    return _draw_slice(stream(seed, LAYOUT, "anatomy", sample), rng, scanner, sample, image_size)[1]


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


def _draw_record(sample: Sample, heterogeneity: float, seed: int) -> tuple[float, str, str]:
    """Age in years, FIGO stage and histologic type of a patient."""
    everyone, own = _everyone(sample.label), TABLE_1[CENTER_NAMES[sample.center], sample.split][sample.label]
    if math.isnan(own.age_mean):
        # A single patient has no age in Table 1, and those of C not in the other set either: the whole class's instead.
        own = replace(own, age_mean=everyone.age_mean, age_std=everyone.age_std)
    cohort = blend(everyone, _in_shares(own), heterogeneity)
    rng = stream(seed, LAYOUT, "record", sample)
    age = float(np.clip(rng.normal(cohort.age_mean, max(cohort.age_std, 1.0)), *_AGES))
    figo, histology = (np.maximum(shares, 0) for shares in (cohort.figo, cohort.histology))  # above 1 a blend may fall below 0
    return age, str(rng.choice(FIGO, p=figo / figo.sum())), str(rng.choice(HISTOLOGY, p=histology / histology.sum()))


@lru_cache
def _everyone(label: int) -> Cohort:
    """All patients of a class, whatever their centre and set: what each centre is like at heterogeneity 0."""
    cohorts = [pair[label] for pair in TABLE_1.values()]
    aged = [(sum(c.figo), c.age_mean, c.age_std) for c in cohorts if not math.isnan(c.age_mean)]
    n, mean, std = np.array(aged).T
    middle = (n * mean).sum() / n.sum()
    variance = ((n - 1) * std**2 + n * (mean - middle) ** 2).sum() / (n.sum() - 1)
    figo, histology = (tuple(np.sum(counts, axis=0)) for counts in ([c.figo for c in cohorts], [c.histology for c in cohorts]))
    return _in_shares(Cohort(float(middle), math.sqrt(variance), figo, histology))


def _in_shares(cohort: Cohort) -> Cohort:
    figo, histology = (tuple(float(n / sum(counts)) for n in counts) for counts in (cohort.figo, cohort.histology))
    return replace(cohort, figo=figo, histology=histology)


def _draw_slice(
    patient: np.random.Generator, rng: np.random.Generator, scanner: Scanner, sample: Sample, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Noise-free signal of one slice and its tumour, both (S, S); `patient` draws what its slices share, `rng` what is the slice's own."""
    pixel = 2 / size
    x, y = unit_grid(size)
    zoom = scanner.zoom * patient.uniform(0.92, 1.08) * rng.uniform(0.97, 1.03)
    warp = 0.022
    x = x / zoom + warp * smooth_field(patient, size, 0.25) + 0.3 * warp * smooth_field(rng, size, 0.25)
    y = y / zoom + warp * smooth_field(patient, size, 0.25) + 0.3 * warp * smooth_field(rng, size, 0.25)
    fine, coarse = smooth_field(rng, size, 0.022), smooth_field(rng, size, 0.07)

    retroverted = patient.random() < scanner.retroverted
    center = np.array(scanner.shift) + patient.normal(0, 0.05, 2) + rng.normal(0, 0.015, 2)
    center += (0.16, -0.10) if retroverted else (0.0, 0.0)
    canvas = _draw_surroundings(patient, rng, x, y, scanner, pixel, coarse)

    # Axis from the cervix to the fundus: forwards and up, or backwards and up.
    angle = math.radians(patient.normal(62 if retroverted else 142, 9))
    axis = np.array([math.cos(angle), -math.sin(angle)], np.float32)
    along = (x - center[0]) * axis[0] + (y - center[1]) * axis[1]
    across = (y - center[1]) * axis[0] - (x - center[0]) * axis[1]
    across = across + patient.uniform(-0.30, 0.30) * (along - 0.1) ** 2

    length, width = patient.uniform(0.56, 0.66), patient.uniform(0.37, 0.43)
    uterus = smooth_union(
        ellipse_distance(along - 0.22 * length, across, 0.78 * length, width),
        ellipse_distance(along + 0.72 * length, across, 0.50 * length, 0.48 * width),
        0.12,
    )
    cavity_width = patient.uniform(0.045, 0.085)
    cavity = ellipse_distance(along - 0.27 * length, across, patient.uniform(0.44, 0.52) * length, cavity_width)
    canal = ellipse_distance(along + 0.62 * length, across, 0.42 * length, 0.022)

    tumor, tumor_signal = _draw_tumor(patient, rng, scanner, along, across, length, width, cavity_width, size)
    band = patient.uniform(0.062, 0.088)
    confined = sample.label == 0
    lining = smooth_union(cavity, tumor - 0.01, 0.05) if confined else cavity
    # A band stretched around the tumour keeps its area, so that the amount of dark tissue does not give the class away.
    stretch = cover(tumor - 0.08, 0.10) if confined else 0.0
    junction = np.maximum(-lining, lining - band * (1 - 0.22 * stretch))
    uterus = smooth_union(uterus, tumor - band - 0.05, 0.10)

    muscle = streaks(rng, across + 0.06 * coarse, 0.035)
    myometrium = scanner.myometrium * patient.uniform(0.9, 1.1) * (1 + 0.07 * fine + 0.08 * coarse + 0.035 * muscle)
    paint(canvas, cover(uterus - 0.014, 2 * pixel), 0.20)
    inside = cover(uterus, 1.5 * pixel)
    paint(canvas, inside, myometrium)
    cervix = inside * cover(np.abs(across) - 0.085, 0.04) * cover(along + 0.40 * length, 0.12)
    paint(canvas, cervix, scanner.junction * 1.25)
    paint(canvas, inside * cover(canal, 0.02), 0.78)
    _draw_lesions(patient, canvas, along, across, uterus, tumor, junction, length, width, scanner, fine, pixel)
    paint(canvas, cover(junction, max(1.2 * pixel, 0.022)) * inside, scanner.junction * (1 + 0.10 * coarse))
    paint(canvas, cover(cavity, max(1.2 * pixel, 0.02)), patient.uniform(0.78, 0.90) * (1 + 0.03 * fine))
    paint(canvas, cover(tumor, max(1.2 * pixel, 0.024)), tumor_signal * (1 + 0.06 * fine + 0.08 * coarse))
    return np.maximum(canvas, 0.01), tumor < 0


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
    half_length, half_width = scale * patient.uniform(0.17, 0.25), scale * patient.uniform(0.12, 0.16)
    side = patient.choice([-1.0, 1.0])
    # The outer border lies between 30 and 75 % of the way from the cavity to the serosa.
    reach = cavity_width + patient.uniform(0.40, 0.72) * (width - cavity_width)
    u = along - patient.uniform(0.0, 0.45) * length
    v = across - side * (reach - half_width)
    turn = math.radians(patient.normal(0, 15))
    u, v = u * math.cos(turn) + v * math.sin(turn), v * math.cos(turn) - u * math.sin(turn)
    border = 0.014 * smooth_field(patient, size, 0.07) + 0.005 * smooth_field(rng, size, 0.035)
    return ellipse_distance(u, v, half_length, half_width) + border, scanner.tumor * patient.uniform(0.93, 1.07)


def _draw_lesions(patient, canvas, along, across, uterus, tumor, junction, length, width, scanner, fine, pixel) -> None:
    """Fibroids (dark, round, whorled) and bright foci in the myometrium, equally often in both classes."""
    free = cover(0.035 - tumor, 0.03) * cover(0.03 - junction, 0.03) * cover(uterus + 0.01, 0.02)
    for _ in range(patient.choice(3, p=(0.5, 0.35, 0.15))):
        place, radius = patient.uniform(-0.1, 0.9) * length, patient.uniform(0.04, 0.09)
        offset = patient.choice([-1.0, 1.0]) * patient.uniform(0.75, 0.9) * width
        fibroid = ellipse_distance(along - place, across - offset, radius, 0.85 * radius)
        signal = scanner.junction * patient.uniform(1.0, 1.4) * (1 + 0.12 * fine)
        paint(canvas, free * cover(fibroid, 2 * pixel), signal)
    if patient.random() < 0.35:
        spots = cover(0.9 - smooth_field(patient, canvas.shape[0], 0.03) * 0.4, 0.2)
        paint(canvas, free * spots * cover(uterus + 0.05, 0.05), 0.7)


def _draw_surroundings(patient, rng, x, y, scanner, pixel, coarse) -> np.ndarray:
    """Fat with vessels, abdominal wall, sacrum, bowel, bladder and rectum: the canvas the uterus is painted on."""
    size = len(x)
    strands = np.abs(smooth_field(rng, size, 0.09)) + 0.25 * np.abs(coarse)
    canvas = scanner.fat * (0.88 + 0.06 * coarse) * (1 - 0.28 * np.exp(-((strands / 0.22) ** 2)))
    paint(canvas, 0.8 * cover(0.35 - smooth_field(patient, size, 0.20), 0.9), 0.34 * (1 + 0.12 * coarse))
    # Vessels beside the uterus: dark where blood flows fast, bright where it stands.
    vessels = smooth_field(patient, size, 0.045)
    paint(canvas, 0.8 * cover(1.8 - vessels, 0.5), 0.10)
    paint(canvas, 0.8 * cover(2.0 + vessels, 0.5), 0.85)

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


def _acquire(signal: np.ndarray, patient: np.random.Generator, rng: np.random.Generator, scanner: Scanner) -> np.ndarray:
    """Coil, point spread, Rician noise and display: (S, S) signal to (S, S) uint8."""
    size = len(signal)
    x, y = unit_grid(size)
    # Surface coils lie in front of and behind the pelvis: bright at both sides, dark in the middle.
    sensitivity = (scanner.bias * patient.uniform(0.7, 1.3)) * (x * x + 0.3 * y * y - 0.45)
    sensitivity += (scanner.bias_tilt + patient.normal(0, 0.08)) * x + patient.normal(0, 0.08) * y
    sensitivity += 0.06 * smooth_field(patient, size, 0.6)
    signal = signal * np.exp(sensitivity)
    half = size / 2
    signal = scipy.ndimage.gaussian_filter(signal, scanner.blur * patient.uniform(0.85, 1.15) * half, truncate=3.0)

    level = max(scanner.noise, 0.004) * patient.uniform(0.8, 1.25)
    # A pixel of a large image is smaller than one of the scanner's matrix, so it shares its noise with its neighbours.
    real, imaginary = (level * smooth_field(rng, size, 1 / _MATRIX) for _ in range(2))
    signal = np.hypot(signal + real, imaginary)

    low, high = np.quantile(signal, (0.002, 0.995))
    shown = np.clip((signal - 0.5 * low) / (high - 0.5 * low), 0, 1) ** (scanner.gamma * patient.uniform(0.93, 1.07))
    return np.rint(255 * np.clip(scanner.window * shown, 0, 1)).astype(np.uint8)
