"""Prostate phantoms: axial T2-weighted volumes with gland masks, one NIfTI pair a patient, in the layout of site folders.

The generative model, in this order; all lengths are in mm, heights are counted from the gland's middle upwards:

1. Gland, per patient: a flattened ellipsoid, wider at the base, dented behind by the rectum. Within its thin dark capsule
   a bright peripheral zone surrounds the transition zone: two lobes of mixed signal with bright (glandular) and dark
   (stromal) nodules behind a dark surgical capsule; in front of them the dark fibromuscular stroma, behind them, near the
   base, the dark central zone. Every second patient has a dark tumour in the peripheral zone. A hyperplastic gland is
   larger by its transition zone.
2. Surroundings, per patient: fat with strands and veins, bladder and seminal vesicles above, rectum (air or stool) behind,
   the levator, obturator and gluteal muscles, pubic bones with their symphysis, hips and ischia, coccyx.
3. Endorectal coil, per centre: a balloon with a shaft distends the rectum and dents the gland; what is near it shines,
   and the signal falls off with the distance. Without a coil the array around the pelvis gives a mild, wide profile.
4. Scanner, per centre and patient: field of view, slice spacing, resolution, Rician noise (a field of 1.5 T gives more of
   both than 3 T), a saturated band in front, contrasts and the unit of the signal.

Anatomy and texture run through the slices. The gland shares its range of signals with fat, marrow, bladder and veins, so
that no threshold finds it. The mask is 1 where the gland's undistorted shape covers the voxel's centre, 0 elsewhere.

The layout has no folders for splits: a sample is a volume, every site gets as many as all splits together ask for, and
whoever reads the set divides its patients. A volume has up to 14 slices around the gland's middle, from one below the gland to
one above it where that is enough; a centre with thin slices shows the middle of the gland. Files hold signals of 16 bits and
spacings in mm; axes run to the patient's left, backwards and upwards.
"""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import scipy

from vfmgl_lib.tasks.painting.artefacts import Artefact
from vfmgl_lib.tasks.painting.fields import cover, ellipse_distance, paint, smooth_field, smooth_union, streaks, unit_grid
from vfmgl_lib.tasks.painting.sampling import Sample, blend, stream

VERSION = 2
LAYOUT = "prostate"
CENTER_NAMES = ("BIDMC", "HK", "I2CVB", "ISBI", "ISBI_1.5", "UCL")
DEFAULT_CENTERS = 4
ARTEFACTS = ("coil flare", "motion ghost", "spike noise", "fold-over", "zipper", "metal void")  # by centre
_MOST_SLICES = 14
_MATRIX = 320


@dataclass(frozen=True)
class Scanner:
    """What is a centre's own.

    Attributes:
        field_of_view: side of the image in mm.  slice_spacing: mm.
        coil: share of an endorectal coil, in the rectum's shape and in the sensitivity; 0 none, 1 all.
        lumen: signal within its balloon.  falloff: mm from the balloon at which its sensitivity has halved.
        bias: strength of the outer coils' profile (logarithm of the signal between middle and edge).
        bias_tilt: the same from front to back.  saturation: share of the signal lost in a band in front.
        noise: standard deviation of the Rician noise's channels.  blur: standard deviation of the point spread in mm.
        fat, muscle, marrow, peripheral, transition: signals, with urine at about 1.
        gain: unit of the stored numbers.  shift: mean position of the gland (to the left, backwards) in mm.
    """

    field_of_view: float = 165.0
    slice_spacing: float = 3.0
    coil: float = 0.0
    lumen: float = 0.3
    falloff: float = 30.0
    bias: float = 0.30
    bias_tilt: float = 0.0
    saturation: float = 0.0
    noise: float = 0.030
    blur: float = 0.7
    fat: float = 0.72
    muscle: float = 0.17
    marrow: float = 0.42
    peripheral: float = 0.72
    transition: float = 0.42
    gain: float = 800.0
    shift: tuple[float, float] = (0.0, -4.0)


COMMON = Scanner()
# Field strength, spacing and coil as in the paper's Methods; the rest is chosen.
# fmt: off
CENTERS = (
    # BIDMC (the paper's A): 3 T, endorectal coil, steep falloff, small field of view.
    Scanner(
        field_of_view=140, slice_spacing=2.6, coil=1.0, lumen=0.16, falloff=24, bias=0.2, noise=0.022, blur=0.45,
        fat=0.78, muscle=0.2, marrow=0.38, peripheral=0.8, transition=0.47, gain=6000, shift=(-1, -12),
    ),
    # HK (B): 1.5 T, endorectal coil in a bright balloon, the front saturated.
    Scanner(
        field_of_view=170, slice_spacing=3.6, coil=1.0, lumen=0.6, falloff=42, bias=0.25, saturation=0.75, noise=0.032,
        blur=0.95, fat=0.68, muscle=0.2, marrow=0.4, peripheral=0.74, transition=0.5, gain=2500, shift=(1, -6),
    ),
    # I2CVB (C): 3 T, no coil in the rectum, thin slices, flat and noisy.
    Scanner(
        field_of_view=165, slice_spacing=1.25, coil=0.0, bias=0.4, bias_tilt=-0.25, noise=0.042, blur=0.85,
        fat=0.5, muscle=0.24, marrow=0.35, peripheral=0.66, transition=0.45, gain=300, shift=(0, 2),
    ),
    # ISBI (D): 3 T, surface coil, sharp, strong contrast.
    Scanner(
        field_of_view=180, slice_spacing=3.6, coil=0.0, bias=0.3, bias_tilt=0.1, noise=0.018, blur=0.5,
        fat=0.8, muscle=0.13, marrow=0.42, peripheral=0.8, transition=0.44, gain=900, shift=(2, -4),
    ),
    # ISBI_1.5 (E): 1.5 T, endorectal coil, dark balloon.
    Scanner(
        field_of_view=155, slice_spacing=3.0, coil=0.9, lumen=0.05, falloff=26, bias=0.15, bias_tilt=0.2, noise=0.04,
        blur=0.7, fat=0.75, muscle=0.16, marrow=0.46, peripheral=0.7, transition=0.4, gain=1500, shift=(-2, -9),
    ),
    # UCL (F): 1.5 and 3 T, no coil in the rectum, bright fat, dark gland.
    Scanner(
        field_of_view=175, slice_spacing=3.3, coil=0.0, bias=0.4, bias_tilt=0.3, noise=0.028, blur=0.6,
        fat=0.95, muscle=0.15, marrow=0.36, peripheral=0.58, transition=0.33, gain=500, shift=(0, 0),
    ),
)
# fmt: on


@dataclass(frozen=True)
class _Body:
    """What is drawn once a patient; lengths in mm.

    Attributes:
        side, depth, height: half axes of the gland, to the side, to the front and upwards.
        center: its middle (to the left, backwards).  lean: mm backwards per mm upwards.
        lobes: size of the transition zone's lobes, as a share of the gland's.
        rectum, rectum_shift: radius and position to the left.  content: signal of what is in it.
        size, roll, bulk: magnification and rotation (radians) of the surroundings, thickness of the muscles.
        pubis: height at which the pubic bones end.  bladder: half axes (to the side, to the front, upwards).
        nodules, tumor: (N, 5) and (5,): position, radius and signal.
    """

    side: float
    depth: float
    height: float
    center: tuple[float, float]
    lean: float
    lobes: float
    rectum: float
    rectum_shift: float
    content: float
    size: float
    roll: float
    bulk: float
    pubis: float
    bladder: tuple[float, float, float]
    nodules: np.ndarray
    tumor: np.ndarray


def check_samples(samples: dict[str, int]) -> None:
    """Raise ValueError where the patients of a site cannot be divided into three splits."""
    if 0 < sum(samples.values()) < 3:
        raise ValueError(f"samples must ask for at least 3 volumes a site, whose patients are divided by who reads them, got {samples!r}")


def plan(centers: int, samples: dict[str, int], heterogeneity: float, seed: int) -> list[Sample]:
    """All volumes in writing order, one a patient; `split` is the same for all, for the layout knows none."""
    planned = []
    for center in range(centers):
        for patient in range(sum(samples.values())):
            stem = f"{CENTER_NAMES[center]}/Case{patient:02d}"
            planned.append(Sample(center, "train", patient, 0, 0, (f"{stem}.nii.gz", f"{stem}_segmentation.nii.gz")))
    return planned


def render(
    sample: Sample,
    image_size: int,
    heterogeneity: float,
    seed: int,
    profile: Scanner | None = None,
    artefact: Artefact | None = None,
) -> tuple[bytes, bytes]:
    """The files of volume and mask, each (image_size, image_size, slices): int16 signals, uint8 of 0 and 1."""
    scanner = profile or blend(COMMON, CENTERS[sample.center], heterogeneity)
    rng = stream(seed, LAYOUT, "anatomy", sample)
    body = _draw_body(rng, scanner)
    heights, spacing = _heights(scanner, body)
    pixel = scanner.field_of_view / image_size
    signal, mask, coil_distance = _draw_volume(rng, scanner, body, heights, image_size)
    measured = _acquire(signal, coil_distance, stream(seed, LAYOUT, "scan", sample), scanner)
    measured = artefact(measured) if artefact else measured
    affine = np.diag([-pixel, -pixel, spacing, 1.0])
    affine[:3, 3] = ((scanner.field_of_view - pixel) / 2, (scanner.field_of_view - pixel) / 2, heights[0])
    return _to_nifti(measured, affine), _to_nifti(mask, affine)


def slice_count(sample: Sample, heterogeneity: float, seed: int) -> int:
    """Slices of a volume, which is not drawn for it."""
    scanner = blend(COMMON, CENTERS[sample.center], heterogeneity)
    return len(_heights(scanner, _draw_body(stream(seed, LAYOUT, "anatomy", sample), scanner))[0])


def _heights(scanner: Scanner, body: _Body) -> tuple[np.ndarray, float]:
    """Of the slices, (D,), and their spacing; mm."""
    spacing = max(scanner.slice_spacing, 0.8)
    slices = min(math.ceil(2 * body.height / spacing) + 2, _MOST_SLICES)
    return (np.arange(slices) - (slices - 1) / 2) * spacing, spacing


def _to_nifti(array: np.ndarray, affine: np.ndarray) -> bytes:
    """(D, H, W) to the bytes of a .nii.gz with axes to the left, backwards, upwards; no time of writing in it."""
    image = nib.Nifti1Image(array.transpose(2, 1, 0), affine)
    image.set_sform(affine, "scanner")
    image.set_qform(affine, "scanner")
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)


def _draw_body(rng: np.random.Generator, scanner: Scanner) -> _Body:
    growth = rng.normal()  # benign hyperplasia
    side = 25.0 + 2.6 * growth + rng.normal(0, 1.5)
    depth = 18.0 + 2.6 * growth + rng.normal(0, 1.3)
    height = 21.0 + 2.4 * growth + rng.normal(0, 1.5)
    side, depth, height = max(side, 18.0), max(depth, 12.0), max(height, 15.0)
    lobes = float(np.clip(0.62 + 0.07 * growth + rng.normal(0, 0.03), 0.45, 0.80))
    coil = _share(scanner.coil)
    nodules = []
    for _ in range(rng.integers(4, 12)):
        place = rng.uniform((-0.75, -0.7, -0.5), (0.75, 0.5, 0.9)) * lobes * (side, depth, height)
        radius, bright = rng.uniform(2.5, 6.5), rng.random() < 0.5
        nodules.append((*place, radius, rng.uniform(0.65, 0.95) if bright else rng.uniform(0.22, 0.34)))
    angle = rng.choice([-1, 1]) * rng.uniform(0.3, 1.3)
    spot = 0.82 * side * math.sin(angle), 0.70 * depth * math.cos(angle), rng.uniform(-0.5, 0.4) * height
    tumor = (*spot, rng.uniform(3.5, 7.5), rng.uniform(0.28, 0.40)) if rng.random() < 0.5 else (0, 0, 99, 1, 0)
    natural = rng.uniform(8, 17)
    return _Body(
        side=side,
        depth=depth,
        height=height,
        center=(scanner.shift[0] + rng.normal(0, 4), scanner.shift[1] + rng.normal(0, 6)),
        lean=rng.uniform(0.05, 0.3),
        lobes=lobes,
        rectum=(1 - coil) * natural + coil * rng.uniform(16, 20),
        rectum_shift=(1 - coil) * rng.normal(0, 4),
        content=float(rng.choice([0.03, 0.30, 0.50], p=[0.5, 0.25, 0.25])),
        size=rng.uniform(0.90, 1.10),
        roll=math.radians(rng.normal(0, 3)),
        bulk=rng.uniform(0.80, 1.25),
        pubis=rng.uniform(0.05, 0.60) * height,
        bladder=(rng.uniform(26, 36), rng.uniform(17, 25), rng.uniform(14, 24)),
        nodules=np.array(nodules),
        tumor=np.array(tumor),
    )


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _draw_volume(rng, scanner, body, heights, size) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise-free signal, mask and distance to the balloon of the coil (mm), each (D, size, size)."""

    def texture(scale: float, reach: float = 5.0) -> np.ndarray:
        return _stack(rng, size, scale / scanner.field_of_view, heights, reach)

    fields = {
        "fine": texture(1.6, 3.0),
        "medium": texture(4.5),
        "coarse": texture(14, 8.0),
        "warp_x": texture(40, 15.0),
        "warp_y": texture(40, 15.0),
        "border": texture(11, 6.0),
        "veins": texture(3.2, 4.0),
        "strands": texture(9, 6.0),
    }
    pieces = [_draw_slice(rng, scanner, body, height, {k: v[i] for k, v in fields.items()}) for i, height in enumerate(heights)]
    signal, mask, distance = (np.stack(piece) for piece in zip(*pieces, strict=True))
    return signal, mask, distance


def _stack(rng: np.random.Generator, size: int, scale: float, heights: np.ndarray, reach: float) -> np.ndarray:
    """(D, size, size) smooth fields, mean 0, standard deviation about 1; slices closer than `reach` (mm) are alike."""
    position = (heights - heights[0]) / reach
    first = position.astype(int)
    knots = np.stack([smooth_field(rng, size, scale) for _ in range(first[-1] + 2)])
    turn = ((position - first) * (math.pi / 2)).astype(np.float32)[:, None, None]
    return np.cos(turn) * knots[first] + np.sin(turn) * knots[first + 1]


def _draw_slice(rng, scanner, body, height, fields) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = len(fields["fine"])
    half = scanner.field_of_view / 2
    pixel = 2 * half / size
    x, y = unit_grid(size)
    # Left and backwards from the gland's middle axis.
    x = half * x - body.center[0] + 1.5 * fields["warp_x"]
    y = half * y - body.center[1] + 1.5 * fields["warp_y"] - body.lean * height
    x, y = x * math.cos(body.roll) + y * math.sin(body.roll), y * math.cos(body.roll) - x * math.sin(body.roll)
    soft = max(1.2 * pixel, 1.0)

    level = height / body.height
    scale = max(1 - abs(level) ** 2.6, 0.0) ** (1 / 2.2)
    radius = body.rectum * (1 + 0.08 * math.sin(3 * level + body.lobes * 9))
    back = 0.80 * body.depth + 3.5 + radius
    rectum = ellipse_distance(x - body.rectum_shift * (1 + 0.3 * level), y - back, radius, 0.95 * radius) + 0.5 * fields["border"]
    gland = _gland(body, scale, level, x, y, rectum) + 0.7 * fields["border"] if scale > 0.12 else np.full_like(x, 99.0)

    canvas = _draw_surroundings(rng, scanner, body, height, x, y, gland, rectum, fields, soft)
    if scale > 0.12:
        _draw_gland(canvas, scanner, body, scale, level, x, y, gland, fields, soft)
    return np.maximum(canvas, 0.01), (gland < 0).astype(np.uint8), np.maximum(rectum, 0)


def _gland(body, scale, level, x, y, rectum) -> np.ndarray:
    side, depth = body.side * scale * (1 + 0.10 * level), body.depth * scale
    outline = ellipse_distance(x, y, side, 1.12 * depth)
    # Flat behind, with a groove in the middle, and never into the rectum.
    flat = y - (0.86 * depth - 1.8 * np.exp(-((x / 8) ** 2)))
    return _overlap(_overlap(outline, flat, 6.0), 4.5 - rectum, 3.0)


def _overlap(first: np.ndarray, second: np.ndarray, width: float) -> np.ndarray:
    return -smooth_union(-first, -second, width)


def _draw_gland(canvas, scanner, body, scale, level, x, y, gland, fields, soft) -> None:
    fine, medium, coarse = fields["fine"], fields["medium"], fields["coarse"]
    side, depth = body.side * scale, body.depth * scale
    inside = cover(gland, soft)
    peripheral = scanner.peripheral * (1 + 0.07 * fine + 0.10 * medium + 0.12 * coarse)
    paint(canvas, inside, np.maximum(peripheral, 0.2))

    # The lobes end above the apex.
    lobes = body.lobes * min(max((level + 1.0) / 0.5, 0.0), 1.0) ** 0.5
    if lobes > 0.15:
        left, right = (
            ellipse_distance(x - s * 0.34 * lobes * side, y + 0.22 * depth, 0.72 * lobes * side, 1.05 * lobes * depth) for s in (-1, 1)
        )
        zone = _overlap(smooth_union(left, right, 4.0) + 0.4 * fields["border"], gland + 1.5, 2.0)
        lobe = inside * cover(zone, soft)
        paint(canvas, lobe, np.maximum(scanner.transition * (1 + 0.12 * fine + 0.25 * medium + 0.12 * coarse), 0.1))
        for place_x, place_y, place_z, radius, signal in body.nodules:
            reach = radius**2 - (level * body.height - place_z) ** 2
            if reach > 1:
                nodule = ellipse_distance(x - place_x, y + 0.15 * depth - place_y, math.sqrt(reach), 0.85 * math.sqrt(reach))
                paint(canvas, lobe * cover(nodule - 0.8, soft), 0.24)
                paint(canvas, lobe * cover(nodule, soft), signal * (1 + 0.12 * medium))
        paint(canvas, 0.8 * inside * cover(np.abs(zone) - 0.5, soft), 0.24)
    stroma = ellipse_distance(x, y + 0.98 * depth, 0.55 * side, 0.24 * depth)
    paint(canvas, 0.85 * inside * cover(stroma, 3.0), 0.20 * (1 + 0.15 * fine))
    if level > 0.25:
        central = ellipse_distance(x, y - 0.42 * depth, 0.42 * side, 0.20 * depth)
        paint(canvas, 0.8 * inside * cover(central, 3.0), 0.30 * (1 + 0.15 * fine))
    urethra = ellipse_distance(x, y + 0.05 * depth, 2.6, 2.2)
    paint(canvas, 0.7 * inside * cover(urethra - 1.2, soft), 0.26)
    paint(canvas, 0.7 * inside * cover(urethra, soft), 0.72)
    place_x, place_y, place_z, radius, signal = body.tumor
    reach = radius**2 - (level * body.height - place_z) ** 2
    if reach > 1:
        focus = ellipse_distance(x - place_x * scale, y - place_y * scale, 1.2 * math.sqrt(reach), 0.8 * math.sqrt(reach))
        paint(canvas, inside * cover(focus + 0.8 * fields["border"], 2.5), signal * (1 + 0.08 * fine))
    paint(canvas, 0.75 * cover(np.abs(gland) - 0.4, soft), 0.22)


def _draw_surroundings(rng, scanner, body, height, x, y, gland, rectum, fields, soft) -> np.ndarray:
    """Everything but the gland: the canvas it is painted on."""
    fine, medium, coarse, veins = fields["fine"], fields["medium"], fields["coarse"], fields["veins"]
    muscle = scanner.muscle * (1 + 0.10 * fine + 0.10 * coarse)
    side = np.abs(x) / body.size
    front = y / body.size
    canvas = scanner.fat * (0.90 + 0.07 * coarse + 0.04 * fine)
    canvas = canvas * (1 - 0.30 * np.exp(-((fields["strands"] / 0.14) ** 2)) * cover(0.2 - fields["warp_x"], 0.8))

    def bone(u, v, a, b, signal=scanner.marrow):
        if min(a, b) > 2:
            shape = ellipse_distance(u, v, a, b) + 0.8 * fields["border"]
            paint(canvas, cover(shape - 1.6, soft), 0.05)
            paint(canvas, cover(shape, soft), signal * (1 + 0.14 * medium + 0.08 * coarse))

    def muscles(u, v, a, b, angle=0.0):
        along, across = u * math.cos(angle) + v * math.sin(angle), v * math.cos(angle) - u * math.sin(angle)
        shape = ellipse_distance(along, across, a, b * body.bulk) + 1.2 * fields["border"]
        streak = streaks(rng, across + 1.5 * coarse, 2.2)
        paint(canvas, cover(shape, soft), muscle * (1 + 0.16 * streak))
        # Fat between the bundles.
        paint(canvas, 0.35 * cover(shape + 2, 2.0) * cover(1.5 - streak - 0.4 * medium, 0.8), scanner.fat)

    # Behind: gluteal muscles and coccyx. In front: pubic bones with the muscles of the thigh, above them the abdominal wall.
    muscles(side - 54, front - 70, 50, 19, 0.50)
    bone(x, front - 63, 9, 6, 0.8 * scanner.marrow)
    pubis = _reach((height + 14) / (body.pubis + 14))
    hip = _reach((height - 18) / 26)
    if pubis > 0:
        muscles(side - 54, front + 40, 32 * pubis, 11 * pubis, 0.55)
        muscles(side - 66, front + 12, 19 * pubis, 20 * pubis)
        bone(side - 20, front + 46 + 0.12 * side, 19 * pubis, 9.5 * pubis)
        paint(canvas, cover(ellipse_distance(x, front + 46, 3.2 * pubis + 0.1, 12 * pubis + 0.1), 2.0), 0.24 * (1 + 0.2 * fine))
    if pubis < 0.7:
        muscles(side - 17, front + 62, 19, 6, 0.1)
        muscles(side - 66, front + 44, 22, 11, 0.9)
    if hip > 0:
        paint(canvas, 0.9 * cover(ellipse_distance(side - 74, front + 4, 27 * hip, 27 * hip), soft), 0.12)
        bone(side - 75, front + 4, 23 * hip, 23 * hip)
    bone(side - 58, front - 24, 10 + 4 * (1 - hip), 20 - 6 * hip)
    muscles(side - 45, front, 34, 7, 1.28)
    paint(canvas, cover(np.abs(ellipse_distance(side - 33, front + 32, 3.6, 3.0)) - 0.2, soft), 0.10)

    if height > 0.2 * body.height:
        _draw_bladder(canvas, scanner, body, height, x, y, fields, soft)
    # Periprostatic veins, and the muscle that holds gland and rectum in a sling.
    near = cover(gland - 6, 3.0) * cover(-gland, 2.0)
    paint(canvas, 0.8 * near * cover(0.7 - veins, 0.5), 0.90)
    paint(canvas, 0.8 * near * cover(1.1 + veins, 0.5), 0.14)
    sling = np.abs(smooth_union(np.minimum(gland, 60), rectum, 10.0) - 6.5 - 0.8 * medium) - 1.5
    paint(canvas, 0.9 * cover(sling, soft) * cover(np.abs(y - 6) - 26, 8.0) * cover(8 - np.abs(x), 4.0), muscle)
    _draw_rectum(canvas, scanner, body, rectum, x, y, fields, soft)
    return canvas


def _reach(share: float) -> float:
    """Radius at a share of a ball's radius from its middle, relative to it; 0 outside."""
    return math.sqrt(max(1 - share * share, 0.0))


def _draw_bladder(canvas, scanner, body, height, x, y, fields, soft) -> None:
    """Bladder above the gland and in front of the seminal vesicles."""
    width, depth, tall = body.bladder
    reach = _reach((height - body.height - 0.6 * tall) / tall)
    if reach > 0.2:
        bladder = ellipse_distance(x, y + 0.55 * body.depth + 4, width * reach, depth * reach) + 0.8 * fields["border"]
        paint(canvas, cover(bladder - 2.5, soft), 0.20 * (1 + 0.1 * fields["fine"]))
        paint(canvas, cover(bladder, soft), 0.98 + 0.02 * fields["coarse"])
    share = min(max((height / body.height - 0.55) / 0.3, 0.0), 1.0)
    vesicles = ellipse_distance(np.abs(x) - 15, y - 0.55 * body.depth + 0.12 * np.abs(x), 15, 4.5) + fields["border"]
    convolution = 0.55 + 0.30 * np.sin(2.5 * fields["medium"] + 1.5 * fields["veins"])
    paint(canvas, share * cover(vesicles, soft), convolution)


def _draw_rectum(canvas, scanner, body, rectum, x, y, fields, soft) -> None:
    """Wall, mucosa and content; with a coil its balloon and shaft."""
    coil = _share(scanner.coil)
    fine, coarse = fields["fine"], fields["coarse"]
    paint(canvas, cover(rectum - 2.5, soft), 0.26 * (1 + 0.12 * fine))
    paint(canvas, cover(np.abs(rectum + 0.2) - 0.6, soft), 0.62)
    content = max(body.content, 0.02) * (1 + (0.25 if body.content > 0.1 else 0.05) * coarse + 0.12 * fine)
    paint(canvas, cover(rectum + 1.2, soft), np.maximum((1 - coil) * content + coil * scanner.lumen * (1 + 0.05 * coarse), 0.02))
    back = 0.80 * body.depth + 3.5 + body.rectum
    shaft = ellipse_distance(x - body.rectum_shift, y - back - 0.15 * body.rectum, 3.6, 3.6)
    paint(canvas, coil * cover(np.abs(rectum + 1.6) - 0.5, soft), 0.04)
    paint(canvas, coil * cover(shaft, soft), 0.04)
    paint(canvas, coil * cover(shaft + 2.4, soft), 0.45)


def _acquire(signal: np.ndarray, coil_distance: np.ndarray, rng: np.random.Generator, scanner: Scanner) -> np.ndarray:
    """Coils, saturation, point spread and Rician noise: (D, S, S) signal and distance to int16 numbers of the same shape."""
    size = signal.shape[-1]
    half = scanner.field_of_view / 2
    x, y = unit_grid(size)
    coil = _share(scanner.coil)
    outer = scanner.bias * rng.uniform(0.7, 1.3) * (0.5 * x * x + y * y - 0.4)
    outer += (scanner.bias_tilt + rng.normal(0, 0.06)) * y + rng.normal(0, 0.06) * x + 0.05 * smooth_field(rng, size, 0.6)
    falloff = max(scanner.falloff, 5.0) * rng.uniform(0.85, 1.15)
    inner = 1.8 / (1 + (coil_distance / falloff) ** 1.6)
    signal = signal * ((1 - coil) * np.exp(outer) + coil * (0.25 * np.exp(outer) + inner))
    edge = -half * rng.uniform(0.36, 0.50)
    signal = signal * (1 - _share(scanner.saturation) * cover(half * y - edge, 12.0))
    sigma = max(scanner.blur, 0.2) * rng.uniform(0.85, 1.15) * size / (2 * half)
    signal = scipy.ndimage.gaussian_filter(signal, (0, sigma, sigma), truncate=3.0)
    level = max(scanner.noise, 0.004) * rng.uniform(0.8, 1.25)
    # A pixel of a large image is smaller than one of the scanner's matrix, so it shares its noise with its neighbours.
    real, imaginary = (np.stack([level * smooth_field(rng, size, 1 / _MATRIX) for _ in signal]) for _ in range(2))
    measured = np.hypot(signal + real, imaginary) * max(scanner.gain, 200.0) * rng.uniform(0.8, 1.25)
    return np.rint(np.clip(measured, 0, np.iinfo(np.int16).max)).astype(np.int16)
