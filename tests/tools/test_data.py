"""The command line: exit status, what is said where, and what is refused as a wrong call."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vfmgl_lib.tasks.fetch import Fetched
from vfmgl_lib.tasks.prepare import formats_of, read_prepared
from vfmgl_lib.tasks.records import TASKS
from vfmgl_lib.tools.data import __main__ as module
from vfmgl_lib.tools.data.__main__ import main

SPLITS = ("train", "train", "train", "val", "test", "test")


@pytest.fixture
def source(tmp_path):
    """Two sites of six nuclei tiles, of five patients: the first has two."""
    rng = np.random.default_rng(0)
    for site in ("SiteA", "SiteB"):
        for number, split in enumerate(SPLITS):
            name = f"{site}{max(number, 1)}_{number}.png"
            for kind, shape in (("images", (9, 7, 3)), ("labels", (9, 7))):
                (tmp_path / "source" / site / split / kind).mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 2, shape, dtype=np.uint8) * 255
                Image.fromarray(pixels).save(tmp_path / "source" / site / split / kind / name)
    return tmp_path / "source"


@pytest.fixture
def call(capsys):
    """Arguments -> exit status, standard output, standard error."""

    def run(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


def test_prepare_and_verify(call, source, tmp_path):
    out = tmp_path / "out"
    status, said, _ = call("prepare", "nuclei", "--source", source, "--out", out)
    assert status == 0
    lines = said.splitlines()
    assert lines[0] == f"{out}: prepared, format folders"
    table = [line.split() for line in lines[1:5]]
    assert table == [
        ["split", "train", "val", "test", "images", "patients"],
        ["center"],
        ["SiteA", "3", "1", "2", "6", "5"],
        ["SiteB", "3", "1", "2", "6", "5"],
    ]
    assert lines[5] == f"manifest {read_prepared(out).manifest.sha256[:16]}, divided by patient"
    assert lines[6] == "note: center 'SiteC': missing, the datasheet has it" and all(line.startswith("note: ") for line in lines[6:])
    status, again, errors = call("prepare", "nuclei", "--source", source, "--out", out)
    assert (status, errors) == (0, "") and again == said.replace("prepared, format", "complete already, source unchanged, format", 1)
    status, verified, _ = call("verify", out)
    assert status == 0
    assert verified.splitlines()[0] == f"{out}: every file is there and unchanged" and verified.splitlines()[1:6] == lines[1:6]


def change(path):
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0] = 255 - pixels[0]
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(
    ("damage", "name", "message"),
    [
        (change, "SiteA/val/images/SiteA3_3.png", "changed since it was listed"),
        (change, "SiteA/val/labels/SiteA3_3.png", "changed since"),
        (Path.unlink, "SiteB/train/images/SiteB2_2.png", "file not found"),
        (Path.unlink, "SiteB/train/labels/SiteB2_2.png", "file not found"),
        (lambda path: os.truncate(path, 60), "SiteB/test/images/SiteB5_5.png", "cannot be decoded"),
        (lambda path: path.write_bytes(b"x"), "SiteB/test/labels/SiteB5_5.png", "not a readable image"),
    ],
)
def test_verify_names_what_is_wrong(call, source, tmp_path, damage, name, message):
    call("prepare", "nuclei", "--source", source, "--out", tmp_path / "out")
    damage(source / name)
    status, said, errors = call("verify", tmp_path / "out")
    assert status == 1 and said == "" and "Traceback" not in errors
    named = [line for line in errors.splitlines() if line.startswith("  - ")]
    assert named and all(line.startswith(f"  - {name}: ") for line in named) and any(message in line for line in named)


def test_all_problems_are_listed_with_status_one(call, source, tmp_path):
    (source / "SiteA/train/labels/SiteA1_0.png").unlink()
    (source / "SiteB/train/images/notes.txt").write_text("x")
    status, said, errors = call("prepare", "nuclei", "--source", source, "--out", tmp_path / "out")
    assert (status, said) == (1, "")
    assert (
        f"{source}: 2 problems\n  - SiteA/train/images/SiteA1_0.png: mask is missing" in errors and "SiteB/train/images/notes.txt" in errors
    )
    for arguments, message in (
        (("prepare", "nuclei", "--source", tmp_path / "nowhere", "--out", tmp_path / "out"), "nowhere: source folder not found"),
        (("prepare", "nuclei", "--source", source, "--out", source / "out"), "the source is only read"),
        (("prepare", "prostate", "--source", source, "--out", tmp_path / "out"), "not recognised as prostate"),
        (("verify", tmp_path / "nowhere"), "holds no prepared.json"),
    ):
        status, said, errors = call(*arguments)
        assert (status, said) == (1, "") and message in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required"),
        (("convert",), "invalid choice: 'convert'"),
        (("prepare",), "the following arguments are required: task, --source, --out"),
        (("prepare", "liver", "--source", "a", "--out", "b"), "argument task: unknown task 'liver', expected one of"),
        (("prepare", "nuclei", "--source", "a"), "the following arguments are required: --out"),
        (("prepare", "nuclei", "--source", "a", "--out", "b", "--split", "random"), "argument --split: invalid choice: 'random'"),
        (("prepare", "nuclei", "--source", "a", "--out", "b", "--seed", "-1"), "argument --seed: '-1' is no whole number from 0"),
        (("prepare", "nuclei", "--source", "a", "--out", "b", "--seed", "x"), "argument --seed: 'x' is no whole number from 0"),
        (
            ("prepare", "nuclei", "--source", "a", "--out", "b", "--format", "wilds"),
            "argument --format: 'wilds' is no format of nuclei (choose from folders, downloads, samples)",
        ),
        (("verify",), "the following arguments are required: DIR"),
        (("fetch", "camelyon17"), "the following arguments are required: --out"),
        (("fetch", "liver", "--out", "x"), "invalid choice: 'liver'"),
    ],
)
def test_a_wrong_call_ends_with_status_two(call, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, said, errors = call(*arguments)
    assert (status, said) == (2, "") and message in errors and errors.startswith("usage: vfmgl data")
    assert list(tmp_path.iterdir()) == []


def test_help_says_what_there_is(call):
    status, said, _ = call("prepare", "--help")
    assert status == 0
    for task, forms in ((name, formats_of(record)) for name, record in TASKS.items()):
        for form in forms:
            assert re.search(rf"^  {task} +{form.name}: {re.escape(form.description)}$", said, re.MULTILINE)
    options = ("--samples", "--patients {own,shared}", "--patient-pattern")
    for option in ("--source", "--out", "--format", "--split {patient,source,image}", "--seed", *options):
        assert option in said
    for command, words in {
        "verify": ("DIR",),
        "fetch": (*TASKS, "--out", "--only"),
        "template": ("DIR", "--task", "--out", "--patient-pattern", "--force"),
        "": ("template", "prepare", "verify", "fetch", "Exit status"),
    }.items():
        status, said, _ = call(*filter(None, (command, "--help")))
        assert status == 0 and all(word in said for word in words)


def test_from_a_folder_by_a_table_to_a_set(call, source, tmp_path):
    status, said, _ = call("template", source, "--task", "nuclei", "--patient-pattern", "^([^_]+)_")
    assert status == 0 and said.startswith(f"{source}/samples.csv: ") and "  center: the name of folder 1" in said
    status, _, errors = call("template", source)
    assert (
        status == 1
        and errors == f"{source}/samples.csv: is there already and is not replaced; --force replaces it, --out FILE writes another one\n"
    )
    assert call("template", source, "--task", "nuclei", "--patient-pattern", "^([^_]+)_", "--force")[0] == 0
    assert call("template", source, "--out", tmp_path / "other.csv")[0] == 0 and (tmp_path / "other.csv").is_file()
    given = ("--source", source, "--out", tmp_path / "out", "--patients", "shared")
    status, said, _ = call("prepare", "nuclei", *given)
    assert status == 0 and said.startswith(f"{tmp_path / 'out'}: prepared, format samples\n")
    status, _, errors = call("prepare", "nuclei", *given[:-1], "own")
    assert status == 1 and "patients 'shared' instead of 'own'" in errors
    status, said, _ = call("prepare", "nuclei", "--source", source, "--out", tmp_path / "b", "--samples", tmp_path / "other.csv")
    assert status == 0 and "format samples" in said
    status, said, _ = call(
        "prepare", "nuclei", "--source", source, "--out", tmp_path / "c", "--format", "folders", "--patient-pattern", "^([^_]+)_"
    )
    assert status == 0 and "format folders" in said


def test_split_seed_and_format_are_handed_on(call, source, tmp_path):
    given = ("--split", "image", "--seed", "7", "--format", "folders")
    status, said, _ = call("prepare", "nuclei", "--source", source, "--out", tmp_path / "out", *given)
    assert status == 0 and "divided by image" in said and "note: LEAKAGE, as asked for: " in said
    status, _, errors = call("prepare", "nuclei", "--source", source, "--out", tmp_path / "out")
    assert status == 1 and "split 'image' instead of 'patient'; seed 7 instead of 42" in errors


def test_fetch(call, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        module, "fetch", lambda *given, **options: asked.append((given, options)) or Fetched((tmp_path / "a.zip",), ("write to X",))
    )
    status, said, _ = call("fetch", "nuclei", "--out", tmp_path, "--only", "a", "--only", "b")
    assert (status, said) == (0, f"{tmp_path / 'a.zip'}: complete\nwrite to X\n")
    assert asked == [(("nuclei", tmp_path), {"only": ["a", "b"]})]
    monkeypatch.undo()
    status, said, _ = call("fetch", "endometrial", "--out", tmp_path)
    assert status == 0 and "images are not public" in said and list(tmp_path.iterdir()) == []


def test_a_folder_of_downloads_is_verified(call, tmp_path, monkeypatch):
    (tmp_path / "checksums.json").write_text("{}")
    for problems, expected in (([], 0), (["a.zip: changed"], 1)):
        monkeypatch.setattr(module, "check_downloads", lambda folder, found=problems: found)
        status, said, _ = call("verify", tmp_path)
        assert status == expected and said == (problems[0] if problems else f"{tmp_path}: every download is as it was pinned") + "\n"


def test_as_a_program(source, tmp_path):
    command = [sys.executable, "-m", "vfmgl_lib.cli", "data", "prepare", "nuclei", "--source", str(source), "--out", str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": str(Path(module.__file__).parents[3])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"{tmp_path / 'out'}: prepared, format folders\n"), done.stderr
