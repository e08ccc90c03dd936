"""Small mutations of valid inputs, through the command lines that read them; run by tests/test_fuzz.py in a process of its own.

    python tests/fuzzed.py FOLDER SEED COUNT [FORMAT ...]

Writes one JSON object to standard output: format -> mutations, how they ended, and what went wrong ("faults"): a traceback, an exception
that leaves the command, an error that does not name the file, more than `SECONDS`, more than `MEMORY` above the start. The input of a
fault is kept in FOLDER/faults.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
import torch
from PIL import Image
from safetensors.torch import save_file

SECONDS, MEMORY = 10, 2**30
ROWS, COLUMNS, SLICES = 24, 30, 4


@dataclass(frozen=True)
class Target:
    """A kind of input.

    Attributes:
        build: (folder) -> (the file that is mutated, the command and its arguments); the rest of the input is valid.
        numbers: header of so many bytes, in which every other mutation is made; 0: anywhere.
    """

    build: Callable[[Path], tuple[Path, Callable[[], int]]]
    header: int = 0


class TooSlow(BaseException):
    pass


def _grey(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (ROWS, COLUMNS), np.uint8)


def _rgb(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (ROWS, COLUMNS, 3), np.uint8)


def _predicted(folder: Path, file: Path, kind: str = "classifier") -> Callable[[], int]:
    from vfmgl_lib.tools.predict.__main__ import main

    model = folder.parent / f"{kind}.onnx"

    def call() -> int:
        shutil.rmtree(folder / "out", ignore_errors=True)
        return main([str(model), str(file), "--out", str(folder / "out")])

    return call


def _prepared(folder: Path, task: str, *more: str) -> Callable[[], int]:
    from vfmgl_lib.tools.data.__main__ import main

    def call() -> int:
        shutil.rmtree(folder / "out", ignore_errors=True)
        return main(["prepare", task, "--source", str(folder / "in"), "--out", str(folder / "out"), *more])

    return call


def _picture(suffix: str, **options: object) -> Callable[[Path], tuple[Path, Callable[[], int]]]:
    def build(folder: Path) -> tuple[Path, Callable[[], int]]:
        file = folder / f"case{suffix}"
        Image.fromarray(_rgb()).save(file, **options)
        return file, _predicted(folder, file)

    return build


def _mask(folder: Path) -> tuple[Path, Callable[[], int]]:
    for center in ("A", "B"):
        for number, split in enumerate(("train", "train", "val", "test")):
            for name, pixels in (("images", _rgb(number)), ("labels", (_grey(number) > 128).astype(np.uint8) * 255)):
                home = folder / "in" / f"Site{center}" / split / name
                home.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[::-1] if center == "B" else pixels).save(home / f"{center}{number}_1.png")
    return folder / "in/SiteA/train/labels/A0_1.png", _prepared(folder, "nuclei")


def _nifti(folder: Path) -> tuple[Path, Callable[[], int]]:
    file = folder / "case.nii"
    nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 900, (32, 32, 5), np.int16), np.diag([0.6, 0.6, 3, 1])).to_filename(file)
    return file, _predicted(folder, file, "segmenter")


def _zipped(folder: Path) -> tuple[Path, Callable[[], int]]:
    file, _ = _nifti(folder)
    zipped = file.with_suffix(".nii.gz")
    nibabel.load(file).to_filename(zipped)
    return zipped, _predicted(folder, zipped, "segmenter")


def _mhd(folder: Path) -> tuple[Path, Callable[[], int]]:
    home = folder / "in"
    home.mkdir(parents=True, exist_ok=True)
    for number in (0, 2, 3, 1, 26, 27):
        volume = np.random.default_rng(number).integers(0, 900, (5, 16, 16)).astype(np.int16)
        mask = np.zeros_like(volume, np.uint8)
        mask[1:4, 4:9, 4:9] = 1
        for name, values in ((f"Case{number:02}", volume), (f"Case{number:02}_segmentation", mask)):
            image = sitk.GetImageFromArray(values)
            image.SetSpacing((0.6, 0.6, 3.6))
            sitk.WriteImage(image, str(home / f"{name}.mhd"))
    return home / "Case00.mhd", _prepared(folder, "prostate")


def _series(folder: Path) -> None:
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    lines = ["patient,slice,row_start,row_stop,column_start,column_stop"]
    for number, (split, label) in enumerate((s, c) for s in ("traindata", "testdata") for c in ("0_NMI", "1_MI")):
        for patient in range(2):
            name = f"P{number}{patient}"
            lines.append(f"{name},1,2,20,3,25")
            home = folder / "in" / "A" / split / label / name
            home.mkdir(parents=True, exist_ok=True)
            for height in range(SLICES):
                image = sitk.GetImageFromArray(
                    np.random.default_rng(number * 10 + height).integers(0, 900, (ROWS, COLUMNS)).astype(np.int16)
                )
                image.SetSpacing((0.7, 0.5))
                tags = {"0008|0060": "MR", "0020|000e": f"1.2.{number}.{patient}", "0020|0037": "1\\0\\0\\0\\1\\0"}
                tags |= {"0020|0032": f"0\\0\\{4 * height}", "0010|0010": "X", "0008|0018": f"1.3.{number}.{patient}.{height}"}
                for tag, value in tags.items():
                    image.SetMetaData(tag, value)
                writer.SetFileName(str(home / f"im{height}.dcm"))
                writer.Execute(image)
    (folder / "in" / "roi.csv").write_text("\n".join(lines) + "\n")


def _dicom(folder: Path) -> tuple[Path, Callable[[], int]]:
    _series(folder)
    return folder / "in/A/traindata/0_NMI/P00/im1.dcm", _prepared(folder, "endometrial", "--split", "source")


def _regions(folder: Path) -> tuple[Path, Callable[[], int]]:
    _series(folder)
    return folder / "in/roi.csv", _prepared(folder, "endometrial", "--split", "source")


def _annotation(folder: Path) -> tuple[Path, Callable[[], int]]:
    home = folder / "in"
    home.mkdir(parents=True, exist_ok=True)
    for number, site in enumerate(("A7", "AR", "B0", "HE", "G9", "KB")):
        name = f"TCGA-{site}-A0CE-01Z-00-DX1" if number < 2 else f"TCGA-{site}-57{number}1-01Z-00-DX1"
        Image.fromarray(_rgb(number)).save(home / f"{name}.tif")
        vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ((2, 3), (9, 3), (9, 12), (2, 12)))
        region = f'<Region Id="1" NegativeROA="0"><Attributes/><Vertices>{vertices}</Vertices></Region>'
        text = f'<Annotations><Annotation Id="1"><Attributes/><Regions>{region}</Regions></Annotation></Annotations>'
        (home / f"{name}.xml").write_text(text)
    return sorted(home.glob("*.xml"))[0], _prepared(folder, "nuclei", "--split", "patient")


def _weights(folder: Path) -> tuple[Path, Callable[[], int]]:
    import timm

    from vfmgl_lib.models.teacher_names import TeacherError
    from vfmgl_lib.models.teachers import load_teacher

    file = folder / "mobilenetv2_050.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model("mobilenetv2_035").state_dict(), file)

    def call() -> int:
        try:
            load_teacher(f"mobilenetv2_035={file}", grid=2)
        except TeacherError as error:
            sys.stderr.write(f"{error}\n")
            return 2
        return 0

    return file, call


def _onnx(folder: Path) -> tuple[Path, Callable[[], int]]:
    from vfmgl_lib.tools.predict.__main__ import main

    model, image = folder / "model.onnx", folder / "case.png"
    shutil.copy(folder.parent / "classifier.onnx", model)
    Image.fromarray(_rgb()).save(image)

    def call() -> int:
        shutil.rmtree(folder / "out", ignore_errors=True)
        return main([str(model), str(image), "--out", str(folder / "out")])

    return model, call


TARGETS = {
    "png": Target(_picture(".png"), 60),
    "tiff": Target(_picture(".tif", compression="tiff_lzw"), 200),
    "jpeg": Target(_picture(".jpg"), 200),
    "mask": Target(_mask, 60),
    "nifti": Target(_nifti, 352),
    "nifti.gz": Target(_zipped, 20),
    "mhd": Target(_mhd),
    "dicom": Target(_dicom, 700),
    "csv": Target(_regions),
    "xml": Target(_annotation),
    "safetensors": Target(_weights, 4000),
    "onnx": Target(_onnx, 4000),
}


def mutated(content: bytes, header: int, generator: np.random.Generator) -> bytes:
    """One to four small changes: bytes set, bits flipped, numbers made extreme, parts cut out, doubled or cut off."""
    data = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        reach = min(header, len(data)) if header and generator.random() < 0.5 else len(data)
        place, kind = int(generator.integers(max(1, reach))), generator.integers(7)
        if kind == 0:
            data[place : place + 1] = bytes([int(generator.integers(256))])
        elif kind == 1 and data:
            data[min(place, len(data) - 1)] ^= 1 << int(generator.integers(8))
        elif kind == 2:
            extreme = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\x80\0\0\0", b"9" * 4, b"-1e9")
            data[place : place + 4] = extreme[int(generator.integers(len(extreme)))]
        elif kind == 3:
            del data[place : place + int(generator.integers(1, 40))]
        elif kind == 4:
            data[place:place] = data[place : place + int(generator.integers(1, 40))]
        elif kind == 5:
            data[place:place] = generator.bytes(int(generator.integers(1, 12)))
        elif generator.random() < 0.3:
            del data[place:]
    return bytes(data)


def fuzz(folder: Path, name: str, count: int, seed: int) -> dict:
    """How a format's mutations ended."""
    home = folder / name.replace(".", "_")
    home.mkdir(parents=True)
    file, call = TARGETS[name].build(home)
    valid = file.read_bytes()
    status, said, fault = run(call)
    found = {"valid": status, "mutations": 0, "succeeded": 0, "refused": 0, "faults": []}
    if status != 0 or fault:
        found["faults"].append({"what": f"the valid input: status {status}, {fault or said[-300:]}"})
        return found
    generator = np.random.default_rng((seed, list(TARGETS).index(name)))
    for number in range(count):
        content = mutated(valid, TARGETS[name].header, generator)
        file.write_bytes(content)
        status, said, fault = run(call)
        found["mutations"] += 1
        found["succeeded" if status == 0 else "refused"] += 1
        if not fault and status != 0 and not {file.name, file.stem, file.parent.name} & set(re.findall(r"[\w.-]+", said.replace("/", " "))):
            fault = f"status {status} and the file is not named: {said[-300:]!r}"
        if fault:
            kept = folder / "faults" / f"{name}-{number}{file.suffix}"
            kept.parent.mkdir(exist_ok=True)
            kept.write_bytes(content)
            found["faults"].append({"what": fault, "kept": str(kept)})
    file.write_bytes(valid)
    return found


def run(call: Callable[[], int]) -> tuple[int, str, str]:
    """(exit status, what was said, what is wrong with how it ended)."""
    said, before = io.StringIO(), _peak()
    signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status = call()
        fault = "a traceback" if "Traceback (most recent call last)" in said.getvalue() else ""
    except SystemExit as error:
        status, fault = int(error.code or 0), ""
    except TooSlow:
        status, fault = 124, f"more than {SECONDS} s"
    except BaseException as error:
        status, fault = 1, f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.alarm(0)
    grown = _peak() - max(before, START)
    if not fault and _peak() - START > MEMORY and grown > 2**20:
        fault = f"{grown >> 20} MiB more memory, {_peak() - START >> 20} MiB above the start"
    return status, said.getvalue(), fault


def _too_slow(*_: object) -> None:
    raise TooSlow


def _peak() -> int:
    """Not getrusage's ru_maxrss, which starts at what the parent process held and may hide what this one takes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def models(folder: Path) -> None:
    """A classifier and a segmenter as `vfmgl_lib.tools.export` writes them, with random weights."""
    from tests.tools.test_predict import _about, _student
    from vfmgl_lib.models.students import ResNet18, UNet
    from vfmgl_lib.tools.export.formats import onnx_model

    for name, kind in (("classifier", ResNet18), ("segmenter", UNet)):
        student = _student(kind)
        (folder / f"{name}.onnx").write_bytes(onnx_model(student, _about(student)))


def main(folder: Path, seed: int, count: int, names: list[str]) -> Iterator[tuple[str, dict]]:
    for name in names or TARGETS:
        yield name, fuzz(folder, name, count, seed)


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[1])
    with contextlib.redirect_stdout(sys.stderr):
        models(where)
    START = _peak()
    sys.stdout.write(json.dumps(dict(main(where, int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))) + "\n")
