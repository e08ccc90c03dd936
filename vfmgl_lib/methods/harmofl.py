"""HarmoFL (Jiang et al. 2022, "HarmoFL: harmonizing local and global drifts in federated learning on heterogeneous medical images", AAAI;
code: med-air/HarmoFL).

Amplitude normalisation before the first layer: per image and channel F = FFT2(x); the block of side 2 floor(L min(H, W)) + 1 around
frequency zero gets the running mean amplitude, the phase stays, and the real part of the inverse transform goes on. The running mean is
that of the batches' mean amplitudes, averaged over centres with the model.

Weight perturbation, per batch: g at theta, delta = alpha g / (||g|| + 1e-12) with the norm over all parameters, then the gradient at
theta + delta moves theta.

Deviations from the official code: the momentum of the running amplitude is the published 0.1 (the code casts it to the integer 0, so that
the first batch's amplitude stays), and it goes on moving in every round (official: fixed after the first aggregation); batch normalisation
is the student's own, with affine parameters and running statistics that are averaged with the parameters (official: without either); its
statistics move once a batch, in the pass at theta. Student, loss, optimiser, batch size and rounds are the task's (profile), as for all
methods. Weights are uniform by default, as there.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils import get_total_norm

from vfmgl_lib.config import StudySettings
from vfmgl_lib.config.sections import Settings
from vfmgl_lib.federation.aggregation import mean_of
from vfmgl_lib.federation.client import Client
from vfmgl_lib.federation.servers import Averaging, State, Switches
from vfmgl_lib.kernels import tensor_lists
from vfmgl_lib.methods.passes import UPDATE
from vfmgl_lib.methods.record import Method
from vfmgl_lib.models.students import Student

AMPLITUDE = "amplitude"


class HarmoFLSettings(Settings):
    """Theirs, not taken: a network of 121 layers at 96 px with SGD lr 1e-3, batch 128, 100 rounds (Camelyon17); UNet, cross-entropy + Dice,
    Adam 1e-4, batch 16, 500 rounds (prostate)."""

    # The official default L = 0: a 1 x 1 block.
    block: float = Field(
        default=0.0, ge=0, lt=0.5, description="L: the amplitude block has side 2 floor(L min(H, W)) + 1; 0: the mean alone"
    )
    # As published; the official code casts it to the integer 0.
    amplitude_momentum: float = Field(default=0.1, gt=0, le=1, description="share of a batch's mean amplitude in the running one")
    perturbation: float = Field(default=0.05, ge=0, description="alpha: length of the weight perturbation")  # the official value
    weights: Literal["samples", "uniform"] = "uniform"  # the official default


def block_side(settings: StudySettings) -> int:
    """Side of the amplitude block for the study's input size."""
    return 2 * int(settings.comparators.harmofl.block * settings.data.image_size) + 1


def declared_aggregates(settings: StudySettings) -> dict[str, tuple[int, ...]]:
    """What leaves a centre beside its model: the running mean amplitude."""
    side = block_side(settings)
    return {AMPLITUDE: (3, side, side)}


class AmplitudeNormalised(Student):
    """A student behind the amplitude normalisation, in training and evaluation alike.

    Args:
        student: takes the normalised images.
        side: of the amplitude block, odd.
        momentum: share of a batch's mean amplitude in the running one; the first batch's is taken whole.
    """

    amplitude: Tensor

    def __init__(self, student: Student, side: int, momentum: float):
        super().__init__()
        self.student, self.momentum = student, momentum
        self.stage_channels = student.stage_channels
        # All zero: no batch seen yet, images pass as they are.
        self.register_buffer(AMPLITUDE, torch.zeros(3, side, side))

    def normalise(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1] -> (B, 3, H, W), real; in train mode the running amplitude moves first."""
        spectrum = torch.fft.fft2(images.float())
        reach = self.amplitude.shape[-1] // 2
        frequency = torch.arange(-reach, reach + 1, device=images.device)
        rows, columns = (frequency % images.shape[-2])[:, None], (frequency % images.shape[-1])[None, :]
        block = spectrum[:, :, rows, columns]  # (B, 3, side, side)
        if self.training:
            with torch.no_grad():
                batch = block.abs().mean(0)
                self.amplitude.copy_((1 - self.momentum) * self.amplitude + self.momentum * batch if self.amplitude.any() else batch)
        if not self.amplitude.any():
            return images
        spectrum[:, :, rows, columns] = torch.polar(self.amplitude.expand_as(block).contiguous(), block.angle())
        return torch.fft.ifft2(spectrum).real

    def encode(self, images: Tensor) -> list[Tensor]:
        return self.student.encode(self.normalise(images))

    def features(self, maps: list[Tensor]) -> Tensor:
        return self.student.features(maps)

    def head_from_features(self, maps: list[Tensor], features: Tensor) -> Tensor:
        return self.student.head_from_features(maps, features)

    @property
    def stages(self) -> dict[str, list[torch.nn.Module]]:
        return self.student.stages


def normalised(student: Student, settings: StudySettings) -> AmplitudeNormalised:
    """A student behind the study's amplitude normalisation, which has seen no batch yet."""
    return AmplitudeNormalised(student, block_side(settings), settings.comparators.harmofl.amplitude_momentum)


class HarmoFLClient(Client):
    """Local training with amplitude normalisation and weight perturbation."""

    student: AmplitudeNormalised

    def local_model(self, student: Student) -> Student:
        return normalised(student, self.settings)

    def task_step(self, images: Tensor, target: Tensor, batch: dict) -> Tensor:
        # Normalised once: the running amplitude, too, moves once a batch.
        images, network = self.student.normalise(images), self.student.student
        parameters = list(network.parameters())
        task = self.task_loss(network(images), target)
        gradients = torch.autograd.grad(task, parameters)
        length = self.settings.comparators.harmofl.perturbation / (get_total_norm(gradients) + 1e-12)
        position = [parameter.detach().clone() for parameter in parameters]
        statistics = [buffer.clone() for buffer in network.buffers()]
        with torch.no_grad():
            tensor_lists.add_(parameters, tensor_lists.scale(gradients, length))
        self.optimizer.zero_grad(set_to_none=True)
        self.task_loss(network(images), target).backward()
        with torch.no_grad():
            tensor_lists.copy_(parameters, position)  # to the bit, which subtracting delta again would not be
            for buffer, before in zip(network.buffers(), statistics, strict=True):
                buffer.copy_(before)
        self.optimizer.step()
        return task.detach()

    def sent_state(self) -> tuple[State, State]:
        state, _ = super().sent_state()
        return state, {AMPLITUDE: state.pop(AMPLITUDE)}


def harmofl_server(settings: StudySettings, centers: list[str], student: Student) -> Averaging:
    """Averages the model and, beside it, the running mean amplitude."""
    initial = normalised(student, settings).state_dict()
    declared, limit = declared_aggregates(settings), settings.faults.largest_norm
    weights, new_mean = settings.comparators.harmofl.weights, mean_of(settings)
    return Averaging(initial, weights, sends_initial=True, aggregates=declared, largest_norm=limit, new_mean=new_mean)


METHODS = (
    Method(
        "harmofl",
        "HarmoFL",
        "Jiang et al. 2022, AAAI",
        order=50,
        color="#117733",
        line="dash_dot",
        marker="^",
        switches=Switches(sends=True, adopts=True),
        client=HarmoFLClient,
        server=harmofl_server,
        settings=HarmoFLSettings,
        extra_passes=lambda settings: UPDATE,  # a second gradient, of the perturbed model
        revision=2,
        in_paper=True,
    ),
)
