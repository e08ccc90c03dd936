"""Files are whole or not there."""

import os

import pytest
import torch

from vfmgl_lib.base.checkpoint import CheckpointError, load_tensors, save_tensors
from vfmgl_lib.base.files import new_folder, write_json, write_text


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "replace", lambda *arguments: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_appears_only_when_its_block_ended_well(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "001") as part:
        write_json(part / "x.json", {})
        raise RuntimeError
    assert not (tmp_path / "001").exists()
    with new_folder(tmp_path / "001") as part:
        assert list(part.iterdir()) == [], "what a failed block left is discarded"
        write_json(part / "y.json", {"é": 1})
    assert [p.name for p in (tmp_path / "001").iterdir()] == ["y.json"]


def test_tensors_round_trip_bitwise_and_every_damage_is_named(tmp_path):
    state = {"a": torch.randn(3, 4), "count": torch.tensor(7), "view": torch.arange(6.0).view(2, 3).T}
    save_tensors(tmp_path, {"center Ä": state})
    loaded = load_tensors(tmp_path, "center Ä")
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[name], state[name]) for name in state)
    file = tmp_path / "center Ä.safetensors"
    content = bytearray(file.read_bytes())
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b""):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"center Ä\.safetensors: truncated or altered"):
            load_tensors(tmp_path, "center Ä")
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tensors(tmp_path, "center Ä")
