"""Table and task of a folder of one's own images in one call, and the page of a study."""

import pandas as pd
import pytest

from tests.tasks.test_template import tree
from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.tasks.records import read_task
from vfmgl_lib.tools.data.own_images import own_images
from vfmgl_lib.tools.export.report import write_report

FILES = [f"{center}/{patient}_{side}.png" for center in ("A", "B") for patient in (1, 2) for side in "LR"]


def test_a_list_gives_labels_and_classes(tmp_path):
    tree(tmp_path / "set", *FILES)
    (tmp_path / "list.csv").write_text("site,case,diagnosis\nA,1,malignant\nA,2,benign\nB,1,Malignant\nB,2,benign\n")
    found = own_images(tmp_path / "set", tmp_path / "x" / "moles.yaml", listed=tmp_path / "list.csv")
    found.check()
    record = read_task(found.task)
    assert record.classes == ("benign", "malignant") and record.image_resize == "pad"
    again = own_images(tmp_path / "set", found.task, listed=tmp_path / "list.csv")
    assert "is there and is used as it is" in again.told[0] and again.missing == ""


def test_what_is_missing_is_one_line_and_the_task_waits_for_labels(tmp_path):
    tree(tmp_path / "set", *FILES)
    found = own_images(tmp_path / "set", tmp_path / "moles.yaml")
    with pytest.raises(ManifestError, match=r"Fill in label in 8 of 8 rows \(e\.g\. of A/1_L\.png\) in .*samples\.csv") as error:
        found.check()
    assert error.value._render_traceback_() == [found.missing] and not found.task.exists()
    table = pd.read_csv(found.table, dtype=str)
    table.assign(label=["benign", "malignant"] * 4).to_csv(found.table, sep=";", index=False)
    found = own_images(tmp_path / "set", tmp_path / "moles.yaml")
    assert found.missing == "" and read_task(found.task).classes == ("benign", "malignant")


def test_classes_that_are_not_those_of_the_list_or_the_task(tmp_path):
    tree(tmp_path / "set", *FILES)
    (tmp_path / "list.csv").write_text("site,case,diagnosis\nA,1,bad\nA,2,good\nB,1,bad\nB,2,good\n")
    given = {"folder": tmp_path / "set", "task": tmp_path / "moles.yaml", "listed": tmp_path / "list.csv"}
    with pytest.raises(ManifestError, match="is no class, expected one of benign, malignant"):
        own_images(**given, classes="benign,malignant")
    assert not given["task"].exists()  # the next call is not bound to it
    assert read_task(own_images(**given, classes="good, bad").task).classes == ("good", "bad")
    with pytest.raises(ManifestError, match=r"moles\.yaml: has the classes good, bad, expected bad, good; delete the file"):
        own_images(**given, classes="bad,good")


def test_masks_make_a_segmentation_and_classes_may_be_named(tmp_path):
    tree(tmp_path / "set", *(f"{c}/{part}/{n}.png" for c in "AB" for part in ("images", "labels") for n in range(3)))
    found = own_images(tmp_path / "set", tmp_path / "cysts.yaml", classes="background, cyst")
    record = read_task(found.task)
    assert record.is_segmentation and record.classes == ("background", "cyst") and "patient in 6 of 6 rows" in found.missing


def test_the_page_is_whole_and_runs_nothing(tmp_path):
    card = tmp_path / "card.md"
    card.write_text("---\ntags: [x]\n---\n\n# Card of <b>\n\n| a | b |\n|---|---|\n| 1 | <script>x</script> |\n", encoding="utf-8")
    (tmp_path / "a.png").write_bytes(b"picture")
    table = pd.DataFrame({"<i>value": [1.234, None]}, index=["auc", "b"])
    page = write_report(
        tmp_path / "r" / "page.html", "A & <B>", card, tables={"T": table}, figures={"F": tmp_path / "a.png"}, notes=["<n>"]
    )
    text = page.read_text("utf-8")
    assert "A &amp; &lt;B&gt;" in text and "&lt;n&gt;" in text and "&lt;i&gt;value" in text and ">1.23<" in text and ">–<" in text
    assert "<script" not in text and "tags:" not in text and "data:image/png;base64,cGljdHVyZQ==" in text
    assert "Card of &lt;b&gt;</h3>" in text and "http" not in text.replace("http-equiv", "")
