"""Tables made from images and masks: which ones to look at, their pixels, and how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from vfmgl_lib.config.sections import DataSettings
from vfmgl_lib.data.divisions import subset
from vfmgl_lib.data.images import decode_mask
from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.data.manifest import SPLITS, Manifest
from vfmgl_lib.evaluation.generalization import OWN_SPLIT

CHANNELS = ("red", "green", "blue")
BINS = 64
MEAN = "mean"
POSITIVE = "positive_share"


def of_each_center(manifest: Manifest, count: int, seed: int) -> pd.DataFrame:
    """Rows of at most `count` images a centre: training images or, of an external centre, which has none, test images."""
    few = subset(manifest, {"train": count, "test": count}, seed)
    wanted = np.where(few.table["center"].isin(few.training_centers), "train", "test")
    return few.table[few.table["split"] == wanted].reset_index(drop=True)


def read_samples(manifest: Manifest, ids: pd.Series | list[str], data: DataSettings) -> pd.DataFrame:
    """Images by id, resized as the student gets them; of channels that are no colours one, in grey (`TaskRecord.shown_channel`).

    Args:
        ids: of the manifest, in the order wanted.
        data: says S, the side in pixels, and the layout.
    Returns: columns id, center, split, label (class name; "" for a segmentation), image (S, S, 3) float32 in [0, 1],
        mask (S, S): of two classes bool, of more uint8 class indices (None for a classification).
    Raises: KeyError: an id the manifest does not have.
    """
    table = manifest.table.set_index("id", drop=False).loc[list(ids)].reset_index(drop=True)
    images = ImageDataset(manifest, table, data.image_size, cache_bytes=0)
    segmentation = manifest.task_kind == "segmentation"
    rows = []
    for place, row in enumerate(table.itertuples()):
        item: dict[str, Any] = images[place]
        image, target = item["image"].permute(1, 2, 0).numpy(), item["target"].numpy()
        channel = data.record.shown_channel
        if channel is not None:  # three slices as red, green and blue would be read as colour
            image = np.repeat(image[..., channel : channel + 1], 3, axis=2)
        label = "" if segmentation else manifest.classes[row.label]
        mask = None if not segmentation else target == 1 if len(manifest.classes) == 2 else target.astype(np.uint8)
        rows.append((row.id, row.center, row.split, label, image, mask))
    return pd.DataFrame(rows, columns=["id", "center", "split", "label", "image", "mask"])


def color_profile(samples: pd.DataFrame) -> pd.DataFrame:
    """Distribution of pixel values per centre and channel; one channel "grey" where all images are grey.

    Args:
        samples: from `read_samples`.
    Returns: center, channel, value (middle of a bin, 0 to 1), density (integrates to 1 over value).
    """
    grey = all((image == image[..., :1]).all() for image in samples["image"])
    edges = np.linspace(0, 1, BINS + 1)
    rows = []
    for center, group in samples.groupby("center"):
        pixels = np.concatenate([image.reshape(-1, 3) for image in group["image"]])
        for place, channel in enumerate(("grey",) if grey else CHANNELS):
            density, _ = np.histogram(pixels[:, place], bins=edges, density=True)
            rows += [(center, channel, *pair) for pair in zip((edges[:-1] + edges[1:]) / 2, density, strict=True)]
    return pd.DataFrame(rows, columns=["center", "channel", "value", "density"])


def image_statistics(samples: pd.DataFrame) -> pd.DataFrame:
    """Per image: id, center, brightness (mean of all pixels) and contrast (their standard deviation), both 0 to 1."""
    values = [(image.mean(dtype=np.float64), image.std(dtype=np.float64)) for image in samples["image"]]
    return samples[["id", "center"]].join(pd.DataFrame(values, columns=["brightness", "contrast"], index=samples.index))


def sample_counts(manifest: Manifest) -> pd.DataFrame:
    """Per centre and split: center, split, images, patients and positive_share.

    positive_share is the share of images of class 1 (classification) or the mean share of foreground pixels (segmentation). Of more than
    two classes there is the share of each, `share[<class>]`, in its place: of a segmentation the foreground classes' mean shares of pixels.
    """
    table, classes = manifest.table, manifest.classes
    if manifest.task_kind == "classification":
        labels, several = table["label"].to_numpy(), len(classes) > 2
        shares = {share_of(name): labels == number for number, name in enumerate(classes)} if several else {POSITIVE: labels == 1}
    else:
        masks = tqdm(table["label"], desc="reading masks", unit="mask", leave=False, delay=2)
        pixels = np.array([_pixel_shares(manifest, mask) for mask in masks])
        named = {POSITIVE: 1} if len(classes) == 2 else {share_of(name): number for number, name in enumerate(classes) if number}
        shares = {name: pixels[:, number] for name, number in named.items()}
    in_order = table.assign(**{name: np.asarray(share, float) for name, share in shares.items()})
    groups = in_order.assign(split=pd.Categorical(table["split"], SPLITS)).groupby(["center", "split"], observed=True)
    counts = groups.agg(images=("id", "size"), patients=("patient", "nunique")).join(groups[list(shares)].mean())
    return counts.reset_index().astype({"split": str})


def _pixel_shares(manifest: Manifest, name: str) -> np.ndarray:
    """(K,) the share of a mask's pixels that each class has."""
    mask = decode_mask(manifest.root / name, name, manifest.mask_values)
    return np.bincount(mask.ravel(), minlength=len(manifest.classes)) / mask.size


def share_of(name: str) -> str:
    """The column of `sample_counts` of one of more than two classes."""
    return f"share[{name}]"


def prevalence(counts: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """A table of `sample_counts` for print: centre, split, images, patients, then "positive" or the name of each class."""
    names = {share_of(name): name for name in classes}
    return counts.rename(columns={"center": "centre", "positive_share": "positive"} | names)


def spacing(manifest: Manifest) -> pd.DataFrame:
    """Size of a pixel of the stored images, per centre.

    Returns: center, images, known (images whose spacing is known), smallest, median, largest (mm, over both directions; NaN where
        no image of the centre has a known one).
    """
    rows = []
    for center, texts in manifest.table.groupby("center")["spacing"]:
        sides = np.array([text.split(",") for text in texts if text], dtype=float)
        found = (sides.min(), np.median(sides), sides.max()) if len(sides) else (np.nan,) * 3
        rows.append((center, len(texts), len(sides), *found))
    return pd.DataFrame(rows, columns=["center", "images", "known", "smallest", "median", "largest"])


def telling_images(final: pd.DataFrame, by: str = MEAN, budget: str = "rounds") -> pd.DataFrame:
    """The best, the median and the worst test image of all centres, by the Dice of their own centres' models.

    Images without foreground are left out: there both an empty prediction (Dice 1) and any other (0) show nothing.

    Args:
        final: final predictions of a segmentation, one seed.
        by: "mean": the mean of the Dice over the methods, which favours none; or a method's key: by its Dice.
    Returns: shown ("best", "median", "worst"), id, center, score (the Dice chosen by), by; of fewer than three images the first ones.
    Raises: ValueError: several seeds, no such method, or no image with foreground.
    """
    rows = _at_home(final, budget)
    rows = rows[rows["tp"] + rows["fn"] > 0]
    if by != MEAN:
        rows = rows[rows["method"] == by]
    if rows.empty:
        raise ValueError(
            f"there is no test image with foreground to choose from by {by!r}, methods are {', '.join(final['method'].unique())}"
        )
    scores = rows.groupby(["id", "test_center"])["dice"].mean().reset_index().sort_values(["dice", "id"], ascending=[False, True])
    places = dict.fromkeys([0, (len(scores) - 1) // 2, len(scores) - 1])
    chosen = scores.iloc[list(places)].rename(columns={"test_center": "center", "dice": "score"})
    chosen.insert(0, "shown", ["best", "median", "worst"] if len(places) == 3 else ["best", "worst"][: len(places)])
    return chosen.assign(by=by).reset_index(drop=True)


def overlay_table(
    chosen: pd.DataFrame, samples: pd.DataFrame, final: pd.DataFrame, budget: str = "rounds", mask_values: Sequence[int] = ()
) -> pd.DataFrame:
    """The chosen images with the truth and every method's mask.

    Args:
        chosen: from `telling_images`.
        samples: id, image, mask of these images, from `read_samples` at the student's size.
        final: as in `telling_images`, with mask_path ("": not kept).
        mask_values: of the manifest.
    Returns: shown, id, center, score, by, image, truth, method, mask ((S, S) as the truth, bool or uint8; None where not kept), dice.
    Raises: ValueError: a mask of another size than its image; the message names the file.
    """
    rows = _at_home(final, budget)[["id", "method", "dice", "mask_path"]]
    table = chosen.merge(samples[["id", "image", "mask"]].rename(columns={"mask": "truth"}), on="id").merge(rows, on="id")
    masks = []
    for row in table.itertuples():
        mask = decode_mask(Path(row.mask_path), mask_values=mask_values).astype(row.truth.dtype) if row.mask_path else None
        if mask is not None and mask.shape != row.image.shape[:2]:
            raise ValueError(f"{row.mask_path} is {mask.shape}, its image {row.image.shape[:2]}: read the images at the student's size")
        masks.append(mask)
    return table.assign(mask=pd.Series(masks, table.index, dtype=object)).drop(columns="mask_path")


def _at_home(final: pd.DataFrame, budget: str) -> pd.DataFrame:
    rows = final[(final["budget"] == budget) & (final["split_id"] == OWN_SPLIT) & (final["split"] == "test")]
    rows = rows[rows["model_center"] == rows["test_center"]]
    if rows["seed"].nunique() > 1:
        raise ValueError(f"overlays show one seed, got {', '.join(map(str, sorted(rows['seed'].unique())))}")
    return rows
