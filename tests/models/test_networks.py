"""Every family of timm's networks serves as a teacher: finite maps of the stated shapes, one step of HGKT, files told apart."""

import json

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from vfmgl_lib.method.hgkt import HGKT
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.models.networks import network_form
from vfmgl_lib.models.students import ResNet18
from vfmgl_lib.models.teacher_names import TeacherError
from vfmgl_lib.models.teachers import _identity, load_teacher
from vfmgl_lib.models.weights import read_weights

PLAIN = {"embed_dim": 24, "depth": 6, "num_heads": 2}
ROTARY = PLAIN | {"embed_dim": 32}  # a head's channels are in pairs of pairs
SAM = PLAIN | {"global_attn_indexes": (2, 5), "neck_chans": 16}
HIERA = {"embed_dim": 24, "num_heads": 1, "stages": (1, 1, 2, 1)}
SWIN = {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4)}
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (12, 24, 48, 96)}
PYRAMID = {"depths": (1, 1, 1, 1)}
OWN_SIZE = [(1, 24, 56), (1, 48, 28), (1, 96, 14), (1, 192, 7)]
# network, arguments that make it small -> side at grid 4 and (M, C, g) of each stack
MATRIX = {
    "plain ViT": ("vit_tiny_patch16_224", PLAIN, 64, [(4, 24, 4)]),
    "DINOv2, registers": ("vit_small_patch14_reg4_dinov2", PLAIN, 56, [(4, 24, 4)]),
    "CLIP": ("vit_base_patch32_clip_224", PLAIN, 128, [(4, 24, 4)]),
    "SigLIP": ("vit_base_patch16_siglip_224", PLAIN, 64, [(4, 24, 4)]),
    "DeiT III": ("deit3_small_patch16_224", PLAIN, 64, [(4, 24, 4)]),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", PLAIN, 64, [(4, 24, 4)]),
    "relative positions": ("vit_relpos_small_patch16_224", PLAIN, 64, [(4, 24, 4)]),
    "DINOv3": ("vit_small_patch16_dinov3", ROTARY, 64, [(4, 32, 4)]),
    "EVA-02": ("eva02_tiny_patch14_224", ROTARY, 56, [(4, 32, 4)]),
    "Perception Encoder": ("vit_pe_core_tiny_patch16_384", ROTARY, 64, [(4, 32, 4)]),
    "BEiT": ("beit_base_patch16_224", PLAIN, 64, [(4, 24, 4)]),
    "NaFlexViT": ("naflexvit_base_patch16_gap", PLAIN, 64, [(4, 24, 4)]),
    "SAM": ("samvit_base_patch16", SAM, 64, [(4, 24, 4)]),
    "hybrid": ("vit_tiny_r_s16_p8_224", PLAIN, 128, [(4, 24, 4)]),
    "XCiT": ("xcit_nano_12_p16_224", PLAIN, 224, [(4, 24, 14)]),
    "Hiera": ("hiera_tiny_224", HIERA, 224, OWN_SIZE),
    "SAM 2": ("sam2_hiera_tiny", HIERA | {"global_att_blocks": (3,)}, 64, [(1, 24, 16), (1, 48, 8), (1, 96, 4), (1, 192, 2)]),
    "Swin": ("swin_tiny_patch4_window7_224", SWIN, 224, OWN_SIZE),
    "Swin V2": ("swinv2_tiny_window8_256", SWIN, 256, [(1, 24, 64), (1, 48, 32), (1, 96, 16), (1, 192, 8)]),
    "ConvNeXt": ("convnext_tiny", CONVNEXT, 64, [(1, 12, 16), (1, 24, 8), (1, 48, 4), (1, 96, 2)]),
    "MaxViT": ("maxvit_tiny_tf_224", PYRAMID | {"embed_dim": (32, 32, 32, 32)}, 224, [(1, 32, grid) for grid in (56, 28, 14, 7)]),
    "CoAtNet": ("test_coatnet", {}, 160, [(1, 32, 40), (1, 64, 20), (1, 96, 10), (1, 128, 5)]),
    "FastViT": ("fastvit_t8", {"layers": (1, 1, 1, 1)}, 64, [(1, 48, 16), (1, 96, 8), (1, 192, 4), (1, 384, 2)]),
    "MobileViT": ("mobilevit_xxs", {}, 64, [(1, 24, 16), (1, 48, 8), (1, 64, 4), (1, 320, 2)]),
    "PVT v2": ("pvt_v2_b0", PYRAMID, 64, [(1, 32, 16), (1, 64, 8), (1, 160, 4), (1, 256, 2)]),
    "LeViT": ("levit_128s", {}, 224, [(1, 128, 14), (1, 256, 7), (1, 384, 4)]),
    "DenseNet": ("densenet121", {"block_config": (1, 1, 1, 1)}, 64, [(1, 96, 16), (1, 80, 8), (1, 72, 4), (1, 68, 2)]),
    "ResNet": ("test_resnet", {}, 64, [(1, 32, 16), (1, 48, 8), (1, 192, 4), (1, 96, 2)]),
    "MobileNetV2": ("mobilenetv2_035", {}, 64, [(1, 8, 16), (1, 16, 8), (1, 32, 4), (1, 112, 2)]),
}


def _hgkt(teacher):
    torch.manual_seed(0)
    settings = load_settings("endometrial", "paper").transfer
    return HGKT(ResNet18(2, 4), teacher.stack_shapes, settings, 0.01, F.cross_entropy)


def _file(teacher, path, change=lambda state: state, **metadata):
    """The teacher's own weights as a plain file."""
    save_file({key: tensor.clone() for key, tensor in change(teacher.backbone.state_dict()).items()}, path, metadata=metadata or None)
    return path


@pytest.mark.parametrize("family", MATRIX)
def test_every_family_gives_finite_maps_of_the_stated_shapes_and_carries_a_step(family):
    name, arguments, side, shapes = MATRIX[family]
    teacher = load_teacher(f"random:{name}", grid=4, model_args=arguments)
    assert (teacher.image_size, teacher.stack_shapes) == (side, shapes) and f"{side} x {side}" in teacher.description
    assert len(set(teacher.block_names)) == sum(blocks for blocks, _, _ in shapes) == len(teacher.block_names)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    stacks = teacher(images)
    assert [tuple(stack.shape) for stack in stacks] == [(2, m, c, g, g) for m, c, g in shapes]
    assert all(torch.isfinite(stack).all() and not torch.equal(stack[0], stack[1]) for stack in stacks)
    hgkt = _hgkt(teacher)
    before = {key: tensor.clone() for key, tensor in hgkt.meta.named_parameters()}
    record = hgkt.step(images, torch.tensor([0, 1]), stacks)
    assert torch.isfinite(record.match_loss) and record.match_loss > 0 and record.hypergradient_norm > 0
    assert any(not torch.equal(tensor, before[key]) for key, tensor in hgkt.meta.named_parameters())


def _outputs(network, modules, images):
    """What these modules return, in the order given."""
    found = {}
    hooks = [
        module.register_forward_hook(lambda *args, place=place: found.update({place: args[2]})) for place, module in enumerate(modules)
    ]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    return [found[place] for place in range(len(modules))]


@pytest.mark.parametrize("family", ["DINOv2, registers", "DINOv3", "EVA-02", "Perception Encoder", "BEiT", "DeiT, distilled"])
def test_maps_of_blocks_are_the_patch_tokens_through_the_final_norm(family):
    name, arguments, side, _ = MATRIX[family]
    teacher = load_teacher(f"random:{name}", grid=4, model_args=arguments, mean=(0, 0, 0), std=(1, 1, 1))
    network, images = teacher.backbone, torch.rand(1, 3, side, side)
    tokens = _outputs(network, [network.blocks[block - 1] for block in teacher.blocks], images)
    assert network.num_prefix_tokens == tokens[0].shape[1] - 16 > 0, "there are class or register tokens to leave out"
    maps = [network.norm(token)[:, -16:].mT.reshape(1, -1, 4, 4) for token in tokens]
    torch.testing.assert_close(teacher(images)[0], torch.stack(maps, 1))


def test_maps_of_sam_are_its_blocks_without_the_neck():
    name, arguments, side, _ = MATRIX["SAM"]
    teacher = load_teacher(f"random:{name}", grid=4, model_args=arguments, mean=(0, 0, 0), std=(1, 1, 1))
    images = torch.rand(1, 3, side, side)
    blocks = _outputs(teacher.backbone, [teacher.backbone.blocks[block - 1] for block in teacher.blocks], images)
    torch.testing.assert_close(teacher(images)[0], torch.stack([block.permute(0, 3, 1, 2) for block in blocks], 1))


def test_maps_of_levels_are_the_stages_and_the_last_one_is_normed():
    name, arguments, side, _ = MATRIX["Swin"]
    teacher = load_teacher(f"random:{name}", grid=14, model_args=arguments, mean=(0, 0, 0), std=(1, 1, 1))
    images = torch.rand(1, 3, side, side)
    *stages, last = _outputs(teacher.backbone, list(teacher.backbone.layers), images)
    for stack, stage in zip(teacher(images), [*stages, teacher.backbone.norm(last)], strict=True):
        torch.testing.assert_close(stack[:, 0], stage.permute(0, 3, 1, 2))


def test_a_size_that_cannot_be_had_is_replaced_and_said_or_refused(caplog):
    name, arguments, _, _ = MATRIX["MaxViT"]
    teacher = load_teacher(f"random:{name}", grid=16, model_args=arguments)
    assert "224 x 224 (it takes no other)" in teacher.description
    assert f"teacher.grid 16 (side 256): {name} takes no such image; it is given 224 x 224" in caplog.text
    caplog.clear()
    assert load_teacher(f"random:{name}", grid=14, model_args=arguments).identity == teacher.identity and "no such image" not in caplog.text
    with pytest.raises(TeacherError, match=r"image_size 256: .* takes 224 x 224 and no other size; write 224, or leave"):
        load_teacher(f"random:{name}", image_size=256, model_args=arguments)
    swin = MATRIX["Swin"][0]
    with pytest.raises(TeacherError, match=r"image_size 256: .* takes whole multiples of 224, where its windows fit; write 224, or leave"):
        load_teacher(f"random:{swin}", image_size=256, model_args=SWIN)
    twice = load_teacher(f"random:{swin}", image_size=448, model_args=SWIN)
    assert [grid for _, _, grid in twice.stack_shapes] == [
        112,
        56,
        28,
        14,
    ] and "448 x 448 (it takes whole multiples of 224)" in twice.description
    with pytest.raises(TeacherError, match=r"image_size 100: eva02_tiny_patch14_224 needs a multiple of 14, e.g. 98"):
        load_teacher("random:eva02_tiny_patch14_224", image_size=100, model_args=ROTARY)


def test_windows_keep_their_size_where_images_grow():
    """Tables of relative positions are those that were trained: none is resampled."""
    name = MATRIX["Swin"][0]
    one, other = (load_teacher(f"random:{name}", image_size=size, model_args=SWIN).backbone.state_dict() for size in (224, 448))
    tables = [key for key in one if key.endswith("relative_position_bias_table")]
    assert len(tables) == 5 and all(torch.equal(one[key], other[key]) for key in tables)


@pytest.mark.parametrize(
    ("name", "arguments", "window"),
    [
        ("swin_tiny_patch4_window7_224", SWIN | {"depths": (1, 1, 1, 2)}, 7),
        ("swinv2_tiny_window8_256", SWIN | {"depths": (1, 1, 1, 2)}, 8),
        ("swinv2_cr_tiny_224", SWIN | {"depths": (1, 1, 1, 2)}, 7),
    ],
)
def test_windows_are_shifted_at_every_stage_where_images_grow(name, arguments, window):
    """As in the network that timm builds for the larger side with the windows of the smaller."""
    side = 512 if window == 8 else 448
    teacher = load_teacher(f"random:{name}", image_size=side, model_args=arguments, mean=(0, 0, 0), std=(1, 1, 1))
    with torch.no_grad():  # the blocks of version 2 start as identities
        for parameter in teacher.backbone.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    network = timm.create_model(name, img_size=side, window_size=window, **arguments).eval()
    mixed = network.load_state_dict(
        {key: tensor for key, tensor in teacher.backbone.state_dict().items() if "mask" not in key}, strict=False
    )
    assert not mixed.unexpected_keys and all("mask" in key for key in mixed.missing_keys)
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network.forward_intermediates(images, norm=teacher.form.norm, output_fmt="NCHW", intermediates_only=True)
    for found, level in zip(teacher(images), expected[-4:], strict=True):
        torch.testing.assert_close(found[:, 0], level)


@pytest.mark.parametrize(
    "argument",
    (
        "checkpoint_path pretrained pretrained_cfg pretrained_cfg_overlay cache_dir scriptable exportable no_jit features_only "
        "pretrained_strict pretrained_model_args"
    ).split(),
)
def test_arguments_that_are_not_the_network_s_are_refused_by_name(argument):
    with pytest.raises(TeacherError, match=f"model arguments {argument} are not the network's"):
        load_teacher("random:vit_tiny_patch16_224", grid=2, model_args=PLAIN | {argument: "x"})


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"depth": 10**9}),
        ("swin_tiny_patch4_window7_224", {"depths": [2, 2, 990, 7]}),
        ("crossvit_9_240", {"depth": [[1, 500, 0]] * 3}),
        ("resnet50", {"layers": [1, 1, 1, 10**400]}),
        ("densenet121", {"block_config": [1, float("nan")]}),
        ("hiera_tiny_224", {"stages": [1] * 1001}),
        ("vit_tiny_patch16_224", {"class_token": [0] * 1001}),
        ("vit_tiny_patch16_224", {"embed_dim": 192 * 10**7}),
        ("vit_tiny_patch16_224", {"cfg": {"depth": 10**9}}),
    ],
)
def test_arguments_that_would_exhaust_the_memory_are_refused_before_anything_is_built(name, arguments, monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(TeacherError, match=rf"teacher {name}: model argument \w+ is .*; at most \d+ can be, and 1000 entries"):
        load_teacher(f"random:{name}", model_args=arguments)


def test_the_identity_does_not_know_the_classifier():
    name, arguments, _, _ = MATRIX["BEiT"]
    one, other = (load_teacher(f"random:{name}", grid=2, model_args=arguments | more) for more in ({}, {"num_classes": 3}))
    state = {key: tensor for key, tensor in one.backbone.state_dict().items() if not key.startswith("head.")}
    other.backbone.load_state_dict(state, strict=False)
    assert _identity(one, name, arguments) == one.identity == _identity(other, name, arguments | {"num_classes": 3})
    other.backbone.blocks[0].mlp.fc1.bias[0] += 1
    assert _identity(other, name, arguments) != one.identity


def test_blocks_are_chosen_and_levels_are_not():
    assert load_teacher("random:beit_base_patch16_224", grid=2, blocks=(2, 5), model_args=PLAIN).block_names == ["block 2", "block 5"]
    with pytest.raises(TeacherError, match=r"teacher.blocks \[7\]: beit_base_patch16_224 has blocks 1 to 6"):
        load_teacher("random:beit_base_patch16_224", grid=2, blocks=(7,), model_args=PLAIN)
    for name, arguments in (("convnext_tiny", CONVNEXT), ("test_resnet", {})):
        with pytest.raises(
            TeacherError, match=rf"teacher.blocks \[1, 2\]: {name} has no blocks .* levels \(stride 4, .* leave teacher.blocks"
        ):
            load_teacher(f"random:{name}", grid=2, blocks=(1, 2), model_args=arguments)


def test_levels_of_one_stride_have_names_of_their_own():
    form = network_form("volo_d1_224", {})
    assert form.names == ("level 1", "level 2", "level 3", "level 4") and not form.blocks


def test_a_network_without_maps_is_refused_with_others_that_have_them(monkeypatch):
    monkeypatch.delattr(timm.models.convmixer.ConvMixer, "forward_intermediates")
    with pytest.raises(TeacherError, match=r"convmixer_768_32: timm's convmixer gives no maps .* and do: \w+, \w+, \w+$"):
        load_teacher("random:convmixer_768_32", grid=4)


def test_a_network_of_oblong_images_alone_is_refused():
    with pytest.raises(TeacherError, match="takes images of 224 x 256 alone"):
        load_teacher("random:maxvit_tiny_tf_224", model_args=MATRIX["MaxViT"][1] | {"img_size": (224, 256)})


def test_a_name_that_timm_does_not_know_has_similar_ones():
    with pytest.raises(TeacherError, match="'convnxt_tiny' is not a timm model; similar names: convnext_tiny"):
        load_teacher("random:convnxt_tiny")


@pytest.mark.parametrize("family", ["DINOv3", "EVA-02", "BEiT", "DeiT III", "SAM", "Hiera", "Swin", "ConvNeXt", "CoAtNet", "DenseNet"])
def test_files_of_the_right_network_load_and_of_another_are_refused(family, tmp_path):
    name, arguments, _, _ = MATRIX[family]
    teacher = load_teacher(f"random:{name}", grid=4, model_args=arguments)
    network = timm.create_model(name, **arguments)
    own = {key: tensor + 0.01 if tensor.is_floating_point() else tensor for key, tensor in network.state_dict().items()}
    headless = {key: tensor for key, tensor in own.items() if "head.fc" not in key}
    torch.save({"module.backbone." + key: tensor for key, tensor in headless.items()}, tmp_path / "right.pth")
    right = load_teacher(f"{name}={tmp_path / 'right.pth'}", grid=4, model_args=arguments)
    assert "right.pth (module.backbone)" in right.description
    for key, tensor in right.backbone.state_dict().items():
        resized = "relative_position_bias_table" in key or key == "pos_embed"  # BEiT's grow and shrink with its images
        assert key.startswith(network.default_cfg["classifier"]) or resized or torch.equal(tensor, own[key]), key
    images = torch.rand(1, 3, 48, 48)
    assert not any(torch.equal(one, other) for one, other in zip(right(images), teacher(images), strict=True)), (
        "the file's weights, not others"
    )
    changed = next(key for key, tensor in own.items() if tensor.ndim == 4 or key.endswith("qkv.weight"))
    for state, said in (
        ({key: tensor for key, tensor in own.items() if key != changed}, "missing"),
        (own | {changed: own[changed][:-1]}, "instead of"),
        ({f"other.{key}.x": tensor for key, tensor in own.items()}, "missing"),
    ):
        torch.save(state, tmp_path / "wrong.pth")
        with pytest.raises(TeacherError, match=rf"wrong.pth do not fit {name}: .*{said}"):
            read_weights(tmp_path / "wrong.pth", network, name)
    other, others, _, _ = MATRIX["ConvNeXt" if family != "ConvNeXt" else "Swin"]
    torch.save(headless, tmp_path / "right.pth")
    with pytest.raises(TeacherError, match=f"right.pth do not fit {other}"):
        read_weights(tmp_path / "right.pth", timm.create_model(other, **others), other)


@pytest.mark.parametrize(
    ("name", "arguments", "of"),
    [
        ("swin_tiny_patch4_window7_224", SWIN, {"window_size": 4}),  # timm would resample the tables of relative positions
        ("beit_base_patch16_224", PLAIN, {"img_size": 32}),
        ("eva02_tiny_patch14_224", ROTARY, {"patch_size": 16}),  # and the patches
        ("samvit_base_patch16", SAM, {"img_size": 256}),
        ("vit_small_patch16_dinov3", ROTARY, {"depth": 7}),
    ],
)
def test_another_window_patch_size_or_depth_is_not_resampled_into_place(name, arguments, of, tmp_path):
    network = timm.create_model(name, **(arguments | of))
    save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, tmp_path / "other.safetensors")
    with pytest.raises(TeacherError, match=f"other.safetensors do not fit {name}"):
        load_teacher(f"{name}={tmp_path / 'other.safetensors'}", model_args=arguments)


def _segment_anything(state):
    """timm's names -> those of segment-anything's checkpoints, which MedSAM has too."""
    encoder = {f"image_encoder.{key.replace('mlp.fc', 'mlp.lin')}": tensor for key, tensor in state.items()}
    return encoder | {"mask_decoder.iou_token.weight": torch.zeros(1, 8), "prompt_encoder.not_a_point_embed.weight": torch.zeros(1, 8)}


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {f"module.{key}": t for key, t in s.items()}])
def test_medsams_layout_is_converted(wrap, tmp_path):
    name, arguments, _, _ = MATRIX["SAM"]
    teacher = load_teacher(f"random:{name}", grid=4, model_args=arguments)
    torch.save(wrap(_segment_anything(teacher.backbone.state_dict())), tmp_path / "medsam_vit_b.pth")
    medsam = load_teacher(f"{name}={tmp_path / 'medsam_vit_b.pth'}", grid=4, model_args=arguments, mean=(0, 0, 0), std=(1, 1, 1))
    assert "medsam_vit_b.pth" in medsam.description and "mean 0 0 0 std 1 1 1" in medsam.description
    for key, tensor in medsam.backbone.state_dict().items():
        assert torch.equal(tensor, teacher.backbone.state_dict()[key]), key


def test_adapters_in_sam_are_refused(tmp_path):
    """SAM-Med2D: the same encoder with layers that compute otherwise."""
    name, arguments, _, _ = MATRIX["SAM"]
    state = _segment_anything(load_teacher(f"random:{name}", grid=4, model_args=arguments).backbone.state_dict())
    torch.save(state | {"image_encoder.blocks.0.Adapter.channel.0.weight": torch.zeros(2, 2)}, tmp_path / "adapted.pth")
    with pytest.raises(TeacherError, match=r"adapted.pth do not fit samvit_base_patch16: "):
        load_teacher(f"{name}={tmp_path / 'adapted.pth'}", grid=4, model_args=arguments)


def test_the_original_layout_of_convnext_is_converted(tmp_path):
    name, arguments, _, _ = MATRIX["ConvNeXt"]
    teacher = load_teacher(f"random:{name}", grid=4, model_args=arguments)
    original = {}
    for key, tensor in teacher.backbone.state_dict().items():
        for new, old in (("stem.", "downsample_layers.0."), (".conv_dw.", ".dwconv."), (".mlp.fc", ".pwconv"), ("head.norm.", "norm.")):
            key = key.replace(new, old)
        stage = key.split(".")[1] if key.startswith("stages.") else ""
        key = key.replace(f"stages.{stage}.downsample", f"downsample_layers.{stage}").replace(".blocks.", ".") if stage else key
        original[key.replace("head.fc.", "head.")] = tensor.contiguous()
    torch.save({"model": original}, tmp_path / "convnext.pth")
    converted = load_teacher(f"{name}={tmp_path / 'convnext.pth'}", grid=4, model_args=arguments)
    images = torch.rand(1, 3, 64, 64)
    assert all(torch.equal(one, other) for one, other in zip(converted(images), teacher(images), strict=True))


def test_layers_by_name_in_a_files_metadata(tmp_path):
    arguments = PLAIN | {"mlp_layer": "SwiGLUPacked", "act_layer": "silu", "img_size": 32}
    teacher = load_teacher("random:vit_tiny_patch16_224", grid=2, model_args=arguments)
    metadata = {
        "architecture": "vit_tiny_patch16_224",
        "model_args": json.dumps(arguments),
        "mean": "[0.1, 0.2, 0.3]",
        "std": "[0.5, 0.5, 0.5]",
    }
    file = _file(teacher, tmp_path / "gated.safetensors", **metadata)
    assert type(load_teacher(str(file), grid=2).backbone.blocks[0].mlp).__name__ == "GluMlp"
    with pytest.raises(TeacherError, match="mlp_layer"):
        load_teacher("random:vit_tiny_patch16_224", model_args={"mlp_layer": "NoSuchLayer"})
