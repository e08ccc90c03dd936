"""Teachers load from every source they promise, are frozen, and say what is wrong with what cannot be loaded."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import timm
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import save_file

from vfmgl_lib.models import teachers
from vfmgl_lib.models.teacher_names import POCKET_FILE, TeacherError, TeacherSource
from vfmgl_lib.models.teachers import POCKET_ARGUMENTS, doubts_about, first_available, load_teacher
from vfmgl_lib.models.weights import read_metadata
from vfmgl_lib.tools.pretrain.training import MODEL_ARGS

ARGUMENTS = {"embed_dim": 24, "depth": 6, "num_heads": 2, "img_size": 56}
NAME = "vit_small_patch14_dinov2"


def _vit():
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=0, dynamic_img_size=True, **ARGUMENTS).eval()


def _write(vit, path, metadata=None):
    save_file({name: tensor.contiguous() for name, tensor in vit.state_dict().items()}, path, metadata=metadata)
    return path


def _expected(vit, images, blocks, mean, std):
    """The written definition: patch tokens after the blocks, through the final norm, as maps."""
    images = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    tokens = vit._pos_embed(vit.patch_embed(images))
    maps = []
    for number, block in enumerate(vit.blocks, start=1):
        tokens = block(tokens)
        if number in blocks:
            patches = vit.norm(tokens)[:, vit.num_prefix_tokens :]
            side = int(patches.shape[1] ** 0.5)
            maps.append(patches.mT.reshape(len(images), -1, side, side))
    return torch.stack(maps, 1)


@pytest.mark.parametrize(
    ("text", "name", "weights"),
    [
        ("vit_base_patch14_dinov2.lvd142m", "vit_base_patch14_dinov2.lvd142m", "hub"),
        ("pocket_vit", "", str(POCKET_FILE)),
        ("some/file.safetensors", "", "some/file.safetensors"),
        ("resnet18=some/file.pth", "resnet18", "some/file.pth"),
    ],
)
def test_source_text(text, name, weights):
    assert TeacherSource.parse(text) == TeacherSource(name, weights)
    assert TeacherSource.parse(f"random:{text}") == TeacherSource(name, weights, random=True)


def test_self_describing_file_gives_the_written_features(tmp_path):
    vit = _vit()
    metadata = {"architecture": NAME, "model_args": json.dumps(ARGUMENTS), "mean": "[0.1, 0.2, 0.3]", "std": "[0.5, 0.4, 0.3]"}
    teacher = load_teacher(str(_write(vit, tmp_path / "teacher.safetensors", metadata)), grid=4)
    assert teacher.blocks == (1, 2, 4, 6) and teacher.stack_shapes == [(4, 24, 4)] and teacher.image_size == 56
    images = torch.rand(2, 3, 56, 56)
    (stack,) = teacher(images)
    with torch.no_grad():
        torch.testing.assert_close(stack, _expected(vit, images, teacher.blocks, [0.1, 0.2, 0.3], [0.5, 0.4, 0.3]))


def test_default_blocks_of_twelve_are_the_papers():
    assert load_teacher("random:vit_tiny_patch16_224", grid=2).blocks == (1, 4, 8, 12)


def test_original_dinov2_layout_equals_timms(tmp_path):
    """The original files carry a mask token and are read with weights_only."""
    vit = _vit()
    original = {**vit.state_dict(), "mask_token": torch.zeros(1, 24)}
    torch.save(original, tmp_path / "dinov2.pth")
    one = load_teacher(f"{NAME}={tmp_path / 'dinov2.pth'}", grid=4, model_args=ARGUMENTS)
    other = load_teacher(f"{NAME}={_write(vit, tmp_path / 'timm.safetensors')}", grid=4, model_args=ARGUMENTS)
    images = torch.rand(1, 3, 56, 56)
    torch.testing.assert_close(one(images)[0], other(images)[0])
    assert one.identity == other.identity


def test_register_tokens_are_no_patches(tmp_path):
    arguments = ARGUMENTS | {"img_size": 28}
    registers = "vit_small_patch14_reg4_dinov2"
    torch.manual_seed(0)
    vit = timm.create_model(registers, num_classes=0, dynamic_img_size=True, **arguments).eval()
    teacher = load_teacher(f"{registers}={_write(vit, tmp_path / 'reg.safetensors')}", grid=2, model_args=arguments)
    assert teacher.stack_shapes == [(4, 24, 2)]


def test_another_grid_interpolates_the_positions():
    teacher = load_teacher("random:vit_tiny_patch16_224", grid=3, blocks=(2, 5))
    assert teacher.stack_shapes == [(2, 192, 3)] and teacher(torch.rand(1, 3, 100, 100))[0].shape == (1, 2, 192, 3, 3)


def test_cnn_levels_are_a_stack_each():
    teacher = load_teacher("random:resnet18", grid=4)
    assert teacher.image_size == 64 and teacher.stack_shapes == [(1, 64, 16), (1, 128, 8), (1, 256, 4), (1, 512, 2)]
    assert teacher.block_names == ["stride 4", "stride 8", "stride 16", "stride 32"]


def test_frozen_for_good():
    teacher = load_teacher("random:resnet18", grid=2).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    stacks = teacher(torch.rand(2, 3, 32, 32, requires_grad=True))
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert not any(stack.requires_grad for stack in stacks)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("name", ["mobilenetv2_100", "vit_tiny_patch16_224"])
def test_the_features_of_an_image_do_not_depend_on_its_batch(name):
    teacher = load_teacher(f"random:{name}", grid=8)
    images = torch.rand(16, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    for size in (1, 3, 5):
        parts = [teacher(part) for part in images.split(size)]
        assert all(torch.equal(torch.cat(stack), whole) for *stack, whole in zip(*parts, teacher(images), strict=True))


def test_random_weights_are_said_and_repeatable():
    one, other = (load_teacher("random:vit_tiny_patch16_224", grid=2) for _ in range(2))
    assert "RANDOM" in one.description and one.identity == other.identity
    assert one.identity != load_teacher("random:vit_tiny_patch16_224", grid=3).identity


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("no_such_model", {}, "'no_such_model' is not a timm model"),
        ("random:resnet18.no_tag", {}, "'resnet18.no_tag': timm has no such weights of resnet18; there are resnet18.a1_in1k"),
        (
            "random:vit_tiny_patch16_224",
            {"image_size": 100},
            "image_size 100: vit_tiny_patch16_224 needs a multiple of 16, e.g. 96",
        ),
        ("random:resnet18", {"grid": 3}, r"teacher.grid 3 \(side 48\): resnet18 needs a multiple of 32"),
        ("random:vit_tiny_patch16_224", {"grid": 2, "blocks": (1, 13)}, r"teacher.blocks \[1, 13\]: .* has blocks 1 to 12"),
        ("nothing.safetensors", {}, "nothing.safetensors: no such file"),
        ("resnet18=nothing.pth", {}, "nothing.pth: no such file"),
    ],
)
def test_bad_requests_are_named(text, arguments, message):
    with pytest.raises(TeacherError, match=message):
        load_teacher(text, **arguments)


def test_weights_that_do_not_fit_are_named(tmp_path):
    vit = _vit()
    plain = _write(vit, tmp_path / "plain.safetensors")
    with pytest.raises(TeacherError, match="does not name its architecture"):
        load_teacher(str(plain))
    with pytest.raises(TeacherError, match=r"plain.safetensors do not fit vit_tiny_patch16_224"):
        load_teacher(f"vit_tiny_patch16_224={plain}", grid=2)
    short = {name: tensor for name, tensor in vit.state_dict().items() if not name.startswith("blocks.3")}
    save_file(short, tmp_path / "short.safetensors")
    with pytest.raises(TeacherError, match=r"missing \['blocks.3"):
        load_teacher(f"{NAME}={tmp_path / 'short.safetensors'}", grid=4, model_args=ARGUMENTS)


def test_truncated_files_are_named(tmp_path):
    vit = _vit()
    whole = _write(vit, tmp_path / "whole.safetensors")
    (tmp_path / "part.safetensors").write_bytes(whole.read_bytes()[:-50])
    torch.save(vit.state_dict(), tmp_path / "whole.pth")
    (tmp_path / "part.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    for name in ("part.safetensors", "part.pth"):
        with pytest.raises(TeacherError, match=name):
            load_teacher(f"{NAME}={tmp_path / name}", grid=4, model_args=ARGUMENTS)


class _Evil:
    def __reduce__(self):
        return (exec, ("open('executed', 'w').close()",))


def test_a_crafted_pickle_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"weight": _Evil()}))
    with pytest.raises(TeacherError, match=r"evil.pth: refused"):
        load_teacher("resnet18=evil.pth", grid=2)
    assert not (tmp_path / "executed").exists()


@pytest.mark.real_data
def test_the_real_mobilenet_loads_and_tells_photographs_apart(real_data_root):
    file = real_data_root.parent / "weights" / "mobilenetv2_100_imagenet.safetensors"
    if not file.is_file():
        pytest.skip(f"no teacher weights at {file}")
    teacher = load_teacher(str(file), grid=8)
    assert teacher.mean.flatten().tolist() == teacher.std.flatten().tolist() == [0.5] * 3
    assert [shape[:2] for shape in teacher.stack_shapes] == [(1, 24), (1, 32), (1, 96), (1, 320)]
    flat, noisy = torch.full((1, 3, 128, 128), 0.5), torch.rand(1, 3, 128, 128)
    assert all(torch.isfinite(a).all() and not torch.allclose(a, b) for a, b in zip(teacher(flat), teacher(noisy), strict=True))


@pytest.mark.slow
def test_compiled_teacher_gives_the_same_features():
    teacher = load_teacher("random:test_vit", grid=2)
    images = torch.rand(2, 3, teacher.image_size, teacher.image_size, generator=torch.Generator().manual_seed(0))
    expected = teacher(images)
    for stack, reference in zip(teacher.compiled()(images), expected, strict=True):
        torch.testing.assert_close(stack, reference, rtol=1e-4, atol=1e-4)


def test_the_identity_knows_what_the_weights_do_not_say(tmp_path):
    """The number of heads is in no shape; features kept for one must not be taken for the other's."""
    vit, files = _vit(), []
    for heads in (2, 4):
        metadata = {"architecture": NAME, "model_args": json.dumps(ARGUMENTS | {"num_heads": heads})}
        files.append(str(_write(vit, tmp_path / f"{heads}.safetensors", metadata)))
    two, four = (load_teacher(file, grid=2) for file in files)
    images = torch.rand(1, 3, 28, 28)
    assert not torch.equal(two(images)[0], four(images)[0]) and two.identity != four.identity
    assert two.identity == load_teacher(files[0], grid=2).identity
    assert two.identity == load_teacher(f"{NAME}={files[0]}", grid=2).identity
    metadata = read_metadata(POCKET_FILE)
    assert json.loads(metadata["model_args"]) == POCKET_ARGUMENTS == MODEL_ARGS, "those of the identities that results name"


def test_the_pocket_teacher_is_small_says_so_and_is_checked(tmp_path, monkeypatch):
    teacher = load_teacher("pocket_vit", grid=4)
    assert teacher.stack_shapes == [(4, 160, 4)] and teacher.blocks == (1, 2, 5, 8)
    assert sum(p.numel() for p in teacher.backbone.parameters()) <= 3e6 and POCKET_FILE.stat().st_size <= 6 * 2**20
    assert teacher.description == "pocket_vit, pre-trained on drawn images alone, 64 x 64"
    assert teacher.identity == load_teacher(str(POCKET_FILE), grid=4).identity, "the same by name and by file"
    damaged = bytearray(POCKET_FILE.read_bytes())
    damaged[-1] ^= 1
    (tmp_path / POCKET_FILE.name).write_bytes(damaged)
    shutil.copy(POCKET_FILE.with_suffix(".sha256"), tmp_path)
    monkeypatch.setattr(teachers, "POCKET_FILE", tmp_path / POCKET_FILE.name)
    with pytest.raises(TeacherError, match=r"pocket_vit.safetensors is missing or damaged .*restore it with git"):
        load_teacher("pocket_vit")


def test_a_second_choice_is_taken_where_the_hub_is_out_of_reach_and_nothing_is_cached(monkeypatch):
    both = f"{NAME} else pocket_vit"
    reach = {"cached": False, "answers": False}
    monkeypatch.setattr(teachers, "is_cached", lambda repository: reach["cached"])
    monkeypatch.setattr(teachers, "_hub_refusal", lambda repository: "" if reach["answers"] else "the hub is out of reach")
    assert first_available(both) == "pocket_vit" and first_available(NAME) == NAME
    for what in reach:
        reach[what] = True
        assert first_available(both) == NAME
        reach[what] = False
    assert first_available("random:resnet18 else pocket_vit") == "random:resnet18"


@pytest.mark.parametrize("name", ["vit_bse_patch14_dinov2.lvd142m", "vit_base_patch14_dinov2.lvd142"])
def test_a_mistyped_first_choice_is_named_and_not_taken_for_one_out_of_reach(name):
    with pytest.raises(TeacherError, match=f"teacher '{name}'"):
        first_available(f"{name} else pocket_vit")


def test_the_hub_is_asked_for_a_moment_only_and_what_it_says_is_passed_on(monkeypatch, caplog):
    def out_of_reach(url, timeout):
        assert url.endswith("/a/b/resolve/main/config.json") and timeout <= 5
        raise OSError("no route")

    def gated(url, timeout):
        raise GatedRepoError("401", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(teachers, "is_cached", lambda repository: False)
    for answer, said in ((out_of_reach, "the hub is out of reach"), (gated, r"the hub has or gives no a/b \(GatedRepoError\)")):
        monkeypatch.setattr(teachers.huggingface_hub, "get_hf_file_metadata", answer)
        caplog.clear()
        assert first_available("hf-hub:a/b else pocket_vit") == "pocket_vit" and re.search(said, caplog.text)
    assert first_available("vit_base_patch16_18x2_224 else pocket_vit") == "pocket_vit" and "timm knows none on the hub" in caplog.text
    monkeypatch.setattr(teachers.huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
    assert first_available("hf-hub:a/b else pocket_vit") == "hf-hub:a/b"


def test_a_repository_of_the_hub_by_its_name(tmp_path):
    """Out of the hub's own cache, in another process: its client reads where that is when it is imported."""
    snapshot = tmp_path / "hub" / "models--some--vit" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("1")
    vit = _vit()
    _write(vit, snapshot / "model.safetensors")
    usual = timm.get_pretrained_cfg(NAME)
    normalisation = {"mean": usual.mean, "std": usual.std}
    config = {"architecture": NAME, "num_classes": 0, "model_args": ARGUMENTS, "pretrained_cfg": normalisation}
    (snapshot / "config.json").write_text(json.dumps(config))
    code = """
from vfmgl_lib.models.teacher_names import TeacherError
from vfmgl_lib.models.teachers import architecture, load_teacher
teacher = load_teacher("hf-hub:some/vit", grid=4)
print(teacher.description, teacher.stack_shapes, teacher.identity, architecture("hf-hub:some/vit")[0])
try:
    load_teacher("hf-hub:some/other")
except TeacherError as error:
    print(error)
"""
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    identity = load_teacher(f"{NAME}={snapshot / 'model.safetensors'}", grid=4, model_args=ARGUMENTS).identity
    found, refused = run.stdout.splitlines() or [run.stderr, ""]
    assert found == f"hf-hub:some/vit, weights from the hub, 56 x 56 [(4, 24, 4)] {identity} {NAME}"
    assert re.match("teacher hf-hub:some/other: its weights could not be had from the hub .* give NAME=FILE", refused)


def test_what_is_cached_is_known_without_the_hub(monkeypatch):
    asked = []

    def cached(repository, file):
        asked.append(repository)
        return "/cache/model.safetensors" if "dinov2" in repository else None

    monkeypatch.setattr(teachers.huggingface_hub, "try_to_load_from_cache", cached)
    known = teachers._repository("vit_base_patch14_dinov2.lvd142m")
    assert teachers.is_cached(known) and asked == ["timm/vit_base_patch14_dinov2.lvd142m"]
    assert teachers.is_cached(teachers._repository("hf-hub:some/dinov2")) and asked[-1] == "some/dinov2"
    assert not teachers.is_cached("timm/other")


def test_without_the_hub_the_error_names_the_two_ways_to_get_the_weights(monkeypatch):
    create = timm.create_model

    def refuse(*arguments, pretrained=False, **options):
        if pretrained:
            raise OSError("no route")
        return create(*arguments, **options)

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(TeacherError, match=r"Either connect once \(they are cached\), or fetch the file elsewhere and give .*=FILE"):
        load_teacher("vit_base_patch14_dinov2.lvd142m")


def test_doubts_are_the_same_of_a_text_and_of_what_is_written_about_its_teacher():
    for text, word in (("random:vit_tiny_patch16_224", "RANDOM"), ("pocket_vit", "DRAWN"), (str(POCKET_FILE), "DRAWN")):
        for known in (text, load_teacher(text, grid=2).description):
            (doubt,) = doubts_about(known)
            assert word in doubt
    assert doubts_about("vit_base_patch14_dinov2.lvd142m") == doubts_about("resnet18, weights from file.pth, 64 x 64") == []
