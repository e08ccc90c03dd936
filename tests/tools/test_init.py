"""vfmgl init: a folder of one's own, whole or not at all, and its run_all.sh."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vfmgl_lib import __version__
from vfmgl_lib.tools import init

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path, capsys) -> Path:
    folder = tmp_path / "my workbook's"
    assert init.main([str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{folder} is made") and "vfmgl run --help" in said and "cd '" in said
    return folder


def script(folder: Path, *words: str, here: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [folder / "run_all.sh", *words],
        cwd=here or folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )


def test_the_folder_holds_copies_of_all_notebooks_and_profiles(folder):
    here, there = ROOT / "notebooks", folder / "notebooks"
    wanted = {
        path.relative_to(here) for path in here.rglob("*") if path.suffix in (".ipynb", ".yaml") and ".ipynb_checkpoints" not in path.parts
    }
    found = {path.relative_to(there) for path in there.rglob("*") if path.is_file()}
    assert found == wanted and len(found) >= 16
    assert all((here / name).read_bytes() == (there / name).read_bytes() for name in wanted)
    assert all(os.access(there / name, os.W_OK) for name in wanted)
    assert json.loads((folder / "workbook.json").read_text()) == {"vfmgl_lib": __version__}
    assert {path.name for path in folder.iterdir()} == {"notebooks", "run_all.sh", "workbook.json"}


def test_what_is_there_is_left_alone(folder, capsys):
    (folder / "notebooks" / "02_hgkt.ipynb").write_text("mine")
    assert init.main([str(folder)]) == 1
    assert f"{folder} is there already; give the name of a new folder" in capsys.readouterr().err
    assert (folder / "notebooks" / "02_hgkt.ipynb").read_text() == "mine"


def test_an_interrupted_one_leaves_nothing(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "notebooks")

    monkeypatch.setattr(shutil, "copytree", full)
    assert init.main([str(tmp_path / "mine")]) == 1
    assert "no room is left on the disk" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_its_script_calls_the_environment_that_made_it(folder, tmp_path):
    called = script(folder, "run", "--help")
    assert called.returncode == 0 and called.stdout.startswith("usage: vfmgl run ")
    assert script(folder, "--profile", "nosuch").stderr.startswith("vfmgl run: profile nosuch: ")
    other = tmp_path / "python"
    other.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    other.chmod(0o755)
    assert script(folder, "lab", "--port", "1 2", PYTHON=str(other)).stdout.endswith("|-P|-m|vfmgl_lib.cli|lab|--port|1 2|")
    assert script(folder, PYTHON=str(other)).stdout.endswith("|vfmgl_lib.cli|run|")


def test_its_script_says_what_is_wrong(folder, tmp_path):
    for words, here, environment, said in (
        ((), tmp_path, {}, f"call it from its own folder: cd {folder}"),
        (("test",), folder, {}, "the tests come with the project's repository"),
        (("labb",), folder, {}, "unknown command 'labb'"),
        ((), folder, {"PYTHON": "/nowhere/python"}, "/nowhere/python is gone"),
        ((), folder, {"PYTHON": sys.base_prefix + "/bin/python3", "PYTHONPATH": ""}, "has no vfmgl_lib"),
    ):
        done = script(folder, *words, here=here, **environment)
        assert done.returncode == 2 and done.stderr.startswith("run_all.sh: ") and said in done.stderr, said
