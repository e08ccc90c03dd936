"""python -m vfmgl_lib.predict MODEL.onnx IMAGES... --out DIR: an exported model at work, without torch.

What the model needs to know of itself (classes, input size, how images become input, cutoff) is in its own metadata, written by
`vfmgl_lib.export`. An input is an image (PNG, JPEG, TIFF, BMP), for a prostate model also a volume (.nii, .nii.gz, .mhd,
.mha), or a folder of these.

    DIR/predictions.csv    a row a file: the probability of class 1, or what was segmented; a file that cannot be used, or for which the
                           model gives NaN or infinity, has no class and no mask, and its reason there
    DIR/patients.csv       where the model's cutoff belongs to patients: the mean over the images of each folder, and the class; undefined
                           with a reason where one of its images has no prediction
    DIR/masks/             a segmentation's masks, PNG of 0 and 255 at the image's own size; of a volume .nii.gz on the volume's own grid
    DIR/overlays/          with --overlay: where the evidence for class 1 lies

An overlay shows the class activation map (Zhou et al. 2016) of a classification: the last stage's map, which the model gives as second
output, weighted by the classifier. A segmentation has no such weights, and Grad-CAM would need gradients that an exported model
cannot give: its overlay is the map of the foreground's probability.

In a folder, what file servers and systems leave there (@eaDir, Thumbs.db, ._x, what is hidden) is passed over, and so is a file that is
the mask of another one (labels/a.png of images/a.*, a_segmentation.nii.gz or a_mask.png of a.*), a result of an earlier call, or below a
linked folder; all are counted. Masks and overlays are
called as their images; where some system cannot have that name, or two differ in the case of letters alone, a like one that ends in a
hash: the columns mask_file and overlay_file say which. A cell that a spreadsheet would take for a formula has a ' before it.

A call that is interrupted, or finds no room on the disk, keeps what is done beside DIR, in .DIR.partial: the same call, with the same
files, predicts only the rest, and its results are those of a call that was not interrupted. Any other call for DIR begins anew.

Exit status: 0 all is well, 1 some files could not be used, 2 the call itself or the model is wrong, 3 stopped for want of room or rights,
130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
from PIL import Image

from vfmgl_lib import __version__
from vfmgl_lib.data.images import PLAIN, ImageError, Reading, decode_image, earlier_reading
from vfmgl_lib.data.inputs import VOLUME_SUFFIXES, InputError, file_state, find_inputs, known_suffix
from vfmgl_lib.data.names import FORMULA, same_name
from vfmgl_lib.data.preprocessing import CLIP_QUANTILE, PREPARATION, squashed, volume_slices
from vfmgl_lib.data.scan import SourceError
from vfmgl_lib.files import (
    FolderInUseError,
    Steps,
    file_name,
    reason,
    resumed_folder,
    sha256,
    shown,
    temporary_name,
    write_bytes,
    write_text,
)
from vfmgl_lib.surroundings import print_anything, say

FORMAT = 1  # of the metadata; raised when an older `predict` would misread them
KEY = "vfmgl"
UNDEFINED = "the model gives NaN or infinity for this image, so that its prediction is undefined: it overflows, or a weight is damaged"
RUNNING = "running averages of training"  # statistics of batch normalisation; all that 0.1.0 had
COLUMNS = {
    "classification": ("name", "file", "width", "height", "probability", "predicted", "evidence", "overlay_file", "error"),
    "segmentation": (
        "name",
        "file",
        "width",
        "height",
        "slices",
        "foreground",
        "share",
        "milliliters",
        "mask_file",
        "overlay_file",
        "error",
    ),
}
COUNTS = ("width", "height", "slices", "foreground")
# As `data.loading` and `data.preprocessing` do it; a model says what it was trained with, and another preparation is refused.
PREPROCESSING = {
    "color": "RGB, a grey image in three equal channels",
    "resize": "the whole image squashed to the square, bilinear with antialiasing (Pillow)",
    "scale": "0 to 255 becomes 0 to 1",
    "volume": f"clipped at its {CLIP_QUANTILE} quantile, from the minimum on spread over 0 to 255; a slice and its two neighbours are RGB",
    "version": PREPARATION,
}


class ModelError(ValueError):
    """A model that cannot be used; the message names the file and what would have been right."""


@dataclass(frozen=True)
class Description:
    """What an exported model says of itself.

    Attributes:
        format: of these very fields.
        library: version of vfmgl_lib that exported it.
        task, kind, classes: e.g. "nuclei", "segmentation", ("background", "nucleus"); class 1 is the positive one.
        image_size: S, the input is (B, 3, S, S) float32 in [0, 1].
        reads: "image", and "volume" where the task's images are slices.
        preprocessing: `PREPROCESSING`.
        unit: what the cutoff belongs to, "image" or "patient" (mean probability of the patient's images).
        cutoff: probability from which on class 1 is named, or None.
        cutoff_from: where it is from, or why there is none.
        study: key, method, seed, split_id, round, stage, model_center, profile, manifest_sha256 of the study.
        teacher, data: in words; random weights and phantoms are named as such.
        precision: "float32" or "int8".
        evidence: of each channel of the last stage's map for class 1 (the classifier's w_1 − w_0), for the CAM; empty for a segmentation.
        batch_norm: which statistics of batch normalisation the model carries, in words. Models of 0.1.0, which do not say, have the first.
        reading: what was white and what lay behind transparent pixels.
    """

    format: int
    library: str
    task: str
    kind: str
    classes: tuple[str, ...]
    image_size: int
    reads: tuple[str, ...]
    preprocessing: dict
    unit: str
    cutoff: float | None
    cutoff_from: str
    study: dict
    teacher: str
    data: str
    precision: str
    evidence: tuple[float, ...]
    batch_norm: str = RUNNING
    reading: Reading = PLAIN

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, name: str) -> Description:
        """Raises: ModelError: metadata of another format or preparation, or incomplete."""
        try:
            values = json.loads(text)
            found = values["format"]
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{name}: its metadata cannot be read ({error!r}); export it anew") from error
        if found != FORMAT:
            raise ModelError(f"{name}: its metadata have format {found}, this library reads {FORMAT}; use the version that exported it")
        if missing := [field.name for field in fields(cls) if field.name not in values and field.default is MISSING]:
            raise ModelError(f"{name}: its metadata lack {', '.join(missing)}; export it anew")
        if values["preprocessing"] != PREPROCESSING:
            raise ModelError(f"{name}: was trained on images prepared otherwise, {values['preprocessing']}; here they are {PREPROCESSING}")
        try:
            values |= {key: tuple(values[key]) for key in ("classes", "reads", "evidence")}
            values["reading"] = Reading(**values["reading"]) if values.get("reading") else earlier_reading(values["task"])
        except (TypeError, ValueError) as error:
            raise ModelError(f"{name}: its metadata cannot be read ({error}); export it anew") from error
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


class Predictor:
    """An exported model, ready to predict.

    Attributes:
        description: what the model says of itself.

    Args:
        file: .onnx of `vfmgl_lib.export`.
        task: the task the caller has in mind; None: whichever the model has.
        threads: of onnxruntime; 0: all cores.
    Raises: ModelError: not an ONNX file, not one of this library, another task.
    """

    def __init__(self, file: Path | str, task: str | None = None, threads: int = 0, device: str = "cpu"):
        self.name = str(file)
        if not Path(file).is_file():
            raise ModelError(f"{file}: no such file, expected a model of python -m vfmgl_lib.export")
        providers = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
        if providers[device] not in onnxruntime.get_available_providers():
            raise ModelError(f"device {device}: this onnxruntime has {', '.join(onnxruntime.get_available_providers())}; use cpu")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=[providers[device]])
            metadata = self._session.get_modelmeta().custom_metadata_map
            found = self._session.get_inputs()[0].shape
        except Exception as error:  # onnxruntime's errors have no common class
            raise ModelError(f"{file}: not a readable ONNX model ({str(error).splitlines()[0][:120]})") from error
        if KEY not in metadata:
            raise ModelError(f"{file}: an ONNX model, but none of python -m vfmgl_lib.export: it does not say how its images are prepared")
        self.description = Description.from_json(metadata[KEY], str(file))
        if task is not None and task != self.description.task:
            raise ModelError(f"{file}: is a model for task {self.description.task}, asked for {task}")
        if found[1:] != self.shape[1:]:
            raise ModelError(f"{file}: its input is {found}, its metadata say {self.shape}")

    @property
    def shape(self) -> list:
        side = self.description.image_size
        return ["batch", 3, side, side]

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Logits, and the last stage's map where the model gives it.

        Args:
            images: (B, S, S, 3) uint8, from `data.preprocessing.squashed`.
        Returns: (B, K) or (B, K, S, S) float32; (B, C, h, w) float32 or None.
        Raises: ValueError: another shape or type. ModelError: onnxruntime cannot run the model.
        """
        side = self.description.image_size
        if images.ndim != 4 or images.shape[1:] != (side, side, 3) or images.dtype != np.uint8:
            raise ValueError(f"images must be (B, {side}, {side}, 3) uint8, got {images.shape} {images.dtype}")
        try:
            outputs = self._session.run(None, {"image": np.moveaxis(images, 3, 1).astype(np.float32) / np.float32(255)})
        except Exception as error:  # as when it was opened
            raise ModelError(f"{self.name}: cannot be run ({str(error).splitlines()[0][:120]}); export it anew") from error
        return outputs[0], outputs[1] if len(outputs) > 1 else None

    def probability(self, logits: np.ndarray) -> np.ndarray:
        """Logits (B, K, ...) -> (B, ...) probability of class 1; of two classes, the softmax is the sigmoid of the difference.

        NaN where a logit is NaN or infinite: undefined is no class.
        """
        with np.errstate(invalid="ignore"):
            chance = 1 / (1 + np.exp(np.clip(logits[:, 0].astype(np.float64) - logits[:, 1], -700, 700)))
        return np.where(np.isfinite(logits).all(axis=1), chance, np.nan)

    def activation(self, maps: np.ndarray) -> np.ndarray:
        """Class activation maps in logits: (B, C, h, w) -> (B, h, w); positive where a place speaks for class 1."""
        return np.einsum("c,bchw->bhw", np.asarray(self.description.evidence, np.float32), maps)


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
        steps: what an interrupted call of the same arguments has done, of `files.resumed_folder`.
    Returns: predictions.csv: a row a file, columns `COLUMNS`. evidence: what an overlay's colours reach to, in logits; predicted: the
        class at the cutoff, empty where there is none or where it belongs to patients; foreground: pixels or voxels; error: why a file
        could not be used or its prediction is undefined, else empty.
    Raises: OSError: an output that cannot be written.
    """
    kind = predictor.description.kind
    predict, size = (_classified, batch_size) if kind == "classification" else (_segmented, 1)
    out, rows = _Outputs(folder, overlay, inputs), []
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
        seen: set[str] = set()
        self._alike = {name for _, name in inputs if same_name(name) in seen or seen.add(same_name(name))}
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
    results = iter(zip(predictor.probability(logits), predictor.activation(maps), strict=True))
    for (_, name), row, image in zip(inputs, rows, images, strict=True):
        if image is None:
            continue
        probability, activation = next(results)
        if not (np.isfinite(probability) and np.isfinite(activation).all()):
            row["error"] = f"{row['file']}: {UNDEFINED}"
            continue
        row |= {"probability": float(probability), "evidence": float(np.abs(activation).max())}
        if predictor.description.unit == "image":
            row["predicted"] = named_class(predictor.description, float(probability))
        if out.overlay:
            out.write(row, "overlay_file", "overlays", name, ".png", _png(evidence_overlay(image, activation)))
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
    out.write(row, "mask_file", "masks", name, ".png", _png(mask.astype(np.uint8) * 255))
    if out.overlay:
        out.write(row, "overlay_file", "overlays", name, ".png", _png(probability_overlay(image, chance)))
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
    mask = np.zeros(volume.voxels.shape, np.uint8)
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
        out.write(row, "overlay_file", "overlays", name, ".png", _png(picture))
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


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


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


def _csv(table: pd.DataFrame) -> str:
    """A table as CSV, with a ' before what a spreadsheet would take for a formula."""
    names = [name for name in ("name", "file", "folder", "error") if name in table]
    safe = {name: [f"'{text}" if text.startswith(tuple(FORMULA)) else text for text in table[name]] for name in names}
    return table.assign(**safe).to_csv(index=False)


def main(arguments: Sequence[str] | None = None) -> int:
    print_anything()
    parser = argparse.ArgumentParser(
        prog="python -m vfmgl_lib.predict", description=__doc__.split("\n", 1)[1], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="of python -m vfmgl_lib.export")
    parser.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="images, volumes, or folders of them")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder; it appears when all is written")
    parser.add_argument("--task", help="refuse a model of another task")
    parser.add_argument("--overlay", action="store_true", help="write overlays")
    parser.add_argument("--batch-size", type=_count, default=8, metavar="N", help="images at once (default 8)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: all cores")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda needs onnxruntime-gpu")
    given = parser.parse_args(arguments)
    notes: list[str] = []
    try:
        if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
            raise InputError(f"{given.out}: is there already and not empty, expected a new folder")
        if given.out.is_mount():
            raise InputError(f"{given.out}: is where another disk is mounted, expected a new folder; give one inside it")
        predictor = Predictor(given.model, given.task, given.threads, given.device)
        inputs = find_inputs(given.inputs, notes)
        predictions = _predicted(predictor, inputs, given)
    except (ModelError, InputError, FolderInUseError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (OSError, KeyboardInterrupt) as error:
        why = reason(error) if isinstance(error, OSError) else "interrupted"
        place = temporary_name(given.out)
        kept = f"what is done is kept in {place}" if place.is_dir() else "nothing was done yet"
        sys.stderr.write(f"{why}; {kept}, the same call goes on there\n")
        return 3 if isinstance(error, OSError) else 130
    failed = predictions[predictions["error"] != ""]
    sys.stderr.write("".join(f"{error}\n" for error in failed["error"]))
    about = predictor.description
    say(f"{given.out}: {len(predictions) - len(failed)} of {len(predictions)} files predicted by {about.task}, {about.data}; ")
    say(f"batch normalisation: {about.batch_norm}\n")
    say("".join(f"note: {note}\n" for note in notes))
    return int(len(failed) > 0)


def _predicted(predictor: Predictor, inputs: Sequence[tuple[Path, str]], given: argparse.Namespace) -> pd.DataFrame:
    """Predicts, or goes on with what an interrupted call of the same model, files and options has left, and writes the tables."""
    call = [__version__, sha256(given.model), given.overlay, given.batch_size, given.threads, given.device]
    for file, name in inputs:
        call.append((name, os.path.abspath(file), file_state(file)))
    key = hashlib.sha256(json.dumps(call).encode()).hexdigest()
    with resumed_folder(given.out, key) as (folder, steps):
        predictions = predict_files(predictor, inputs, folder, overlay=given.overlay, batch_size=given.batch_size, steps=steps)
        write_text(folder / "predictions.csv", _csv(predictions))
        if predictor.description.unit == "patient" and "probability" in predictions:
            write_text(folder / "patients.csv", _csv(patients(predictor, predictions)))
    return predictions


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
