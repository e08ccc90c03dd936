"""Prediction from an exported model: the same numbers as torch's, every form of input, and clear refusals."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import onnx
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from vfmgl_lib import __version__
from vfmgl_lib.base.randomness import seed_sequence, torch_seed
from vfmgl_lib.data.preprocessing import squashed, volume_slices
from vfmgl_lib.models.students import ResNet18, UNet
from vfmgl_lib.tools.export.formats import onnx_model
from vfmgl_lib.tools.predict import FORMAT, FORMAT_OF_CLASSES, KEY, PREPROCESSING, Description, ModelError, Predictor
from vfmgl_lib.tools.predict import files as predict_module
from vfmgl_lib.tools.predict.__main__ import main
from vfmgl_lib.tools.predict.files import evidence_overlay, foreground, predict_files, probability_overlay
from vfmgl_lib.tools.predict.inputs import InputError, file_state, find_inputs

ROOT = Path(__file__).resolve().parents[2]
SIDE = 32


def _about(student, **changes) -> Description:
    classify = isinstance(student, ResNet18)
    values = {
        "format": FORMAT,
        "library": __version__,
        "task": "camelyon17" if classify else "prostate",
        "kind": "classification" if classify else "segmentation",
        "classes": ("no_metastasis", "metastasis") if classify else ("background", "prostate"),
        "image_size": SIDE,
        "reads": ("image",) if classify else ("image", "volume"),
        "preprocessing": PREPROCESSING,
        "unit": "image",
        "cutoff": 0.5 if classify else None,
        "cutoff_from": "test",
        "study": {"model_center": "A"},
        "teacher": "none",
        "data": "none",
        "precision": "float32",
        "evidence": tuple((student.net.fc.weight[1] - student.net.fc.weight[0]).tolist()) if classify else (),
    }
    return Description(**(values | changes))


@torch.no_grad()
def _student(kind, classes=2):
    """Random weights and statistics: freshly made batch norms would make the export trivial."""
    generator = torch.Generator().manual_seed(3)
    with torch_seed(seed_sequence(3, "student")):
        student = kind(classes, 4)
    for name, tensor in student.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(noise + 0.5 if "running_var" in name else tensor + 0.3 * (noise - 0.5))
    if kind is UNet:  # about as much foreground as background
        logits = student.eval()(torch.rand((4, 3, SIDE, SIDE), generator=generator))
        for place in range(1, classes):
            student.head.bias[place] += (logits[:, 0] - logits[:, place]).median()
    return student.eval()


@pytest.fixture(scope="module")
def students():
    return {"classifier": _student(ResNet18), "segmenter": _student(UNet)}


@pytest.fixture(scope="module")
def files(students, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, student in students.items():
        (folder / f"{name}.onnx").write_bytes(onnx_model(student, _about(student)))
    return {name: folder / f"{name}.onnx" for name in students}


def _changed(file: Path, out: Path, **changes) -> Path:
    """A copy whose metadata differ."""
    model = onnx.load(file)
    values = json.loads(model.metadata_props[0].value) | changes
    onnx.helper.set_model_props(model, {KEY: json.dumps(values)})
    onnx.save(model, out)
    return out


def _picture(folder: Path, name: str, mode: str = "RGB", size=(40, 24), seed: int = 0) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def test_logits_map_and_probability_are_torchs(files, students):
    pixels = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    for name, student in students.items():
        predictor = Predictor(files[name])
        with torch.inference_mode():
            logits, maps = student.forward_stages(images)
        found, found_map = predictor.run(pixels)
        assert np.abs(found - logits.numpy()).max() < 1e-4
        assert np.abs(predictor.probability(found) - logits.softmax(1)[:, 1].numpy()).max() < 1e-5
        assert np.abs(predictor.run(pixels[:1])[0] - found[:1]).max() < 1e-5, "any batch size"
        if name == "classifier":
            assert np.abs(found_map - maps[-1].numpy()).max() < 1e-4
            activation = predictor.activation(found_map)
            bias = float((student.net.fc.bias[1] - student.net.fc.bias[0]).detach())
            difference = found[:, 1] - found[:, 0]
            assert np.allclose(activation.mean((1, 2)) + bias, difference, atol=1e-4), "a CAM's mean is the logits' difference (Zhou 2016)"
        else:
            assert found_map is None


def test_probability_of_extreme_logits_is_finite():
    found = Predictor.probability(None, np.array([[0.0, 2000.0], [2000.0, 0.0], [1.0, 1.0]], np.float32))
    assert np.allclose(found, [1, 0, 0.5])


def test_a_near_tie_falls_where_argmax_lets_it_fall(files, monkeypatch):
    predictor, logits = Predictor(files["segmenter"]), np.zeros((1, 2, SIDE, SIDE), np.float32)
    logits[0, 1, :, ::2] = 2e-8  # in float32 the probability of these is 0.5
    monkeypatch.setattr(predictor, "run", lambda images: (logits, None))
    mask = foreground(predictor, [np.zeros((SIDE, SIDE, 3), np.uint8)], 1)[0] > 0.5
    assert np.array_equal(mask, logits[0].argmax(0) == 1)


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "timm", "torchvision", "onnx"):
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Block())
from vfmgl_lib.tools.predict.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_it_needs_no_torch(kind, files, tmp_path):
    inputs = [_picture(tmp_path, "a.png")] + (
        [_volume(tmp_path / "v.nii.gz", nib.orientations.axcodes2ornt("RAS"))[0]] * (kind != "classifier")
    )
    command = [sys.executable, "-c", BLOCKED, str(files[kind]), *map(str, inputs), "--out", str(tmp_path / "out"), "--overlay"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert len(table) == len(inputs) and table["overlay_file"].map(lambda name: (tmp_path / "out" / name).is_file()).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK"])
def test_images_of_any_size_and_mode_become_input_as_in_training(mode, files, tmp_path):
    path = _picture(tmp_path, "x.tif" if mode == "CMYK" else "x.png", mode, size=(50, 21))
    predictor = Predictor(files["classifier"])
    table = predict_files(predictor, find_inputs([path]), tmp_path)
    pixels = squashed(Image.open(path).convert("RGB"), SIDE)[None]
    assert table.at[0, "probability"] == pytest.approx(predictor.probability(predictor.run(pixels)[0])[0], abs=1e-12)
    assert (table.at[0, "width"], table.at[0, "height"], table.at[0, "error"]) == (50, 21, "")


def test_a_mask_has_its_images_size(files, tmp_path):
    small, own = _picture(tmp_path, "wide.png", size=(70, 45)), _picture(tmp_path, "own.png", size=(SIDE, SIDE))
    predictor = Predictor(files["segmenter"])
    table = predict_files(predictor, find_inputs([small, own]), tmp_path, overlay=True).set_index("name")
    masks = {name: np.array(Image.open(tmp_path / file)) for name, file in table["mask_file"].items()}
    assert masks["wide"].shape == (45, 70) and set(np.unique(masks["wide"])) <= {0, 255}
    assert table.at["wide", "foreground"] == (masks["wide"] > 0).sum()
    assert table.at["wide", "share"] == pytest.approx((masks["wide"] > 0).mean())
    logits = predictor.run(np.array(Image.open(own))[None])[0]
    assert np.array_equal(masks["own"] > 0, logits[0].argmax(0) == 1), "at the model's size it is the model's own mask"
    assert 0 < masks["own"].mean() < 255, "a mask of one value would prove nothing"
    assert Image.open(tmp_path / table.at["wide", "overlay_file"]).size == (70, 45)


def _volume(path: Path, stored_as, seed: int = 0) -> tuple[Path, np.ndarray]:
    """A volume of RAS voxels, stored with other axes; returns also the RAS voxels."""
    voxels = np.random.default_rng(seed).integers(0, 1000, (20, 24, 6)).astype(np.int16)
    angle = np.deg2rad(11)
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.diag([0.6, 0.7, 3.5])
    affine[:3, 3] = (-31.5, 12.25, 7)
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, 1)
    image.set_sform(affine, 2)
    turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(affine), stored_as)
    nib.save(image.as_reoriented(turn), path)
    return path, voxels


ORGANS, VALUES = ("background", "liver", "spleen", "kidney"), (0, 3, 700, 5)


@pytest.fixture(scope="module")
def organs(tmp_path_factory):
    """A student of four classes of pixels, as a file."""
    student, file = _student(UNet, len(ORGANS)), tmp_path_factory.mktemp("organs") / "organs.onnx"
    file.write_bytes(onnx_model(student, _about(student, classes=ORGANS, mask_values=VALUES, format=FORMAT_OF_CLASSES)))
    return student, file


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SPL"])
def test_a_volume_of_several_classes_holds_their_values_in_its_own_axes(codes, organs, tmp_path):
    _, file = organs
    path, _ = _volume(tmp_path / "case.nii.gz", nib.orientations.axcodes2ornt(tuple(codes)))
    table = predict_files(Predictor(file), find_inputs([path]), tmp_path, overlay=True)
    image, mask = nib.load(path), nib.load(tmp_path / table.at[0, "mask_file"])
    assert np.array_equal(mask.affine, image.affine) and mask.get_data_dtype() == np.uint16
    stored = np.asanyarray(mask.dataobj)
    assert set(np.unique(stored)) <= set(VALUES) and len(np.unique(stored)) > 2
    for name, value in zip(ORGANS[1:], VALUES[1:], strict=True):
        count = int((stored == value).sum())
        assert table.at[0, f"pixels[{name}]"] == count
        assert table.at[0, f"milliliters[{name}]"] == pytest.approx(count * 0.6 * 0.7 * 3.5 / 1000, rel=1e-4)
    assert table.at[0, "foreground"] == (stored > 0).sum()


def test_the_class_of_a_pixel_is_the_students_own_and_of_enlarged_probabilities(organs, tmp_path):
    student, file = organs
    own, wide = _picture(tmp_path, "own.png", size=(SIDE, SIDE)), _picture(tmp_path, "wide.png", size=(70, 45))
    table = predict_files(Predictor(file), find_inputs([own, wide]), tmp_path / "out").set_index("name")
    for path in (own, wide):
        pixels = torch.from_numpy(squashed(Image.open(path), SIDE)).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            logits = student(pixels)
        width, height = Image.open(path).size
        if path == wide:
            chances = logits.softmax(1)[0].numpy()
            resized = [Image.fromarray(chance).resize((width, height), Image.Resampling.BILINEAR) for chance in chances]
            expected = np.stack([np.asarray(chance) for chance in resized]).argmax(0)
        else:
            expected = logits[0].argmax(0).numpy()
        found = np.asarray(Image.open(tmp_path / "out" / table.at[path.stem, "mask_file"]))
        assert found.shape == (height, width)
        assert (np.array(VALUES)[expected] != found).mean() < 0.002, "but where two classes tie"


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "SPL", "ASR"])
def test_a_volumes_mask_keeps_its_geometry(codes, files, tmp_path):
    path, _ = _volume(tmp_path / "case.nii.gz", nib.orientations.axcodes2ornt(tuple(codes)))
    table = predict_files(Predictor(files["segmenter"]), find_inputs([path]), tmp_path, overlay=True)
    assert table.at[0, "error"] == ""
    source, mask = nib.load(path), nib.load(tmp_path / table.at[0, "mask_file"])
    assert "".join(nib.aff2axcodes(mask.affine)) == codes and mask.shape == source.shape
    assert np.array_equal(mask.affine, source.affine)
    for field in ("pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x", "xyzt_units"):
        assert np.array_equal(mask.header[field], source.header[field]), field
    values = np.asarray(mask.dataobj)
    assert mask.get_data_dtype() == np.uint8 and set(np.unique(values)) == {0, 1}
    assert table.at[0, "foreground"] == values.sum()
    assert table.at[0, "milliliters"] == pytest.approx(values.sum() * 0.6 * 0.7 * 3.5 / 1000, rel=1e-4)


def test_a_volume_is_segmented_alike_however_it_is_stored(files, tmp_path):
    predictor, found = Predictor(files["segmenter"]), {}
    for codes in ("RAS", "SPL"):
        path, voxels = _volume(tmp_path / f"{codes}.nii.gz", nib.orientations.axcodes2ornt(tuple(codes)))
        table = predict_files(predictor, find_inputs([path]), tmp_path)
        found[codes] = np.asarray(nib.as_closest_canonical(nib.load(tmp_path / table.at[0, "mask_file"])).dataobj)
    assert np.array_equal(found["RAS"], found["SPL"])
    # By hand: slices upwards, rows from the front, columns from the patient's right; RAS counts to the right and to the front.
    slices = volume_slices(voxels[::-1, ::-1].T)
    expected = np.zeros(voxels.shape, np.uint8)
    for part in slices:
        logits = predictor.run(squashed(Image.fromarray(part.image), SIDE)[None])[0]
        chance = Image.fromarray(predictor.probability(logits)[0].astype(np.float32)).resize((20, 24), Image.Resampling.BILINEAR)
        expected[:, :, part.index] = (np.array(chance) > 0.5).T[::-1, ::-1]
    assert np.array_equal(found["RAS"], expected)
    assert 0.1 < expected.mean() < 0.9 and not found["RAS"][:, :, [0, -1]].any(), "the outer slices have no two neighbours"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"no volume"), "not a readable NIfTI file"),
        (lambda path: nib.save(nib.Nifti1Image(np.zeros((8, 8, 8, 2), np.int16), np.eye(4)), path), "has 4 dimensions"),
        (
            lambda path: nib.save(nib.Nifti1Image(np.zeros((8, 8, 2), np.int16), np.diag([1, 1, 3, 1])), path),
            "has 2 slices, expected at least 3",
        ),
        (lambda path: nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.int16), np.diag([1, 1, 3, 1])), path), "no contrast"),
        (lambda path: nib.save(nib.Nifti1Image(np.full((8, 8, 8), np.nan, np.float32), np.diag([1, 1, 3, 1])), path), "NaN or infinite"),
    ],
)
def test_volumes_that_cannot_be_used_have_a_row_that_says_so(make, message, files, tmp_path, capsys):
    make(tmp_path / "bad.nii")
    good = _picture(tmp_path, "good.png")
    assert main([str(files["segmenter"]), str(tmp_path / "bad.nii"), str(good), "--out", str(tmp_path / "out")]) == 1
    table = pd.read_csv(tmp_path / "out" / "predictions.csv", keep_default_na=False).set_index("name")
    assert message in table.at["bad", "error"] and str(tmp_path / "bad.nii") in table.at["bad", "error"]
    assert table.at["good", "error"] == "" and table.at["bad", "mask_file"] == ""
    assert message in capsys.readouterr().err


def test_images_that_cannot_be_used_do_not_stop_the_others(files, tmp_path, capsys):
    folder = tmp_path / "in"
    _picture(folder, "b/good.jpg")
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(folder.joinpath("b") / "deep.png")
    (folder / "a.png").write_bytes(_picture(tmp_path, "whole.png").read_bytes()[:200])
    _volume(folder / "c.nii.gz", nib.orientations.axcodes2ornt("RAS"))
    assert main([str(files["classifier"]), str(folder), "--out", str(tmp_path / "out"), "--batch-size", "2"]) == 1
    table = pd.read_csv(tmp_path / "out" / "predictions.csv", keep_default_na=False).set_index("name")
    assert list(table.index) == ["a", "b/deep", "b/good", "c"]
    assert "damaged or cut short" in table.at["a", "error"] or "not a readable image" in table.at["a", "error"]
    assert "16 bits a channel, largest value 0, and neither" in table.at["b/deep", "error"]
    assert "a volume, but the model for camelyon17 reads images" in table.at["c", "error"]
    assert table.at["b/good", "error"] == "" and table.at["b/good", "predicted"] in ("no_metastasis", "metastasis")
    assert "1 of 4 files predicted" in capsys.readouterr().out


def test_inputs_are_found_and_named(tmp_path):
    for name in ("in/b.PNG", "in/x/a.jpeg", "in/.hidden.png", "in/.cache/a.png"):
        _picture(tmp_path, name)
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    (tmp_path / "in" / "x" / "slide.svs").write_bytes(b"")
    notes = []
    assert [name for _, name in find_inputs([tmp_path / "in"], notes)] == ["b", "x/a"]
    assert "2 file(s) do not end as images or volumes and are not predicted: 1 .txt, 1 .svs" in notes
    with pytest.raises(InputError, match="their outputs would both be called b"):
        find_inputs([tmp_path / "in", tmp_path / "in" / "b.PNG"])
    with pytest.raises(InputError, match="no such file or folder"):
        find_inputs([tmp_path / "gone"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no image in it, expected files ending in \.bmp"):
        find_inputs([tmp_path / "empty"])


def test_the_summary_says_of_which_class_the_probability_is_and_the_cutoff(files, tmp_path, capsys):
    Image.new("RGB", (40, 24), (200,) * 3).save(tmp_path / "a.png")
    changes = {
        "image": ({"cutoff": 0.25}, "from 0.25 on an image is called metastasis, below no_metastasis"),
        "patient": (
            {"cutoff": 0.25, "unit": "patient"},
            "from 0.25 on a patient (each folder is taken for one, and each file named by itself: patients.csv) is called metastasis",
        ),
        "none": ({"cutoff": None, "cutoff_from": "none: few"}, "no class is named (none: few)"),
    }
    for name, (values, said) in changes.items():
        file = _changed(files["classifier"], tmp_path / f"{name}.onnx", **values, data="images of the centres A, B")
        assert main([str(file), str(tmp_path / "a.png"), "--out", str(tmp_path / name)]) == 0
        out = capsys.readouterr().out
        assert "1 of 1 files predicted. The model of A for task camelyon17; training data: images of the centres A, B;" in out
        assert f"probability is that of metastasis: {said}" in out
    assert main([str(files["segmenter"]), str(tmp_path / "a.png"), "--out", str(tmp_path / "masks")]) == 0
    assert "probability" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert "class 1" not in told and all(f"    {name} " in told for name in ("probability", "predicted", "evidence"))


def test_the_cutoff_of_patients_names_patients(files, tmp_path):
    file = _changed(files["classifier"], tmp_path / "p.onnx", unit="patient", cutoff=0.0)
    for name in ("in/P1/0.png", "in/P1/1.png", "in/P2/0.png"):
        _picture(tmp_path, name, seed=len(name) + ord(name[4]) + ord(name[6]))
    assert main([str(file), str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    images = pd.read_csv(tmp_path / "out" / "predictions.csv")
    people = pd.read_csv(tmp_path / "out" / "patients.csv")
    assert images["predicted"].isna().all()
    assert list(people["images"]) == [2, 1] and list(people["predicted"]) == ["metastasis"] * 2
    assert people.at[0, "probability"] == pytest.approx(images["probability"][:2].mean())
    named = [str(tmp_path / "in" / "P1" / name) for name in ("0.png", "1.png")]
    assert main([str(file), *named, "--out", str(tmp_path / "single")]) == 0
    alone = pd.read_csv(tmp_path / "single" / "patients.csv")
    assert alone["folder"].tolist() == named and alone["images"].tolist() == [1, 1], "a file named by itself is a patient's only one"
    assert alone["probability"].tolist() == images["probability"][:2].tolist()


def test_overlays_show_evidence_where_it_is():
    image = Image.new("RGB", (30, 30), (120, 120, 120))
    picture = evidence_overlay(image, np.array([[2.0, 0, 0], [0, 0, 0], [0, 0, -2.0]])).astype(int)
    (_, green, blue), other = picture[2, 2], picture[-3, -3]
    assert blue > green and other[0] > other[2], "purple speaks for class 1, orange against it"
    assert np.ptp(picture[15, 15]) == 0, "no colour without evidence"
    assert np.array_equal(evidence_overlay(image, np.zeros((3, 3))), np.array(image)), "nor where there is none at all"
    chance = np.zeros((30, 30), np.float32)
    chance[:15] = 1
    picture = probability_overlay(image, chance).astype(int)
    assert np.ptp(picture[20, 20]) == 0 and np.ptp(picture[5, 5]) > 50


def wordless(*_, **__):
    raise MemoryError


def test_models_that_do_not_fit_are_refused(files, students, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"is a model for task camelyon17, asked for nuclei"):
        Predictor(files["classifier"], task="nuclei")
    with pytest.raises(ModelError, match="no such file"):
        Predictor(tmp_path / "gone.onnx")
    (tmp_path / "garbage.onnx").write_bytes(b"garbage")
    with pytest.raises(ModelError, match=r"garbage.onnx: not a readable ONNX model"):
        Predictor(tmp_path / "garbage.onnx")
    with monkeypatch.context() as patch, pytest.raises(ModelError, match=r"not a readable ONNX model \(MemoryError\)"):
        patch.setattr("onnxruntime.InferenceSession", wordless)
        Predictor(files["classifier"])
    foreign = onnx.load(files["classifier"])
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(ModelError, match=r"foreign.onnx: an ONNX model, but none of vfmgl export"):
        Predictor(tmp_path / "foreign.onnx")
    for changes, message in (
        ({"format": 3}, "have format 3, this library reads 1 and 2"),
        ({"preprocessing": PREPROCESSING | {"scale": "0 to 255 stays"}}, "was trained on images prepared otherwise"),
        ({"image_size": 64}, r"its input is \['batch', 3, 32, 32\], its metadata say \['batch', 3, 64, 64\]"),
    ):
        with pytest.raises(ModelError, match=message):
            Predictor(_changed(files["classifier"], tmp_path / "changed.onnx", **changes))
    with pytest.raises(ModelError, match="its metadata lack cutoff"):
        values = json.loads(_about(students["classifier"]).to_json())
        Description.from_json(json.dumps({k: v for k, v in values.items() if k != "cutoff"}), "m.onnx")
    with pytest.raises(ModelError, match="cannot be read"):
        Description.from_json("{", "m.onnx")


def test_arrays_of_another_size_or_type_are_refused(files):
    predictor = Predictor(files["classifier"])
    for wrong in (np.zeros((1, 31, 32, 3), np.uint8), np.zeros((32, 32, 3), np.uint8), np.zeros((1, 32, 32, 3), np.float32)):
        with pytest.raises(ValueError, match=r"images must be \(B, 32, 32, 3\) uint8, got"):
            predictor.run(wrong)


def test_what_is_there_is_not_overwritten(files, tmp_path, capsys):
    picture = _picture(tmp_path, "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert main([str(files["classifier"]), str(picture), "--out", str(tmp_path / "out")]) == 2
    assert "not empty" in capsys.readouterr().err and [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert main([str(files["classifier"]), str(picture), "--out", str(tmp_path / "x"), "--task", "nuclei"]) == 2
    assert not (tmp_path / "x").exists()


def test_the_description_survives_its_text(students):
    about = replace(_about(students["classifier"]), cutoff=0.123456789012345, teacher="vit · 16", batch_norm="re-estimated")
    assert Description.from_json(about.to_json(), "m") == about
    of_0_1_0 = {name: value for name, value in json.loads(about.to_json()).items() if name != "batch_norm"}
    assert Description.from_json(json.dumps(of_0_1_0), "m") == replace(about, batch_norm="running averages of training")


def _undefined_where_dark(monkeypatch, value=np.nan):
    """The model gives NaN, or infinity, for images (of a volume: slices) that are dark, as one that overflows."""
    run = Predictor.run

    def broken(self, images):
        logits, maps = run(self, images)
        logits[images.mean(axis=(1, 2, 3)) < 60, 1] = value
        return logits, maps

    monkeypatch.setattr(Predictor, "run", broken)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_undefined_is_no_class_and_no_mask(kind, value, files, tmp_path, monkeypatch, capsys):
    _undefined_where_dark(monkeypatch, value)
    for name, grey in (("bright", 200), ("dark", 20)):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("RGB", (40, 24), (grey,) * 3).save(tmp_path / f"in/{name}.png")
    assert main([str(files[kind]), str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--overlay"]) == 1
    table = pd.read_csv(tmp_path / "out" / "predictions.csv", dtype=str, keep_default_na=False).set_index("name")
    dark = table.loc["dark"]
    assert "gives NaN or infinity for this image" in dark["error"] and dark["overlay_file"] == ""
    assert all(dark[name] == "" for name in ("probability", "predicted", "foreground", "share", "mask_file") if name in table)
    assert table.at["bright", "error"] == "" and table.at["bright", "probability" if kind == "classifier" else "mask_file"]
    assert not list((tmp_path / "out").rglob("dark*")) and "dark.png" in capsys.readouterr().err


def test_an_undefined_slice_leaves_a_volume_without_mask(files, tmp_path, monkeypatch):
    path, voxels = _volume(tmp_path / "v.nii.gz", nib.orientations.axcodes2ornt("RAS"))
    voxels[:, :, 2:5] //= 30  # so are the slices of which two of three colours are
    stored = nib.load(path)
    nib.save(nib.Nifti1Image(voxels, stored.affine, stored.header), path)
    _undefined_where_dark(monkeypatch)
    table = predict_files(Predictor(files["segmenter"]), find_inputs([path]), tmp_path, overlay=True)
    assert "v.nii.gz: 3 of 4 slices, the first is 2: the model gives NaN" in table.at[0, "error"]
    assert table.at[0, "mask_file"] == "" and table["foreground"].isna().all() and not (tmp_path / "masks").exists()


def test_a_patient_with_an_undefined_image_is_undefined(files, tmp_path, monkeypatch):
    _undefined_where_dark(monkeypatch)
    file = _changed(files["classifier"], tmp_path / "p.onnx", unit="patient", cutoff=0.0)
    for name, grey in (("P1/0", 200), ("P1/1", 20), ("P2/0", 200), ("P3/0", 20)):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 24), (grey,) * 3).save(tmp_path / f"in/{name}.png")
    assert main([str(file), str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 1
    people = pd.read_csv(tmp_path / "out" / "patients.csv", keep_default_na=False)
    assert list(people["images"]) == [2, 1, 1] and list(people["predicted"]) == ["", "metastasis", ""]
    assert people["error"].str.startswith(("1 of 2 images have no prediction", "1 of 1")).tolist() == [True, False, True]
    assert (people["probability"] == "").tolist() == [True, False, True]


def test_nothing_but_undefined_images(files, tmp_path, monkeypatch):
    _undefined_where_dark(monkeypatch)
    Image.new("RGB", (40, 24)).save(tmp_path / "a.png")
    for kind, unit in (("classifier", "patient"), ("segmenter", "image")):
        file = _changed(files[kind], tmp_path / f"{kind}.onnx", unit=unit)
        assert main([str(file), str(tmp_path / "a.png"), "--out", str(tmp_path / kind)]) == 1
        assert "gives NaN" in pd.read_csv(tmp_path / kind / "predictions.csv").at[0, "error"]
    assert pd.read_csv(tmp_path / "classifier" / "patients.csv", keep_default_na=False).at[0, "predicted"] == ""


def test_no_class_without_a_cutoff_or_a_probability(students):
    about = _about(students["classifier"])
    found = [predict_module.named_class(replace(about, cutoff=cutoff), 0.7) for cutoff in (0.5, None, float("nan"))]
    assert found == ["metastasis", "", ""]
    assert predict_module.named_class(about, float("nan")) == ""


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize(
    ("kind", "fault", "status", "words"),
    [
        ("segmenter", OSError(errno.ENOSPC, "No space left on device"), 3, "no room is left on the disk; make room"),
        ("segmenter", OSError(errno.EDQUOT, "Quota exceeded"), 3, "quota"),
        ("classifier", OSError(errno.ENOSPC, "No space left on device"), 3, "make room"),
        ("classifier", KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_stopped_call_keeps_what_is_done(kind, fault, status, words, files, tmp_path, monkeypatch, capsys):
    for number in range(5):
        _picture(tmp_path, f"in/{number}.png", seed=number)
    call = [str(files[kind]), str(tmp_path / "in"), "--overlay", "--batch-size", "2", "--threads", "1", "--out"]
    assert main([*call, str(tmp_path / "whole")]) == 0
    write, runs, run = predict_module.write_bytes, [], Predictor.run

    def full(path, content):
        if path.name == "3.png":
            raise fault
        write(path, content)

    def counted(self, images):
        runs.append(len(images))
        return run(self, images)

    monkeypatch.setattr(Predictor, "run", counted)
    with monkeypatch.context() as patch:
        patch.setattr(predict_module, "write_bytes", full)
        assert main([*call, str(tmp_path / "out")]) == status
    said = capsys.readouterr().err
    assert words in said and "the same call goes on" in said and ".out.partial" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    before = sum(runs)
    assert main([*call, str(tmp_path / "out")]) == 0
    assert sum(runs) - before == (2 if kind == "segmenter" else 3), "what is done is not predicted again"
    assert _contents(tmp_path / "out") == _contents(tmp_path / "whole") and not (tmp_path / ".out.partial").exists()


def test_other_files_or_options_begin_anew(files, tmp_path, monkeypatch):
    for number in range(2):
        _picture(tmp_path, f"in/{number}.png", seed=number)
    call = [str(files["segmenter"]), str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    write = predict_module.write_bytes

    def full(path, content):
        if path.name == "1.png":
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(predict_module, "write_bytes", full)
        assert main(call) == 130
    _picture(tmp_path, "in/0.png", size=(60, 30), seed=9)
    assert main(call) == 0
    assert Image.open(tmp_path / "out/masks/0.png").size == (60, 30)


def test_a_file_where_the_folder_should_go(files, tmp_path, capsys):
    picture = _picture(tmp_path, "a.png")
    (tmp_path / "place").write_text("mine")
    assert main([str(files["segmenter"]), str(picture), "--out", str(tmp_path / "place" / "out")]) == 3
    said = capsys.readouterr().err
    assert "a file stands where a folder is expected" in said and str(tmp_path / "place") in said and said.count("\n") == 1


def test_any_name_is_written_back(files, tmp_path, capsys):
    folder = tmp_path / "in"
    coded = os.fsdecode(b"M\xfcller")
    names = ["plain", "组织切片" * 20, "x" * 251, "=1+1", "a:b", "CON", "two\nlines", coded, "Upper", "upper", 'a, "b"']
    for number, name in enumerate(names):
        _picture(folder, "p.png", seed=number).rename(folder / f"{name}.png")
    _picture(folder, "p.png", seed=99).rename(folder / (os.fsdecode(b"sub\xff") + ".png"))
    assert main([str(files["segmenter"]), str(folder), "--out", str(tmp_path / "out"), "--overlay"]) == 0
    table = pd.read_csv(tmp_path / "out" / "predictions.csv", keep_default_na=False).set_index("name")
    assert len(table) == len(names) + 1 and table["mask_file"].is_unique
    assert {"plain", "组织切片" * 20, "x" * 251, "'=1+1", "a:b", "CON", r"two\nlines", r"M\xfcller", r"sub\xff"} <= set(table.index)
    for column in ("mask_file", "overlay_file"):
        assert table[column].map(lambda name: (tmp_path / "out" / name).is_file()).all()
    masks = table["mask_file"]
    assert masks["plain"] == "masks/plain.png" and masks["组织切片" * 20] == f"masks/{'组织切片' * 20}.png"
    assert masks["Upper"] == "masks/Upper.png" and masks["upper"].startswith("masks/upper~"), "one file where case does not count"
    predictor = Predictor(files["segmenter"])
    chance = foreground(predictor, [np.array(Image.open(folder / "upper.png"))], 1)[0]
    assert np.array_equal(np.array(Image.open(tmp_path / "out" / masks["upper"])) > 0, chance > 0.5)


def test_a_training_folder_without_its_masks_and_thumbnails(files, tmp_path, capsys):
    for name in ("A/train/images/x_1.png", "A/train/labels/x_1.png", "B/y.png", "B/y_mask.png", "B/@eaDir/y.png/thumb.jpg", "B/._y.png"):
        _picture(tmp_path / "in", name)
    (tmp_path / "in" / "B" / "Thumbs.db").write_bytes(b"x")
    assert main([str(files["segmenter"]), str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert list(table["name"]) == ["A/train/images/x_1", "B/y"]
    said = capsys.readouterr().out
    assert "note: 2 file(s) are masks of others and not predicted, e.g. " in said
    assert "note: 3 file(s) and folder(s) of file servers and systems are not read: 1 ._*, 1 @eaDir, 1 Thumbs.db" in said
    assert [name for _, name in find_inputs([tmp_path / "in/B/y_mask.png"])] == ["y_mask"], "a file that is named is meant"
    labels = find_inputs([tmp_path / "in/A/train/labels"])
    assert [name for _, name in labels] == ["x_1"], "and so is a folder of masks alone"


def test_empty_files_and_folders_say_what_they_are(files, tmp_path, capsys):
    _picture(tmp_path, "in/a.png")
    (tmp_path / "in" / "b.png").touch()
    assert main([str(files["segmenter"]), str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 1
    assert "b.png: is empty (0 bytes), expected" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    for name in ("1.dcm", "2.dcm", "Thumbs.db", "a.pdf"):
        (tmp_path / "none" / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"it holds 2 \.dcm, 1 \.pdf; 1 file\(s\) and folder\(s\) of file servers .*Thumbs\.db"):
        find_inputs([tmp_path / "none"])


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    for name in ("P1", "P2", "lost+found"):
        _picture(tmp_path / name, "1.png")
    whole = os.scandir

    def scandir(place):
        if Path(place).name in closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(place))
        return whole(place)

    monkeypatch.setattr(os, "scandir", scandir)
    closed = ("lost+found",)
    assert [name for _, name in find_inputs([tmp_path])] == ["P1/1", "P2/1"]
    closed = ("lost+found", "P2")
    with pytest.raises(InputError, match=r"P2: cannot be listed \(Permission denied\), expected a readable folder"):
        find_inputs([tmp_path])


def test_links_are_followed_or_named(files, tmp_path, capsys):
    _picture(tmp_path / "archive", "z.png")
    _picture(tmp_path / "in", "a.png")
    for name, target in (("P1", "../archive"), ("self", "."), ("z.png", "../archive/z.png"), ("gone.png", "nowhere"), ("o.png", "o.png")):
        (tmp_path / "in" / name).symlink_to(target)
    assert main([str(files["segmenter"]), str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 1
    table = pd.read_csv(tmp_path / "out" / "predictions.csv").set_index("name")
    assert list(table.index) == ["a", "gone", "o", "z"] and list(table.index[table["error"].notna()]) == ["gone", "o"]
    assert f"note: 2 linked folder(s) are not followed, e.g. {tmp_path / 'in' / 'P1'}; name them in the call" in capsys.readouterr().out
    assert [name for _, name in find_inputs([tmp_path / "in" / "P1"])] == ["z"]


def test_results_of_an_earlier_call_are_no_images(files, tmp_path, capsys):
    source = tmp_path / "in"
    _picture(source, "P1/a.png")
    for number in (1, 2):
        assert main([str(files["segmenter"]), str(source), "--out", str(source / f"run{number}"), "--overlay"]) == 0
    assert list(pd.read_csv(source / "run2" / "predictions.csv")["name"]) == ["P1/a"]
    assert "note: 2 file(s) are results of an earlier call and not predicted" in capsys.readouterr().out
    assert [name for _, name in find_inputs([source / "run1" / "masks"])] == ["P1/a"], "named, they are what is asked for"


def test_an_image_may_be_called_as_a_folder_beside_it(files, tmp_path):
    _picture(tmp_path / "in", "x.jpg")
    _picture(tmp_path / "in", "x.png/tile.png", seed=1)
    assert main([str(files["segmenter"]), str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert all((tmp_path / "out" / file).is_file() for file in table["mask_file"]) and len(table) == 2


def test_what_is_no_file_is_not_waited_for(files, tmp_path, capsys):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: neither a file nor a folder"):
        find_inputs([tmp_path / "a.png"])


@pytest.mark.parametrize("fault", ["unreadable", "mounted"])
def test_an_output_folder_that_cannot_be_used_is_refused_at_once(fault, files, tmp_path, monkeypatch, capsys):
    _picture(tmp_path, "a.png")
    (tmp_path / "out").mkdir()

    def closed(folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    if fault == "unreadable":
        monkeypatch.setattr(Path, "iterdir", closed)
    else:
        monkeypatch.setattr(Path, "is_mount", lambda folder: folder == tmp_path / "out")
    status = main([str(files["segmenter"]), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert status == {"unreadable": 3, "mounted": 2}[fault] and len(said.splitlines()) == 1 and f"{tmp_path / 'out'}: " in said


def test_a_file_that_changed_and_kept_its_size_and_date_is_another_one(tmp_path):
    file = _picture(tmp_path, "a.bmp")
    before, told = file.stat(), file_state(file)
    _picture(tmp_path, "a.bmp", seed=1)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns) and file_state(file) != told


def test_the_voxels_beside_a_header_belong_to_a_file(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 8, 8), np.int16)), tmp_path / "a.mhd")
    told = file_state(tmp_path / "a.mhd")
    (tmp_path / "a.raw").write_bytes(np.ones((3, 8, 8), np.int16).tobytes())
    assert file_state(tmp_path / "a.mhd") != told
    (tmp_path / "a.raw").unlink()
    assert "keeps its voxels in 'a.raw'" in file_state(tmp_path / "a.mhd")[0], "the file's row says so, too"
