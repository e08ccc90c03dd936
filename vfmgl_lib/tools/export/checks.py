"""An exported model against torch and against what its study wrote down, on real images; and what int8 costs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from vfmgl_lib.data.images import decode_image, decode_mask
from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.data.names import probability_column
from vfmgl_lib.data.preprocessing import squashed
from vfmgl_lib.evaluation.classification import class_names, own_class, probability_columns
from vfmgl_lib.evaluation.metric import metrics_of
from vfmgl_lib.evaluation.rounds import with_order
from vfmgl_lib.evaluation.segmentation import image_counts, image_dice, undefined_counts
from vfmgl_lib.models.students import Student
from vfmgl_lib.study.study import Study
from vfmgl_lib.tools.export.formats import Outputs
from vfmgl_lib.tools.predict import Predictor

TOLERANCE = 1e-4  # greatest difference from torch, of any logit, and of any map value in units of the largest one if that is above 1
CHECKED, CALIBRATION = 64, 64  # images at most, spread evenly over the split
BATCH = 16
# A model that names every pixel alike agrees with itself wherever its pixels lie.
ONE_VALUE = "pixels of a mask (all masks of one value: proves little)"


class ExportError(ValueError):
    """A model that is not handed out; the message says why."""


def own_rows(study: Study, center: str, stage: str, round_number: int, split: str) -> pd.DataFrame:
    table = study.predictions
    about = {"model_center": center, "test_center": center, "stage": stage, "round": round_number, "split": split}
    return table[np.logical_and.reduce([table[name] == value for name, value in about.items()])]


def _spread(table: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most so many rows, evenly over the table."""
    return table.iloc[np.unique(np.linspace(0, len(table) - 1, min(most, len(table))).astype(int))].reset_index(drop=True)


def _test_images(study: Study, center: str) -> pd.DataFrame:
    """Test images to check on: of the centre, of all centres for the shared model."""
    table = study.manifest.select(None if center == "shared" else center, "test")
    if table.empty:
        raise ExportError(f"{center}: has no test images, and a model is not handed out unchecked")
    return _spread(table, CHECKED)


def _pixels(study: Study, table: pd.DataFrame) -> np.ndarray:
    """(n, S, S, 3) uint8 as `vfmgl predict` makes them."""
    root, reading, side = study.manifest.root, study.manifest.reading, study.settings.data.image_size
    return np.stack(
        [squashed(decode_image(root / path, reading=reading), side, reading.resize, reading.background) for path in table["path"]]
    )


@torch.inference_mode()
def _by_torch(student: Student, study: Study, table: pd.DataFrame) -> list[np.ndarray]:
    data = ImageDataset(study.manifest, table, study.settings.data.image_size)
    images = torch.stack([torch.as_tensor(data[row]["image"]) for row in range(len(data))])
    return [part.numpy() for part in _joined([Outputs(student).eval()(batch) for batch in images.split(BATCH)], torch.cat)]


def _by_onnx(predictor: Predictor, pixels: np.ndarray) -> list[np.ndarray]:
    batches = [predictor.run(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
    return [part for part in _joined(batches, np.concatenate) if part is not None]


def _joined(batches: Sequence[tuple], join) -> list:
    return [None if parts[0] is None else join(parts) for parts in zip(*batches, strict=True)]


def calibration_images(study: Study, center: str) -> np.ndarray:
    """Training images that int8 is calibrated on, as of `pixels_of`: the centre's, for the shared model those of all centres.

    Raises: ExportError: there are none.
    """
    table = study.manifest.select(None if center == "shared" else center, "train")
    if table.empty:
        raise ExportError(f"{center}: has no training images to calibrate int8 on")
    return _pixels(study, _spread(table, CALIBRATION))


def compare_with_torch(student: Student, predictor: Predictor, study: Study, center: str) -> pd.DataFrame:
    """An ONNX file, read and fed as `vfmgl predict` does it, against the student fed as in training.

    Returns: one row each for logits and, where there is one, the map: model, against, quantity, images, difference (greatest absolute),
        tolerance.
    """
    table = _test_images(study, center)
    pairs = zip(("logits", "map"), _by_torch(student, study, table), _by_onnx(predictor, _pixels(study, table)), strict=False)
    return pd.DataFrame([_compared("onnx", quantity, ours, theirs) for quantity, ours, theirs in pairs])


def compare_torchscript(student: Student, file: Path, study: Study, center: str) -> pd.DataFrame:
    table = _test_images(study, center)
    pixels = torch.from_numpy(_pixels(study, table)).permute(0, 3, 1, 2).float() / 255
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore", FutureWarning)  # as in `torchscript_model`
        loaded = torch.jit.load(str(file))
        outputs = [part.numpy() for part in _joined([loaded(batch) for batch in pixels.split(BATCH)], torch.cat)]
    pairs = zip(("logits", "map"), _by_torch(student, study, table), outputs, strict=False)
    return pd.DataFrame([_compared("torchscript", quantity, ours, theirs) for quantity, ours, theirs in pairs])


def _compared(model: str, quantity: str, ours: np.ndarray, theirs: np.ndarray) -> dict:
    """A map is a feature map, whose values may be many times those of logits, and so its rounding."""
    largest = float(np.abs(ours).max()) if quantity == "map" else 1.0
    tolerance = TOLERANCE * max(1.0, largest) if np.isfinite(largest) else TOLERANCE
    return _row(model, "torch", quantity, len(ours), np.abs(ours - theirs).max(), tolerance)


def _row(model: str, against: str, quantity: str, images: int, difference: float, tolerance: float = TOLERANCE) -> dict:
    values = {"model": model, "against": against, "quantity": quantity, "images": images}
    return values | {"difference": float(difference), "tolerance": tolerance}


def compare_with_study(predictor: Predictor, study: Study) -> pd.DataFrame:
    """A model against what the study wrote down for it, on the whole test set of its own centre.

    Returns: rows as of `compare_with_torch`: for a classification the greatest difference of a probability; for a segmentation the most
        pixels of an image that differ from the mask in the study (allowed: as many as are undecided within `TOLERANCE`), named
        `ONE_VALUE` where these masks are of one value. Of a study on a GPU, whose arithmetic is another, without a tolerance; no row
        where the study kept no predictions of this model.
    """
    about, settings = predictor.description.study, study.settings
    rows = own_rows(study, about["model_center"], about["stage"], about["round"], "test")
    if settings.is_segmentation:
        rows = rows[rows["mask_file"] != ""]
    if rows.empty:
        return pd.DataFrame()
    table = study.manifest.table.set_index("id").loc[rows["id"]].reset_index()
    logits = _by_onnx(predictor, _pixels(study, table))[0]
    tolerance = TOLERANCE if settings.device == "cpu" else float("nan")
    if not settings.is_segmentation:
        found = _as_predictions(study, table, _chances(predictor, logits))
        columns = probability_columns(found)
        difference = np.abs(found[columns].to_numpy() - rows[columns].to_numpy(dtype=float)).max()
        return pd.DataFrame([_row("onnx", "study", "probability", len(rows), difference, tolerance)])
    masks = np.stack([decode_mask(study.folder / name, mask_values=study.manifest.mask_values) for name in rows["mask_file"]])
    differing = (_labels(_chances(predictor, logits)) != masks).sum(axis=(1, 2)).max()
    # A pixel may fall on the other side where its two largest logits differ by less than the tolerance.
    largest = np.sort(logits, axis=1)
    margin = (np.abs(largest[:, -1] - largest[:, -2]) <= 2 * TOLERANCE).sum(axis=(1, 2)).max()
    allowed = float(margin) if settings.device == "cpu" else float("nan")
    quantity = "pixels of a mask" if masks.min() != masks.max() else ONE_VALUE
    return pd.DataFrame([_row("onnx", "study", quantity, len(rows), differing, allowed)])


def agreement(predictor: Predictor, study: Study) -> pd.DataFrame:
    """The study's own numbers for each test image of the model's centre beside those of the exported model.

    Returns: id, study, predicted: probability of class 1 (of more than two classes that of the image's own), or the foreground's Dice of a
        segmentation (`agreement_of`). No row where the study kept no
        predictions of this model.
    """
    about = predictor.description.study
    rows = own_rows(study, about["model_center"], about["stage"], about["round"], "test")
    if rows.empty:
        return pd.DataFrame(columns=["id", "study", "predicted"])
    table = study.manifest.table.set_index("id", drop=False).loc[rows["id"]].reset_index(drop=True)
    found = _as_predictions(study, table, _chances(predictor, _by_onnx(predictor, _pixels(study, table))[0]))
    if class_names(rows):
        return pd.DataFrame({"id": table["id"], "study": own_class(rows), "predicted": own_class(found)})
    column = "dice" if study.settings.is_segmentation else "probability"
    return pd.DataFrame({"id": table["id"], "study": rows[column].to_numpy(dtype=float), "predicted": found[column].to_numpy(dtype=float)})


def agreement_of(study: Study) -> str:
    """What `agreement` holds beside one another, in words."""
    if study.settings.is_segmentation:
        return "Dice of an image"
    return f"probability of {study.manifest.classes[1]}" if len(study.manifest.classes) == 2 else "probability of the image's own class"


def refuse(check: pd.DataFrame, files: dict[str, Path]) -> None:
    # Not "above": NaN, which weights that are not finite lead to, is above nothing.
    wrong = check[check["tolerance"].notna() & ~(check["difference"] <= check["tolerance"])]
    if len(wrong):
        row = wrong.iloc[0]
        file = files[row["model"]].name
        if not np.isfinite(row["difference"]):
            raise ExportError(
                f"{file}: refused, its {row['quantity']} are NaN or infinite on some of {row['images']} test images: the model"
                " overflows or a weight is damaged; nothing was written"
            )
        raise ExportError(
            f"{file}: refused, its {row['quantity']} differ from {row['against']} by up to {row['difference']:g} on {row['images']} test"
            f" images, expected at most {row['tolerance']:g}; nothing was written"
        )


def int8_cost(full: Predictor, small: Predictor, study: Study, center: str) -> pd.DataFrame:
    """Metrics of the float32 and the int8 model on the centre's validation and test set.

    Returns: split, metric, n, float32, int8, cost (float32 − int8), reason; `metric` "largest change of a probability" and, for a
        segmentation, "share of pixels changed" have no n and no float32.
    """
    unit, about, rows = full.description.unit, full.description, list[dict]()
    for split in ("val", "test"):
        table = study.manifest.select(None if center == "shared" else center, split)
        if table.empty:
            reason = "no validation images: set data.validation_share; what int8 costs can only be reported on the test set"
            rows.append({"split": split, "metric": "any", "n": 0, "reason": reason})
            continue
        pixels = _pixels(study, table)
        chances = [_chances(predictor, _by_onnx(predictor, pixels)[0]) for predictor in (full, small)]
        first, second = (metrics_of(_as_predictions(study, table, chance), unit, about.cutoff) for chance in chances)
        for one, other in zip(first, second, strict=True):
            values = {"float32": one.value, "int8": other.value, "cost": one.value - other.value, "reason": one.reason or other.reason}
            rows.append({"split": split, "metric": one.name, "n": one.n, **values})
        change = float(np.abs(chances[0] - chances[1]).max())
        reason = "" if np.isfinite(change) else "a prediction is undefined: the model gives NaN or infinity"
        rows.append({"split": split, "metric": "largest change of a probability", "int8": change, "reason": reason})
        if study.settings.is_segmentation:
            moved = float((_labels(chances[0]) != _labels(chances[1])).mean()) if not reason else float("nan")
            rows.append({"split": split, "metric": "share of pixels changed", "int8": moved, "reason": reason})
    return pd.DataFrame(rows, columns=["split", "metric", "n", "float32", "int8", "cost", "reason"])


def _chances(predictor: Predictor, logits: np.ndarray) -> np.ndarray:
    """Probabilities (n,) or (n, S, S) of class 1; of more than two classes (n, K) or (n, K, S, S) those of all."""
    return predictor.probabilities(logits) if logits.shape[1] > 2 else predictor.probability(logits)


def _labels(chance: np.ndarray) -> np.ndarray:
    """(n, S, S) class indices from `_chances` of pixels."""
    return chance.argmax(axis=1) if chance.ndim == 4 else chance > 0.5


def _as_predictions(study: Study, table: pd.DataFrame, chance: np.ndarray) -> pd.DataFrame:
    """Rows as `evaluation.prediction.predict` returns them, from `_chances`."""
    about = table[["id", "patient", "center", "split"]].rename(columns={"center": "test_center"})
    if chance.ndim == 1:
        return about.assign(probability=chance, label=table["label"])
    if chance.ndim == 2:
        columns = {probability_column(name): chance[:, number] for number, name in enumerate(study.manifest.classes)}
        return with_order(about.assign(**columns, label=table["label"]), study.settings)
    data = ImageDataset(study.manifest, table, study.settings.data.image_size)
    predicted, classes, rows = _labels(chance), study.manifest.classes, list[dict]()
    undefined = np.isnan(chance).reshape(len(chance), -1).any(axis=1)
    for row in range(len(table)):
        counts = image_counts(predicted[row].astype(np.uint8), np.asarray(data[row]["target"]), classes)
        rows.append(undefined_counts(classes) if undefined[row] else counts | image_dice(counts))
    return pd.concat([about, pd.DataFrame(rows)], axis=1)
