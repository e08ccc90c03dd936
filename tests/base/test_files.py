"""Names that every file system takes, errors of the disk in words, and calls that go on where they were stopped."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vfmgl_lib.base.files import (
    LONGEST_NAME,
    PARTIAL,
    FolderInUseError,
    Steps,
    file_name,
    first_line,
    is_locked,
    locked,
    new_folder,
    portable,
    real_path,
    reason,
    resumed_folder,
    shown,
    temporary_name,
    write_bytes,
    write_json,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a", "a.png"),
        ("schnitt 名 1", "schnitt 名 1.png"),
        ("组织切片" * 20, "组织切片" * 20 + ".png"),
        ("2024-01-01 10:20:30", "2024-01-01 10_20_30~"),
        ("a\nb", "a_b~"),
        ("M\udcfcller", "M_ller~"),
        ("CON", "_CON~"),
        ("nul.1", "_nul.1~"),
        ("", "~"),
    ],
)
def test_a_name_is_kept_where_every_system_takes_it(name, expected):
    found = file_name(name, ".png")
    assert found == expected if expected.endswith(".png") else found.startswith(expected) and len(found) == len(expected) + 8 + 4
    assert file_name(name, ".png", mark=True) != file_name(name + "x", ".png", mark=True) != found
    found.encode()  # UTF-8


@pytest.mark.parametrize("letter", ["a", "ü", "片", "😀"])
def test_long_names_are_cut_at_a_letter_and_told_apart(letter, tmp_path):
    longest = letter * (255 // len(letter.encode()))
    one, other = file_name(longest, ".nii.gz"), file_name(longest[:-1] + "x", ".nii.gz")
    assert one != other and one.endswith(".nii.gz") and longest.startswith(one.split("~")[0])
    assert LONGEST_NAME - 4 <= len(one.encode()) <= LONGEST_NAME
    write_bytes(tmp_path / one, b"1")
    write_bytes(tmp_path / longest, b"2")  # a name that leaves no byte for a temporary one
    assert (tmp_path / longest).read_bytes() == b"2" and len(list(tmp_path.iterdir())) == 2
    assert temporary_name(tmp_path / longest) != temporary_name(tmp_path / (longest[:-1] + "x"))
    assert temporary_name(tmp_path / longest, ".1").name.endswith(f".1{PARTIAL}")


def test_folders_lose_no_dot_at_their_end_unseen():
    assert file_name("P1") == "P1" and file_name("P1.").startswith("P1~") and file_name("P1 ").startswith("P1~")
    assert portable("a<b>|c") == "a_b__c"


def test_what_is_shown_is_one_line_of_utf8():
    assert shown("M\udcfcller\n\t\u2028x") == r"M\xfcller\n\t\u2028x"
    assert shown("Zo\u200dë　名") == "Zo\u200dë　名", "joiners and wide blanks belong to people's writing"


def test_json_keeps_a_name_that_is_not_utf8(tmp_path):
    name = os.fsdecode(b"/data/M\xfcller")
    write_json(tmp_path / "a.json", {"source": name})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["source"] == name


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "ulimit"),
        (errno.EROFS, "read-only"),
    ],
)
def test_errors_of_the_disk_name_file_and_remedy(number, words, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError) as caught:
        write_bytes(tmp_path / "a.txt", b"x")
    text = reason(caught.value)
    assert text.startswith(str(tmp_path / "a.txt")) and words in text and os.strerror(number) in text and "\n" not in text
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "set").write_text("x")
    with pytest.raises(OSError) as caught:
        write_bytes(tmp_path / "set" / "data" / "a.txt", b"x")
    assert "a file stands where a folder is expected" in reason(caught.value)


def test_an_error_names_what_was_wanted_not_the_temporary_name(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError) as caught, new_folder(tmp_path / "out"):
        pass
    assert reason(caught.value).startswith(f"{tmp_path / 'out'}: a file stands")


@pytest.mark.parametrize(("error", "said"), [(ValueError("a\nb"), "a"), (MemoryError(), "MemoryError"), (OSError("\n"), "OSError")])
def test_the_first_line_of_an_error_never_is_empty(error, said):
    assert first_line(error) == said


def test_a_link_in_a_circle_has_a_real_path_too(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert real_path(tmp_path / "a").parent == tmp_path.resolve()


def _run(out, call, stop=None, done=()):
    with resumed_folder(out, call) as (folder, steps):
        for number in range(4):

            def make(number=number):
                if number == stop:
                    raise KeyboardInterrupt
                done.append(number)
                (folder / f"{number}.txt").write_text(str(number))
                return {"number": number, "value": 1 / (3 + number)}

            yield steps.step(number, make)


def test_a_stopped_call_goes_on_and_ends_like_one_that_was_not(tmp_path):
    done = []
    with pytest.raises(KeyboardInterrupt):
        list(_run(tmp_path / "out", "call", 2, done))
    assert not (tmp_path / "out").exists() and done == [0, 1]
    with open(tmp_path / ".out.partial" / "steps.jsonl", "ab") as file:
        file.write(b'{"number": 2, "val')  # the room ended here
    resumed = list(_run(tmp_path / "out", "call", None, done))
    assert done == [0, 1, 2, 3]
    whole = list(_run(tmp_path / "whole", "call", None, []))
    assert resumed == whole, "to the bit"
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [f"{number}.txt" for number in range(4)]
    assert not (tmp_path / ".out.partial").exists()


def test_another_call_begins_anew(tmp_path):
    done = []
    with pytest.raises(KeyboardInterrupt):
        list(_run(tmp_path / "out", "one", 3, done))
    with pytest.raises(KeyboardInterrupt):
        list(_run(tmp_path / "out", "other", 1, done))
    assert done == [0, 1, 2, 0] and not (tmp_path / ".out.partial" / "2.txt").exists()
    with pytest.raises(KeyboardInterrupt):
        list(_run(tmp_path / "new", "one", 0, done))
    assert not (tmp_path / ".new.partial").exists(), "nothing was done"


def test_two_calls_at_a_time_do_not_mix(tmp_path):
    running = _run(tmp_path / "out", "one", done=(done := []))
    next(running)
    for call in ("one", "other"):
        with pytest.raises(FolderInUseError, match="out: another process is writing it; wait for it"):
            list(_run(tmp_path / "out", call))
    list(running)
    assert done == [0, 1, 2, 3] and (tmp_path / "out" / "0.txt").is_file()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out"]


def test_a_step_without_its_line_end_is_not_taken_for_whole(tmp_path):
    (tmp_path / "s").write_bytes(b"[1]\n[2]")
    assert Steps(tmp_path / "s").done == [[1]] and (tmp_path / "s").read_bytes() == b"[1]\n"


def test_a_lock_is_seen_and_ends_with_the_process_that_holds_it(tmp_path):
    lock = tmp_path / "new" / ".lock"
    assert not is_locked(lock) and not lock.parent.exists(), "asking makes nothing"
    start = "import sys, time; from pathlib import Path; from vfmgl_lib.base.files import locked\n"
    code = start + "with locked(Path(sys.argv[1]), ValueError()): print('locked', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, lock], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"locked\n"
        assert is_locked(lock)
        with pytest.raises(ValueError, match="taken"), locked(lock, ValueError("taken"), wait=0.1):
            pass
    finally:
        other.kill()
        other.wait()
    assert not is_locked(lock)
    with locked(lock, ValueError("taken")):
        assert is_locked(lock), "also from within this process"


def test_a_folder_s_content_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    """A failure of power after the renaming finds whole files."""
    done, fsync, replace = [], os.fsync, os.replace

    def recorded(descriptor):
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("renamed") or replace(*paths))
    with new_folder(tmp_path / "001") as part:
        (part / "tables").mkdir()
        for name in ("model.bin", "tables/faults.csv"):
            (part / name).write_text("content")
    before, after = done[: done.index("renamed")], done[done.index("renamed") + 1 :]
    assert {Path(name).name for name in before} >= {"model.bin", "faults.csv", "tables", part.name}
    assert after == [str(tmp_path)], "the new name itself"
