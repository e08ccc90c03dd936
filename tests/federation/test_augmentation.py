"""Turns and flips in training: who is turned how, that the teacher sees the same, and that a study stays reproducible."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vfmgl_lib.data.feature_cache import FeatureCache
from vfmgl_lib.data.loading import TURNED_SHARE, oriented
from vfmgl_lib.federation import client as client_module
from vfmgl_lib.federation.rounds import run_rounds
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.models.teachers import Teacher
from vfmgl_lib.study.workspace import open_workspace

TURNS = {"data__augmentation": "turns_and_flips"}


def seen(client, number=1, stage="I", epoch=0, shift=0):
    """row -> orientation of one epoch."""
    batches = [batch for _, _, batch in client._load(number, stage, epoch, shift)]
    pairs = [pair for batch in batches for pair in zip(batch["row"].tolist(), batch["orientation"].tolist(), strict=True)]
    assert sorted(row for row, _ in pairs) == list(range(len(client.data))), "every row once"
    return dict(pairs)


def test_only_the_prostate_task_turns_as_in_the_paper():
    augmented = {task: load_settings(task, "paper").data.augmentation for task in ("endometrial", "camelyon17", "prostate", "nuclei")}
    assert augmented == dict.fromkeys(augmented, "none") | {"prostate": "turns_and_flips"}


def test_without_augmentation_nothing_is_turned(federation):
    clients, _ = federation("nuclei")
    assert set(seen(clients[0]).values()) == {0}


def test_orientations_differ_between_rounds_stages_epochs_and_centres(federation):
    clients, _ = federation("nuclei", **TURNS)
    drawn = {
        (client.center, number, stage, epoch): tuple(orientation for _, orientation in sorted(seen(client, number, stage, epoch).items()))
        for client in clients
        for number, stage, epoch in ((1, "I", 0), (1, "I", 1), (2, "I", 0), (2, "II", 0))
    }
    assert len(set(drawn.values())) == len(drawn) == 8
    again, _ = federation("nuclei", **TURNS)
    assert seen(again[1], 2, "II") == dict(enumerate(drawn[again[1].center, 2, "II", 0])), "they depend on nothing else"


def test_the_share_of_turned_samples(federation):
    clients, _ = federation("nuclei", **TURNS)
    drawn = np.array([orientation for client in clients for number in range(1, 61) for orientation in seen(client, number).values()])
    assert len(drawn) == 480 and (drawn > 0).mean() == pytest.approx(TURNED_SHARE, abs=0.06)
    assert set(drawn) == set(range(8))


def test_batches_workers_and_their_order_do_not_matter(federation):
    found = []
    for options in ({}, {"optimizer__batch_size": 5}, {"data__workers": 2}):
        (client, *_), _ = federation("nuclei", **TURNS, **options)
        found.append(seen(client, 2))
    assert found[0] == found[1] == found[2] == seen(client, 2, shift=1) and set(found[0].values()) != {0}


def test_image_mask_and_the_teachers_image_are_turned_alike(federation):
    (client, *_), _ = federation("nuclei", **TURNS)
    turned = 0
    for images, target, batch in client._load(1, "I", 0):
        for position, (row, orientation) in enumerate(zip(batch["row"].tolist(), batch["orientation"].tolist(), strict=True)):
            plain = client.data[row]
            turned += orientation > 0
            assert torch.equal(images[position], oriented(plain["image"], orientation))
            assert torch.equal(target[position], oriented(plain["target"], orientation))
            assert torch.equal(batch["teacher_image"][position], oriented(plain["teacher_image"], orientation))
    assert turned


def test_the_next_batch_holds_the_very_versions_that_follow(federation):
    (client, *_), _ = federation("nuclei", **TURNS, transfer__outer_batch="next")
    batches = list(client._stage_one_batches(1))
    assert len(batches) == 2 and any(batch["orientation"].any() for _, _, batch, _ in batches)
    for (_, _, _, held_out), (images, target, _, _) in zip(batches, batches[1:] + batches[:1], strict=True):
        assert torch.equal(held_out[0], images) and torch.equal(held_out[1], target)


def test_the_cache_holds_one_entry_per_image_and_orientation(federation, teacher, tmp_path, monkeypatch):
    given, stacks = [], client_module.teacher_stacks

    def recorded(teacher, images, hashes, cache, orientations):
        found = stacks(teacher, images, hashes, cache, orientations)
        plain = stacks(teacher, images, hashes)
        assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True)), "features of the turned image itself"
        given.extend(zip(hashes, orientations, strict=True))
        return found

    monkeypatch.setattr(client_module, "teacher_stacks", recorded)
    clients, server = federation("nuclei", **TURNS)
    for client in clients:
        client.cache = FeatureCache(tmp_path, teacher.identity, teacher.stack_shapes, 2**30)
    list(run_rounds(clients, server, 3))
    assert len(given) == 3 * sum(len(client.data) + len(client.validation) for client in clients)
    assert len(list(tmp_path.rglob("*.bin"))) == len(set(given)) > len({name for name, _ in given})


def workspace(runs, **changes):
    profile = Path(__file__).parents[1] / "smallest.yaml"
    return open_workspace("prostate", profile, runs=runs, transfer__outer_batch="next", **changes)


def results(folder):
    """Everything of a study that is a result: tables without wall-clock times, checkpoints, masks."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.suffix == ".csv":
            header, *lines = [line.split(",") for line in file.read_text().splitlines()]
            kept = [index for index, column in enumerate(header) if column != "seconds"]
            found[name] = [[line[index] for index in kept if index < len(line)] for line in lines]
        elif file.is_file() and file.name not in ("environment.json", "config.json", ".lock"):
            found[name] = file.read_bytes()
    return found


KILLED = """
import os, signal, sys
from pathlib import Path
from vfmgl_lib.federation import client
from vfmgl_lib.study.workspace import open_workspace
stage_two, calls = client.run_stage_two, []
def dies(*arguments):
    calls.append(1)
    if len(calls) == 2:  # in round 2, with the second centre half done
        os.kill(os.getpid(), signal.SIGKILL)
    return stage_two(*arguments)
client.run_stage_two = dies
open_workspace("prostate", Path(sys.argv[2]), runs=sys.argv[1], transfer__outer_batch="next").run()
"""


@pytest.mark.slow
def test_a_study_is_the_same_with_and_without_cache_and_after_a_kill(tmp_path, monkeypatch):
    calls, forward = [], Teacher.forward
    monkeypatch.setattr(Teacher, "forward", lambda self, images: calls.append(len(images)) or forward(self, images))
    undisturbed, counts = {}, {}
    for name, gib in (("with", 1), ("without", 0)):
        opened = workspace(tmp_path / name, teacher__cache_gib=gib)
        assert opened.settings.data.augmentation == "turns_and_flips" and opened.manifest.task_kind == "segmentation"
        calls.clear()
        undisturbed[name] = opened.run()
        counts[name] = sum(calls)
    one, other = (results(study.folder) for study in undisturbed.values())
    assert [name for name in one if name.endswith(".safetensors")] and one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == [] and counts["with"] < counts["without"]
    environment = os.environ | {"PYTHONPATH": str(Path(client_module.__file__).parents[2])}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(Path(__file__).parents[1] / "smallest.yaml")]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    resumed = workspace(tmp_path / "killed").run()
    assert resumed.folder.name == undisturbed["with"].folder.name
    found = results(resumed.folder)
    assert found.keys() == one.keys() and [name for name in one if one[name] != found[name]] == []
