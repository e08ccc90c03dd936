"""A study with a student out of timm: it resumes to the bit, is exported and predicts as it did, and is refused before it starts."""

import shutil

import numpy as np
import pytest
import torch

from vfmgl_lib.config import ConfigError
from vfmgl_lib.interpretation import cam
from vfmgl_lib.methods.passes import encoder_share, student_passes
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.models import student_checks, timm_students
from vfmgl_lib.models.student_names import StudentError
from vfmgl_lib.models.students import STUDENTS
from vfmgl_lib.study.workspace import open_workspace
from vfmgl_lib.tools.export import export_model
from vfmgl_lib.tools.predict import Predictor
from vfmgl_lib.tools.predict.__main__ import main as predict_command
from vfmgl_lib.tools.predict.files import predict_files

SMALL = {
    "teacher": "random:test_vit",
    "teacher__grid": 2,
    "data__image_size": 64,
    "data__validation_share": 0.0,
    "student__width": 4,
    "student__weights": "none",
    "federation__rounds": 2,
    "federation__match_updates": False,
    "phantoms__centers": 2,
    "phantoms__image_size": 64,
    "optimizer__batch_size": 3,
    "optimizer__lr": 0.005,
    "transfer__projection": "sgd",  # maps of a random ConvNeXt hardly vary: a fit to six images is so large that it diverges
}
SAMPLES = {"endometrial": {"train": 6, "test": 6}, "nuclei": {"train": 5, "val": 2, "test": 2}}


def _workspace(runs, task, student, **changes):
    return open_workspace(task, "smoke", runs=runs, student__name=student, phantoms__samples=SAMPLES[task], **(SMALL | changes))


@pytest.fixture(
    scope="module", params=[("endometrial", "test_efficientnet"), ("endometrial", "test_convnext"), ("nuclei", "unet:test_resnet")]
)
def finished(request, tmp_path_factory):
    workspace = _workspace(tmp_path_factory.mktemp("runs"), *request.param)
    return workspace, workspace.run(progress=False)


def _models(study):
    return {str(file.relative_to(study.folder)): file.read_bytes() for file in sorted(study.folder.glob("rounds/*/*.safetensors"))}


def test_its_stages_are_in_the_tables_and_a_resumed_run_ends_with_the_same_bits(finished):
    workspace, study = finished
    stages = list(study.student(study.manifest.training_centers[0]).stage_channels)
    assert list(study.stages["student_stage"].unique()) == stages and study.stages["critical"].sum() > 0
    once = _models(study)
    shutil.rmtree(study.folder / "rounds" / "002")
    (study.folder / "complete.json").unlink()
    torch.manual_seed(123)  # nothing may depend on it
    again = workspace.run(progress=False)
    assert once and _models(again) == once


def test_it_is_exported_and_predicts_as_in_the_study(finished, tmp_path, capsys):
    workspace, study = finished
    center = study.manifest.training_centers[0]
    files = export_model(study, center, tmp_path / "out").files
    predictor = Predictor(files["onnx"])
    student = study.student(center)
    assert bool(predictor.description.evidence) == (student.pooled_classifier is not None)
    assert ("the network has none" in files["card"].read_text()) == (workspace.settings.student.name == "test_convnext")
    assert workspace.settings.student.network in files["card"].read_text()
    rows = study.manifest.select(center, "test")
    inputs = [(study.manifest.root / path, str(number)) for number, path in enumerate(rows["path"])]
    found = predict_files(predictor, inputs, tmp_path / "predicted", overlay=True)
    assert len(found) == len(rows)
    has_overlays = study.settings.is_segmentation or bool(predictor.description.evidence)
    assert all(bool(name) == has_overlays for name in found["overlay_file"])
    command = [str(files["onnx"]), str(inputs[0][0]), "--out", str(tmp_path / "by_command"), "--overlay"]
    assert predict_command(command) == 0 and ("no overlays: this model" in capsys.readouterr().out) == (not has_overlays)
    if study.settings.is_segmentation:
        return  # `export_model` has held its masks against the study's
    own = study.predictions.query("model_center == @center and test_center == @center and split == 'test' and round == @study.last_round")
    kept = own[own["stage"] == predictor.description.study["stage"]].set_index("id")["probability"].astype(float)
    assert np.abs(found["probability"].to_numpy() - kept[rows["id"]].to_numpy()).max() <= 1e-4


def test_maps_of_every_layer_and_the_logits(finished):
    _, study = finished
    student = study.student(study.manifest.training_centers[0])
    images = torch.rand(2, 3, 64, 64)
    for layer, side in cam.layers(student, 64).items():
        found = cam.grad_cam(student, images, layer)
        assert found.shape == (2, side, side) and np.isfinite(found).all()
    classifier = student.pooled_classifier
    if classifier is not None:
        logits = student(images).detach()
        evidence = cam.class_activation(student, images).mean((1, 2)) + (classifier.bias[1] - classifier.bias[0]).item()
        np.testing.assert_allclose(evidence, (logits[:, 1] - logits[:, 0]).numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("task", "student", "message"),
    [
        (
            "endometrial",
            "resnet43",
            r"task endometrial, profile smoke: student.name: .*'resnet43' is not a timm model; similar names: resnet",
        ),
        ("nuclei", "resnet34", "layout nuclei with student resnet34 .*a segmentation unet with dice, or unet:NAME"),
        ("endometrial", "unet:resnet34", "layout endometrial with student unet:resnet34"),
    ],
)
def test_settings_name_a_student_that_does_not_fit(task, student, message):
    with pytest.raises(ConfigError, match=message):
        load_settings(task, student__name=student)


def test_a_layer_without_second_derivatives_is_refused_before_training_and_only_by_hgkt(tmp_path, monkeypatch):
    """torch's fused attention has no second derivative on a CPU."""

    class Attention(torch.nn.Module):
        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)[:, None]
            return x + torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)[:, 0].transpose(1, 2).view_as(x)

    made = timm_students._network

    def with_attention(*arguments):
        net = made(*arguments)
        net.layer4.append(Attention())
        return net

    monkeypatch.setattr(timm_students, "_network", with_attention)
    monkeypatch.setattr("vfmgl_lib.study.training.run_rounds", lambda *a, **b: pytest.fail("training began"))
    timm_students.stage_table.cache_clear()
    student_checks._check_timm_student.cache_clear()
    workspace = _workspace(tmp_path, "endometrial", "test_resnet")
    with pytest.raises(StudentError, match=r"layer net\.layer4\.\d \(Attention\) has no second derivative.*_scaled_dot_product"):
        workspace.run(progress=False)
    with pytest.raises(pytest.fail.Exception, match="training began"):  # without HGKT nothing is in the way
        workspace.run("fedavg", progress=False)


def test_a_centre_of_one_image_is_refused_where_batch_normalisation_cannot_be(tmp_path):
    small = {"data__image_size": 32, "data__per_center": {"train": 1}}
    workspace = _workspace(tmp_path, "endometrial", "resnet18", **small)
    with pytest.raises(StudentError, match=r"student resnet18: .*net.layer4.* 1 image of 32 px \(the train set of .* has one image\)"):
        workspace.run("fedavg", progress=False)


def test_the_width_of_a_student_without_one_names_no_study_and_the_paper_s_keys_stand():
    def key(**changes):
        return load_settings("endometrial", "smoke", **changes).key()

    assert key(student__name="test_resnet", student__width=4) == key(student__name="test_resnet", student__width=8)
    assert len({key(), key(student__width=4), key(student__name="test_resnet"), key(student__name="test_convnext")}) == 4
    masks = {load_settings("nuclei", "smoke", student__name="unet:test_resnet", student__width=width).key() for width in (4, 8)}
    assert len(masks) == 2  # there it is the decoder's


def test_passes_of_other_students_are_counted():
    assert encoder_share("test_resnet", 4, 64) == pytest.approx(1, abs=0.01)
    assert 0.05 < encoder_share("unet:test_resnet", 8, 64) < encoder_share("unet:test_resnet", 4, 64) < 0.95
    settings = load_settings("nuclei", "paper", student__name="unet:test_resnet", student__width=4, data__image_size=64)
    assert student_passes(settings, 10) > 12
    assert set(STUDENTS) == {"resnet18", "unet"}
