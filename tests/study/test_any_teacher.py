"""A study with a teacher of levels that takes one image size alone: HGKT, tables, figure; its linear probe and its counts."""

import pytest

from vfmgl_lib.evaluation.complexity import counted
from vfmgl_lib.figures import transfer
from vfmgl_lib.study.workspace import open_workspace

TEACHER = "random:levit_128s"  # levels at strides 16, 32 and 64, of 224 x 224 alone
SMALL = {
    "teacher": TEACHER,
    "data__image_size": 32,
    "student__width": 4,
    "federation__rounds": 1,
    "phantoms__centers": 2,
    "phantoms__image_size": 32,
    "phantoms__samples": {"train": 4, "val": 2, "test": 2},
    "optimizer__batch_size": 2,
    "data__validation_share": 0.0,
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return open_workspace("nuclei", "smoke", runs=tmp_path_factory.mktemp("runs"), **SMALL)


def test_a_study_says_its_teachers_size_and_weighs_its_levels(workspace):
    study = workspace.run("vfmgl")
    said = "levit_128s, RANDOM weights (asked for by name; nothing to transfer), 224 x 224 (it takes no other)"
    assert study.teacher_description == said and set(study.steps["teacher"]) == {said}
    assert list(dict.fromkeys(study.stages["teacher_block"])) == ["stride 16", "stride 32", "stride 64"]
    assert study.stages["pair_weight"].between(0, 6).all() and study.steps["match_loss"].gt(0).all()
    assert workspace.run("vfmgl").folder == study.folder, "the same teacher has the same name"
    rows = study.stages[study.stages["center"] == study.stages["center"].iloc[0]]
    labels = {text.get_text() for axis in transfer.pair_weights(rows).axes for text in axis.get_yticklabels()}
    assert {"stride 16", "stride 32", "stride 64"} <= labels


def test_its_probe_reads_the_level_of_stride_16(workspace):
    study = workspace.run("frozen_probe")
    assert study.metrics["value"].notna().any() and "224 x 224" in study.teacher_description


def test_it_is_counted_at_its_own_size(workspace):
    teacher = counted(workspace.settings, "these").set_index("model").loc["teacher"]
    assert teacher["image_size"] == 224 and teacher["macs"] > 2e8
