"""Foundation models of pathology as the hub keeps them: small random checkpoints with their architecture and their names of tensors."""

import json
import os
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked

from vfmgl_lib.models.hub_files import read_config
from vfmgl_lib.models.teacher_names import TeacherError
from vfmgl_lib.models.teachers import load_teacher

SMALL = {"embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 56}
H_OPTIMUS = {"mean": [0.707223, 0.578729, 0.703617], "std": [0.211883, 0.230117, 0.177517]}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
GATED = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}
VIRCHOW2 = SMALL | {"patch_size": 14, "mlp_ratio": 5.3375, "reg_tokens": 4, "init_values": 1e-5}
UNI2 = SMALL | {"patch_size": 14, "mlp_ratio": 2.66667 * 2, "reg_tokens": 8, "no_embed_class": True, "init_values": 1e-5}
# repository: architecture, what its config.json says, what stands only in the code of its page, normalisation
REPOSITORIES = {
    "paige-ai/Virchow2": ("vit_huge_patch14_224", VIRCHOW2, GATED, IMAGENET),
    "paige-ai/Virchow": ("vit_huge_patch14_224", VIRCHOW2 | {"reg_tokens": 0}, GATED, IMAGENET),
    "MahmoodLab/UNI": ("vit_large_patch16_224", SMALL | {"img_size": 64}, {"init_values": 1e-5}, IMAGENET),
    "MahmoodLab/UNI2-h": ("vit_giant_patch14_224", UNI2, GATED, IMAGENET),
    "bioptimus/H-optimus-0": ("vit_giant_patch14_reg4_dinov2", SMALL, {}, H_OPTIMUS),
}


def _checkpoint(repository, folder, safe=True):
    """config.json and weights as the repository has them; returns the network."""
    architecture, written, in_code, normalisation = REPOSITORIES[repository]
    torch.manual_seed(0)
    network = timm.create_model(architecture, num_classes=0, dynamic_img_size=True, **written, **in_code).eval()
    state = {key: torch.randn_like(tensor) * 0.1 for key, tensor in network.state_dict().items()}
    network.load_state_dict(state)
    folder.mkdir(parents=True)
    config = {"architecture": architecture, "num_classes": 0, "model_args": written, "pretrained_cfg": {"license": "x", **normalisation}}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors") if safe else torch.save(state, folder / "pytorch_model.bin")
    return network


def _expected(network, images, normalisation, blocks):
    mean, std = (torch.tensor(normalisation[key]).view(3, 1, 1) for key in ("mean", "std"))
    options = {"indices": [block - 1 for block in blocks], "norm": True, "intermediates_only": True}
    with torch.no_grad():
        return torch.stack(network.forward_intermediates((images - mean) / std, **options), 1)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("repository", REPOSITORIES)
def test_a_file_with_the_hubs_config_beside_it_describes_itself(repository, safe, tmp_path):
    network = _checkpoint(repository, tmp_path / "here", safe)
    file = tmp_path / "here" / ("model.safetensors" if safe else "pytorch_model.bin")
    teacher = load_teacher(str(file), grid=4)
    assert teacher.stack_shapes == [(3, 32, 4)] and f"{REPOSITORIES[repository][0]}, weights from {file.name}" in teacher.description
    images = torch.rand(1, 3, teacher.image_size, teacher.image_size)
    torch.testing.assert_close(teacher(images)[0], _expected(network, images, REPOSITORIES[repository][3], teacher.blocks))
    in_code = REPOSITORIES[repository][2]
    assert ("as its weights tell" in teacher.description) == bool(in_code)
    assert all(key in teacher.description for key in in_code)
    given = load_teacher(str(file), grid=4, mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
    assert given.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3]) and "mean 0.1 0.2 0.3 std 1 1 1" in given.description


def test_repositories_by_their_names_out_of_the_hubs_cache(tmp_path):
    """In another process: the hub's client reads where its cache is when it is imported."""
    expected = {}
    for repository in REPOSITORIES:
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        _checkpoint(repository, folder / "snapshots" / "1")
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("1")
        expected[repository] = load_teacher(str(folder / "snapshots" / "1" / "model.safetensors"), grid=4).identity
    code = f"""
from vfmgl_lib.models.teachers import load_teacher
for repository in {list(REPOSITORIES)}:
    one, control = (load_teacher(kind + "hf-hub:" + repository, grid=4) for kind in ("", "random:"))
    assert one.stack_shapes == control.stack_shapes and one.identity != control.identity and "RANDOM" in control.description
    assert [key for key in one.state_dict()] == [key for key in control.state_dict()]
    print(repository, one.identity, "weights from the hub" in one.description)
"""
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.stdout.splitlines() == [f"{repository} {identity} True" for repository, identity in expected.items()], run.stderr


def test_weights_of_another_network_than_the_config_says_are_refused(tmp_path):
    _checkpoint("paige-ai/Virchow2", tmp_path / "here")
    config = json.loads((tmp_path / "here" / "config.json").read_text())
    for key, value in (("depth", 5), ("embed_dim", 48), ("patch_size", 16), ("depth", 3)):
        changed = config | {"model_args": config["model_args"] | {key: value}}
        (tmp_path / "here" / "config.json").write_text(json.dumps(changed))
        with pytest.raises(TeacherError, match=r"model.safetensors do not fit vit_huge_patch14_224: "):
            load_teacher(str(tmp_path / "here" / "model.safetensors"), grid=4)


def test_a_name_is_taken_at_its_word_whatever_lies_beside_the_file(tmp_path):
    """NAME=FILE is NAME's network: what a file's weights tell does not make it another."""
    _checkpoint("MahmoodLab/UNI", tmp_path / "here")
    with pytest.raises(TeacherError, match=r"do not fit vit_large_patch16_224: additional \['blocks.0.ls1.gamma'"):
        load_teacher(f"vit_large_patch16_224={tmp_path / 'here' / 'model.safetensors'}", grid=4, model_args=SMALL | {"img_size": 64})


@pytest.mark.parametrize("mean", [0, [], "", False])
def test_a_mean_that_is_none_is_not_imagenets_instead(mean, tmp_path):
    folder = tmp_path / "here"
    _checkpoint("MahmoodLab/UNI", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pretrained_cfg": {"mean": mean}}))
    with pytest.raises(TeacherError, match="mean"):
        load_teacher(str(folder / "model.safetensors"), grid=2)
    (folder / "config.json").write_text(json.dumps(config | {"pretrained_cfg": {"mean": None, "license": "x"}}))
    assert load_teacher(str(folder / "model.safetensors"), grid=2).mean.flatten().tolist() == pytest.approx(IMAGENET["mean"])


def test_a_config_says_no_paths_nor_endless_depths(tmp_path):
    folder = tmp_path / "here"
    _checkpoint("MahmoodLab/UNI", folder)
    config = json.loads((folder / "config.json").read_text())
    for more, said in (({"checkpoint_path": "x.pth"}, "checkpoint_path"), ({"depth": 10**9}, "depth is 1000000000; at most 1000")):
        (folder / "config.json").write_text(json.dumps(config | {"model_args": config["model_args"] | more}))
        with pytest.raises(TeacherError, match=said):
            load_teacher(str(folder / "model.safetensors"), grid=2)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "JSONDecodeError"), ("[]", "TypeError"), ('{"model_args": {}}', "architecture"), ('{"architecture": 3}', "must be a text")],
)
def test_a_config_that_is_none_is_named(text, said, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(TeacherError, match=rf"config.json: .*{said}"):
        read_config(tmp_path / "config.json")


def test_a_config_of_another_maker_is_named(tmp_path):
    """transformers writes a config.json, too."""
    _checkpoint("MahmoodLab/UNI", tmp_path / "here")
    (tmp_path / "here" / "config.json").write_text('{"architectures": ["Dinov2Model"], "hidden_size": 32}')
    with pytest.raises(TeacherError, match=r"config.json: expected JSON of timm's form"):
        load_teacher(str(tmp_path / "here" / "model.safetensors"))
