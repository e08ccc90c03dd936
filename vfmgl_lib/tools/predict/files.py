"""What becomes of each file that an exported model predicts: its row of the table, masks and overlays."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from vfmgl_lib.base.files import Steps, file_name, reason, shown, write_bytes
from vfmgl_lib.data.images import ImageError, decode_image, png
from vfmgl_lib.data.names import same_name
from vfmgl_lib.data.preprocessing import squashed, volume_slices
from vfmgl_lib.data.scan import VOLUME_SUFFIXES, SourceError
from vfmgl_lib.tools.predict import Description, Predictor
from vfmgl_lib.tools.predict.inputs import known_suffix

UNDEFINED = "the model gives NaN or infinity for this image, so that its prediction is undefined: it overflows, or a weight is damaged"
COLUMNS = {
    "classification": "name file width height probability predicted evidence overlay_file error".split(),
    "segmentation": "name file width height slices foreground share milliliters mask_file overlay_file error".split(),
}
COUNTS = ("width", "height", "slices", "foreground")


def predict_files(
    predictor: Predictor,
    inputs: Sequence[tuple[Path, str]],
    folder: Path,
    *,
    overlay: bool = False,
    batch_size: int = 8,
    steps: Steps | None = None,
) -> pd.DataFrame:
    """Predicts files one after the other (a classification: a batch at a time) and writes what belongs to each.

    Args:
        inputs: from `find_inputs`.
        folder: where masks and overlays go, by the input's name.
        batch_size: images or slices at once.
        steps: what an interrupted call of the same arguments has done, of `base.files.resumed_folder`.
    Returns: predictions.csv: a row a file, columns `COLUMNS`. evidence: what an overlay's colours reach to, in logits; predicted: the
        class at the cutoff, empty where there is none or where it belongs to patients; foreground: pixels or voxels; error: why a file
        could not be used or its prediction is undefined, else empty.
    Raises: OSError: an output that cannot be written.
    """
    kind = predictor.description.kind
    predict, size = (_classified, batch_size) if kind == "classification" else (_segmented, 1)
    out, rows = _Outputs(folder, overlay, inputs), list[dict]()
    for number, start in enumerate(range(0, len(inputs), size)):
        made = partial(predict, predictor, inputs[start : start + size], out, batch_size)
        rows += steps.step(number, made) if steps else made()
    table = pd.DataFrame(rows, columns=list(COLUMNS[kind]))
    whole = {name: "Int64" for name in COUNTS if name in table}
    texts = [name for name in COLUMNS[kind] if name in ("predicted", "error") or name.endswith("_file")]
    return table.astype(whole | dict.fromkeys(texts, object)).fillna(dict.fromkeys(texts, ""))


class _Outputs:
    """Where the files that belong to inputs go."""

    def __init__(self, folder: Path, overlay: bool, inputs: Sequence[tuple[Path, str]]):
        self.folder, self.overlay = folder, overlay
        self._alike, seen = set[str](), set[str]()
        for _, name in inputs:
            if same_name(name) in seen:
                self._alike.add(name)
            seen.add(same_name(name))
        self._folders = {same_name(str(above)) for _, name in inputs for above in Path(name).parents}

    def write(self, row: dict, column: str, kind: str, name: str, suffix: str, content: bytes) -> None:
        """Writes KIND/NAME.SUFFIX and notes it in the row; a name too long for this file system is the row's error."""
        *above, last = name.split("/")
        taken = name in self._alike or same_name(name + suffix) in self._folders
        parts = [kind, *map(file_name, above), file_name(last, suffix, taken)]
        try:
            write_bytes(self.folder.joinpath(*parts), content)
            row[column] = "/".join(parts)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            row["error"] = reason(error)


def _row(file: Path, name: str) -> dict:
    return {"name": shown(name), "file": shown(str(file))}


def _classified(predictor: Predictor, inputs: Sequence[tuple[Path, str]], out: _Outputs, batch_size: int) -> list[dict]:
    side = predictor.description.image_size
    rows, images = zip(*(_opened(predictor, file, name) for file, name in inputs), strict=True)
    usable = [image for image in images if image is not None]
    if not usable:
        return list(rows)
    logits, maps = predictor.run(np.stack([squashed(image, side) for image in usable]))
    # A model whose classifier does not read the mean of the last map gives none: then there is no evidence to show.
    activations = predictor.activation(maps) if maps is not None else [None] * len(usable)
    results = iter(zip(predictor.probability(logits), activations, strict=True))
    for (_, name), row, image in zip(inputs, rows, images, strict=True):
        if image is None:
            continue
        probability, activation = next(results)
        if not (np.isfinite(probability) and (activation is None or np.isfinite(activation).all())):
            row["error"] = f"{row['file']}: {UNDEFINED}"
            continue
        row |= {"probability": float(probability)} | ({} if activation is None else {"evidence": float(np.abs(activation).max())})
        if predictor.description.unit == "image":
            row["predicted"] = named_class(predictor.description, float(probability))
        if out.overlay and activation is not None:
            out.write(row, "overlay_file", "overlays", name, ".png", png(evidence_overlay(image, activation)))
    return list(rows)


def _opened(predictor: Predictor, file: Path, name: str) -> tuple[dict, Image.Image | None]:
    row = _row(file, name)
    try:
        if known_suffix(file).lower() in VOLUME_SUFFIXES:
            raise ImageError(f"{file}: a volume, but the model for {predictor.description.task} reads images; prepare slices of it first")
        image = decode_image(file, reading=predictor.description.reading)
    except (ImageError, OSError) as error:
        return row | {"error": shown(str(error))}, None
    return row | {"width": image.width, "height": image.height}, image


def named_class(description: Description, probability: float) -> str:
    """The class at the model's cutoff; "" where it has none, or the probability is undefined."""
    if description.cutoff is None or not np.isfinite([description.cutoff, probability]).all():
        return ""
    return description.classes[int(probability >= description.cutoff)]


def _segmented(predictor: Predictor, inputs: Sequence[tuple[Path, str]], out: _Outputs, batch_size: int) -> list[dict]:
    ((file, name),) = inputs
    if "volume" in predictor.description.reads and known_suffix(file).lower() in VOLUME_SUFFIXES:
        return [_segmented_volume(predictor, file, name, out, batch_size)]
    row, image = _opened(predictor, file, name)
    if image is None:
        return [row]
    chance = foreground(predictor, [np.array(image)], batch_size)[0]
    if not np.isfinite(chance).all():
        return [row | {"error": f"{row['file']}: {UNDEFINED}"}]
    mask = chance > 0.5
    row |= {"slices": 1, "foreground": int(mask.sum()), "share": float(mask.mean())}
    out.write(row, "mask_file", "masks", name, ".png", png(mask.astype(np.uint8) * 255))
    if out.overlay:
        out.write(row, "overlay_file", "overlays", name, ".png", png(probability_overlay(image, chance)))
    return [row]


def _segmented_volume(predictor: Predictor, file: Path, name: str, out: _Outputs, batch_size: int) -> dict:
    from vfmgl_lib.data.volumes import read_volume  # here: it takes longer to import than an image to predict

    row = _row(file, name)
    try:
        volume = read_volume(file, str(file))
        slices = volume_slices(volume.voxels)
    except (SourceError, OSError) as error:
        return row | {"error": shown(str(error))}
    except ValueError as error:  # `volume_slices` does not know the file
        return row | {"error": f"{row['file']}: {error}"}
    chances = foreground(predictor, [found.image for found in slices], batch_size)
    if undefined := [found.index for found, chance in zip(slices, chances, strict=True) if not np.isfinite(chance).all()]:
        return row | {"error": f"{row['file']}: {len(undefined)} of {len(slices)} slices, the first is {undefined[0]}: {UNDEFINED}"}
    mask: np.ndarray = np.zeros(volume.voxels.shape, np.uint8)
    for found, chance in zip(slices, chances, strict=True):
        mask[found.index] = chance > 0.5
    row |= {"width": mask.shape[2], "height": mask.shape[1], "slices": len(mask), "foreground": int(mask.sum())}
    row["share"] = float(mask.mean())
    if volume.grid.spaced:
        row["milliliters"] = row["foreground"] * volume.grid.milliliters
    out.write(row, "mask_file", "masks", name, ".nii.gz", volume.mask_file(mask))
    if out.overlay:
        largest = int(np.argmax([(chance > 0.5).sum() for chance in chances])) if mask.any() else len(slices) // 2
        picture = probability_overlay(Image.fromarray(slices[largest].image[..., 1]).convert("RGB"), chances[largest])
        out.write(row, "overlay_file", "overlays", name, ".png", png(picture))
    return row


def foreground(predictor: Predictor, images: Sequence[np.ndarray], batch_size: int) -> list[np.ndarray]:
    """The foreground's probability of each image (H, W, 3) uint8, at the image's own size: (H, W).

    The model sees a square; its probabilities are enlarged bilinearly, in float32. Images of the model's size keep their values in
    float64, so that the mask > 0.5 is where the logit of class 1 is the larger one, as the study evaluated it.
    """
    side, found = predictor.description.image_size, []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        logits, _ = predictor.run(np.stack([squashed(Image.fromarray(image), side) for image in batch]))
        for image, chance in zip(batch, predictor.probability(logits), strict=True):
            own_size = image.shape[:2] == (side, side)  # not through `_enlarged`: in float32, near ties are 0.5
            found.append(chance if own_size else _enlarged(chance, image.shape[1], image.shape[0]))
    return found


def _enlarged(values: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.array(Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))


def evidence_overlay(image: Image.Image, activation: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the image, purple where the map (h, w) speaks for class 1, orange where against it; strongest at its extreme."""
    wide = _enlarged(activation, *image.size) / max(float(np.abs(activation).max()), 1e-12)
    return _blended(image, wide / 2 + 0.5, "PuOr", np.abs(wide))


def probability_overlay(image: Image.Image, chance: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the image under the foreground's probability (H, W), from transparent at 0."""
    return _blended(image, chance, "viridis", chance)


def _blended(image: Image.Image, values: np.ndarray, cmap: str, strength: np.ndarray) -> np.ndarray:
    from matplotlib import colormaps  # here: only overlays need it

    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    color = colormaps[cmap](np.clip(values, 0, 1))[..., :3] * 255
    share = 0.6 * np.clip(strength, 0, 1)[..., None]
    return (grey * (1 - share) + color * share).astype(np.uint8)


def patients(predictor: Predictor, predictions: pd.DataFrame) -> pd.DataFrame:
    """The mean probability over the images of each folder, which are one patient's: folder, images, probability, predicted, error.

    Undefined, with the reason in `error`, where an image of the folder has no prediction.
    """
    rows = []
    for folder, own in predictions.groupby(predictions["file"].map(lambda file: str(Path(file).parent))):
        lacking = own[own["probability"].isna()]
        probability = float(own["probability"].mean()) if lacking.empty else float("nan")
        error = ""
        if len(lacking):
            error = f"{len(lacking)} of {len(own)} images have no prediction, the first: {lacking['error'].iloc[0]}"
        predicted = named_class(predictor.description, probability)
        rows.append({"folder": folder, "images": len(own), "probability": probability, "predicted": predicted, "error": error})
    return pd.DataFrame(rows)
