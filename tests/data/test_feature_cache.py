"""The cache gives back what was computed, notices damage, keeps to its limit, and changes nothing in a study."""

import logging
import multiprocessing
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vfmgl_lib.config.sections import ComputeSettings
from vfmgl_lib.data import feature_cache as module
from vfmgl_lib.data.feature_cache import HEADER, FeatureCache, FeatureRangeError, teacher_stacks
from vfmgl_lib.data.images import PLAIN, Reading
from vfmgl_lib.data.loading import oriented
from vfmgl_lib.models.teachers import Teacher
from vfmgl_lib.study.assembly import feature_cache
from vfmgl_lib.study.workspace import open_workspace

IDENTITY = "0123456789abcdef" * 4
SHAPES = [(2, 3, 4), (1, 5, 2)]
ENTRY = HEADER + 2 * (2 * 3 * 16 + 5 * 4)
HASHES = [f"{number:064x}" for number in range(9)]


class Features:
    """A teacher whose stacks depend on the image alone; it counts the images of every call."""

    def __init__(self, scale=1.0):
        self.scale, self.calls = scale, []

    def __call__(self, images):
        self.calls.append(len(images))
        level = self.scale * images.flatten(1).sum(1)
        return [
            torch.sin(level[:, None] + torch.arange(96.0)).view(-1, 2, 3, 4, 4) * 7,
            (level[:, None] * torch.ones(20)).view(-1, 1, 5, 2, 2),
        ]


def images(count=9):
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def cache(folder, limit=10**6, identity=IDENTITY, **options):
    return FeatureCache(folder, identity, SHAPES, limit, **options)


def equal(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


def files(folder):
    return sorted(folder.rglob("*.bin"))


def test_with_and_without_the_cache_features_are_bitwise_the_same_and_rounded(tmp_path):
    x, teacher = images(4), Features()
    plain = teacher_stacks(teacher, x, HASHES[:4])
    first, second = (teacher_stacks(teacher, x, HASHES[:4], cache(tmp_path)) for _ in range(2))
    assert equal(plain, first) and equal(plain, second) and teacher.calls == [4, 4], "the third time nothing is computed"
    assert all(stack.dtype == torch.float32 for stack in plain)
    exact = teacher(x)
    assert equal(plain, [stack.half().float() for stack in exact]) and not equal(plain, exact)


def test_only_what_is_missing_is_computed_and_everything_keeps_its_place(tmp_path):
    x, teacher = images(), Features()
    expected = teacher_stacks(teacher, x, HASHES)
    store = cache(tmp_path)
    teacher_stacks(teacher, x[2:5], HASHES[2:5], store)
    order = [4, 0, 3, 8, 2]
    mixed = teacher_stacks(teacher, x[order], [HASHES[i] for i in order], store)
    assert teacher.calls == [9, 3, 2]
    assert equal(mixed, [stack[order] for stack in expected])


def test_what_was_read_is_the_readers_own(tmp_path):
    x, teacher, store = images(1), Features(), cache(tmp_path)
    one, *_ = (teacher_stacks(teacher, x, HASHES[:1], store)[0] for _ in range(2))
    kept = one.clone()
    one.mul_(0)
    store.stacks(HASHES[:1], lambda positions: pytest.fail("computed"))[0].mul_(0)
    assert torch.equal(teacher_stacks(teacher, x, HASHES[:1], store)[0], kept)


def test_one_entry_per_image_teacher_orientation_preparation_and_computation(tmp_path, monkeypatch):
    store = cache(tmp_path)
    keys = {store.key(HASHES[0], orientation) for orientation in range(8)} | {store.key(HASHES[1])}
    keys.add(cache(tmp_path, identity="f" * 64).key(HASHES[0]))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)  # the last bits of a convolution depend on it
    keys.add(store.key(HASHES[0]))
    torch.set_num_threads(threads)
    monkeypatch.setattr(module, "PREPARATION", "next")
    keys.add(store.key(HASHES[0]))
    monkeypatch.undo()
    monkeypatch.setattr(module, "_computation", lambda device: f"other software on {device}")
    keys.add(cache(tmp_path).key(HASHES[0]))
    assert len(keys) == 13
    first = store.file(store.key(HASHES[0]))
    assert first.parent.parent == tmp_path / IDENTITY[:16] and first.name.startswith(first.parent.name)
    half = [torch.zeros(1, *shape, shape[-1], dtype=torch.float16) for shape in SHAPES]
    for orientation in range(8):
        store.stacks(HASHES[:1], lambda positions, turn=orientation: [stack + turn for stack in half], [orientation])
    for orientation in range(8):
        assert (store.stacks(HASHES[:1], pytest.fail, [orientation])[1] == orientation).all()


def truncate(content):
    return content[:-10]


def empty(content):
    return b""


def flip_a_feature_bit(content):
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


def flip_a_header_bit(content):
    return content[:20] + bytes([content[20] ^ 4]) + content[21:]


def lengthen(content):
    return content + b"\0"


def older_layout(content):
    return b"VFMGLF00" + content[8:]


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_feature_bit, flip_a_header_bit, lengthen, older_layout])
def test_a_damaged_file_is_reported_computed_again_and_replaced(tmp_path, damage, caplog):
    x, teacher, store = images(3), Features(), cache(tmp_path)
    expected = teacher_stacks(teacher, x, HASHES[:3], store)
    file = store.file(store.key(HASHES[1]))
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert equal(teacher_stacks(teacher, x, HASHES[:3], store), expected) and teacher.calls == [3, 1]
    assert [file.name in record.getMessage() and "computed again" in record.getMessage() for record in caplog.records] == [True]
    assert file.read_bytes() == whole
    assert equal(teacher_stacks(teacher, x, HASHES[:3], store), expected) and teacher.calls == [3, 1]


def test_the_file_of_another_image_is_not_taken(tmp_path, caplog):
    x, teacher, store = images(2), Features(), cache(tmp_path)
    expected = teacher_stacks(teacher, x, HASHES[:2], store)
    one, other = (store.file(store.key(image)) for image in HASHES[:2])
    one.write_bytes(other.read_bytes())
    assert equal(teacher_stacks(teacher, x, HASHES[:2], store), expected) and "altered" in caplog.text


def test_at_the_limit_it_says_so_once_and_goes_on_computing(tmp_path, caplog):
    x, teacher = images(), Features()
    expected = teacher_stacks(teacher, x, HASHES)
    store = cache(tmp_path, limit=4 * ENTRY + ENTRY // 2)
    for _ in range(3):
        assert equal(teacher_stacks(teacher, x, HASHES, store), expected)
    assert teacher.calls == [9, 9, 5, 5], "what is in the cache stays in use"
    assert len(files(tmp_path)) == 4 and sum(file.stat().st_size for file in files(tmp_path)) == 4 * ENTRY
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "teacher.cache_gib" in warning and str(tmp_path) in warning and f"{store.limit_bytes / 2**30:g} GiB" in warning


def test_the_limit_holds_for_all_teachers_and_for_what_others_wrote_meanwhile(tmp_path):
    x, teacher = images(), Features()
    limit = 4 * ENTRY
    one, other = cache(tmp_path, limit), cache(tmp_path, limit, identity="f" * 64)
    teacher_stacks(teacher, x[:3], HASHES[:3], one)
    teacher_stacks(teacher, x, HASHES, other)
    assert len(files(tmp_path)) == 4
    teacher_stacks(teacher, x, HASHES, cache(tmp_path, limit))
    assert len(files(tmp_path)) == 4


def test_a_folder_that_cannot_be_written_is_named_once(tmp_path, caplog):
    (tmp_path / IDENTITY[:16]).write_text("in the way")
    x, teacher, store = images(), Features(), cache(tmp_path)
    for _ in range(2):
        assert equal(teacher_stacks(teacher, x, HASHES, store), teacher_stacks(teacher, x, HASHES))
    stored = [record.getMessage() for record in caplog.records if "cannot be written" in record.getMessage()]
    assert len(stored) == 1 and str(tmp_path) in stored[0]


@pytest.mark.parametrize("with_cache", [False, True])
@pytest.mark.parametrize(("scale", "named"), [(1e5, r"largest magnitude is [\d.e+]+\."), (1e40, "nan")])
def test_features_that_float16_cannot_hold_are_an_error(tmp_path, scale, named, with_cache):
    with pytest.raises(FeatureRangeError, match=rf"teacher stack [01]: .*±65504.*{named}"):
        teacher_stacks(Features(scale), images(2), HASHES[:2], cache(tmp_path) if with_cache else None)
    assert not files(tmp_path)


def test_wrong_arguments_are_named(tmp_path):
    store = cache(tmp_path)
    with pytest.raises(ValueError, match="image_hash must be a SHA-256, 64 hex digits, got ''"):
        store.key("")
    with pytest.raises(ValueError, match="orientation must be 0 to 7, got 8"):
        store.key(HASHES[0], 8)
    with pytest.raises(ValueError, match="limit_bytes must be at least 1, got 0"):
        cache(tmp_path, limit=0)
    with pytest.raises(ValueError, match=r"teacher_identity must be a hash .* got '\.\./\.\.'"):
        cache(tmp_path, identity="../..")
    with pytest.raises(ValueError, match=r"must give float16 stacks \[\(1, 2, 3, 4, 4\)"):
        store.stacks(HASHES[:1], lambda positions: [torch.zeros(1, 1, 3, 4, 4).half(), torch.zeros(1, 1, 5, 2, 2).half()])


def _write_and_check(folder, start):
    teacher, x = Features(), images()
    expected = teacher_stacks(teacher, x, HASHES)
    start.wait()
    for _ in range(15):
        for file in files(folder):
            file.unlink(missing_ok=True)  # so that both go on writing the same keys, and each reads what the other writes
        if not equal(teacher_stacks(teacher, x, HASHES, cache(folder)), expected):
            os._exit(1)


def test_two_processes_with_the_same_keys(tmp_path):
    context = multiprocessing.get_context("fork")
    start = context.Event()
    both = [context.Process(target=_write_and_check, args=(tmp_path, start)) for _ in range(2)]
    for process in both:
        process.start()
    start.set()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".bin"], "nothing partial is left"


def _killed_before_renaming(folder):
    os.replace = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
    teacher_stacks(Features(), images(1), HASHES[:1], cache(folder))


def test_a_process_killed_while_writing_leaves_nothing_that_is_taken_for_features(tmp_path):
    killed = multiprocessing.get_context("fork").Process(target=_killed_before_renaming, args=(tmp_path,))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL and not files(tmp_path)
    teacher = Features()
    assert equal(teacher_stacks(teacher, images(1), HASHES[:1], cache(tmp_path)), teacher_stacks(teacher, images(1), HASHES[:1]))
    assert teacher.calls == [1, 1] and len(files(tmp_path)) == 1


def test_features_are_mapped_not_loaded(tmp_path):
    store = cache(tmp_path)
    teacher_stacks(Features(), images(1), HASHES[:1], store)
    mapped = store._read(store.key(HASHES[0]))
    assert isinstance(mapped, np.memmap) and mapped.dtype == np.float16 and not mapped.flags.writeable


STUDY = {
    "transfer__projection": "sgd",  # a fit by ridge regression, and the channels' scale, call the teacher once more
    "transfer__teacher_scale": "none",
    "teacher": "random:vit_tiny_patch16_224",
    "teacher__grid": 2,
    "teacher__blocks": (1, 2),
    "data__image_size": 32,
    "data__validation_share": 0.0,
    "student__width": 4,
    "optimizer__lr": 0.005,
    "federation__rounds": 2,
    "phantoms__centers": 2,
    "phantoms__image_size": 32,
    "phantoms__samples": {"train": 5, "val": 2, "test": 2},
    "optimizer__batch_size": 2,
}


def _results(folder):
    """Everything of a study that is a result: tables (without wall-clock times), checkpoints, masks."""
    results = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.suffix == ".csv":
            header, *lines = [line.split(",") for line in file.read_text().splitlines()]
            kept = [index for index, column in enumerate(header) if column != "seconds"]
            results[name] = [[line[index] for index in kept if index < len(line)] for line in lines]
        elif file.is_file() and file.name not in ("environment.json", "config.json", ".lock"):
            results[name] = file.read_bytes()
    return results


def test_a_study_is_bitwise_the_same_and_calls_the_teacher_in_its_first_epoch_only(tmp_path, monkeypatch):
    calls, forward = [], Teacher.forward
    monkeypatch.setattr(Teacher, "forward", lambda self, images: calls.append(len(images)) or forward(self, images))
    done, counts = {}, {}
    for name, gib in (("without", 0), ("with", 1)):
        workspace = open_workspace("nuclei", "smoke", runs=tmp_path / name, teacher__cache_gib=gib, **STUDY)
        calls.clear()
        done[name] = workspace.run()
        counts[name] = calls[1:]  # the first call is the constructor's, for the shapes
    assert done["with"].folder.name == done["without"].folder.name, "the cache is no part of a study's key"
    one, other = (_results(study.folder) for study in done.values())
    assert [name for name in one if name.endswith(".safetensors")] and one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    batches = sum(len(done["with"].batch_ids(center, 1, "I")) for center in workspace.manifest.centers)
    # R2 of the projections is measured on the validation images, once a round: one more batch a centre here.
    held_out = [len(workspace.manifest.select(center, "val")) for center in workspace.manifest.centers]
    batches += sum(count > 1 for count in held_out)
    images = int((workspace.manifest.table["split"] == "train").sum()) + sum(count for count in held_out if count > 1)
    assert len(counts["without"]) == 2 * batches and sum(counts["without"]) == 2 * images, "one forward a batch, in each of two rounds"
    assert len(counts["with"]) == batches and sum(counts["with"]) == images, "one forward a batch in the first round, none in the second"
    assert not (tmp_path / "without" / "teacher_cache").exists()
    assert len(files(tmp_path / "with" / "teacher_cache")) == images
    calls.clear()
    workspace.run("hgkt")
    assert calls[1:] == [], "another study of the same teacher finds everything"


class Places(Features):
    """A teacher whose maps depend on where a pixel lies, as a vision transformer's do: turned maps are not the maps of a turned image."""

    def __call__(self, images):
        self.calls.append(len(images))
        weighted = images * torch.linspace(0.5, 2, 16).view(4, 4)
        return [torch.stack([images, weighted], 1), weighted.sum(1)[:, None, None, :2, :2].expand(-1, 1, 5, -1, -1)]


def turned(x, orientations):
    return torch.stack([oriented(image, orientation) for image, orientation in zip(x, orientations, strict=True)])


def test_each_image_of_a_batch_has_the_features_of_its_own_orientation(tmp_path):
    x, teacher, store = images(3), Places(), cache(tmp_path)
    kinds = [(row, orientation) for row in range(3) for orientation in range(8)]
    rows, orientations = zip(*kinds, strict=True)
    seen, hashes = turned(x[list(rows)], orientations), [HASHES[row] for row in rows]
    expected = teacher_stacks(teacher, seen, hashes)
    assert equal(expected, teacher_stacks(teacher, seen, hashes, store, orientations)) and teacher.calls == [24, 24]
    assert len(files(tmp_path)) == 24, "one entry an image and orientation"
    for order in (range(23, -1, -1), [5, 5, 13, 0]):
        found = teacher_stacks(teacher, seen[list(order)], [hashes[i] for i in order], store, [orientations[i] for i in order])
        assert equal(found, [stack[list(order)] for stack in expected])
    assert teacher.calls == [24, 24], "everything was found"
    maps = [oriented(expected[0][0], orientation) for orientation in range(8)]
    assert [torch.equal(maps[orientation], expected[0][orientation]) for orientation in range(8)] == [True] + [False] * 7


def test_an_orientation_is_not_taken_for_another(tmp_path):
    x, teacher, store = images(2), Places(), cache(tmp_path)
    teacher_stacks(teacher, turned(x, (3, 0)), HASHES[:2], store, (3, 0))
    for orientations, missing in (((0, 3), 2), ((3, 5), 1), ((3, 0), 0), (None, 0)):
        teacher.calls.clear()
        seen = turned(x, orientations or (0, 0))
        found = teacher_stacks(teacher, seen, HASHES[:2], store, orientations)
        assert teacher.calls == ([missing] if missing else []) and equal(found, teacher_stacks(teacher, seen, HASHES[:2]))
    with pytest.raises(ValueError, match=r"zip\(\)"):
        store.stacks(HASHES[:2], pytest.fail, (1,))


def test_images_that_are_read_otherwise_have_other_features(tmp_path):
    settings = SimpleNamespace(
        teacher=SimpleNamespace(cache_gib=1), compute=ComputeSettings.model_construct(compile_teacher=False), device="cpu"
    )
    teacher = SimpleNamespace(identity=IDENTITY, stack_shapes=SHAPES)
    readings = [PLAIN, Reading(4095), Reading(65535), Reading(background="black")]
    keys = [feature_cache(settings, teacher, tmp_path, reading).key(HASHES[0]) for reading in readings]
    assert len(set(keys)) == 4 and keys[0] == feature_cache(settings, teacher, tmp_path).key(HASHES[0])
