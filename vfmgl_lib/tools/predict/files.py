"""What becomes of each file that an exported model predicts: its row of the table, masks and overlays."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageColor

from vfmgl_lib.base.files import Steps, file_name, reason, shown, write_bytes
from vfmgl_lib.data.images import ImageError, decode_image, png
from vfmgl_lib.data.label_masks import class_color, encoded
from vfmgl_lib.data.names import probability_column, same_name
from vfmgl_lib.data.preprocessing import restored, squashed, stacked_series, volume_slices
from vfmgl_lib.data.scan import VOLUME_SUFFIXES, SourceError
from vfmgl_lib.tools.predict import Description, Predictor
from vfmgl_lib.tools.predict.inputs import case_of, check_stacked, known_suffix, series_files

UNDEFINED = "the model gives NaN or infinity for this image, so that its prediction is undefined: it overflows, or a weight is damaged"
COLUMNS = {
    "classification": "name file width height probability predicted evidence overlay_file error".split(),
    "segmentation": "name file width height slices foreground share milliliters mask_file overlay_file error".split(),
}
COUNTS = ("width", "height", "slices", "foreground")
COLORS_FILE = "colours.csv"
CLASS_SHARE = 0.5  # of a class's colour in an overlay
PIXELS, MILLILITERS = "pixels[{}]", "milliliters[{}]"  # of one of several foreground classes


def columns_of(description: Description) -> list[str]:
    """Of predictions.csv, with those of each class where there are more than two.

    A classification has `probability[<class>]` of each instead of one probability, and the class of evidence. A segmentation has the pixels
    of each foreground class and, where it reads volumes, the millilitres.
    """
    names = list(COLUMNS[description.kind])
    if len(description.classes) == 2:
        return names
    if description.kind == "classification":
        return [*names[:4], *map(probability_column, description.classes), *names[5:7], "evidence_for", *names[7:]]
    kinds, place = (PIXELS, MILLILITERS) if "volume" in description.reads else (PIXELS,), names.index("mask_file")
    return [*names[:place], *(kind.format(title) for kind in kinds for title in description.classes[1:]), *names[place:]]


def predict_files(
    predictor: Predictor,
    inputs: Sequence[tuple[Path, str]],
    folder: Path,
    *,
    overlay: bool = False,
    evidence_for: str = "",
    batch_size: int = 8,
    steps: Steps | None = None,
) -> pd.DataFrame:
    """Predicts files one after the other (a classification: a batch at a time) and writes what belongs to each.

    Args:
        inputs: from `find_inputs`.
        folder: where masks and overlays go, by the input's name.
        evidence_for: of more than two classes the one whose evidence an overlay shows; "": that of the highest probability.
        batch_size: images or slices at once.
        steps: what an interrupted call of the same arguments has done, of `base.files.resumed_folder`.
    Returns: predictions.csv: a row a file, columns `columns_of`. evidence: what an overlay's colours reach to, in logits; predicted: the
        class at the cutoff (of more than two classes that of the highest probability), empty where there is none or where it belongs to
        patients; foreground: pixels or voxels; error: why a file
        could not be used or its prediction is undefined, else empty.
    Raises: OSError: an output that cannot be written.
    """
    about = predictor.description
    kind, columns = about.kind, columns_of(about)
    predict: Callable[..., list[dict]] = _segmented
    size = batch_size if kind == "classification" else 1
    if kind == "classification":
        predict = _classified if len(about.classes) == 2 else partial(_told_apart, evidence_for)
    out, rows = _Outputs(folder, overlay, inputs), list[dict]()
    for number, start in enumerate(range(0, len(inputs), size)):
        made = partial(predict, predictor, inputs[start : start + size], out, batch_size)
        rows += steps.step(number, made) if steps else made()
    if overlay and kind == "segmentation" and len(about.classes) > 2:
        write_bytes(folder / "overlays" / COLORS_FILE, _color_table(about))
    table = pd.DataFrame(rows, columns=columns)
    whole = {name: "Int64" for name in columns if name in COUNTS or name.startswith(PIXELS[:7])}
    texts = [name for name in columns if name in ("predicted", "error", "evidence_for") or name.endswith("_file")]
    return table.astype(whole | dict.fromkeys(texts, object)).fillna(dict.fromkeys(texts, ""))


def captions(predictions: pd.DataFrame) -> list[str]:
    """What was predicted for each file, for under its picture: "p = 0.31", "foreground 12%", or of more than two classes the likeliest."""
    if "probability" in predictions:
        return [f"p = {value:.2f}" for value in predictions["probability"]]
    if "share" in predictions:
        return [f"foreground {value:.0%}" for value in predictions["share"]]
    chances = predictions.filter(regex=r"^probability\[")
    best = chances.fillna(-1).to_numpy().argmax(axis=1)
    return [f"{chances.columns[k][len('probability[') : -1]} {chances.iloc[row, k]:.2f}" for row, k in enumerate(best)]


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
    rows, images = zip(*(_opened(predictor, file, name) for file, name in inputs), strict=True)
    usable = [image for image in images if image is not None]
    if not usable:
        return list(rows)
    logits, maps = predictor.run(_squares(predictor.description, usable))
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
            out.write(row, "overlay_file", "overlays", name, ".png", _evidence(predictor, image, activation))
    return list(rows)


def _told_apart(evidence_for: str, predictor: Predictor, inputs: Sequence[tuple[Path, str]], out: _Outputs, batch_size: int) -> list[dict]:
    """As `_classified`, of more than two classes."""
    about = predictor.description
    rows, images = zip(*(_opened(predictor, file, name) for file, name in inputs), strict=True)
    usable = [image for image in images if image is not None]
    if not usable:
        return list(rows)
    logits, maps = predictor.run(_squares(about, usable))
    chances = predictor.probabilities(logits)
    called = np.where(np.isfinite(chances), chances, 0).argmax(1)
    targets = np.full(len(called), about.classes.index(evidence_for)) if evidence_for else called
    activations = predictor.activation(maps, targets) if maps is not None else [None] * len(usable)
    results = iter(zip(chances, called, targets, activations, strict=True))
    for (_, name), row, image in zip(inputs, rows, images, strict=True):
        if image is None:
            continue
        chance, number, target, activation = next(results)
        if not (np.isfinite(chance).all() and (activation is None or np.isfinite(activation).all())):
            row["error"] = f"{row['file']}: {UNDEFINED}"
            continue
        row |= dict(zip(map(probability_column, about.classes), chance.tolist(), strict=True))
        row |= {} if activation is None else {"evidence": float(np.abs(activation).max()), "evidence_for": about.classes[target]}
        if about.unit == "image":
            row["predicted"] = about.classes[number]
        if out.overlay and activation is not None:
            out.write(row, "overlay_file", "overlays", name, ".png", _evidence(predictor, image, activation))
    return list(rows)


def _opened(predictor: Predictor, file: Path, name: str) -> tuple[dict, Image.Image | None]:
    row = _row(file, name)
    try:
        if known_suffix(file).lower() in VOLUME_SUFFIXES:
            raise ImageError(f"{file}: a volume, but the model for {predictor.description.task} reads images; prepare slices of it first")
        reading, series = predictor.description.reading, predictor.description.series
        files, names_series = series_files(file, series), bool(case_of(file, series))
        images = [decode_image(one, reading=reading) for one in files]
        image = Image.fromarray(stacked_series(images, list(map(str, files)))) if names_series else images[0]
        if series and not names_series:
            check_stacked(np.asarray(image), series, str(file))
    except (ValueError, OSError) as error:  # of a series that is missing or does not fit, too
        return row | {"error": shown(str(error))}, None
    return row | {"width": image.width, "height": image.height}, image


def _squares(about: Description, images: Iterable[Image.Image]) -> np.ndarray:
    """(B, S, S, 3) uint8, what the model is given."""
    reading = about.reading
    return np.stack([squashed(image, about.image_size, reading.resize, reading.background) for image in images])


def _evidence(predictor: Predictor, image: Image.Image, activation: np.ndarray) -> bytes:
    """The overlay of an activation map, as PNG."""
    about = predictor.description
    return png(evidence_overlay(_shown(predictor, image), activation, about.image_size, about.reading.resize))


def _shown(predictor: Predictor, image: Image.Image) -> Image.Image:
    """What an overlay lies on: of several series the first, whose channel is red."""
    return image.getchannel(0).convert("RGB") if predictor.description.series else image


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
    labels, chance = label_maps(predictor, [np.array(image)], batch_size)[0]
    if not np.isfinite(chance).all():
        return [row | {"error": f"{row['file']}: {UNDEFINED}"}]
    row |= {"slices": 1, **_sizes(predictor.description, labels)}
    out.write(row, "mask_file", "masks", name, ".png", png(encoded(labels, predictor.description.mask_values)))
    if out.overlay:
        out.write(
            row, "overlay_file", "overlays", name, ".png", png(_overlay(predictor.description, _shown(predictor, image), labels, chance))
        )
    return [row]


def _sizes(description: Description, labels: np.ndarray) -> dict:
    """foreground, share and, of more than two classes, the pixels of each; labels: class indices of an image or a volume."""
    sizes = {"foreground": int((labels > 0).sum()), "share": float((labels > 0).mean())}
    if len(description.classes) == 2:
        return sizes
    counts = np.bincount(labels.ravel(), minlength=len(description.classes))[1:].tolist()
    return sizes | {PIXELS.format(title): count for title, count in zip(description.classes[1:], counts, strict=True)}


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
    description = predictor.description
    found_maps = label_maps(predictor, [found.image for found in slices], batch_size)
    if undefined := [found.index for found, (_, chance) in zip(slices, found_maps, strict=True) if not np.isfinite(chance).all()]:
        return row | {"error": f"{row['file']}: {len(undefined)} of {len(slices)} slices, the first is {undefined[0]}: {UNDEFINED}"}
    mask: np.ndarray = np.zeros(volume.voxels.shape, np.uint8)
    for found, (labels, _) in zip(slices, found_maps, strict=True):
        mask[found.index] = labels
    row |= {"width": mask.shape[2], "height": mask.shape[1], "slices": len(mask), **_sizes(description, mask)}
    if volume.grid.spaced:
        row["milliliters"] = row["foreground"] * volume.grid.milliliters
        apart = description.classes[1:] if len(description.classes) > 2 else ()
        row |= {MILLILITERS.format(title): row[PIXELS.format(title)] * volume.grid.milliliters for title in apart}
    values = description.mask_values
    out.write(row, "mask_file", "masks", name, ".nii.gz", volume.mask_file(encoded(mask, values) if values else mask))
    if out.overlay:
        largest = int(np.argmax([(labels > 0).sum() for labels, _ in found_maps])) if mask.any() else len(slices) // 2
        picture = Image.fromarray(slices[largest].image[..., 1]).convert("RGB")
        out.write(row, "overlay_file", "overlays", name, ".png", png(_overlay(description, picture, *found_maps[largest])))
    return row


def label_maps(predictor: Predictor, images: Sequence[np.ndarray], batch_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The class of each pixel and the foreground's probability, of each image (H, W, 3) uint8, at the image's own size.

    Returns: (H, W) uint8 class indices and (H, W), for each. Of two classes by `foreground` and 0.5. Of more, the class with the highest
        probability; where the image has another size than the model's, each class's probability is enlarged bilinearly before. Images of
        the model's size have the class of the largest logit, as the study evaluated it.
    """
    if len(predictor.description.classes) == 2:
        return [((chance > 0.5).astype(np.uint8), chance) for chance in foreground(predictor, images, batch_size)]
    about, found = predictor.description, []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        logits, _ = predictor.run(_squares(about, map(Image.fromarray, batch)))
        for image, own, chances in zip(batch, logits, predictor.probabilities(logits), strict=True):
            height, width = image.shape[:2]
            if (height, width) == (about.image_size, about.image_size):
                found.append((own.argmax(0).astype(np.uint8), 1 - chances[0]))
                continue
            # What a model of cropped images has not seen is background, the first class.
            wide = np.stack([restored(chance, width, height, about.reading.resize, float(k == 0)) for k, chance in enumerate(chances)])
            found.append((wide.argmax(0).astype(np.uint8), 1 - wide[0]))
    return found


def foreground(predictor: Predictor, images: Sequence[np.ndarray], batch_size: int) -> list[np.ndarray]:
    """The foreground's probability of each image (H, W, 3) uint8, at the image's own size: (H, W).

    The model sees a square; its probabilities are enlarged bilinearly, in float32. Images of the model's size keep their values in
    float64, so that the mask > 0.5 is where the logit of class 1 is the larger one, as the study evaluated it. What a model of cropped
    images has not seen is background.
    """
    side, resize, found = predictor.description.image_size, predictor.description.reading.resize, list[np.ndarray]()
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        logits, _ = predictor.run(_squares(predictor.description, map(Image.fromarray, batch)))
        for image, chance in zip(batch, predictor.probability(logits), strict=True):
            own_size = image.shape[:2] == (side, side)  # not through `restored`: in float32, near ties are 0.5
            found.append(chance if own_size else restored(chance, image.shape[1], image.shape[0], resize))
    return found


def evidence_overlay(image: Image.Image, activation: np.ndarray, side: int = 1, resize: str = "stretch") -> np.ndarray:
    """(H, W, 3) uint8: the image, purple where the map speaks for its class, orange where against it; strongest at its extreme.

    Args:
        activation: (h, w), which speaks for its class where it is above 0.
        side, resize: of the square that the map is of (`data.preprocessing.placement`).
    """
    if resize != "stretch":  # the image's part of the square is known in the square's pixels
        activation = restored(activation, side, side)
    wide = restored(activation, *image.size, resize) / max(float(np.abs(activation).max()), 1e-12)
    return _blended(image, wide / 2 + 0.5, "PuOr", np.abs(wide))


def probability_overlay(image: Image.Image, chance: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the image under the foreground's probability (H, W), from transparent at 0."""
    return _blended(image, chance, "viridis", chance)


def _overlay(description: Description, image: Image.Image, labels: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: of two classes the foreground's probability, of more each class in its colour."""
    return probability_overlay(image, chance) if len(description.classes) == 2 else class_overlay(image, labels)


def class_overlay(image: Image.Image, labels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the image in grey under its classes (H, W), each in its colour (`data.label_masks`)."""
    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    colors = np.array([(0, 0, 0), *(ImageColor.getrgb(class_color(index)) for index in range(1, int(labels.max()) + 1))], np.float32)
    share = np.where(labels > 0, CLASS_SHARE, 0)[..., None]
    return (grey * (1 - share) + colors[labels] * share).astype(np.uint8)


def _color_table(description: Description) -> bytes:
    """Which colour of an overlay and which value of a mask is which class, as CSV."""
    rows = [(title, description.mask_values[index], class_color(index)) for index, title in enumerate(description.classes) if index]
    return pd.DataFrame(rows, columns=["class", "value", "colour"]).to_csv(index=False).encode()


def _blended(image: Image.Image, values: np.ndarray, cmap: str, strength: np.ndarray) -> np.ndarray:
    from matplotlib import colormaps  # here: only overlays need it

    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    color = colormaps[cmap](np.clip(values, 0, 1))[..., :3] * 255
    share = 0.6 * np.clip(strength, 0, 1)[..., None]
    return (grey * (1 - share) + color * share).astype(np.uint8)


def patients(predictor: Predictor, predictions: pd.DataFrame, alone: Collection[str] = ()) -> pd.DataFrame:
    """The mean probability over the images of each folder, which are one patient's: folder, images, probability, predicted, error.

    A file of `alone`, as the column `file` has it, is a patient's of its own, and stands under folder.

    Of more than two classes there is a probability of each, and the class with the highest is predicted.

    Undefined, with the reason in `error`, where an image of the folder has no prediction.
    """
    rows, about = [], predictor.description
    columns = ["probability"] if len(about.classes) == 2 else [probability_column(name) for name in about.classes]
    for folder, own in predictions.groupby(predictions["file"].map(lambda file: file if file in alone else str(Path(file).parent))):
        lacking = own[own[columns].isna().any(axis=1)]
        chances = {name: float(own[name].mean()) if lacking.empty else float("nan") for name in columns}
        error = ""
        if len(lacking):
            error = f"{len(lacking)} of {len(own)} images have no prediction, the first: {lacking['error'].iloc[0]}"
        if len(columns) == 1:
            predicted = named_class(about, chances["probability"])
        else:
            predicted = "" if error else about.classes[int(np.argmax(list(chances.values())))]
        rows.append({"folder": folder, "images": len(own), **chances, "predicted": predicted, "error": error})
    return pd.DataFrame(rows)
