"""Tables made from images: what the figures of heterogeneity and of DDBL's batches draw."""

from __future__ import annotations

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from vfmgl_lib.config.sections import DataSettings
from vfmgl_lib.data.divisions import subset
from vfmgl_lib.data.images import decode_mask
from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.data.manifest import SPLITS, Manifest
from vfmgl_lib.tasks.records import find_task

CHANNELS = ("red", "green", "blue")
BINS = 64


def of_each_center(manifest: Manifest, count: int, seed: int) -> pd.DataFrame:
    """Rows of at most `count` images a centre: training images or, of an external centre, which has none, test images."""
    few = subset(manifest, {"train": count, "test": count}, seed)
    wanted = np.where(few.table["center"].isin(few.training_centers), "train", "test")
    return few.table[few.table["split"] == wanted].reset_index(drop=True)


def read_samples(manifest: Manifest, ids: pd.Series | list[str], data: DataSettings) -> pd.DataFrame:
    """Images by id, resized as the student gets them; of a slice between its neighbours (`TaskRecord.channels`) that slice, in grey.

    Args:
        ids: of the manifest, in the order wanted.
        data: says S, the side in pixels, and the layout.
    Returns: columns id, center, split, label (class name; "" for a segmentation), image (S, S, 3) float32 in [0, 1],
        mask (S, S) bool (None for a classification).
    Raises: KeyError: an id the manifest does not have.
    """
    table = manifest.table.set_index("id", drop=False).loc[list(ids)].reset_index(drop=True)
    images = ImageDataset(manifest, table, data.image_size, cache_bytes=0)
    segmentation = manifest.task_kind == "segmentation"
    rows = []
    for place, row in enumerate(table.itertuples()):
        item = images[place]
        image, target = item["image"].permute(1, 2, 0).numpy(), item["target"].numpy()
        if find_task(data.layout).channels == "neighbours":  # three slices as red, green and blue would be read as colour
            image = np.repeat(image[..., 1:2], 3, axis=2)
        label = "" if segmentation else manifest.classes[row.label]
        rows.append((row.id, row.center, row.split, label, image, target == 1 if segmentation else None))
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

    positive_share is the share of images of class 1 (classification) or the mean share of foreground pixels (segmentation).
    """
    table = manifest.table
    if manifest.task_kind == "classification":
        positive = (table["label"] == 1).astype(float)
    else:
        masks = tqdm(table["label"], desc="reading masks", unit="mask", leave=False, delay=2)
        positive = pd.Series([decode_mask(manifest.root / mask, mask).mean() for mask in masks], index=table.index)
    in_order = table.assign(positive=positive, split=pd.Categorical(table["split"], SPLITS))
    groups = in_order.groupby(["center", "split"], observed=True)
    counts = groups.agg(images=("id", "size"), patients=("patient", "nunique"), positive_share=("positive", "mean"))
    return counts.reset_index().astype({"split": str})


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
