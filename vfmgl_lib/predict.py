"""python -m vfmgl_lib.predict MODEL.onnx IMAGES... --out DIR: an exported model at work, without torch.

What the model needs to know of itself (classes, input size, how images become input, cutoff) is in its own metadata, written by
`vfmgl_lib.export`. An input is an image (PNG, JPEG, TIFF, BMP), for a prostate model also a volume (.nii, .nii.gz), or a folder of these.

    DIR/predictions.csv    a row a file: the probability of class 1, or what was segmented; a file that cannot be used has its reason there
    DIR/patients.csv       where the model's cutoff belongs to patients: the mean over the images of each folder, and the class
    DIR/masks/             a segmentation's masks, PNG of 0 and 255 at the image's own size; of a volume .nii.gz on the volume's own grid
    DIR/overlays/          with --overlay: where the evidence for class 1 lies

An overlay shows the class activation map (Zhou et al. 2016) of a classification: the last stage's map, which the model gives as second
output, weighted by the classifier. A segmentation has no such weights, and Grad-CAM would need gradients that an exported model
cannot give: its overlay is the map of the foreground's probability.

Exit status: 0 all is well, 1 some files could not be used, 2 the call itself or the model is wrong.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
from PIL import Image

from vfmgl_lib.data.images import ImageError, decode_image
from vfmgl_lib.data.preprocessing import CLIP_QUANTILE, PREPARATION, squashed, volume_slices
from vfmgl_lib.data.scan import IMAGE_SUFFIXES
from vfmgl_lib.files import new_folder, write_bytes, write_text

FORMAT = 1  # of the metadata; raised when an older `predict` would misread them
KEY = "vfmgl"
RUNNING = "running averages of training"  # statistics of batch normalisation; all that 0.1.0 had
VOLUME_SUFFIXES = (".nii", ".nii.gz")
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
        values |= {key: tuple(values[key]) for key in ("classes", "reads", "evidence")}
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
        except Exception as error:  # onnxruntime's errors have no common class
            raise ModelError(f"{file}: not a readable ONNX model ({str(error).splitlines()[0][:120]})") from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        if KEY not in metadata:
            raise ModelError(f"{file}: an ONNX model, but none of python -m vfmgl_lib.export: it does not say how its images are prepared")
        self.description = Description.from_json(metadata[KEY], str(file))
        if task is not None and task != self.description.task:
            raise ModelError(f"{file}: is a model for task {self.description.task}, asked for {task}")
        if self._session.get_inputs()[0].shape[1:] != self.shape[1:]:
            raise ModelError(f"{file}: its input is {self._session.get_inputs()[0].shape}, its metadata say {self.shape}")

    @property
    def shape(self) -> list:
        side = self.description.image_size
        return ["batch", 3, side, side]

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Logits, and the last stage's map where the model gives it.

        Args:
            images: (B, S, S, 3) uint8, from `data.preprocessing.squashed`.
        Returns: (B, K) or (B, K, S, S) float32; (B, C, h, w) float32 or None.
        Raises: ValueError: another shape or type.
        """
        side = self.description.image_size
        if images.ndim != 4 or images.shape[1:] != (side, side, 3) or images.dtype != np.uint8:
            raise ValueError(f"images must be (B, {side}, {side}, 3) uint8, got {images.shape} {images.dtype}")
        outputs = self._session.run(None, {"image": np.moveaxis(images, 3, 1).astype(np.float32) / np.float32(255)})
        return outputs[0], outputs[1] if len(outputs) > 1 else None

    def probability(self, logits: np.ndarray) -> np.ndarray:
        """Logits (B, K, ...) -> (B, ...) probability of class 1; of two classes, the softmax is the sigmoid of the difference."""
        return 1 / (1 + np.exp(np.clip(logits[:, 0].astype(np.float64) - logits[:, 1], -700, 700)))

    def activation(self, maps: np.ndarray) -> np.ndarray:
        """Class activation maps in logits: (B, C, h, w) -> (B, h, w); positive where a place speaks for class 1."""
        return np.einsum("c,bchw->bhw", np.asarray(self.description.evidence, np.float32), maps)


def find_inputs(given: Sequence[Path]) -> list[tuple[Path, str]]:
    """(file, name) of all inputs: files as they are, folders with everything below them that has a known suffix, in order.

    Args:
        given: files and folders.
    Returns: names are unique, without suffix, relative to the folder given: outputs are called by them.
    Raises: ModelError: nothing there, or two inputs of one name.
    """
    found: list[tuple[Path, str]] = []
    for path in given:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and _suffix(file))
            inside = [file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts)]
            if not inside:
                raise ModelError(f"{path}: no image in it, expected files ending in {', '.join((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES))}")
            found += [(file, file.relative_to(path).as_posix()) for file in inside]
        elif path.exists():
            found.append((path, path.name))
        else:
            raise ModelError(f"{path}: no such file or folder")
    named = [(file, name.removesuffix(_suffix(file)) if _suffix(file) else name) for file, name in found]
    seen: dict[str, Path] = {}
    for file, name in named:
        if name in seen:
            raise ModelError(f"{file} and {seen[name]}: their outputs would both be called {name}; predict them separately")
        seen[name] = file
    return named


def _suffix(file: Path) -> str:
    """The suffix of a known form as the file has it, "" for any other."""
    lower = file.name.lower()
    length = max((len(s) for s in (*IMAGE_SUFFIXES, *VOLUME_SUFFIXES) if lower.endswith(s)), default=0)
    return file.name[-length:] if length else ""


def predict_files(
    predictor: Predictor, inputs: Sequence[tuple[Path, str]], folder: Path, *, overlay: bool = False, batch_size: int = 8
) -> pd.DataFrame:
    """Predicts files one after the other (a classification: a batch at a time) and writes what belongs to each.

    Args:
        inputs: from `find_inputs`.
        folder: where masks and overlays go, by the input's name.
        batch_size: images or slices at once.
    Returns: predictions.csv: a row a file, columns `COLUMNS`. evidence: what an overlay's colours reach to, in logits; predicted: the
        class at the cutoff, empty where there is none or where it belongs to patients; foreground: pixels or voxels; error: why a file
        could not be used, else empty.
    """
    kind = predictor.description.kind
    predict = _classified if kind == "classification" else _segmented
    table = pd.DataFrame(list(predict(predictor, inputs, folder, overlay, batch_size)), columns=list(COLUMNS[kind]))
    whole = {name: "Int64" for name in COUNTS if name in table}
    texts = [name for name in COLUMNS[kind] if name in ("predicted", "error") or name.endswith("_file")]
    return table.astype(whole | dict.fromkeys(texts, object)).fillna(dict.fromkeys(texts, ""))


def _classified(predictor, inputs, folder, overlay, batch_size) -> Iterator[dict]:
    side = predictor.description.image_size
    for start in range(0, len(inputs), batch_size):
        rows, images = [], []
        for file, name in inputs[start : start + batch_size]:
            row, image = _opened(predictor, file, name)
            rows.append(row)
            images.append(image)
        usable = [image for image in images if image is not None]
        if usable:
            logits, maps = predictor.run(np.stack([squashed(image, side) for image in usable]))
            results = iter(zip(predictor.probability(logits), predictor.activation(maps), strict=True))
        for row, image in zip(rows, images, strict=True):
            if image is not None:
                probability, activation = next(results)
                row |= {"probability": float(probability), "evidence": float(np.abs(activation).max())}
                if predictor.description.unit == "image":
                    row["predicted"] = named_class(predictor.description, float(probability))
                if overlay:
                    row["overlay_file"] = f"overlays/{row['name']}.png"
                    write_bytes(folder / row["overlay_file"], _png(evidence_overlay(image, activation)))
        yield from rows


def _opened(predictor: Predictor, file: Path, name: str) -> tuple[dict, Image.Image | None]:
    row = {"name": name, "file": str(file)}
    try:
        if _suffix(file).lower() in VOLUME_SUFFIXES:
            raise ImageError(f"{file}: a volume, but the model for {predictor.description.task} reads images; prepare slices of it first")
        image = decode_image(file)
    except (ImageError, OSError) as error:
        return row | {"error": str(error)}, None
    return row | {"width": image.width, "height": image.height}, image


def named_class(description: Description, probability: float) -> str:
    """The class at the model's cutoff; "" where it has none."""
    return "" if description.cutoff is None else description.classes[int(probability >= description.cutoff)]


def _segmented(predictor, inputs, folder, overlay, batch_size) -> Iterator[dict]:
    for file, name in inputs:
        if "volume" in predictor.description.reads and _suffix(file).lower() in VOLUME_SUFFIXES:
            yield _segmented_volume(predictor, file, name, folder, overlay, batch_size)
            continue
        row, image = _opened(predictor, file, name)
        if image is not None:
            chance = foreground(predictor, [np.array(image)], batch_size)[0]
            mask = chance > 0.5
            row |= {"slices": 1, "foreground": int(mask.sum()), "share": float(mask.mean()), "mask_file": f"masks/{name}.png"}
            write_bytes(folder / row["mask_file"], _png(mask.astype(np.uint8) * 255))
            if overlay:
                row["overlay_file"] = f"overlays/{name}.png"
                write_bytes(folder / row["overlay_file"], _png(probability_overlay(image, chance)))
        yield row


def _segmented_volume(predictor: Predictor, file: Path, name: str, folder: Path, overlay: bool, batch_size: int) -> dict:
    from vfmgl_lib.data.sources.cases import SourceError  # here: they take longer to import than an image to predict
    from vfmgl_lib.data.sources.prostate import read_volume

    row = {"name": name, "file": str(file)}
    try:
        volume = read_volume(file, str(file))
        slices = volume_slices(volume.voxels)
    except (SourceError, OSError) as error:
        return row | {"error": str(error)}
    except ValueError as error:  # `volume_slices` does not know the file
        return row | {"error": f"{file}: {error}"}
    chances = foreground(predictor, [found.image for found in slices], batch_size)
    mask = np.zeros(volume.voxels.shape, np.uint8)
    for found, chance in zip(slices, chances, strict=True):
        mask[found.index] = chance > 0.5
    row |= {"width": mask.shape[2], "height": mask.shape[1], "slices": len(mask), "foreground": int(mask.sum())}
    row |= {"share": float(mask.mean()), "mask_file": f"masks/{name}.nii.gz"}
    if volume.milliliters is not None:
        row["milliliters"] = row["foreground"] * volume.milliliters
    write_bytes(folder / row["mask_file"], volume.mask_file(mask))
    if overlay:
        largest = int(np.argmax([(chance > 0.5).sum() for chance in chances])) if mask.any() else len(slices) // 2
        row["overlay_file"] = f"overlays/{name}.png"
        picture = probability_overlay(Image.fromarray(slices[largest].image[..., 1]).convert("RGB"), chances[largest])
        write_bytes(folder / row["overlay_file"], _png(picture))
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
    """The mean probability over the images of each folder, which are one patient's: folder, images, probability, predicted."""
    usable = predictions[predictions["error"] == ""]
    folders = [str(Path(file).parent) for file in usable["file"]]
    table = usable.groupby(folders)["probability"].agg(["size", "mean"]).rename_axis("folder").reset_index()
    table.columns = ["folder", "images", "probability"]
    return table.assign(predicted=[named_class(predictor.description, value) for value in table["probability"]])


def main(arguments: Sequence[str] | None = None) -> int:
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
    if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
        sys.stderr.write(f"{given.out}: is there already and not empty, expected a new folder\n")
        return 2
    try:
        predictor = Predictor(given.model, given.task, given.threads, given.device)
        inputs = find_inputs(given.inputs)
    except ModelError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    with new_folder(given.out) as folder:
        predictions = predict_files(predictor, inputs, folder, overlay=given.overlay, batch_size=given.batch_size)
        write_text(folder / "predictions.csv", predictions.to_csv(index=False))
        if predictor.description.unit == "patient" and "probability" in predictions:
            write_text(folder / "patients.csv", patients(predictor, predictions).to_csv(index=False))
    failed = predictions[predictions["error"] != ""]
    sys.stderr.write("".join(f"{error}\n" for error in failed["error"]))
    about = predictor.description
    sys.stdout.write(f"{given.out}: {len(predictions) - len(failed)} of {len(predictions)} files predicted by {about.task}, {about.data}; ")
    sys.stdout.write(f"batch normalisation: {about.batch_norm}\n")
    return int(len(failed) > 0)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
