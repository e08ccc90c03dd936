"""vfmgl predict MODEL.onnx IMAGES... --out DIR: an exported model at work, without torch.

What the model needs to know of itself (classes, input size, how images become input, cutoff) is in its own metadata, written by
`vfmgl export`. An input is an image (PNG, JPEG, TIFF, BMP), for a prostate model also a volume (.nii, .nii.gz, .mhd,
.mha), or a folder of these. Of a model of several series (T1, T2, ...) a case's images lie side by side, called <case>_<series>.

    DIR/predictions.csv    a row a file: probabilities and class, or what was segmented (columns: see below); a file that
                           cannot be used, or for which the model gives NaN or infinity, has no class and no mask, and its reason there
    DIR/patients.csv       where the model's cutoff belongs to patients: the mean over the images of each folder, and the class; undefined
                           with a reason where one of its images has no prediction. So each patient needs a folder of his own; a file
                           that is named by itself is taken for a patient's only one
    DIR/masks/             a segmentation's masks, PNG of 0 and 255 at the image's own size; of a volume .nii.gz on the volume's own grid;
                           of more than two classes each has the value that the model names for it (its card lists them)
    DIR/overlays/          with --overlay: where the evidence for the positive class lies; of more than two classes of pixels each in its
                           colour, which colours.csv lists

Columns of predictions.csv, of a classification:

    probability            of two classes: of the positive one, which is the last of the model's classes. The summary and the model's card
                           name it. Of more classes: probability[NAME], a column each
    predicted              of two classes: the positive one where its probability is at or above the model's cutoff, else the other. The
                           summary and the card say the cutoff; it was chosen on training or validation images, and is rarely 0.5.
                           Empty where the model has no cutoff, or where it belongs to patients: then patients.csv has the class
    evidence               the scale of the overlay's colours: the largest absolute value of the class activation map, in logits. It says
                           how strongly the strongest place of the image speaks for or against the class. It is no probability

Of more than two classes the one with the highest probability is predicted, and an overlay shows the evidence for it against the others, or
with --class NAME that for another one.

An overlay shows the class activation map (Zhou et al. 2016) of a classification: the last stage's map, which the model gives as second
output, weighted by the classifier. A segmentation has no such weights, and Grad-CAM would need gradients that an exported model
cannot give: its overlay is the map of the foreground's probability.

In a folder, what file servers and systems leave there (@eaDir, Thumbs.db, ._x, what is hidden) is passed over, and so is a file that is
the mask of another one (labels/a.png of images/a.*, a_segmentation.nii.gz or a_mask.png of a.*), a result of an earlier call, or below a
linked folder; all are counted. Masks and overlays are called as their images; where some system cannot have that name, or two differ in
the case of letters alone, a like one that ends in a hash: the columns mask_file and overlay_file say which. A cell that a spreadsheet
would take for a formula has a ' before it.

A call that is interrupted, or finds no room on the disk, keeps what is done beside DIR, in .DIR.partial: the same call, with the same
files, predicts only the rest, and its results are those of a call that was not interrupted. Any other call for DIR begins anew.

Exit status: 0 all is well, 1 some files could not be used, 2 the call itself or the model is wrong, 3 stopped for want of room or rights,
130 interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vfmgl_lib import __version__
from vfmgl_lib.base.files import FolderInUseError, reason, resumed_folder, sha256, shown, temporary_name, write_text
from vfmgl_lib.base.surroundings import print_anything, write_out
from vfmgl_lib.data.names import FORMULA
from vfmgl_lib.tools.predict import Description, ModelError, Predictor
from vfmgl_lib.tools.predict.files import patients, predict_files
from vfmgl_lib.tools.predict.inputs import InputError, file_state, find_inputs, one_a_case

CLASS_HELP = "whose evidence overlays show, of more than two classes (default: of the class that is predicted)"


def main(arguments: Sequence[str] | None = None) -> int:
    print_anything()
    parser = argparse.ArgumentParser(
        prog="vfmgl predict",
        description=__doc__.split("\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="of vfmgl export")
    parser.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="images, volumes, or folders of them")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder; it appears when all is written")
    parser.add_argument("--task", help="refuse a model of another task")
    parser.add_argument("--overlay", action="store_true", help="write overlays")
    parser.add_argument("--class", dest="evidence_for", default="", metavar="NAME", help=CLASS_HELP)
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
        _check_class(predictor, given.evidence_for)
        about = predictor.description
        if given.overlay and about.kind == "classification" and not about.evidence:
            notes.append("no overlays: this model gives no class activation map, as its classifier does not read a map's mean")
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
    write_out(f"{given.out}: {len(predictions) - len(failed)} of {len(predictions)} files predicted. {_in_words(about)}\n")
    write_out("".join(f"note: {note}\n" for note in notes))
    return int(len(failed) > 0)


def _in_words(about: Description) -> str:
    """Which model it was, and what its numbers mean."""
    center = about.study.get("model_center", "unknown")
    whose = "shared model" if center == "shared" else f"model of {center}"
    words = [f"The {whose} for task {about.task}; training data: {about.data}; batch normalisation: {about.batch_norm}."]
    if about.kind == "classification" and len(about.classes) == 2:
        other, positive = about.classes
        called = f"no class is named ({about.cutoff_from})"
        if about.cutoff is not None:
            whole = f"a {about.unit} (each folder is taken for one, and each file named by itself: patients.csv)"
            unit = "an image" if about.unit == "image" else whole
            called = f"from {about.cutoff:.6g} on {unit} is called {positive}, below {other}"
            if about.cutoff > 1:
                called = f"nobody is called {positive}, since no other cutoff did better on the images that it was chosen on"
        words.append(f"probability is that of {positive}: {called}.")
    return "\n".join(words)


def _predicted(predictor: Predictor, inputs: Sequence[tuple[Path, str]], given: argparse.Namespace) -> pd.DataFrame:
    """Predicts, or goes on with what an interrupted call of the same model, files and options has left, and writes the tables."""
    call = [__version__, sha256(given.model), given.overlay, given.evidence_for, given.batch_size, given.threads, given.device]
    for file, name in inputs:
        call.append((name, os.path.abspath(file), file_state(file)))
    key = hashlib.sha256(json.dumps(call).encode()).hexdigest()
    with resumed_folder(given.out, key) as (folder, steps):
        cases = one_a_case(inputs, predictor.description.series)
        how = {"overlay": given.overlay, "evidence_for": given.evidence_for, "batch_size": given.batch_size}
        predictions = predict_files(predictor, cases, folder, **how, steps=steps)
        write_text(folder / "predictions.csv", _csv(predictions))
        if predictor.description.unit == "patient" and predictor.description.kind == "classification":
            alone = {shown(str(path)) for path in given.inputs if path.is_file()}
            write_text(folder / "patients.csv", _csv(patients(predictor, predictions, alone)))
    return predictions


def _check_class(predictor: Predictor, name: str) -> None:
    about = predictor.description
    if name and (about.kind != "classification" or len(about.classes) == 2):
        raise InputError(f"--class {name}: {predictor.name} is no classification of more than two classes, leave it out")
    if name and name not in about.classes:
        raise InputError(f"--class {name}: {predictor.name} has the classes {', '.join(about.classes)}")


def _csv(table: pd.DataFrame) -> str:
    """A table as CSV, with a ' before what a spreadsheet would take for a formula."""
    names = [name for name in ("name", "file", "folder", "error") if name in table]
    safe = {name: [f"'{text}" if text.startswith(tuple(FORMULA)) else text for text in table[name]] for name in names}
    return table.assign(**safe).to_csv(index=False)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
