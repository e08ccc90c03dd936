"""HarmoFL: the amplitude block is swapped and the phase kept; a step is taken from theta with the gradient at theta + delta."""

import copy

import numpy as np
import pytest
import torch

from vfmgl_lib.federation.rounds import run_rounds
from vfmgl_lib.methods.harmofl import AMPLITUDE, AmplitudeNormalised, block_side
from vfmgl_lib.models.students import UNet


def _normaliser(side, momentum=0.1):
    torch.manual_seed(0)
    return AmplitudeNormalised(UNet(2, 4), side, momentum)


@pytest.mark.parametrize("side", [1, 3, 7])
def test_amplitude_of_the_block_is_the_running_mean_and_phase_stays(side):
    model, images = _normaliser(side), torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    out = model.train().normalise(images)
    # numpy's centred spectrum as an independent definition
    before, after = (np.fft.fftshift(np.fft.fft2(x.double().numpy()), axes=(-2, -1)) for x in (images, out))
    reach = side // 2
    block = (slice(None), slice(None), slice(8 - reach, 8 + reach + 1), slice(8 - reach, 8 + reach + 1))
    mean = np.abs(before[block]).mean(0)
    # The block's order here begins at the lowest frequency, as `fftshift` has it.
    np.testing.assert_allclose(model.amplitude.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(np.abs(after[block]), np.broadcast_to(mean, np.abs(after[block]).shape), rtol=1e-4)
    np.testing.assert_allclose(np.exp(1j * np.angle(after)), np.exp(1j * np.angle(before)), atol=2e-3)
    outside = np.ones(before.shape, bool)
    outside[block] = False
    np.testing.assert_allclose(np.abs(after[outside]), np.abs(before[outside]), rtol=1e-3, atol=1e-4)
    assert out.dtype == torch.float32 and out.shape == images.shape


def test_a_block_of_one_changes_the_mean_of_each_channel_alone():
    model, images = _normaliser(1), torch.rand(4, 3, 8, 8)
    out = model.train().normalise(images)
    torch.testing.assert_close(out.mean((2, 3)), images.mean((0, 2, 3)).expand(4, 3), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out - out.mean((2, 3), keepdim=True), images - images.mean((2, 3), keepdim=True), rtol=1e-4, atol=1e-6)


def test_the_running_amplitude_starts_with_the_first_batch_and_moves_by_the_momentum_in_training_only():
    model, (one, other) = _normaliser(1, momentum=0.25), (torch.full((2, 3, 4, 4), value) for value in (0.2, 0.6))
    assert torch.equal(model.eval().normalise(one), one), "before the first batch images pass as they are"
    model.train().normalise(one)
    torch.testing.assert_close(model.amplitude.flatten(), torch.full((3,), 16 * 0.2))
    model.normalise(other)
    torch.testing.assert_close(model.amplitude.flatten(), torch.full((3,), 16 * (0.75 * 0.2 + 0.25 * 0.6)))
    seen = model.amplitude.clone()
    out = model.eval().normalise(other)
    assert torch.equal(model.amplitude, seen)
    torch.testing.assert_close(out, torch.full_like(out, 0.3)), "applied at evaluation, too"


def test_the_step_is_taken_from_theta_with_the_gradient_at_theta_plus_delta(federation):
    clients, _ = federation(
        "nuclei", "harmofl", optimizer__momentum=0.0, optimizer__weight_decay=0.0, comparators__harmofl__perturbation=0.5
    )
    client = clients[0]
    client.student.train()
    images, target, batch = next(iter(client._load(1, "I", 0)))
    network, lr = copy.deepcopy(client.student.student), client.settings.optimizer.lr
    theta = [p.detach().clone() for p in network.parameters()]
    client.task_step(images, target, batch)

    def gradient(at):
        with torch.no_grad():
            for parameter, value in zip(network.parameters(), at, strict=True):
                parameter.copy_(value)
        normalised = client.student.eval().normalise(images)  # the running amplitude after its one update
        return torch.autograd.grad(client.task_loss(network.train()(normalised), target), list(network.parameters()))

    first = gradient(theta)
    statistics = [buffer.clone() for buffer in network.buffers()]
    norm = torch.sqrt(sum((g**2).sum() for g in first))
    perturbed = [p + 0.5 * g / norm for p, g in zip(theta, first, strict=True)]
    second = gradient(perturbed)
    moved = list(client.student.student.parameters())
    for new, old, g in zip(moved, theta, second, strict=True):
        torch.testing.assert_close(new, old - lr * g, rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(old - lr * a, old - lr * b, rtol=1e-4, atol=1e-5) for old, a, b in zip(theta, first, second, strict=True))
    assert any(not torch.allclose(new, away - lr * g, rtol=1e-3, atol=1e-4) for new, away, g in zip(moved, perturbed, second, strict=True))
    for buffer, expected in zip(client.student.student.buffers(), statistics, strict=True):
        torch.testing.assert_close(buffer, expected)  # moved once, at theta


def test_without_perturbation_it_is_a_step_of_the_normalised_student(federation):
    clients, _ = federation("nuclei", "harmofl", comparators__harmofl__perturbation=0.0)
    plain, _ = federation("nuclei", "harmofl")
    images, target, batch = next(iter(clients[0]._load(1, "I", 0)))
    for client in (clients[0], plain[0]):
        client.student.train()
    clients[0].task_step(images, target, batch)
    loss = plain[0].task_loss(plain[0].student(images), target)
    loss.backward()
    plain[0].optimizer.step()
    for one, other in zip(clients[0].student.parameters(), plain[0].student.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_amplitudes_are_averaged_as_the_declared_aggregate_and_adopted(federation, received):
    clients, server = federation("nuclei", "harmofl", comparators__harmofl__block=0.1)
    assert block_side(clients[0].settings) == 7  # 2 floor(0.1 * 32) + 1
    updates = received(server)
    list(run_rounds(clients, server, 1))
    sent = [update.aggregates[AMPLITUDE] for update in updates]
    assert not torch.equal(*sent) and all(AMPLITUDE not in update.state for update in updates)
    for client in clients:
        torch.testing.assert_close(client.student.amplitude, (sent[0] + sent[1]) / 2)
