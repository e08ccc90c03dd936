"""Files with weights as training, hubs and converters leave them: unwrapped by one rule, or refused in one line."""

import argparse
import json
import os
import random
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from vfmgl_lib.config import ConfigError
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.models.teacher_names import TeacherError, TeacherSource, resolve_teacher
from vfmgl_lib.models.teachers import load_teacher
from vfmgl_lib.models.weights import read_weights

VIT, CNN = "vit_tiny_patch16_224", "resnet18"
SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 2, "img_size": 32}


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return {
        VIT: timm.create_model(VIT, num_classes=0, dynamic_img_size=True, **SMALL),
        CNN: timm.create_model(CNN, num_classes=5),
    }


def prefixed(state, *prefixes):
    return {prefix + key: tensor for prefix in prefixes for key, tensor in state.items()}


def noisy(state):
    return {key: tensor + 1 for key, tensor in state.items()}


HEAD = {"dino_head.last_layer.weight_v": torch.zeros(4, 4), "loss": torch.zeros(())}
CHUNKS = {0: "0", 1: "0", 2: "1"}  # DINOv2's blocks.CHUNK.NUMBER

# What is written -> the prefix under which the weights were found.
WRAPPINGS = {
    "bare": (lambda s: s, ""),
    "state_dict": (lambda s: {"state_dict": s, "epoch": 3, "best": 0.5, "arch": "vit"}, "state_dict"),
    "model": (lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}}, "model"),
    "model_state_dict": (lambda s: {"epoch": 1, "model_state_dict": s}, "model_state_dict"),
    "teacher": (lambda s: {"teacher": prefixed(s, "backbone.") | HEAD}, "teacher.backbone"),
    "DINO": (
        lambda s: {"student": prefixed(noisy(s), "module.backbone."), "teacher": prefixed(s, "backbone.") | HEAD, "epoch": 99},
        "teacher.backbone",
    ),
    "DINOv2": (lambda s: {"model": prefixed(noisy(s), "student.backbone.") | prefixed(s, "teacher.backbone.")}, "model.teacher.backbone"),
    "student alone": (lambda s: {"student": prefixed(s, "module.")}, "student.module"),
    "DataParallel": (lambda s: prefixed(s, "module."), "module"),
    "compiled": (lambda s: prefixed(s, "_orig_mod."), ""),
    "compiled and parallel": (lambda s: {"state_dict": prefixed(s, "module._orig_mod.model.")}, "state_dict.module.model"),
    "Lightning": (
        lambda s: {"state_dict": prefixed(s, "model.encoder.") | {"model.head.0.weight": torch.ones(2, 2)}},
        "state_dict.model.encoder",
    ),
    "MoCo": (
        lambda s: {"state_dict": prefixed(noisy(s), "module.base_encoder.") | prefixed(s, "module.momentum_encoder.")},
        "state_dict.module.momentum_encoder",
    ),
    "of timm, with an average": (lambda s: {"state_dict": s, "state_dict_ema": noisy(s)}, "state_dict"),
    "average beside another": (lambda s: {"net": noisy(s), "net_ema": s}, "net_ema"),
    "VISSL": (
        lambda s: {"classy_state_dict": {"base_model": {"model": {"trunk": s, "heads": {}}}}},
        "classy_state_dict.base_model.model.trunk",
    ),
    "DeepSpeed": (lambda s: {"module": s, "global_steps": 5}, "module"),
    "network in a list": (lambda s: [{"network": s}, 7], "0.network"),
    "ordered": (lambda s: OrderedDict(s), ""),
    "the same twice": (lambda s: {"a": s, "b": s}, None),
    "bfloat16": (lambda s: {key: tensor.bfloat16() if tensor.is_floating_point() else tensor for key, tensor in s.items()}, ""),
}


@pytest.mark.parametrize("network", [VIT, CNN])
@pytest.mark.parametrize("form", WRAPPINGS)
def test_known_wrappings_are_unwrapped(networks, tmp_path, form, network):
    model = networks[network]
    state, (wrap, prefix) = model.state_dict(), WRAPPINGS[form]
    torch.save(wrap(state), tmp_path / "w.pth")
    weights = read_weights(tmp_path / "w.pth", model, network)
    assert prefix is None or weights.prefix == prefix
    assert set(weights.state) == {key for key in state if not key.startswith("fc.")}
    for key, tensor in weights.state.items():
        torch.testing.assert_close(tensor, state[key], rtol=0.01 if form == "bfloat16" else 0, atol=0)


def test_what_was_unwrapped_is_said_and_gives_the_same_teacher(networks, tmp_path):
    state = networks[VIT].state_dict()
    torch.save(state, tmp_path / "bare.pth")
    torch.save({"teacher": prefixed(state, "backbone.")}, tmp_path / "dino.pth")
    bare, dino = (load_teacher(f"{VIT}={tmp_path / name}.pth", grid=4, model_args=SMALL) for name in ("bare", "dino"))
    assert bare.identity == dino.identity and "weights from dino.pth (teacher.backbone)" in dino.description
    assert (
        "positions resampled from 2 x 2 to 4 x 4" in bare.description
        and "bare.pth, 64 x 64, mean 0.5 0.5 0.5 std 0.5 0.5 0.5" in bare.description
    )
    assert "resampled" not in load_teacher(f"{VIT}={tmp_path}/bare.pth", grid=2, model_args=SMALL).description


def test_chunks_of_blocks_and_layers_around_are_put_in_order(networks, tmp_path):
    model = networks[VIT]
    renamed = {}
    for key, tensor in model.state_dict().items():
        parts = key.split(".")
        if parts[0] == "blocks":
            parts[1:2] = [CHUNKS[int(parts[1])], parts[1], "_checkpoint_wrapped_module"]
        renamed["_fsdp_wrapped_module." + ".".join(parts)] = tensor
    torch.save({"teacher": prefixed(renamed, "backbone.")}, tmp_path / "w.pth")
    weights = read_weights(tmp_path / "w.pth", model, VIT)
    assert weights.prefix == "teacher.backbone" and weights.state.keys() == model.state_dict().keys()


def test_a_classifier_of_other_classes_does_not_matter(networks, tmp_path):
    """Nor one that is missing, nor the counts of batches that old files lack."""
    model = networks[CNN]
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    for change in ({"fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}, {"fc.0.weight": torch.zeros(2, 512)}, {}):
        torch.save({key: tensor for key, tensor in state.items() if not key.startswith("fc.")} | change, tmp_path / "w.pth")
        assert "conv1.weight" in read_weights(tmp_path / "w.pth", model, CNN).state
    assert load_teacher(f"{CNN}={tmp_path}/w.pth", grid=2).stack_shapes[0] == (1, 64, 8)


def test_what_no_feature_depends_on_does_not_choose_among_several(networks, tmp_path):
    """A student with its classifier has more of the network's names than the teacher, and is not taken for that."""
    state = networks[CNN].state_dict()
    features = {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}
    bare = {key: tensor for key, tensor in features.items() if not key.endswith("num_batches_tracked")}
    for content, prefix in (({"student": noisy(state), "teacher": bare}, "teacher"), ({"model": bare, "model_ema": noisy(state)}, "model")):
        torch.save(content, tmp_path / "w.pth")
        weights = read_weights(tmp_path / "w.pth", networks[CNN], CNN)
        assert weights.prefix == prefix and torch.equal(weights.state["conv1.weight"], state["conv1.weight"])


def test_an_average_that_is_not_whole_is_refused_and_no_other_taken_for_it(networks, tmp_path):
    state = networks[CNN].state_dict()
    cut = {key: tensor for key, tensor in state.items() if key != "layer4.1.conv2.weight"}
    torch.save({"student": noisy(state), "teacher": cut}, tmp_path / "w.pth")
    with pytest.raises(TeacherError, match=r"missing \['layer4.1.conv2.weight'\]"):
        read_weights(tmp_path / "w.pth", networks[CNN], CNN)


@pytest.mark.parametrize("wrap", ["bare", "state_dict", "teacher", "DINO", "DINOv2", "Lightning", "compiled and parallel"])
@pytest.mark.parametrize("kind", ["deeper", "scaled", "normalised", "registers", "residual"])
def test_weights_of_a_network_that_has_more_are_refused_in_any_wrapping(networks, tmp_path, wrap, kind):
    """All that this network needs is in them, but what they were trained for computes something else."""
    own = {"deeper": {"depth": 4}, "scaled": {"init_values": 1.0}, "normalised": {"qk_norm": True}}
    name = CNN if kind == "residual" else VIT
    if kind == "residual":
        state = timm.create_model("resnet34").state_dict()
    elif kind == "registers":  # as DINOv2 calls them
        state = networks[VIT].state_dict() | {"register_tokens": torch.zeros(1, 4, 24)}
    else:
        state = timm.create_model(VIT, num_classes=0, dynamic_img_size=True, **SMALL | own[kind]).state_dict()
    torch.save(WRAPPINGS[wrap][0](state), tmp_path / "w.pth")
    with pytest.raises(TeacherError, match=rf"do not fit {name}: additional \['(blocks\.|layer1\.2\.|register_tokens)"):
        read_weights(tmp_path / "w.pth", networks[name], name)


def _saved(content):
    return lambda path, state: torch.save(content(state), path)


def _archive(path, state):
    np.savez(path.with_suffix(".npz"), **{key: tensor.numpy() for key, tensor in state.items()})
    path.with_suffix(".npz").rename(path)


def _compressed(path, state):
    torch.save({"a": torch.zeros(10**6)}, path.with_suffix(".raw"))
    with zipfile.ZipFile(path.with_suffix(".raw")) as raw, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for part in raw.infolist():
            packed.writestr(part.filename, raw.read(part))


def _described(**metadata):
    def write(path, state):
        usual = {"architecture": VIT, "model_args": json.dumps(SMALL), "mean": "[0.5,0.5,0.5]", "std": "[0.5,0.5,0.5]"}
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, metadata=usual | metadata)

    return write


def _without(state, part):
    return {key: tensor for key, tensor in state.items() if part not in key}


REFUSED = {
    "a list": (_saved(lambda s: list(s.values())), "none of its names is .*'s, expected a table of tensors with names such as cls_token"),
    "nothing": (_saved(lambda s: {"epoch": 3, "arch": "vit"}), "hold no tensors but a table with 'epoch', 'arch', expected a table of"),
    "a number": (_saved(lambda s: 3), "hold no tensors but a int"),
    "an own object": (
        _saved(lambda s: {"model": s, "args": argparse.Namespace(lr=1)}),
        r"argparse\.Namespace; save its weights alone by safetensors.torch.save_file.*weights_only=True",
    ),
    "a number of numpy": (
        _saved(lambda s: {"model": s, "loss": np.float64(1)}),
        r"more than tensors and plain values, numpy\S*\.scalar; save its weights alone",
    ),
    "a whole module": (_saved(lambda s: torch.nn.Linear(2, 2)), r"torch\.nn\.modules\.linear\.Linear; save its weights alone"),
    "several": (_saved(lambda s: {"a": s, "b": noisy(s)}), r"is in it 2 times, as a\., b\.; save one of them alone"),
    "half": (_saved(lambda s: {"state_dict": _without(s, "blocks.1")}), r"missing \['blocks\.1"),
    "strangers beside": (_saved(lambda s: s | {"adapter.weight": torch.zeros(2)}), r"additional \['adapter.weight'\]"),
    "integers": (_saved(lambda s: s | {"norm.bias": torch.zeros(24, dtype=torch.int8)}), r"norm.bias \(24,\) of torch.int8 instead of"),
    "NaN": (_saved(lambda s: s | {"norm.bias": torch.full((24,), torch.nan)}), "1 tensors hold NaN or infinite values, e.g. norm.bias"),
    "sparse": (_saved(lambda s: s | {"norm.bias": torch.zeros(24).to_sparse()}), r"missing \['norm.bias'\]"),
    "grey images": (
        _saved(lambda s: s | {"patch_embed.proj.weight": torch.zeros(24, 1, 16, 16)}),
        "patches of 16 x 16 pixels in 1 channels, expected 16 x 16 in 3",
    ),
    "smaller patches": (
        _saved(lambda s: {"teacher": prefixed(s, "backbone.") | {"backbone.patch_embed.proj.weight": torch.zeros(24, 3, 8, 8)}}),
        "do not fit .*: patches of 8 x 8 pixels in 3 channels, expected 16 x 16 in 3; name the model they are of",
    ),
    "linear patches": (_saved(lambda s: s | {"patch_embed.proj.weight": torch.zeros(24, 192)}), "do not fit .*: timm cannot convert them"),
    "an archive of numpy": (_archive, r"a zip with cls_token\.npy, .*; expected safetensors or a file of torch\.save"),
    "a compressed zip": (_compressed, "its parts are compressed"),
    "empty": (lambda path, state: path.write_bytes(b""), "the file is empty"),
    "a web page": (lambda path, state: path.write_text("<!DOCTYPE html><html>Sign in</html>"), "is a web page"),
    "a pointer": (lambda path, state: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"),
    "HDF5": (lambda path, state: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50)), "is HDF5"),
    "something": (
        lambda path, state: path.write_bytes(b"\x00\x01\x02\x03" * 9),
        r"begins with b'.*', expected safetensors or a file of torch\.save",
    ),
    "a folder": (lambda path, state: path.mkdir(), "cannot be read"),
    "no JSON": (_described(mean="0.5, 0.5"), "mean in its metadata is '0.5, 0.5', expected a list in JSON"),
    "two numbers": (_described(mean="[0.5, 0.5]"), r"mean in its metadata is \[0.5, 0.5\], expected three numbers"),
    "mean of bytes": (_described(mean="[123.7, 116.3, 103.5]"), r"mean in its metadata is \[123.7, .*\], expected three .* in \[0, 1\]"),
    "std of bytes": (
        _described(std="[58.4, 57.1, 57.4]"),
        r"std in its metadata is \[58.4, .*\], expected three numbers in \[0, 1\]",
    ),
    "std of nought": (_described(std="[0, 1, 1]"), "expected three numbers in .*, std above 0"),
    "no table": (_described(model_args="[1]"), r"model_args in its metadata is '\[1\]', expected a dict in JSON"),
    "an unknown argument": (_described(model_args='{"dept": 3}'), "do not fit"),
    "impossible arguments": (_described(model_args='{"num_heads": 7}'), "cannot be built with"),
    "far too much": (
        _described(model_args='{"embed_dim": 240000000, "depth": 3, "num_heads": 2, "img_size": 32}'),
        r"do not fit .*\(1, 1, 24\)",
    ),
    "an unknown network": (_described(architecture="vit_unheard_of"), "'vit_unheard_of' is not a timm model"),
}


@pytest.mark.parametrize("form", REFUSED)
@pytest.mark.parametrize("suffix", [".pth", ".bin"])
def test_the_rest_is_refused_in_one_line(networks, tmp_path, form, suffix):
    write, message = REFUSED[form]
    path = tmp_path / f"w{suffix}"
    write(path, networks[VIT].state_dict())
    described = "metadata" in message or form in ("an unknown argument", "impossible arguments", "far too much", "an unknown network")
    text = str(path) if described else f"{VIT}={path}"
    with pytest.raises(TeacherError, match=message) as caught:
        load_teacher(text, grid=2, model_args=None if described else SMALL)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_is_what_its_content_says(networks, tmp_path):
    """Whatever its suffix, and through links as the hub's cache has them."""
    state = networks[VIT].state_dict()
    blob = tmp_path / "blobs" / "3f2a"
    blob.parent.mkdir()
    _described()(blob, state)
    torch.save(state, tmp_path / "torch.safetensors")
    (tmp_path / "snapshots").mkdir()
    link = tmp_path / "snapshots" / "model.safetensors"
    link.symlink_to("../blobs/3f2a")
    text = resolve_teacher("snapshots/model.safetensors", tmp_path)
    assert text == str(link) and "weights from model.safetensors" in load_teacher(text, grid=2).description
    identities = {load_teacher(name, grid=2).identity for name in (text, str(blob), resolve_teacher("blobs/3f2a", tmp_path))}
    named = load_teacher(f"{VIT}={tmp_path}/torch.safetensors", grid=2, model_args=SMALL)
    assert identities == {named.identity}
    link.unlink()
    link.symlink_to("../blobs/gone")
    with pytest.raises(TeacherError, match=r"model\.safetensors cannot be read: No such file"):
        resolve_teacher("snapshots/model.safetensors", tmp_path)


@pytest.mark.parametrize("name", ["run=7/epoch=3-step=100.safetensors", "resnet18=w.pth", "a=b", "with blank = ü.safetensors"])
def test_an_existing_path_is_a_path(networks, tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    _described()(path, networks[VIT].state_dict())
    monkeypatch.chdir(tmp_path)
    assert TeacherSource.parse(name) == TeacherSource("", name)
    assert resolve_teacher(name, tmp_path) == str(path) and resolve_teacher(f"random:{name}", tmp_path) == f"random:{path}"
    assert resolve_teacher(f"{VIT}={name}", tmp_path) == f"{VIT}={path}"
    assert load_teacher(name, grid=2).identity == load_teacher(f"{VIT}={name}", grid=2).identity if "w.pth" not in name else True
    path.unlink()
    with pytest.raises(TeacherError, match="is no file either"):
        resolve_teacher(name, tmp_path)


def test_the_normalisation_can_be_set_and_is_part_of_the_identity(networks, tmp_path):
    torch.save(networks[VIT].state_dict(), tmp_path / "w.pth")
    text, own = f"{VIT}={tmp_path / 'w.pth'}", {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    usual, other = (load_teacher(text, grid=2, model_args=SMALL, **more) for more in ({}, own))
    assert usual.identity != other.identity and "mean 0.1 0.2 0.3 std 0.4 0.5 0.6" in other.description
    torch.testing.assert_close(other.mean.flatten(), torch.tensor(own["mean"]))
    images = torch.rand(1, 3, 32, 32)
    same = (images - usual.mean) / usual.std * other.std + other.mean
    torch.testing.assert_close(other(same)[0], usual(images)[0], rtol=1e-4, atol=1e-4)


def test_the_setting_of_the_normalisation(tmp_path):
    plain = load_settings("nuclei", "smoke")
    chosen = load_settings("nuclei", "smoke", teacher__mean=[0.1, 0.2, 0.3], teacher__std=[1, 1, 1])
    assert plain.teacher.mean is None and chosen.teacher.mean == (0.1, 0.2, 0.3)
    assert not {"mean", "std"} & plain.model_dump()["teacher"].keys(), "written as before there was the setting"
    assert set(chosen.deviations()["setting"]) - set(plain.deviations()["setting"]) == {"teacher.mean", "teacher.std"}
    of_bytes = {"teacher__mean": [123.7, 116.3, 103.5]}, {"teacher__std": [58.4, 57.1, 57.4]}
    for wrong in ({"teacher__std": [1, 0, 1]}, {"teacher__mean": [0.5]}, *of_bytes):
        with pytest.raises(ConfigError, match=next(iter(wrong)).replace("__", ".")):
            load_settings("nuclei", "smoke", **wrong)


def test_damaged_files_are_refused_quickly_and_without_a_traceback(networks, tmp_path):
    """A few hundred mutations of three kinds of files: success or a TeacherError."""
    state, dice = networks[VIT].state_dict(), random.Random(0)
    files = [tmp_path / name for name in ("zip.pth", "old.pth", "w.safetensors")]
    torch.save(state, files[0])
    torch.save(state, files[1], _use_new_zipfile_serialization=False)
    _described()(files[2], state)
    started, refused = time.monotonic(), 0
    for number in range(300):
        whole = bytearray(files[number % 3].read_bytes())
        for _ in range(dice.choice((1, 4))):  # most of it near the beginning or the end, where the structure is
            place = min(len(whole) - 1, int(dice.expovariate(1 / 800)))
            whole[place if dice.random() < 0.6 else -1 - place] = dice.randrange(256)
        damaged = tmp_path / f"damaged{Path(files[number % 3]).suffix}"
        damaged.write_bytes(whole[: dice.randrange(len(whole))] if dice.random() < 0.2 else whole)
        try:
            read_weights(damaged, networks[VIT], VIT)
        except TeacherError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1
    assert refused > 100 and time.monotonic() - started < 60


def test_a_table_that_holds_itself_ends(networks, tmp_path):
    table = {"model": networks[VIT].state_dict()}
    table["again"] = [table] * 5
    torch.save(table, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth", networks[VIT], VIT).prefix == "model"


def test_a_file_that_may_not_be_read(networks, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    torch.save(networks[VIT].state_dict(), tmp_path / "w.pth")
    (tmp_path / "w.pth").chmod(0)
    with pytest.raises(TeacherError, match="cannot be read"):
        load_teacher(f"{VIT}={tmp_path / 'w.pth'}", grid=2, model_args=SMALL)
