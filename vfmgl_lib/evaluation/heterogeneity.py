"""How different the centres' images are, in numbers: can a centre be told from simple statistics, and how far apart are the pixel values?

Nothing here looks at what is on the images, and no network is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
import scipy
import skimage

from vfmgl_lib.base.randomness import seed_sequence
from vfmgl_lib.evaluation.statistics import Interval, bootstrap_interval

IDENTITY = ("id", "center", "patient")
STAINS = ("haematoxylin", "eosin")
QUANTILES = (0.05, 0.25, 0.50, 0.75, 0.95)
FOLDS = 5
BINS = 150
DENSEST = 1.5  # optical density at which a stain's last bin ends: 3 % of the light passes
# skimage measures a stain in units of ln(1e6); this turns it into optical density, the decadic logarithm.
_DECADES = 6.0


def image_features(pictures: pd.DataFrame) -> pd.DataFrame:
    """Simple statistics of each image, those a network could take for the centre's signature.

    Per channel: mean, standard deviation, five quantiles (5 to 95 %) and sharpness, the decadic logarithm of the mean squared
    Laplacian, which blur lowers and noise raises. Channels are grey where all images are; otherwise red, green, blue and the
    optical densities of haematoxylin and eosin (colour deconvolution with the vectors of Ruifrok and Johnston 2001, by skimage).

    Args:
        pictures: id, center, patient, image (S, S, 3) in [0, 1]. `evaluation.samples.read_samples` gives all but the patient, which
            the manifest's table has by id.
    Returns: id, center, patient, then one column a statistic, such as "red mean".
    Raises: ValueError: a missing column, or no images.
    """
    missing = [name for name in (*IDENTITY, "image") if name not in pictures.columns]
    if missing or not len(pictures):
        found = f"it lacks {', '.join(missing)}" if missing else "it has no rows"
        raise ValueError(f"pictures must have id, center, patient and image, one row an image; {found}")
    colored = _is_colored(pictures)
    values = [_statistics(image, colored) for image in pictures["image"]]
    return pictures[list(IDENTITY)].join(pd.DataFrame(values, index=pictures.index)).reset_index(drop=True)


def _is_colored(pictures: pd.DataFrame) -> bool:
    return any((image != image[..., :1]).any() for image in pictures["image"])


def _statistics(image: np.ndarray, colored: bool) -> dict[str, float]:
    planes = dict(zip(("red", "green", "blue"), np.moveaxis(image, -1, 0), strict=True)) if colored else {"grey": image[..., 0]}
    if colored:
        planes |= dict(zip(STAINS, np.moveaxis(_stains(image), -1, 0), strict=True))
    found: dict[str, float] = {}
    for name, plane in planes.items():
        plane = plane.astype(np.float64)
        found |= {f"{name} mean": plane.mean(), f"{name} SD": plane.std()}
        found |= {f"{name} {100 * q:.0f} %": value for q, value in zip(QUANTILES, np.quantile(plane, QUANTILES), strict=True)}
        # A flat image has no Laplacian at all; a millionth is far below the noise of 8 bits.
        found[f"{name} sharpness"] = np.log10(np.mean(scipy.ndimage.laplace(plane) ** 2) + 1e-6)
    return found


def _stains(image: np.ndarray) -> np.ndarray:
    """(S, S, 3) in [0, 1] to (S, S, 2), the optical density of haematoxylin and of eosin, at least 0."""
    return _DECADES * skimage.color.rgb2hed(image)[..., :2]


def stain_profile(pictures: pd.DataFrame) -> pd.DataFrame:
    """Distribution of both stains' optical densities per centre; the counterpart of `evaluation.samples.color_profile`.

    Args:
        pictures: center, image (S, S, 3) in [0, 1], in colour.
    Returns: center, channel (of `STAINS`), value (middle of a bin; the last holds all above it, too), density (integrates to 1).
    Raises: ValueError: if all images are grey.
    """
    if not _is_colored(pictures):
        raise ValueError("stains need images in colour, got grey ones only")
    edges = np.linspace(0, DENSEST, BINS + 1)
    rows = []
    for center, group in pictures.groupby("center"):
        counts = np.zeros((len(STAINS), BINS))
        for image in group["image"]:
            for place, plane in enumerate(np.moveaxis(_stains(image), -1, 0)):
                counts[place] += np.histogram(np.minimum(plane, DENSEST), bins=edges)[0]
        for channel, count in zip(STAINS, counts, strict=True):
            density = count / (count.sum() * (edges[1] - edges[0]))
            rows += [(center, channel, *pair) for pair in zip((edges[:-1] + edges[1:]) / 2, density, strict=True)]
    return pd.DataFrame(rows, columns=["center", "channel", "value", "density"])


def predictability_obstacle(features: pd.DataFrame) -> str:
    """Why `center_predictability` cannot be asked of these images, in words; "" where it can.

    Args:
        features: center, patient; one row an image.
    """
    per_center = features.groupby("center")["patient"].nunique()
    if len(per_center) < 2:
        return f"telling centres apart needs at least 2, got {', '.join(per_center.index) or 'none'}"
    if per_center.min() < 2:
        return f"center {per_center.idxmin()!r} has images of {per_center.min()} patient, expected at least 2 to set one aside"
    return ""


def center_predictability(features: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Which centre is this image from? A logistic regression on simple statistics, asked about patients it has not seen.

    Cross-validation in five folds by patient (fewer where a centre has fewer patients), centres weighted equally. The interval is
    a bootstrap over patients within each centre, of predictions that stand: it says how sure the number is for more patients like
    these, not what another training set would have given.

    Args:
        features: from `image_features`: id, center, patient, and numbers.
        seed: of the folds and of the bootstrap; the same table and seed give the same numbers.
    Returns: one row for each pair of centres, true and predicted, sorted:
        center, predicted
        images             images of `center` taken for `predicted`
        share              the same as a share of the centre's images
        balanced_accuracy  in every row: the mean over the centres of the share that is right
        low, high          in every row: its 95 % interval (`statistics.bootstrap_interval`)
        reason             in every row: why there is no interval
        chance             in every row: 1 / number of centres, what guessing gives
        patients           in every row: patients of all centres
    Raises: ValueError: fewer than two centres, a centre with one patient only, a statistic that is not finite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    columns = [name for name in features.columns if name not in IDENTITY]
    values = features[columns].to_numpy(dtype=float)
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"image {features['id'].iloc[row]!r}: {columns[column]} is {values[row, column]}, expected a finite number")
    if obstacle := predictability_obstacle(features):
        raise ValueError(obstacle)
    centers, truth = np.unique(features["center"].to_numpy(dtype=str), return_inverse=True)
    patients = features.groupby(["center", "patient"]).ngroup().to_numpy()
    per_center = features.groupby("center")["patient"].nunique()

    sequence = seed_sequence(seed, "center predictability")
    folds = StratifiedGroupKFold(min(FOLDS, per_center.min()), shuffle=True, random_state=int(sequence.generate_state(1)[0]))
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=5000))
    guess = cross_val_predict(model, values, truth, groups=patients, cv=folds)

    counts = np.zeros((len(centers), len(centers)), int)
    np.add.at(counts, (truth, guess), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    interval = _interval(truth, guess == truth, patients, np.random.default_rng(sequence))
    table = pd.DataFrame(list(product(centers, repeat=2)), columns=["center", "predicted"])
    return table.assign(
        images=counts.ravel(),
        share=shares.ravel(),
        balanced_accuracy=shares.diagonal().mean(),
        low=interval.low,
        high=interval.high,
        reason=interval.reason,
        chance=1 / len(centers),
        patients=len(np.unique(patients)),
    )


def _interval(truth: np.ndarray, right: np.ndarray, patients: np.ndarray, generator: np.random.Generator) -> Interval:
    """Of the balanced accuracy: the patients of each centre are drawn with replacement."""
    table = (
        pd.DataFrame({"center": truth, "patient": patients, "right": right}).groupby(["center", "patient"])["right"].agg(["sum", "size"])
    )
    told, images = table["sum"].to_numpy(), table["size"].to_numpy()

    def balanced_accuracy(drawn: Sequence[np.ndarray]) -> np.ndarray:
        return sum(told[rows].sum(axis=1) / images[rows].sum(axis=1) for rows in drawn) / len(drawn)

    return bootstrap_interval(table.index.get_level_values("center").to_numpy(), balanced_accuracy, generator)


def center_distances(profile: pd.DataFrame) -> pd.DataFrame:
    """How far apart the pixel values of two centres are: Wasserstein's distance, how far values must move on average to match.

    Args:
        profile: center, channel, value, density, from `evaluation.samples.color_profile` or `stain_profile`.
    Returns: channel, center, other, distance, in the unit of `value`; all ordered pairs, 0 for a centre and itself.
    """
    rows = []
    for channel, part in profile.groupby("channel", sort=False):
        lines = {center: (line["value"].to_numpy(), line["density"].to_numpy()) for center, line in part.groupby("center")}
        for center, other in product(lines, repeat=2):
            (values, weights), (other_values, other_weights) = lines[center], lines[other]
            rows.append((channel, center, other, scipy.stats.wasserstein_distance(values, other_values, weights, other_weights)))
    return pd.DataFrame(rows, columns=["channel", "center", "other", "distance"])
