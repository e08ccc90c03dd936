"""Students out of timm: stages by what the network says of itself, freezing, HGKT's exact derivative, weights, and what is refused."""

import copy
import functools

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from vfmgl_lib.kernels.overlap import soft_dice_loss
from vfmgl_lib.kernels.twice_differentiable import twice_differentiable_layers
from vfmgl_lib.method.hgkt import HGKT, TeacherBatch
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.models.student_names import StudentError
from vfmgl_lib.models.students import build_student, part_names, set_training_mode
from vfmgl_lib.models.timm_students import TimmClassifier, settled, stage_table

SIX = ("resnet34", "resnet50", "mobilenetv3_small_100", "efficientnet_b0", "convnext_atto", "densenet121")
# timm's own test models: batch normalisation, LayerNorm, GroupNorm, none
TINY = ("test_resnet", "test_convnext", "test_efficientnet_gn", "test_nfnet")
STACKS = [(1, 4, 3)]  # (M, C_t, g) of a small teacher
# The same layers in the same order with fewer channels, where timm's network takes their number: a derivative is no other for it.
NARROW = {"resnet34": {"channels": (8, 16, 32, 64)}, "resnet50": {"channels": (8, 16, 32, 64)}, "densenet121": {"growth_rate": 8}}
NARROW |= {"convnext_atto": {"dims": (8, 16, 32, 64)}}


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet34", [(64, 2), (64, 4), (128, 8), (256, 16), (512, 32)]),
        ("resnet50", [(64, 2), (256, 4), (512, 8), (1024, 16), (2048, 32)]),
        ("mobilenetv3_small_100", [(16, 2), (16, 4), (24, 8), (48, 16), (576, 32)]),
        ("efficientnet_b0", [(16, 2), (24, 4), (40, 8), (112, 16), (1280, 32)]),
        ("convnext_atto", [(40, 4), (80, 8), (160, 16), (320, 32)]),
        ("densenet121", [(64, 2), (256, 4), (512, 8), (1024, 16), (1024, 32)]),
        ("vgg11_bn", [(64, 1), (128, 2), (256, 4), (512, 8), (512, 32)]),  # its last tap is a pooling without parameters
    ],
)
def test_stages_are_those_that_the_network_names(name, stages):
    table = stage_table(name, False)
    assert list(zip(table.channels, table.strides, strict=True)) == stages
    assert list(table.stage_channels) == [f"stage{n}" for n in range(1, len(stages) + 1)]


def test_a_stage_s_modules_end_where_its_map_does():
    assert stage_table("efficientnet_b0", False).modules[0] == ("conv_stem", "bn1", "blocks.0")
    assert stage_table("efficientnet_b0", False).modules[-1] == ("blocks.5", "blocks.6", "conv_head", "bn2")
    assert stage_table("efficientnet_b0", True).modules[-1] == ("blocks.5", "blocks.6")  # an encoder ends with the last block
    assert stage_table("densenet121", False).modules[1:3] == (
        ("features.denseblock1",),
        ("features.transition1", "features.denseblock2"),
    )


@pytest.mark.parametrize("name", [*TINY, *(f"unet:{name}" for name in TINY)])
def test_interface(name):
    student = build_student(name, 3, 4).eval()
    images = torch.rand(2, 3, 64, 64)
    logits, maps = student.forward_stages(images)
    assert logits.shape == ((2, 3, 64, 64) if name.startswith("unet") else (2, 3))
    torch.testing.assert_close(student(images), logits)
    torch.testing.assert_close(student.head_from_stages(maps), logits)
    torch.testing.assert_close(student.forward_features(images)[0], logits)
    assert student.embed(images).shape == (2, student.forward_features(images)[1].shape[1])
    assert list(student.stages) == list(student.stage_channels)
    assert [m.shape[1] for m in maps] == list(student.stage_channels.values())
    assert [64 // m.shape[-1] for m in maps] == list(student.table.strides)
    owned = [id(p) for modules in student.stages.values() for module in modules for p in module.parameters()]
    assert len(owned) == len(set(owned)), "a parameter belongs to one stage"
    if not name.startswith("unet"):
        torch.testing.assert_close(student.net(images), logits)
    assert part_names(student, "last_layer") and part_names(student, "last_layer").isdisjoint(
        {key for key in student.state_dict() if key.startswith("net.stages")}
    )


@pytest.mark.parametrize("name", [*TINY, "unet:test_resnet"])
def test_a_stage_s_map_depends_on_its_own_and_earlier_stages_alone(name):
    """Of the modules that each stage freezes: all of them and none behind them reach its map."""
    student = build_student(name, 2, 4).train()
    maps = student.encode(torch.rand(2, 3, 64, 64))
    owned = [[p for module in modules for p in module.parameters()] for modules in student.stages.values()]
    for place, found in enumerate(maps):
        for stage, parameters in enumerate(owned):
            reached = torch.autograd.grad(found.sum(), parameters, allow_unused=True, retain_graph=True)
            assert all((gradient is not None) == (stage <= place) for gradient in reached), (place, stage)


@pytest.mark.parametrize("name", [*TINY, "unet:test_resnet", "unet:test_efficientnet_gn"])
def test_a_frozen_stage_stands_still_statistics_included(name):
    torch.manual_seed(0)
    student = build_student(name, 2, 4)
    first, *_, last = student.stages
    set_training_mode(student, (first,))
    before = {key: tensor.clone() for key, tensor in student.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.1)
    student(torch.rand(4, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    moved = {key for key, tensor in student.state_dict().items() if not torch.equal(tensor, before[key])}
    prefixes = {stage: tuple(f"net.{n}." for n in student.table.modules[list(student.stages).index(stage)]) for stage in (first, last)}
    assert not [key for key in moved if key.startswith(prefixes[first])]
    assert [key for key in moved if key.startswith(prefixes[last])]
    set_training_mode(student)
    assert all(p.requires_grad for p in student.parameters()) and all(module.training for module in student.modules())


@pytest.fixture
def narrow(monkeypatch):
    """(name): from here to the test's end timm makes this network with few channels."""

    def make(name):
        stage_table.cache_clear()
        monkeypatch.setattr(timm, "create_model", functools.partial(timm.create_model, **NARROW.get(name, {})))

    yield make
    stage_table.cache_clear()


@pytest.mark.parametrize("name", SIX)
def test_the_hypergradient_of_the_six_equals_a_finite_difference(name, narrow):
    """One HGKT step in float64 with momentum and weight decay; then a central difference along a random direction of all of phi."""
    torch.manual_seed(0)
    settings = load_settings("endometrial", "paper").transfer.model_copy(update={"weight_decay": 0.01})
    assert settings.inner_steps == 2
    narrow(name)
    hgkt = HGKT(build_student(name, 2, 4).double().train(), STACKS, settings, 0.003, F.cross_entropy)
    generator = torch.Generator().manual_seed(0)
    images, target = torch.rand(6, 3, 32, 32, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1, 0])
    stacks = [torch.randn(6, m, c, g, g, generator=generator, dtype=torch.float64) for m, c, g in STACKS]
    record = hgkt.step(images, target, stacks)
    assert record.hypergradient_norm > 0 and record.outer_loss.isfinite()
    _check_hypergradient(hgkt, images, target, stacks, 1e-8)


@pytest.mark.parametrize("name", ["unet:test_resnet", "unet:test_convnext"])
def test_the_hypergradient_of_a_unet_with_an_encoder_equals_a_finite_difference(name):
    torch.manual_seed(0)
    settings = load_settings("nuclei", "paper").transfer.model_copy(update={"weight_decay": 0.01})
    hgkt = HGKT(build_student(name, 2, 4).double().train(), STACKS, settings, 0.3, soft_dice_loss)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 64, 64, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 2, (3, 64, 64), generator=generator)
    stacks = [torch.randn(3, m, c, g, g, generator=generator, dtype=torch.float64) for m, c, g in STACKS]
    hgkt.step(images, target, stacks)
    _check_hypergradient(hgkt, images, target, stacks, 1e-8)


def _check_hypergradient(hgkt, images, target, stacks, step):
    teacher, parameters = TeacherBatch(stacks), list(hgkt.meta.parameters())
    pairing = hgkt.meta(stacks)
    loss, derivatives = hgkt.hypergradient(images, target, teacher, pairing, (images, target))
    gradients = torch.autograd.grad([*pairing[0], *pairing[1]], parameters, derivatives)
    generator = torch.Generator().manual_seed(3)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]

    def outer(moved):
        with torch.no_grad():
            for parameter, along in zip(parameters, direction, strict=True):
                parameter += moved * along
        with twice_differentiable_layers():  # torch has no second derivative of the hard sigmoid
            value = hgkt.unrolled_outer_loss(images, target, teacher, hgkt.meta(stacks), (images, target)).item()
        with torch.no_grad():
            for parameter, along in zip(parameters, direction, strict=True):
                parameter -= moved * along
        return value

    analytic = sum((g * along).sum() for g, along in zip(gradients, direction, strict=True)).item()
    above, below = outer(step), outer(-step)
    assert loss.item() == pytest.approx((above + below) / 2, rel=1e-6)
    assert analytic != 0 and (above - below) / (2 * step) == pytest.approx(analytic, rel=1e-4)


def test_training_draws_no_random_number_whatever_the_network_s_rates_are():
    net = timm.create_model("efficientnet_b0", num_classes=2, drop_rate=0.3, drop_path_rate=0.3).train()
    images = torch.rand(2, 3, 64, 64)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    copy.deepcopy(net)(images)
    assert not torch.equal(torch.get_rng_state(), before), "the network as it comes draws"
    before = torch.get_rng_state()
    first, second = (settled(copy.deepcopy(net))(images) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(first, second)


def test_making_a_student_s_table_draws_no_random_number():
    stage_table.cache_clear()
    torch.manual_seed(0)
    first = build_student("test_resnet", 2, 4).state_dict()
    torch.manual_seed(0)
    second = build_student("test_resnet", 2, 4).state_dict()  # the table is known by now
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())


def test_width_is_the_decoder_s_and_no_classifier_s():
    assert build_student("test_resnet", 2, 4).state_dict().keys() == build_student("test_resnet", 2, 64).state_dict().keys()
    narrow, wide = (build_student("unet:test_resnet", 2, width) for width in (4, 8))
    assert narrow.head.in_channels == 4 and wide.head.in_channels == 8
    assert narrow.stage_channels == wide.stage_channels


def test_batch_statistics_and_the_layers_that_fedbn_keeps():
    student = build_student("test_resnet", 2, 4, batch_statistics=True)
    assert not [key for key in student.state_dict() if "running" in key]
    assert "net.bn1.running_mean" in part_names(build_student("test_resnet", 2, 4), "batch_norm")
    assert "net.stages.0.blocks.0.norm.weight" in part_names(build_student("test_convnext", 2, 4), "batch_norm")
    assert "net.bn1.weight" in part_names(build_student("test_efficientnet_gn", 2, 4), "batch_norm")
    assert "net.stages.0.blocks.0.mlp.grn.weight" in part_names(build_student("convnextv2_atto", 2, 4), "batch_norm")
    with pytest.raises(StudentError, match="no layer of the part 'batch_norm': nothing would stay"):
        part_names(build_student("test_nfnet", 2, 4), "batch_norm")


def test_which_classifiers_read_the_mean_of_the_last_map():
    found = {name: build_student(name, 2, 4).pooled_classifier is not None for name in ("resnet18", "unet", "unet:test_resnet", *TINY)}
    assert found == dict.fromkeys(("resnet18", "test_resnet", "test_efficientnet_gn", "test_nfnet"), True) | dict.fromkeys(
        ("unet", "unet:test_resnet", "test_convnext"),
        False,  # ConvNeXt normalises the mean first
    )


@pytest.mark.parametrize("name", ["test_resnet", "unet:test_convnext"])
def test_weights_from_a_file(name, tmp_path):
    torch.manual_seed(1)
    timm_name = name.removeprefix("unet:")
    source = timm.create_model(timm_name, num_classes=1000)
    save_file(source.state_dict(), tmp_path / "imagenet.safetensors")
    student = build_student(name, 3, 4, str(tmp_path / "imagenet.safetensors"))
    own = student.net.state_dict()
    classifier = tuple(f"{timm.create_model(timm_name).pretrained_cfg['classifier']}.{part}" for part in ("weight", "bias"))
    taken = [key for key in own if key not in classifier]
    assert taken and all(torch.equal(own[key], source.state_dict()[key]) for key in taken)
    with pytest.raises(ValueError, match=r"imagenet.safetensors do not fit the model: .* tensors"):
        build_student("test_efficientnet", 2, 4, str(tmp_path / "imagenet.safetensors"))
    with pytest.raises(StudentError, match="weights 'hub': timm has none for it"):
        TimmClassifier("efficientnet_b0_gn", 2, "hub")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet43", "student resnet43: 'resnet43' is not a timm model; similar names: resnet"),
        ("unet:resnet43", "student unet:resnet43: 'resnet43' is not a timm model; similar"),
        ("unet:", "'' is not a timm model; similar names: none; e.g. resnet34"),
        ("resnet34.a9", "'resnet34.a9': timm has no such weights of resnet34; there are resnet34.a1_in1k"),
        ("convmixer_768_32", r"has no stages, its maps at 224 px are 768 x 32 x 32, .* take a CNN that halves its maps, e.g. resnet34"),
        ("test_vit", "has no stages"),
        ("unet:test_vit", "student unet:test_vit: has no stages"),
        (
            "unet:inception_v3",
            r"unet:inception_v3: has maps that do not halve, at 320 px they are 64 x 157 x 157, .* take a CNN with padded",
        ),
    ],
)
def test_what_is_no_student_is_said(name, message):
    with pytest.raises(StudentError, match=message):
        build_student(name, 2, 4)


@pytest.mark.parametrize("name", ["efficientnet_b1", "xception41"])
def test_an_encoder_that_was_trained_with_240_or_299_px_has_the_strides_of_any_other(name):
    student = build_student(f"unet:{name}", 2, 2).eval()
    assert student.table.strides == (2, 4, 8, 16, 32) and student.multiple == 32
    with torch.inference_mode():
        assert student(torch.rand(1, 3, 64, 32)).shape == (1, 2, 64, 32)


@pytest.mark.parametrize("name", ["test_resnet", "unet:test_convnext"])
def test_another_student_of_this_kind_starts_as_one_that_is_built(name):
    student = build_student(name, 3, 4)
    torch.manual_seed(7)
    other = student.anew().state_dict()
    torch.manual_seed(7)
    assert all(torch.equal(other[key], tensor) for key, tensor in build_student(name, 3, 4).state_dict().items())


def test_an_encoder_names_a_size_that_it_cannot_halve():
    with pytest.raises(StudentError, match=r"multiples of 32 for this encoder, got \(1, 3, 48, 64\)"):
        build_student("unet:test_resnet", 2, 4)(torch.zeros(1, 3, 48, 64))
