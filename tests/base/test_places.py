"""Notebooks, profiles and datasheets are found in a clone, in an installed package and in a folder of one's own."""

import json
from pathlib import Path

import pytest

from vfmgl_lib import __version__
from vfmgl_lib.base import places
from vfmgl_lib.config import ConfigError
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.tools import lab
from vfmgl_lib.tools.batch.__main__ import main as run
from vfmgl_lib.tools.init import make_folder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    make_folder(tmp_path / "mine")
    return tmp_path / "mine"


def test_a_clone_is_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert places.IS_CLONE and places.own_folder() is None
    assert places.project_folder() == ROOT and places.profiles_folder() == ROOT / "notebooks" / "profiles"


@pytest.mark.parametrize(("below", "found"), [("", True), ("notebooks", True), ("notebooks/tutorials", True), ("notebooks/profiles", True)])
def test_an_own_folder_is_found_from_its_notebooks(own, below, found):
    assert (places.own_folder(own / below) == own) == found and places.project_folder(own / below) == own


def test_folders_further_up_are_not_asked(own):
    """Somebody else's may lie there: /tmp belongs to all."""
    inner = own / "data" / "images"
    inner.mkdir(parents=True)
    assert places.own_folder(own / "data") is None and places.own_folder(inner) is None
    assert places.own_folder(Path("/")) is None


def test_a_changed_profile_counts_by_its_name_and_the_papers_stays(own, monkeypatch):
    profiles = own / "notebooks" / "profiles"
    before = {name: load_settings("nuclei", name).federation.rounds for name in ("smoke", "paper")}
    for name, rounds in before.items():
        text = (profiles / f"{name}.yaml").read_text("utf-8")
        (profiles / f"{name}.yaml").write_text(text.replace(f"rounds: {rounds}", f"rounds: {rounds + 4}"), "utf-8")
    monkeypatch.chdir(own / "notebooks")
    mine = load_settings("nuclei", "smoke")
    assert mine.federation.rounds == before["smoke"] + 4
    assert mine.deviations().set_index("setting").loc["federation.rounds"].tolist() == [100, before["smoke"] + 4]
    changed = load_settings("nuclei", "paper").deviations().set_index("setting")
    assert changed.loc["federation.rounds"].tolist() == [100, 104], "what deviates is told by the paper's own numbers"
    with pytest.raises(ConfigError, match=str(profiles)):
        load_settings("nuclei", "nosuch")


def test_a_folder_of_another_version_is_told(own, caplog):
    assert places.project_folder(own) == own and not caplog.records
    (own / places.MARK).write_text(json.dumps({"vfmgl_lib": "0.1.9"}))
    assert places.project_folder(own) == own
    assert f"{own}: its notebooks are of version 0.1.9, this is {__version__}" in caplog.text


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1}'])
def test_an_altered_mark_is_named(own, text):
    (own / places.MARK).write_text(text)
    with pytest.raises(places.PlaceError, match=f"{own / places.MARK}: cannot be read"):
        places.project_folder(own)


def test_a_folder_that_was_removed_is_none(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert places.own_folder() is None and load_settings("nuclei", "smoke").task == "nuclei"


def test_a_package_without_a_folder_says_how_to_make_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "IS_CLONE", False)
    assert run(["--task", "nuclei"]) == 2 and lab.main([]) == 2
    said = capsys.readouterr().err
    assert said.count(f"{tmp_path} is no folder of a workbook: `vfmgl init FOLDER` makes one") == 2
    assert said.startswith("vfmgl run: ") and "\nvfmgl lab: " in said and "Traceback" not in said
