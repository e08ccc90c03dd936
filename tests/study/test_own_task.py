"""A study of a task of one's own: it is run, read without its file, exported, used on images of any size, and never taken for another's."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.own_tasks import CLASSIFICATION, SEGMENTATION, write_classes, write_masks, write_task
from vfmgl_lib.config import ConfigError
from vfmgl_lib.data.images import decode_mask
from vfmgl_lib.data.preprocessing import placement, restored, squashed_mask
from vfmgl_lib.evaluation.beside_paper import centers_beside_paper
from vfmgl_lib.evaluation.counterparts import paper_centers
from vfmgl_lib.evaluation.paper import not_in_paper, paper_rows
from vfmgl_lib.evaluation.results import with_distances
from vfmgl_lib.evaluation.saved_runs import about, facts_of, read_paper
from vfmgl_lib.figures.paper import beside_paper
from vfmgl_lib.interpretation.cam import lesions
from vfmgl_lib.study.study import load_study
from vfmgl_lib.study.workspace import RECORD, open_workspace
from vfmgl_lib.tools.export import export_model
from vfmgl_lib.tools.predict import Predictor
from vfmgl_lib.tools.predict.files import predict_files

ROOT = Path(__file__).resolve().parents[2]
SMALLEST = ROOT / "tests" / "smallest.yaml"
READ = (
    "import sys; from pathlib import Path; from vfmgl_lib.study.study import load_study\n"
    "for folder in sys.argv[1:]: print(load_study(Path(folder)).settings.task)"
)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """kind -> (workspace, study, exported); the YAML files are deleted before anything is read again."""
    place, done = tmp_path_factory.mktemp("own"), {}
    made = {"moles": (CLASSIFICATION, "pad", write_classes), "cysts": (SEGMENTATION, "crop", write_masks)}
    for name, (text, resize, write) in made.items():
        file, data = write_task(place / f"{name}.yaml", text, resize), write(place / f"{name}_data")
        workspace = open_workspace(file, SMALLEST, data=data, runs=place / "runs", federation__match_updates=False)
        study = workspace.run("local", progress=False)
        file.unlink()
        done[name] = workspace, study, export_model(load_study(study.folder), "North", place / f"{name}_model")
    return done


def test_it_is_read_by_another_process_without_its_file(own):
    folders = [study.folder for _, study, _ in own.values()]
    done = subprocess.run([sys.executable, "-c", READ, *folders], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == list(own)
    for name, (workspace, study, _) in own.items():
        kept = json.loads((workspace.folder / RECORD).read_text())
        assert kept["name"] == name and kept["use"] == study.settings.data.record.use
        assert workspace.folder.name == f"{name}-{name}_data" and not workspace.on_phantoms
        assert load_study(study.folder).manifest.reading == study.manifest.reading, "how images become squares goes with the study"


def test_the_exported_model_is_the_study_s_and_says_what_it_is(own):
    for name, (_, study, exported) in own.items():
        assert len(exported.check), "compared with torch and the study, on images that are not square"
        card, predictor = exported.files["card"].read_text(), Predictor(exported.files["onnx"], task=name)
        assert study.settings.data.record.use in card and predictor.description.reading == study.manifest.reading
    assert "laid into a square, black around it" in own["moles"][2].files["card"].read_text()
    assert "only the middle square is looked at, as in training; what lies outside is background in the mask" in (
        own["cysts"][2].files["card"].read_text()
    )


@pytest.mark.parametrize(("width", "height"), [(64, 40), (41, 97), (32, 32)])
def test_a_predicted_mask_has_the_image_s_size_and_place(own, tmp_path, width, height):
    """It is what the study's own student marks in the square, led back; outside the crop it is background."""
    _, _, exported = own["cysts"]
    image = Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    predictor = Predictor(exported.files["onnx"])
    row = predict_files(predictor, [(tmp_path / "image.png", "image")], tmp_path / "out", overlay=True).iloc[0]
    assert row["error"] == "" and (row["width"], row["height"]) == (width, height)
    mask = decode_mask(tmp_path / "out" / row["mask_file"])
    left, top, right, bottom = placement(width, height, 32, "crop").box
    square = np.array(image.crop((left, top, right, bottom)).resize((32, 32), Image.Resampling.BILINEAR))
    chance = predictor.probability(predictor.run(square[None])[0])[0]
    expected = restored(chance, width, height, "crop") > 0.5
    assert mask.shape == (height, width) and np.array_equal(mask > 0, expected if (width, height) != (32, 32) else chance > 0.5)
    outside = np.ones((height, width), bool)
    outside[top:bottom, left:right] = False
    assert not mask[outside].any() and mask[~outside].any() and outside.any() == (width != height)
    with Image.open(tmp_path / "out" / row["overlay_file"]) as overlay:
        assert overlay.size == (width, height)


def test_a_padded_classification_is_predicted_as_the_study_did(own, tmp_path):
    _, study, exported = own["moles"]
    rows = study.predictions.query("model_center == 'North' and test_center == 'North' and split == 'test'")
    rows = rows[rows["round"] == study.last_round].set_index("id")["probability"].astype(float)
    table = study.manifest.select("North", "test").set_index("id")
    inputs = [(study.manifest.root / table.at[name, "path"], f"{place}") for place, name in enumerate(rows.index)]
    found = predict_files(Predictor(exported.files["onnx"]), inputs, tmp_path, overlay=True)
    assert np.abs(found["probability"].to_numpy() - rows.to_numpy()).max() < 1e-4
    with Image.open(tmp_path / found["overlay_file"].iloc[0]) as overlay:
        assert overlay.size == (64, 40)


def test_distances_and_lesions_are_of_the_cropped_square(own):
    _, study, _ = own["cysts"]
    manifest = replace(study.manifest, table=study.manifest.table.assign(spacing="0.5,0.5"))
    final = study.final_predictions().query("model_center == 'North' and test_center == 'North' and split == 'test'")
    in_mm, in_pixels = with_distances(final, manifest), with_distances(final, study.manifest)
    assert set(in_mm["distance_unit"]) == {"mm"} and set(in_pixels["distance_unit"]) == {"px"} and in_pixels["assd"].notna().any()
    # 40 rows of 0.5 mm in 32 pixels, and as many columns: a stretched image would have other columns than rows.
    np.testing.assert_allclose(in_mm["assd"], in_pixels["assd"] * 0.5 * 40 / 32)
    first = manifest.table["id"].iloc[0]
    mask = decode_mask(manifest.root / manifest.table["label"].iloc[0])
    assert np.array_equal(lesions(manifest, [first], 32)[first], squashed_mask(mask, 32, "crop") > 0)


def test_the_paper_says_nothing_of_it(own):
    workspace = own["moles"][0]
    table = about(workspace.manifest, "moles", "moles_data", False)
    facts = facts_of({"about": table})
    assert facts["origin"] == "own" and facts["findings"] == "" and facts["external centres"] == "West"
    assert paper_centers("moles", workspace.manifest.centers, "own") == {}
    printed = read_paper()
    assert paper_rows(printed, [{"about": table}], tasks=["moles"]).empty
    assert not_in_paper("moles").startswith("Not in the paper") and len(
        beside_paper(paper_rows(printed, [], tasks=["moles"])).axes[0].texts
    )
    measured = pd.DataFrame({"center": ["North", "A"], "value": [0.5, 0.6]})
    beside = centers_beside_paper(measured, printed, task="moles", metric="auc")
    assert (beside["comparable"] == "no: not in the paper").all() and beside["paper"].isna().all()


def test_without_data_it_says_that_there_are_no_phantoms(tmp_path):
    with pytest.raises(ConfigError, match="moles has no phantoms: give --data DIR"):
        open_workspace(write_task(tmp_path / "moles.yaml", CLASSIFICATION), SMALLEST, runs=tmp_path / "runs")


def test_another_record_of_the_same_name_does_not_meet_its_results(own, tmp_path):
    workspace = own["moles"][0]
    data, runs = workspace.manifest.root, workspace.folder.parents[1]
    changes = {
        ("black", "white"): "background 'black' before, 'white' now",
        ("[benign, malign]", "[malign, benign]"): r"classes \['benign', 'malign'\] before, \['malign', 'benign'\] now",
        ("background", "ordinal: true\nbackground"): "ordinal False before, True now",
    }
    for (before, after), named in changes.items():
        changed = write_task(tmp_path / "moles.yaml", CLASSIFICATION.replace(before, after), "pad")
        with pytest.raises(ConfigError, match=f"holds results of another record of this name: {named}.*give the new record another name"):
            open_workspace(changed, SMALLEST, data=data, runs=runs)
    text = write_task(tmp_path / "moles.yaml", CLASSIFICATION.replace("dark fields", "light fields"), "pad")
    again = open_workspace(text, SMALLEST, data=data, runs=runs, federation__match_updates=False)
    assert again.study("local").complete, "another text changes no number"


def test_a_changed_setting_of_the_record_gets_a_new_study(own, tmp_path, caplog):
    """And is told: figures that are not drawn again would be taken for its own."""
    workspace = own["moles"][0]
    data, runs = workspace.manifest.root, workspace.folder.parents[1]

    def opened(lines: str):
        caplog.clear()
        file = write_task(tmp_path / "moles.yaml", CLASSIFICATION.replace("{{batch_size: 6}}", lines), "pad")
        return open_workspace(file, SMALLEST, data=data, runs=runs, federation__match_updates=False)

    other = opened("{{batch_size: 6, lr: 0.003}}")
    assert "optimizer.lr not set before, 0.003 now; its studies are run anew" in caplog.text
    assert other.folder == workspace.folder and not other.study("local").complete and other.study("local").rounds_done == 0
    assert opened("{{batch_size: 6, lr: 3e-3}}").study("local").folder == other.study("local").folder and not caplog.text, "a text in YAML"
    opened("{{batch_size: 4, lr: 3.0e-3}}")
    assert "optimizer.batch_size 6 before, 4 now" in caplog.text and "lr" not in caplog.text
    assert opened("{{batch_size: 6}}").study("local").complete, "the first study is found again"
