"""python -m vfmgl_lib.export STUDY --center C --out DIR: a centre's trained model as ONNX, ready for `python -m vfmgl_lib.predict`.

    DIR/NAME.onnx         float32; what `predict` needs to know is in its metadata
    DIR/NAME.int8.onnx    with --int8: static quantisation by onnxruntime, calibrated on training images
    DIR/NAME.pt           with --torchscript: the traced model, for programs that have torch
    DIR/NAME.md           the model card: data, centres, metrics, intended use, limits
    DIR/check.csv         each file against torch, and against the study's own predictions, on real test images
    DIR/int8.csv          what int8 costs: on the validation set, which decides, and on the test set, which only reports

STUDY is a complete study's folder, e.g. runs/smoke/nuclei/studies/vfmgl-seed0-0123456789. The folder DIR appears when everything has
been written and checked, or not at all. Exit status: 0 all is well, 1 refused, 2 the call itself is wrong.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from vfmgl_lib import __version__
from vfmgl_lib.checkpoint import CheckpointError
from vfmgl_lib.config import ConfigError
from vfmgl_lib.data.images import ImageError, decode_image, decode_mask
from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.data.preprocessing import squashed
from vfmgl_lib.evaluation.complexity import count
from vfmgl_lib.evaluation.prediction import metrics_of, scoring_unit, training_cutoff
from vfmgl_lib.evaluation.results import results_table
from vfmgl_lib.evaluation.segmentation import dice, pixel_counts
from vfmgl_lib.files import new_folder, sha256, write_bytes, write_text
from vfmgl_lib.model_card import model_card
from vfmgl_lib.models.students import ResNet18, Student
from vfmgl_lib.predict import FORMAT, KEY, PREPROCESSING, Description, Predictor
from vfmgl_lib.study import Study, load_study

TOLERANCE = 1e-4  # greatest absolute difference from torch, of any logit or map value
CHECKED, CALIBRATION = 64, 64  # images at most, spread evenly over the split
BATCH = 16
OPSET = 18
# A model that names every pixel alike agrees with itself wherever its pixels lie.
ONE_VALUE = "pixels of a mask (all masks of one value: proves little)"
VOLUMES = ("prostate",)  # layouts whose images are slices of volumes


class ExportError(ValueError):
    """A model that is not handed out; the message says why."""


@dataclass(frozen=True)
class Exported:
    """What was written: the files by what they are ("onnx", "int8", "torchscript", "card"), and the two tables."""

    folder: Path
    files: dict[str, Path]
    check: pd.DataFrame
    int8: pd.DataFrame


class _Outputs(nn.Module):
    """A student with the outputs of an exported model: logits and, of a ResNet18, the last stage's map."""

    def __init__(self, student: Student):
        super().__init__()
        self.student = student
        self.with_map = isinstance(student, ResNet18)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits, maps = self.student.forward_stages(images)
        return (logits, maps[-1]) if self.with_map else (logits,)


def export_model(
    study: Study,
    center: str,
    folder: Path | str,
    *,
    stage: str = "",
    round_number: int | None = None,
    int8: bool = False,
    torchscript: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Exports one model of a study, checks it on real images, and writes its card.

    Args:
        center: whose model, or "shared".
        folder: new; it appears whole or not at all.
        stage: "I", "II" or "shared"; "": the model's last one.
        round_number: None: the study's last one.
        int8, torchscript: write these as well.
        overwrite: a folder that is there gives way once the new one is complete.
    Returns: what was written.
    Raises: ExportError: differences above `TOLERANCE`, values that are not finite, no test images, a folder that is not empty.
        ValueError, CheckpointError: a model that the study does not have. ImageError: an image that cannot be read.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder}: is there already and not empty, expected a new folder")
    round_number = study.last_round if round_number is None else round_number
    stage = stage or _last_stage(study, center, round_number)
    student = study.student(center, stage, round_number)
    about = _describe(study, student, center, stage, round_number)
    name = f"{about.task}-{study.settings.method}-{center}"
    int8_table = pd.DataFrame()
    with new_folder(folder) as part:
        files = {"onnx": part / f"{name}.onnx"}
        write_bytes(files["onnx"], onnx_model(student, about))
        tables = [compare_with_torch(student, Predictor(files["onnx"]), study, center), compare_with_study(Predictor(files["onnx"]), study)]
        if torchscript:
            files["torchscript"] = part / f"{name}.pt"
            write_bytes(files["torchscript"], torchscript_model(student, about))
            tables.append(_compare_torchscript(student, files["torchscript"], study, center))
        check = pd.concat(tables, ignore_index=True)
        _refuse(check, files)
        if int8:
            files["int8"] = part / f"{name}.int8.onnx"
            write_bytes(files["int8"], int8_model(files["onnx"], study, center, about))
            int8_table = int8_cost(Predictor(files["onnx"]), Predictor(files["int8"]), study, center)
            write_text(part / "int8.csv", int8_table.to_csv(index=False))
        write_text(part / "check.csv", check.to_csv(index=False))
        sizes = [{"file": file.name, "bytes": file.stat().st_size, "sha256": sha256(file)} for file in files.values()]
        counts = count(student, study.settings.data.image_size)
        files["card"] = part / f"{name}.md"
        card = model_card(study, about, pd.DataFrame(sizes), check, int8_table, counts, _card_results(study, about))
        write_text(files["card"], card)
        if overwrite:
            shutil.rmtree(folder, ignore_errors=True)
    return Exported(folder, {kind: folder / file.name for kind, file in files.items()}, check, int8_table)


def _last_stage(study: Study, center: str, round_number: int) -> str:
    if center == "shared":
        return "shared"
    done = study.rounds[(study.rounds["round"] == round_number) & (study.rounds["center"] == center)]
    return str(done["stage"].iloc[-1]) if len(done) else "II"  # `Study.student` says what there is


def _describe(study: Study, student: Student, center: str, stage: str, round_number: int) -> Description:
    settings, manifest = study.settings, study.manifest
    unit = scoring_unit(manifest.table, settings.is_segmentation)
    cutoff, source = _cutoff(study, center, stage, round_number, unit)
    evidence = (student.net.fc.weight[1] - student.net.fc.weight[0]).tolist() if isinstance(student, ResNet18) else []
    phantoms = is_phantom(study)
    return Description(
        format=FORMAT,
        library=__version__,
        task=settings.task,
        kind=manifest.task_kind,
        classes=manifest.classes,
        image_size=settings.data.image_size,
        reads=("image", "volume") if settings.data.layout in VOLUMES else ("image",),
        preprocessing=PREPROCESSING,
        unit=unit,
        cutoff=cutoff,
        cutoff_from=source,
        study={
            "key": study.folder.name,
            "method": settings.method,
            "seed": settings.seed,
            "split_id": settings.data.split.name if settings.data.split else "own",
            "round": round_number,
            "stage": stage,
            "model_center": center,
            "profile": settings.profile,
            "manifest_sha256": manifest.sha256,
        },
        teacher=study.teacher_description,
        data=f"{'PHANTOM images (synthetic), ' if phantoms else ''}layout {settings.data.layout}, centres {', '.join(manifest.centers)}",
        precision="float32",
        evidence=tuple(evidence),
    )


def is_phantom(study: Study) -> bool:
    """Whether the study's images are the embedded phantoms, or were prepared from them."""
    root = study.manifest.root
    notes = root.parent / "prepared.json"
    source = json.loads(notes.read_text(encoding="utf-8")).get("source", "") if notes.is_file() else ""
    return any((place / "phantoms.json").is_file() for place in (root, Path(source)) if str(place))


def _cutoff(study: Study, center: str, stage: str, round_number: int, unit: str) -> tuple[float | None, str]:
    if study.settings.is_segmentation:
        return None, "none: a pixel is foreground where its probability is above 0.5"
    rows = _own_rows(study, center, stage, round_number, "train")
    if rows.empty:
        return None, f"none: the study has no predictions of this model ({center}, stage {stage}, round {round_number}) on its training set"
    cutoff = training_cutoff(rows, unit)
    if np.isnan(cutoff):
        return None, "none: the training set has one class only"
    return cutoff, f"Youden's index on the {len(rows)} training images of {center}, per {unit}"


def _own_rows(study: Study, center: str, stage: str, round_number: int, split: str) -> pd.DataFrame:
    table = study.predictions
    about = {"model_center": center, "test_center": center, "stage": stage, "round": round_number, "split": split}
    return table[np.logical_and.reduce([table[name] == value for name, value in about.items()])]


def onnx_model(student: Student, about: Description | None = None, image_size: int | None = None) -> bytes:
    """A student as ONNX: input `image` (batch, 3, S, S) in [0, 1]; outputs `logits` and, of a ResNet18, `map`, its last stage.

    Args:
        about: goes into the metadata; None: a file without, for measurements; then `image_size` says S.
    """
    model = _Outputs(student).eval()
    side = about.image_size if about else image_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter, about itself
        program = torch.onnx.export(
            model,
            (torch.zeros(2, 3, side, side),),  # two: torch takes a size of one for a constant
            input_names=["image"],
            output_names=["logits", "map"] if model.with_map else ["logits"],
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    proto = program.model_proto
    for part in (
        *proto.graph.node,
        *proto.graph.value_info,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.initializer,
        proto.graph,
    ):
        del part.metadata_props[:]  # traces of the stack, with places on this machine
    return _with_description(proto, about)


def _with_description(proto: onnx.ModelProto, about: Description | None) -> bytes:
    if about:
        onnx.helper.set_model_props(proto, {KEY: about.to_json()})
        proto.doc_string = f"{about.task}, model of {about.study['model_center']}, {about.precision}; vfmgl_lib {about.library}"
    onnx.checker.check_model(proto)
    return proto.SerializeToString(deterministic=True)


def torchscript_model(student: Student, about: Description) -> bytes:
    """A student traced, with the description as extra file `vfmgl.json`. torch keeps TorchScript, and warns that it will not for ever."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(_Outputs(student).eval(), torch.zeros(2, 3, about.image_size, about.image_size))
        torch.jit.save(traced, buffer, _extra_files={f"{KEY}.json": about.to_json()})
    return buffer.getvalue()


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
    """(n, S, S, 3) uint8 as `predict` makes them."""
    root, side = study.manifest.root, study.settings.data.image_size
    return np.stack([squashed(decode_image(root / path), side) for path in table["path"]])


@torch.inference_mode()
def _by_torch(student: Student, study: Study, table: pd.DataFrame) -> list[np.ndarray]:
    data = ImageDataset(study.manifest, table, study.settings.data.image_size)
    images = torch.stack([data[row]["image"] for row in range(len(data))])
    return [part.numpy() for part in _joined([_Outputs(student).eval()(batch) for batch in images.split(BATCH)], torch.cat)]


def _by_onnx(predictor: Predictor, pixels: np.ndarray) -> list[np.ndarray]:
    batches = [predictor.run(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
    return [part for part in _joined(batches, np.concatenate) if part is not None]


def _joined(batches: Sequence[tuple], join) -> list:
    return [None if parts[0] is None else join(parts) for parts in zip(*batches, strict=True)]


def compare_with_torch(student: Student, predictor: Predictor, study: Study, center: str) -> pd.DataFrame:
    """An ONNX file, read and fed as `predict` does it, against the student fed as in training.

    Returns: one row each for logits and, where there is one, the map: model, against, quantity, images, difference (greatest absolute),
        tolerance.
    """
    table = _test_images(study, center)
    pairs = zip(("logits", "map"), _by_torch(student, study, table), _by_onnx(predictor, _pixels(study, table)), strict=False)
    return pd.DataFrame([_row("onnx", "torch", quantity, len(table), np.abs(ours - theirs).max()) for quantity, ours, theirs in pairs])


def _compare_torchscript(student: Student, file: Path, study: Study, center: str) -> pd.DataFrame:
    table = _test_images(study, center)
    pixels = torch.from_numpy(_pixels(study, table)).permute(0, 3, 1, 2).float() / 255
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore", FutureWarning)  # as in `torchscript_model`
        loaded = torch.jit.load(str(file))
        outputs = [part.numpy() for part in _joined([loaded(batch) for batch in pixels.split(BATCH)], torch.cat)]
    pairs = zip(("logits", "map"), _by_torch(student, study, table), outputs, strict=False)
    return pd.DataFrame(
        [_row("torchscript", "torch", quantity, len(table), np.abs(ours - theirs).max()) for quantity, ours, theirs in pairs]
    )


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
    rows = _own_rows(study, about["model_center"], about["stage"], about["round"], "test")
    if settings.is_segmentation:
        rows = rows[rows["mask_file"] != ""]
    if rows.empty:
        return pd.DataFrame()
    table = study.manifest.table.set_index("id").loc[rows["id"]].reset_index()
    logits = _by_onnx(predictor, _pixels(study, table))[0]
    tolerance = TOLERANCE if settings.device == "cpu" else float("nan")
    if not settings.is_segmentation:
        difference = np.abs(predictor.probability(logits) - rows["probability"].to_numpy(dtype=float)).max()
        return pd.DataFrame([_row("onnx", "study", "probability", len(rows), difference, tolerance)])
    masks = np.stack([decode_mask(study.folder / name) for name in rows["mask_file"]])
    differing = ((predictor.probability(logits) > 0.5) != masks).sum(axis=(1, 2)).max()
    # A pixel may fall on the other side where its two logits differ by less than the tolerance.
    margin = (np.abs(logits[:, 1] - logits[:, 0]) <= 2 * TOLERANCE).sum(axis=(1, 2)).max()
    allowed = float(margin) if settings.device == "cpu" else float("nan")
    quantity = "pixels of a mask" if masks.any() and not masks.all() else ONE_VALUE
    return pd.DataFrame([_row("onnx", "study", quantity, len(rows), differing, allowed)])


def agreement(predictor: Predictor, study: Study) -> pd.DataFrame:
    """The study's own numbers for each test image of the model's centre beside those of the exported model.

    Returns: id, study, predicted: probability of class 1, or the foreground's Dice of a segmentation. No row where the study kept no
        predictions of this model.
    """
    about = predictor.description.study
    rows = _own_rows(study, about["model_center"], about["stage"], about["round"], "test")
    if rows.empty:
        return pd.DataFrame(columns=["id", "study", "predicted"])
    table = study.manifest.table.set_index("id", drop=False).loc[rows["id"]].reset_index(drop=True)
    column = "dice" if study.settings.is_segmentation else "probability"
    predicted = _as_predictions(study, table, predictor.probability(_by_onnx(predictor, _pixels(study, table))[0]))[column]
    return pd.DataFrame({"id": table["id"], "study": rows[column].to_numpy(dtype=float), "predicted": predicted.to_numpy(dtype=float)})


def _refuse(check: pd.DataFrame, files: dict[str, Path]) -> None:
    # Not "above": NaN, which weights that are not finite lead to, is above nothing.
    wrong = check[check["tolerance"].notna() & ~(check["difference"] <= check["tolerance"])]
    if len(wrong):
        row = wrong.iloc[0]
        file = files[row["model"]].name
        raise ExportError(
            f"{file}: refused, its {row['quantity']} differ from {row['against']} by up to {row['difference']:g} on {row['images']} test"
            f" images, expected at most {row['tolerance']:g}; nothing was written"
        )


class _Calibration(CalibrationDataReader):
    """Training images one at a time, as onnxruntime asks for them."""

    def __init__(self, pixels: np.ndarray):
        self._images = iter(np.moveaxis(pixels, 3, 1).astype(np.float32) / np.float32(255))

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._images, None)
        return None if image is None else {"image": image[None]}


def int8_model(file: Path, study: Study, center: str, about: Description) -> bytes:
    """The model of `file` in int8 by static quantisation: weights per output channel, activations by their range on training images.

    7 bits of the weights are used: with 8, processors without VNNI instructions overflow. That is the reason, not accuracy: on six small
    models 8 bits were nearer to float32 on the validation images of four.

    Args:
        center: whose training images calibrate; for the shared model those of all centres.
    Raises: ExportError: no training images.
    """
    table = study.manifest.select(None if center == "shared" else center, "train")
    if table.empty:
        raise ExportError(f"{center}: has no training images to calibrate int8 on")
    with tempfile.TemporaryDirectory() as folder:
        ready, done = Path(folder) / "ready.onnx", Path(folder) / "int8.onnx"
        quant_pre_process(str(file), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready),
            str(done),
            _Calibration(_pixels(study, _spread(table, CALIBRATION))),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
        proto = onnx.load(done)
    return _with_description(proto, replace(about, precision="int8"))


def int8_cost(full: Predictor, small: Predictor, study: Study, center: str) -> pd.DataFrame:
    """Metrics of the float32 and the int8 model on the centre's validation and test set.

    Returns: split, metric, n, float32, int8, cost (float32 − int8), reason; `metric` "largest change of a probability" and, for a
        segmentation, "share of pixels changed" have no n and no float32.
    """
    unit, about, rows = full.description.unit, full.description, []
    for split in ("val", "test"):
        table = study.manifest.select(None if center == "shared" else center, split)
        if table.empty:
            reason = "no validation images: set data.validation_share; what int8 costs can only be reported on the test set"
            rows.append({"split": split, "metric": "any", "n": 0, "reason": reason})
            continue
        pixels = _pixels(study, table)
        chances = [predictor.probability(_by_onnx(predictor, pixels)[0]) for predictor in (full, small)]
        first, second = (metrics_of(_as_predictions(study, table, chance), unit, about.cutoff) for chance in chances)
        for one, other in zip(first, second, strict=True):
            values = {"float32": one.value, "int8": other.value, "cost": one.value - other.value, "reason": one.reason}
            rows.append({"split": split, "metric": one.name, "n": one.n, **values})
        change = float(np.abs(chances[0] - chances[1]).max())
        rows.append({"split": split, "metric": "largest change of a probability", "int8": change, "reason": ""})
        if study.settings.is_segmentation:
            moved = float(((chances[0] > 0.5) != (chances[1] > 0.5)).mean())
            rows.append({"split": split, "metric": "share of pixels changed", "int8": moved, "reason": ""})
    return pd.DataFrame(rows, columns=["split", "metric", "n", "float32", "int8", "cost", "reason"])


def _as_predictions(study: Study, table: pd.DataFrame, chance: np.ndarray) -> pd.DataFrame:
    """Rows as `evaluation.prediction.predict` returns them, from probabilities (n,) or (n, S, S)."""
    about = table[["id", "patient", "center", "split"]].rename(columns={"center": "test_center"})
    if chance.ndim == 1:
        return about.assign(probability=chance, label=table["label"])
    data = ImageDataset(study.manifest, table, study.settings.data.image_size)
    counts = pd.DataFrame([pixel_counts(chance[row] > 0.5, data[row]["target"].numpy() == 1) for row in range(len(table))])
    return pd.concat([about, counts.assign(dice=dice(counts["tp"], counts["fp"], counts["fn"]))], axis=1)


def _card_results(study: Study, about: Description) -> pd.DataFrame:
    """This very model's rows on test sets: test_center, metric, value, low, high, interval, n, reason.

    With intervals, from the predictions that the study kept of this stage and round; of another round, its metrics without intervals.
    """
    made, table = about.study, study.predictions
    columns = ["test_center", "metric", "value", "low", "high", "interval", "n", "reason"]
    of_model = (table["model_center"] == made["model_center"]) & (table["stage"] == made["stage"]) & (table["round"] == made["round"])
    kept = table[of_model].assign(budget="rounds")
    if len(kept):
        results = results_table(kept, unit=about.unit)
        return results[(results["split"] == "test") & (results["test_center"] != "all") & (results["metric"] != "cutoff")][columns]
    rows = study.metrics[(study.metrics["model_center"] == made["model_center"]) & (study.metrics["split"] == "test")]
    rows = rows[(rows["round"] == made["round"]) & (rows["stage"] == made["stage"])]
    return rows.assign(low=np.nan, high=np.nan, interval="")[columns]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vfmgl_lib.export", description=__doc__.split("\n", 1)[1], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, metavar="STUDY", help="folder of a complete study")
    parser.add_argument("--center", required=True, metavar="C", help="whose model, or 'shared'")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--stage", default="", choices=("", "I", "II", "shared"), help="default: the model's last one")
    parser.add_argument("--round", type=int, metavar="N", help="default: the study's last one")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the study's images, where they have moved")
    parser.add_argument("--int8", action="store_true", help="write an int8 model too, and what it costs")
    parser.add_argument("--torchscript", action="store_true", help="write TorchScript too")
    given = parser.parse_args(arguments)
    try:
        exported = export_model(
            load_study(given.study, given.data),
            given.center,
            given.out,
            stage=given.stage,
            round_number=given.round,
            int8=given.int8,
            torchscript=given.torchscript,
        )
    except (ExportError, ConfigError, ManifestError, CheckpointError, ImageError, ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("".join(f"{kind}: {file} ({file.stat().st_size} bytes)\n" for kind, file in exported.files.items()))
    sys.stdout.write(exported.check.to_string(index=False) + "\n")
    if len(exported.int8):
        sys.stdout.write(exported.int8.to_string(index=False, na_rep="") + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
