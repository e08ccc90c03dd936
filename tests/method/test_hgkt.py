"""HGKT: everything learns, the hypergradient is exact, and virtual steps leave no trace."""

import copy

import pytest
import torch
import torch.nn.functional as F

from vfmgl_lib.kernels.overlap import soft_dice_loss
from vfmgl_lib.method.hgkt import HGKT, TeacherBatch, channel_scale, critical_stages
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.models.students import ResNet18, UNet

SHAPES = [(2, 6, 3), (1, 4, 5)]  # two teacher stacks of different width and grid, as a CNN has


def _hgkt(kind="unet", lr=0.1, dtype=torch.float64, **changes):
    torch.manual_seed(0)
    task = {"unet": "nuclei", "resnet18": "endometrial"}[kind]
    student, loss = (UNet(2, 4), soft_dice_loss) if kind == "unet" else (ResNet18(2, 4), F.cross_entropy)
    settings = load_settings(task, "paper").transfer.model_copy(update=changes)
    return HGKT(student.to(dtype), SHAPES, settings, lr, loss)


def _batch(kind="unet", samples=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(samples, 3, 32, 32, generator=generator, dtype=dtype)
    shape = (samples, 32, 32) if kind == "unet" else (samples,)
    target = torch.randint(0, 2, shape, generator=generator)
    stacks = [torch.randn(samples, m, c, g, g, generator=generator, dtype=dtype) for m, c, g in SHAPES]
    return images, target, stacks


def _state(hgkt):
    return {name: tensor.clone() for name, tensor in {**hgkt.model.state_dict(), **hgkt.meta.state_dict()}.items()}


@pytest.mark.parametrize("kind", ["unet", "resnet18"])
def test_student_projections_and_both_families_of_meta_networks_move(kind):
    hgkt = _hgkt(kind)
    before = _state(hgkt)
    for seed in range(2):
        hgkt.step(*_batch(kind, seed=seed))
    still = [name for name, tensor in _state(hgkt).items() if torch.equal(tensor, before[name]) and "relu" not in name]
    assert still == []


def test_starts_with_uniform_channel_weights_and_pair_weights_in_range():
    channel, pair = _hgkt().meta(_batch()[2])
    for (blocks, channels, _), weights, pairs in zip(SHAPES, channel, pair, strict=True):
        assert weights.shape == (3, blocks, 4, channels) and pairs.shape == (3, blocks, 4)
        torch.testing.assert_close(weights, torch.full_like(weights, 1 / channels))
        assert (pairs >= 0).all() and (pairs <= 6).all()


CHANNEL, RIDGE = {"teacher_scale": "channel"}, {"projection": "ridge"}


def _prepared(hgkt, kind="unet", samples=6):
    """Scale and projections from a training set, where the settings ask for them."""
    images, _, stacks = _batch(kind, samples, seed=20)
    training = [(images[:4], [2 + 5 * stack[:4] for stack in stacks]), (images[4:], [2 + 5 * stack[4:] for stack in stacks])]
    if hgkt.settings.teacher_scale == "channel":
        hgkt.scale = channel_scale(stacks for _, stacks in training)
    if hgkt.settings.projection == "ridge":
        hgkt.fit_projections(training)
    return hgkt


@pytest.mark.parametrize(
    ("kind", "inner_steps", "options"),
    [
        ("unet", 2, {}),
        ("unet", 1, {}),
        ("resnet18", 2, {}),
        ("unet", 3, {}),
        ("unet", 2, CHANNEL),
        ("unet", 2, RIDGE),
        ("unet", 1, CHANNEL | RIDGE),
    ],
)
def test_hypergradient_equals_finite_difference(kind, inner_steps, options):
    """Central differences in float64 through momentum and weight decay, along a random direction of each meta-parameter."""
    hgkt = _prepared(_hgkt(kind, inner_steps=inner_steps, weight_decay=0.01, **options), kind)
    images, target, stacks = _batch(kind)
    hgkt.step(images, target, stacks)  # momenta that are not zero
    stacks = hgkt.standardised(stacks)
    teacher = TeacherBatch(stacks)

    def outer():
        return hgkt.unrolled_outer_loss(images, target, teacher, hgkt.meta(stacks), (images, target))

    parameters = dict(hgkt.meta.named_parameters())
    pairing = hgkt.meta(stacks)
    loss, derivatives = hgkt.hypergradient(images, target, teacher, pairing, (images, target))
    assert loss.item() == pytest.approx(outer().item(), rel=1e-12)
    by_adjoint = torch.autograd.grad([*pairing[0], *pairing[1]], list(parameters.values()), derivatives)
    gradients = dict(zip(parameters, by_adjoint, strict=True))
    for name, unrolled in zip(parameters, torch.autograd.grad(outer(), list(parameters.values())), strict=True):
        torch.testing.assert_close(gradients[name], unrolled, rtol=1e-9, atol=1e-14)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in parameters.items():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += 1e-7 * direction
        above = outer().item()
        parameter.data -= 2e-7 * direction
        below = outer().item()
        parameter.data += 1e-7 * direction
        analytic = (gradients[name] * direction).sum().item()
        assert analytic != 0, name
        assert (above - below) / 2e-7 == pytest.approx(analytic, rel=1e-4), name


def test_virtual_steps_are_those_of_torch_sgd():
    """The outer loss equals that of a copied model stepped with torch.optim.SGD, momentum buffers and weight decay included."""
    hgkt = _hgkt(weight_decay=0.01)
    images, target, stacks = _batch()
    hgkt.step(images, target, stacks)
    teacher, pairing = TeacherBatch(stacks), hgkt.meta(stacks)
    value = hgkt.unrolled_outer_loss(images, target, teacher, pairing, (images, target)).item()

    model = copy.deepcopy(hgkt.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for name, parameter in model.named_parameters():
        optimizer.state[parameter]["momentum_buffer"] = hgkt.momenta[name].clone()
    constant = tuple([tensor.detach() for tensor in part] for part in pairing)
    for step in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)  # a parameter that the loss does not reach still decays
        logits, match = model(images, teacher, constant)
        loss = 0.5 * match.mean() if step < 2 else soft_dice_loss(logits, target)
        loss.backward()
        optimizer.step()
    assert soft_dice_loss(model.student(images), target).item() == pytest.approx(value, rel=1e-10)
    assert soft_dice_loss(hgkt.model.student(images), target).item() != pytest.approx(value, rel=1e-6)


def test_virtual_steps_leave_no_trace():
    """After a step parameters, momenta and BN statistics are bitwise those of the kept update alone."""
    hgkt, images_target_stacks = _hgkt(), _batch()
    hgkt.step(*images_target_stacks)
    alone = copy.deepcopy(hgkt)
    alone.hypergradient = lambda *arguments: (torch.tensor(0.0), [torch.zeros_like(w) for part in arguments[3] for w in part])
    batch = _batch(seed=5)
    hgkt.step(*batch)
    alone.step(*batch)
    for one, other in zip(hgkt.model.state_dict().items(), alone.model.state_dict().items(), strict=True):
        assert one[0] == other[0] and torch.equal(one[1], other[1]), one[0]
    assert all(torch.equal(hgkt.momenta[name], alone.momenta[name]) for name in hgkt.momenta)


def test_kept_update_is_one_step_of_torch_sgd_on_task_and_matching_loss():
    hgkt = _hgkt(weight_decay=0.01)
    model = copy.deepcopy(hgkt.model)
    images, target, stacks = _batch()
    pairing = tuple([tensor.detach() for tensor in part] for part in hgkt.meta(stacks))
    hgkt.step(images, target, stacks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    logits, match = model(images, TeacherBatch(stacks), pairing)
    (soft_dice_loss(logits, target) + 0.5 * match.mean()).backward()
    optimizer.step()
    for name, tensor in hgkt.model.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-10, atol=1e-12)


def test_outer_batch_changes_only_the_meta_networks():
    one, other = _hgkt(), _hgkt()
    batch, held_out = _batch(), _batch(seed=9)
    one.step(*batch)
    other.step(*batch, outer=held_out[:2])
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.meta.parameters(), other.meta.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["unet", "resnet18"])
def test_channels_last_changes_the_memory_and_nothing_else(kind):
    """The GPU's layout: gradients come in another memory order than parameters, which the one-pass update must not mix up."""
    plain, other = _hgkt(kind), _hgkt(kind)
    other.model.student.to(memory_format=torch.channels_last)
    other.momenta = {name: torch.zeros_like(p) for name, p in other.model.named_parameters()}
    for seed in range(2):
        images, target, stacks = _batch(kind, seed=seed)
        plain.step(images, target, stacks)
        other.step(images.contiguous(memory_format=torch.channels_last), target, stacks)
    assert any(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in other.model.student.parameters())
    for name, tensor in _state(plain).items():
        # layer4's one pixel leaves batch normalisation three values, which amplifies rounding: 2e-11 with two threads, 1e-11 with one
        torch.testing.assert_close(_state(other)[name], tensor, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("options", [{}, CHANNEL | RIDGE | {"meta_optimizer": "adam", "pair_init": "zero"}])
def test_state_round_trip_continues_bitwise(options):
    one = _prepared(_hgkt(**options))
    one.step(*_batch())
    other = _hgkt(**options)
    other.model.student.load_state_dict(one.model.student.state_dict())
    other.load_state_dict({name: tensor.clone() for name, tensor in one.state_dict().items()})
    for hgkt in (one, other):
        hgkt.step(*_batch(seed=1))
    assert all(torch.equal(tensor, _state(other)[name]) for name, tensor in _state(one).items())


def test_critical_stages_from_known_scores():
    scores = {"stem": 0.4, "layer1": 2.0, "layer2": 0.1, "layer3": 2.0, "layer4": 1.0}
    assert critical_stages(scores, 3) == ("layer1", "layer3", "layer4")
    assert critical_stages(scores, 1) == ("layer1",)  # a tie goes to the earlier stage
    assert critical_stages(scores, 0) == ()
    with pytest.raises(ValueError, match="between 0 and 5, got 6"):
        critical_stages(scores, 6)


def test_at_the_papers_values_a_step_is_what_it_was_before_there_were_options():
    """Bitwise the steps of 0.1.0, written out: nothing is standardised, every projection learns, SGD moves phi after every batch."""
    one, other = _hgkt(dtype=torch.float32), _hgkt(dtype=torch.float32)
    meta = torch.optim.SGD(other.meta.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-3, fused=True)
    for seed in range(2):
        images, target, stacks = _batch(dtype=torch.float32, seed=seed)
        one.set_meta_rate(seed + 1, 2)
        one.step(images, target, stacks)
        meta.zero_grad(set_to_none=True)
        pairing = other.meta(stacks)
        constant = tuple([tensor.detach() for tensor in part] for part in pairing)
        logits, match = other.model(images, TeacherBatch(stacks), constant)
        parameters = list(other.model.parameters())
        gradients = torch.autograd.grad(other.task_loss(logits, target) + 0.5 * match.mean(), parameters)
        with torch.no_grad():
            other._sgd_step(parameters, list(gradients), list(other.momenta.values()))
        _, derivatives = other.hypergradient(images, target, TeacherBatch(stacks), constant, (images, target))
        torch.autograd.backward([*pairing[0], *pairing[1]], derivatives, inputs=list(other.meta.parameters()))
        meta.step()
    assert [name for name, tensor in _state(one).items() if not torch.equal(tensor, _state(other)[name])] == []
    assert one.scale == [] and len(one.momenta) == len(list(one.model.parameters()))


def test_channels_are_standardised_and_dead_ones_are_zero():
    stacks = [5 + 3 * stack for stack in _batch(samples=7, seed=4)[2]]
    stacks[0][:, 1, 2] = 7.0  # no variance
    stacks[0][:, 0, 3] = 1000 + 1e-3 * stacks[0][:, 0, 3]  # variance within float16's rounding of its mean
    stacks[0][:, 0, 4] *= 1e-4  # little, but its own
    hgkt = _hgkt()
    hgkt.scale = channel_scale([stack[start:end] for stack in stacks] for start, end in ((0, 2), (2, 7)))
    for k, standard in enumerate(hgkt.standardised(stacks)):
        dead = torch.zeros(SHAPES[k][:2], dtype=torch.bool)
        if k == 0:
            dead[1, 2] = dead[0, 3] = True
        torch.testing.assert_close(standard.mean((0, 3, 4)), torch.zeros(dead.shape, dtype=torch.float64), rtol=0, atol=1e-9)
        deviation = stacks[k].var((0, 3, 4), correction=0).sqrt()
        expected = torch.where(dead, 0, deviation / (deviation + 1e-6))
        torch.testing.assert_close(standard.var((0, 3, 4), correction=0).sqrt(), expected, rtol=1e-9, atol=1e-9)
    other_images = [torch.full_like(stack, 5e4) for stack in stacks]
    assert (hgkt.standardised(other_images)[0][:, 1, 2] == 0).all(), "a dead channel stays 0 where another image wakes it"


def test_a_step_learns_from_the_standardised_features_and_nothing_else():
    """Matching, meta-networks and hypergradient: bitwise the step of an unscaled HGKT on features that were standardised before."""
    scaled, plain = _prepared(_hgkt(**CHANNEL)), _hgkt()
    images, target, stacks = _batch()
    scaled.step(images, target, stacks)
    plain.step(images, target, scaled.standardised(stacks))
    assert [name for name, tensor in _state(plain).items() if not torch.equal(tensor, _state(scaled)[name])] == []
    assert not torch.equal(scaled.standardised(stacks)[0], stacks[0])


def test_fitted_projections_stand_still_and_the_student_does_not():
    hgkt = _prepared(_hgkt(**CHANNEL | RIDGE))
    before = _state(hgkt)
    for seed in range(2):
        hgkt.step(*_batch(seed=seed))
    still = {name for name, tensor in _state(hgkt).items() if torch.equal(tensor, before[name])}
    fitted = {name for name in before if name.startswith(("weight.", "bias."))}
    assert fitted and {name for name in still if "relu" not in name} == fitted
    assert not fitted & set(hgkt.momenta), "outside the transfer optimiser"


def test_fitting_and_measuring_the_fit_leave_no_trace():
    """Neither BN's statistics nor a random number; ridge fits its own images better than the initial projections do."""
    hgkt = _hgkt(**RIDGE)
    before, random = copy.deepcopy(hgkt.model.student.state_dict()), torch.get_rng_state()
    images, _, stacks = _batch(samples=5)
    initial = hgkt.r_squared([(images, stacks)])
    _prepared(hgkt)
    hgkt.fit_projections([(images, stacks)])
    fitted = hgkt.r_squared([(images, stacks)])
    assert fitted.shape == (3, 4) and (fitted > 0).all() and (fitted > initial).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in hgkt.model.student.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


def test_a_step_without_hypergradient_moves_the_student_alone():
    one, other = _hgkt(), _hgkt()
    full, short = one.step(*_batch()), other.step(*_batch(), meta_step=False)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))
    assert torch.equal(full.pair_weights, short.pair_weights) and full.task_loss == short.task_loss
    assert short.outer_loss.isnan() and short.hypergradient_norm.isnan() and full.hypergradient_norm > 0
    fresh = _hgkt()
    assert all(torch.equal(a, b) for a, b in zip(other.meta.parameters(), fresh.meta.parameters(), strict=True))


def test_pairs_that_start_at_one_draw_the_same_random_numbers():
    random, after_random = _hgkt(), torch.rand(1)
    zero, after_zero = _hgkt(pair_init="zero"), torch.rand(1)
    stacks = _batch()[2]
    assert all((weights == 1).all() for weights in zero.meta(stacks)[1])
    assert not any((weights == 1).all() for weights in random.meta(stacks)[1])
    assert torch.equal(after_random, after_zero)
    assert all(torch.equal(a, b) for a, b in zip(random.model.parameters(), zero.model.parameters(), strict=True))


def test_cosine_falls_to_zero_over_the_rounds_and_adam_is_torchs():
    hgkt = _hgkt(meta_optimizer="adam", meta_schedule="cosine", meta_lr=0.1)
    rates = []
    for number in range(1, 7):
        hgkt.set_meta_rate(number, 4)
        rates.append(hgkt.meta_optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447, 0, 0], rel=1e-5)
    hgkt.set_meta_rate(1, 4)
    before = [p.detach().clone() for p in hgkt.meta.parameters()]
    hgkt.step(*_batch())
    moved = max((p - q).abs().max().item() for p, q in zip(hgkt.meta.parameters(), before, strict=True))
    assert moved == pytest.approx(0.1, rel=1e-3), "Adam's first step is its rate"
