"""An exported model: what it says of itself, and its numbers, without torch. `vfmgl predict` puts it to work on files.

A package and not a file because the model (here), what becomes of each file (`files`) and the command (`__main__`) are read apart.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

import numpy as np
import onnxruntime

from vfmgl_lib.base.files import first_line
from vfmgl_lib.data.images import PLAIN, Reading
from vfmgl_lib.data.preprocessing import CLIP_QUANTILE, PREPARATION, RESIZES
from vfmgl_lib.tasks.records import earlier_reading

# Of the metadata; another one where an older `vfmgl predict` would misread them: it takes any model for one of two classes.
FORMAT, FORMAT_OF_CLASSES = 1, 2
KEY = "vfmgl"
RUNNING = "running averages of training"  # statistics of batch normalisation; all that 0.1.0 had
# As `data.loading` and `data.preprocessing` do it; a model says what it was trained with, and another preparation is refused.
PREPROCESSING = {
    "color": "RGB, a grey image in three equal channels",
    "resize": RESIZES["stretch"],
    "scale": "0 to 255 becomes 0 to 1",
    "volume": f"clipped at its {CLIP_QUANTILE} quantile, from the minimum on spread over 0 to 255; a slice and its two neighbours are RGB",
    "version": PREPARATION,
}


def preprocessing_of(reading: Reading, series: tuple[str, ...] = ()) -> dict:
    """`PREPROCESSING` of a model whose images become squares as `reading` says, with a series a channel where there are any."""
    around = f", {reading.background} around it" if reading.resize == "pad" else ""
    color = {"color": f"a channel a series, of files called <case>_<series>: {', '.join(series)}; others 0"} if series else {}
    return PREPROCESSING | color | {"resize": RESIZES[reading.resize] + around}


class ModelError(ValueError):
    """A model that cannot be used; the message names the file and what would have been right."""


@dataclass(frozen=True)
class Description:
    """What an exported model says of itself.

    Attributes:
        format: of these very fields; `FORMAT_OF_CLASSES` of a model of more than two classes or with `mask_values`.
        library: version of vfmgl_lib that exported it.
        task, kind, classes: e.g. "nuclei", "segmentation", ("background", "nucleus"); of two classes 1 is the positive one.
        image_size: S, the input is (B, 3, S, S) float32 in [0, 1].
        reads: "image", and "volume" where the task's images are slices.
        preprocessing: `preprocessing_of` its reading.
        unit: what the cutoff belongs to, "image" or "patient" (mean probability of the patient's images).
        cutoff: probability from which on class 1 is named, or None; of more classes the one with the highest probability is named.
        cutoff_from: where it is from, or why there is none.
        study: key, method, seed, split_id, round, stage, model_center, profile, manifest_sha256 of the study.
        teacher, data: in words; random weights and phantoms are named as such.
        precision: "float32" or "int8".
        evidence: of each channel of the last stage's map for class 1 (the classifier's w_1 − w_0), for the CAM; of more classes for each of
            them against the mean of the others, one class after another; empty where there is no CAM, as of a segmentation.
        batch_norm: which statistics of batch normalisation the model carries, in words. Models of 0.1.0, which do not say, have the first.
        reading: what was white, what lay behind transparent pixels, and how an image becomes a square.
        mask_values: of a segmentation the value of each class in masks (`data.label_masks`); (): 255 (in volumes 1) for class 1, else 0.
        series: names of the series that are the image's channels (`data.preprocessing.stacked_series`); none: a file is an image.
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
    mask_values: tuple[int, ...] = ()
    series: tuple[str, ...] = ()

    def to_json(self) -> str:
        values = asdict(self) | {"reading": self.reading.written()}
        return json.dumps(values if self.series else {key: value for key, value in values.items() if key != "series"}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, name: str) -> Description:
        """Raises: ModelError: metadata of another format or preparation, or incomplete."""
        try:
            values = json.loads(text)
            found = values["format"]
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{name}: its metadata cannot be read ({error!r}); export it anew") from error
        if found not in (FORMAT, FORMAT_OF_CLASSES):
            read = f"{FORMAT} and {FORMAT_OF_CLASSES}"
            raise ModelError(f"{name}: its metadata have format {found}, this library reads {read}; use the version that exported it")
        if missing := [field.name for field in fields(cls) if field.name not in values and field.default is MISSING]:
            raise ModelError(f"{name}: its metadata lack {', '.join(missing)}; export it anew")
        try:
            values |= {key: tuple(values.get(key, ())) for key in ("classes", "reads", "evidence", "series", "mask_values")}
            values["reading"] = Reading(**values["reading"]) if values.get("reading") else earlier_reading(values["task"])
        except (TypeError, ValueError) as error:
            raise ModelError(f"{name}: its metadata cannot be read ({error}); export it anew") from error
        if values["preprocessing"] != (here := preprocessing_of(values["reading"], values["series"])):
            raise ModelError(f"{name}: was trained on images prepared otherwise, {values['preprocessing']}; here they are {here}")
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


class Predictor:
    """An exported model, ready to predict.

    Attributes:
        description: what the model says of itself.

    Args:
        file: .onnx of `vfmgl export`.
        task: the task the caller has in mind; None: whichever the model has.
        threads: of onnxruntime; 0: all cores.
    Raises: ModelError: not an ONNX file, not one of this library, another task.
    """

    def __init__(self, file: Path | str, task: str | None = None, threads: int = 0, device: str = "cpu"):
        self.name = str(file)
        if not Path(file).is_file():
            raise ModelError(f"{file}: no such file, expected a model of vfmgl export")
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
            raise ModelError(f"{file}: not a readable ONNX model ({first_line(error)[:120]})") from error
        if KEY not in metadata:
            raise ModelError(f"{file}: an ONNX model, but none of vfmgl export: it does not say how its images are prepared")
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
            raise ModelError(f"{self.name}: cannot be run ({first_line(error)[:120]}); export it anew") from error
        return outputs[0], outputs[1] if len(outputs) > 1 else None

    def probability(self, logits: np.ndarray) -> np.ndarray:
        """Logits (B, 2, ...) -> (B, ...) probability of class 1: of two classes, the softmax is the sigmoid of the difference.

        NaN where a logit is NaN or infinite: undefined is no class.
        """
        with np.errstate(invalid="ignore"):
            chance = 1 / (1 + np.exp(np.clip(logits[:, 0].astype(np.float64) - logits[:, 1], -700, 700)))
        return np.where(np.isfinite(logits).all(axis=1), chance, np.nan)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Logits (B, K, ...) -> (B, K, ...) float64 probabilities of the classes; NaN where a logit is NaN or infinite."""
        with np.errstate(invalid="ignore"):
            powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
            chances = powers / powers.sum(axis=1, keepdims=True)
        return np.where(np.isfinite(logits).all(axis=1, keepdims=True), chances, np.nan)

    def activation(self, maps: np.ndarray, targets: np.ndarray | None = None) -> np.ndarray:
        """Class activation maps in logits: (B, C, h, w) -> (B, h, w); positive where a place speaks for the class.

        Args:
            targets: (B,) of more than two classes the one that the evidence of each image is for; of two it is class 1.
        """
        evidence = np.asarray(self.description.evidence, np.float32)
        if targets is None:
            return np.einsum("c,bchw->bhw", evidence, maps)
        return np.einsum("bc,bchw->bhw", evidence.reshape(len(self.description.classes), -1)[targets], maps)
