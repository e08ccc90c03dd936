"""HGKT: what and where to transfer from the frozen teacher into a student (paper: "HGKT"; Jang et al. 2019, L2T-ww).

For every pair (teacher block m, student stage n)

    L_match = beta sum_mn mean_b [ lambda_b,mn sum_c w_bc,mn mean_hw ( up(T_m)_bc,hw - (P_mn S_n)_bc,hw )^2 ]

with channel weights w = softmax(Linear(GAP T_m)) and pair weights lambda = relu6(Linear(GAP T_m)). Symbols: theta student, P projections,
phi = {both families of Linear}. One step on a batch (`HGKT.step`):

    1  theta, P <- SGD(L_task + L_match), the transfer optimiser. This is the step that is kept.
    2  from there, virtually: T steps on L_match, then one on L_task, with the same optimiser's momentum and weight decay
    3  outer loss: L_task at the virtual parameters
    4  phi <- SGD on the exact hypergradient d outer / d phi through the T + 1 virtual steps
    5  the virtual steps leave no trace: parameters, momenta and BN statistics are those after 1

Parameters that a loss does not reach have a zero gradient, so weight decay and momentum still move them, virtually as in the kept step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vfmgl_lib.config import TransferSettings
from vfmgl_lib.kernels.matching import TeacherTerms, pair_matching, prepare_teacher
from vfmgl_lib.models.students import Student

TaskLoss = Callable[[Tensor, Tensor], Tensor]
State = dict[str, Tensor]
Pairing = tuple[list[Tensor], list[Tensor]]  # channel weights (B, M, N, C_t) and pair weights (B, M, N), one each per teacher stack


class MetaNetworks(nn.Module):
    """phi: the channel weights and pair weights of every (teacher block, student stage), from the blocks' pooled features.

    Args:
        stack_shapes: (M, C_t, g) per teacher stack.
        stages: N, number of student stages.
    """

    def __init__(self, stack_shapes: Sequence[tuple[int, int, int]], stages: int):
        super().__init__()
        self.channel = nn.ModuleList()  # C_t -> C_t per pair, zero at the start: uniform weights
        self.pair = nn.ModuleList()  # C_t -> 1 per pair, bias 1 at the start
        for blocks, channels, _ in stack_shapes:
            self.channel.append(nn.ModuleList(nn.Linear(channels, stages * channels) for _ in range(blocks)))
            self.pair.append(nn.ModuleList(nn.Linear(channels, stages) for _ in range(blocks)))
        for linear in (linear for stack in self.channel for linear in stack):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in (linear for stack in self.pair for linear in stack):
            nn.init.ones_(linear.bias)

    def forward(self, stacks: list[Tensor]) -> Pairing:
        """Teacher stacks (B, M, C_t, g, g) -> channel weights (B, M, N, C_t) and pair weights (B, M, N) per stack."""
        channel_weights, pair_weights = [], []
        for stack, channel, pair in zip(stacks, self.channel, self.pair, strict=True):
            pooled = stack.mean((-2, -1)).unbind(1)
            logits = [linear(x).unflatten(1, (-1, x.shape[1])) for linear, x in zip(channel, pooled, strict=True)]
            channel_weights.append(torch.stack(logits, dim=1).softmax(-1))
            pair_weights.append(torch.stack([nn.functional.relu6(linear(x)) for linear, x in zip(pair, pooled, strict=True)], dim=1))
        return channel_weights, pair_weights


class TeacherBatch:
    """The teacher's features of one batch, with the teacher-only terms of the matching loss computed once per student size."""

    def __init__(self, stacks: list[Tensor]):
        self.stacks = stacks
        self._terms: dict[tuple[int, ...], TeacherTerms] = {}

    def at(self, stack: int, size: tuple[int, int]) -> TeacherTerms:
        """The terms of one stack for a student stage of this (H, W)."""
        key = (stack, *size)
        if key not in self._terms:
            self._terms[key] = prepare_teacher(self.stacks[stack], size)
        return self._terms[key]


class TransferModel(nn.Module):
    """theta and P: a student with one 1x1 projection C_n -> C_t with bias per pair, initialised as torch does a 1x1 convolution."""

    def __init__(self, student: Student, stack_shapes: Sequence[tuple[int, int, int]]):
        super().__init__()
        self.student = student
        self.weight, self.bias = nn.ParameterDict(), nn.ParameterDict()
        for k, (blocks, channels, _) in enumerate(stack_shapes):
            for stage, width in student.stage_channels.items():
                bound = width**-0.5
                self.weight[f"{k}_{stage}"] = nn.Parameter(torch.empty(blocks, channels, width).uniform_(-bound, bound))
                self.bias[f"{k}_{stage}"] = nn.Parameter(torch.empty(blocks, channels).uniform_(-bound, bound))

    def forward(
        self, images: Tensor, teacher: TeacherBatch | None, pairing: Pairing | None, head: bool = True
    ) -> tuple[Tensor | None, Tensor | None]:
        """Logits (None without `head`) and the matching loss (B,) before beta (None without a teacher)."""
        maps = self.student.encode(images)
        logits = self.student.head_from_stages(maps) if head else None
        if teacher is None or pairing is None:
            return logits, None
        loss = images.new_zeros(len(images))
        for k, (channel_weights, pair_weights) in enumerate(zip(*pairing, strict=True)):
            for n, (stage, stage_map) in enumerate(zip(self.student.stage_channels, maps, strict=True)):
                key = f"{k}_{stage}"
                loss = loss + pair_matching(
                    teacher.at(k, stage_map.shape[-2:]),
                    stage_map,
                    self.weight[key],
                    self.bias[key],
                    channel_weights[:, :, n],
                    pair_weights[:, :, n],
                )
        return logits, loss


@dataclass
class StepRecord:
    """What one HGKT step measured; scalars are 0-d tensors left on the device (no synchronisation inside a step)."""

    task_loss: Tensor
    match_loss: Tensor
    outer_loss: Tensor
    hypergradient_norm: Tensor
    pair_weights: Tensor  # (B, M over all stacks, N), before phi's update


class HGKT:
    """HGKT of one centre: student, projections and meta-networks with their optimisers, and the bilevel step.

    Args:
        student: the centre's local model; its parameters are moved in place.
        stack_shapes: (M, C_t, g) per teacher stack.
        settings: beta, T, optimiser settings.
        lr: the task's learning rate, also that of the transfer optimiser.
        task_loss: (logits, target) -> scalar.
    """

    def __init__(
        self,
        student: Student,
        stack_shapes: Sequence[tuple[int, int, int]],
        settings: TransferSettings,
        lr: float,
        task_loss: TaskLoss,
    ):
        self.settings, self.lr, self.task_loss = settings, lr, task_loss
        reference = next(student.parameters())
        self.model = TransferModel(student, stack_shapes).to(reference.device, reference.dtype)
        self.meta = MetaNetworks(stack_shapes, len(student.stage_channels)).to(reference.device, reference.dtype)
        self.momenta: State = {name: torch.zeros_like(p) for name, p in self.model.named_parameters()}
        self.meta_optimizer = torch.optim.SGD(
            self.meta.parameters(),
            lr=settings.meta_lr,
            momentum=settings.meta_momentum,
            weight_decay=settings.meta_weight_decay,
        )

    def step(self, images: Tensor, target: Tensor, stacks: list[Tensor], outer: tuple[Tensor, Tensor] | None = None) -> StepRecord:
        """Steps 1 to 5 of the module's docstring on one batch; theta, P and phi move, nothing else.

        Args:
            images: (B, 3, H, W) in [0, 1].  target: (B,) or (B, H, W) int64.
            stacks: the frozen teacher's features of this batch.
            outer: (images, target) of the held-out batch for the outer loss; None: this same batch.
        """
        self.meta_optimizer.zero_grad(set_to_none=True)
        pairing = self.meta(stacks)
        constant = tuple([tensor.detach() for tensor in part] for part in pairing)
        teacher = TeacherBatch(stacks)

        logits, match = self.model(images, teacher, constant)
        task, match = self.task_loss(logits, target), self.settings.beta * match.mean()
        parameters = dict(self.model.named_parameters())
        gradients = dict(zip(parameters, torch.autograd.grad(task + match, list(parameters.values())), strict=True))
        with torch.no_grad():
            updated, self.momenta = self._sgd(parameters, gradients, self.momenta)
            for name, parameter in parameters.items():
                parameter.copy_(updated[name])

        outer_loss = self.virtual_outer_loss(images, target, teacher, pairing, outer or (images, target))
        outer_loss.backward(inputs=list(self.meta.parameters()))
        norm = torch.stack([p.grad.square().sum() for p in self.meta.parameters()]).sum().sqrt()
        self.meta_optimizer.step()
        weights = torch.cat([stack.detach() for stack in pairing[1]], dim=1)
        return StepRecord(task.detach(), match.detach(), outer_loss.detach(), norm, weights)

    def virtual_outer_loss(
        self,
        images: Tensor,
        target: Tensor,
        teacher: TeacherBatch,
        pairing: Pairing,
        outer: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Steps 2 and 3: the outer loss after T virtual steps on L_match and one on L_task, as a function of phi (through `pairing`)."""
        parameters = {name: p.detach().requires_grad_() for name, p in self.model.named_parameters()}
        momenta = self.momenta
        # BN in train mode normalises by the batch; the running statistics it would update are these copies.
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}

        def differentiable_step(loss: Tensor) -> tuple[State, State]:
            gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True, materialize_grads=True)
            return self._sgd(parameters, dict(zip(parameters, gradients, strict=True)), momenta)

        for _ in range(self.settings.inner_steps):
            _, match = functional_call(self.model, (parameters, buffers), (images, teacher, pairing, False))
            parameters, momenta = differentiable_step(self.settings.beta * match.mean())
        logits, _ = functional_call(self.model, (parameters, buffers), (images, None, None))
        parameters, momenta = differentiable_step(self.task_loss(logits, target))
        logits, _ = functional_call(self.model, (parameters, buffers), (outer[0], None, None))
        return self.task_loss(logits, outer[1])

    def state_dict(self) -> State:
        """P, phi and all momenta (not the student), flat, for checkpoints."""
        state = {f"model.{name}": p for name, p in self.model.named_parameters() if not name.startswith("student.")}
        state |= {f"momentum.{name}": tensor for name, tensor in self.momenta.items()}
        state |= {f"meta.{name}": p for name, p in self.meta.named_parameters()}
        for name, parameter in self.meta.named_parameters():
            buffer = self.meta_optimizer.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                state[f"meta_momentum.{name}"] = buffer
        return {name: tensor.detach() for name, tensor in state.items()}

    def load_state_dict(self, state: State) -> None:
        """Takes back what `state_dict` gave; every tensor must be there (KeyError names the one that is not)."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if not name.startswith("student."):
                    parameter.copy_(state[f"model.{name}"])
            for name, momentum in self.momenta.items():
                momentum.copy_(state[f"momentum.{name}"])
            for name, parameter in self.meta.named_parameters():
                parameter.copy_(state[f"meta.{name}"])
                if f"meta_momentum.{name}" in state:
                    self.meta_optimizer.state[parameter]["momentum_buffer"] = state[f"meta_momentum.{name}"].to(parameter).clone()

    def _sgd(self, parameters: State, gradients: State, momenta: State) -> tuple[State, State]:
        """One step of the transfer optimiser (torch.optim.SGD's dynamics) as a function: new parameters and momenta."""
        momenta = {
            name: self.settings.momentum * momenta[name] + gradients[name] + self.settings.weight_decay * parameter
            for name, parameter in parameters.items()
        }
        return {name: parameter - self.lr * momenta[name] for name, parameter in parameters.items()}, momenta


def critical_stages(scores: dict[str, float], count: int) -> tuple[str, ...]:
    """The robustness-critical stages: the `count` with the highest score, in the student's order; ties go to the earlier stage.

    Args:
        scores: stage name -> mean pair weight over batches, samples and teacher blocks, in [0, 6], in the student's order.
    Raises: ValueError: if more stages are asked for than there are.
    """
    if not 0 <= count <= len(scores):
        raise ValueError(f"transfer.critical_stages must be between 0 and {len(scores)}, got {count}")
    ranked = sorted(scores, key=lambda stage: -scores[stage])[:count]  # sorted is stable: ties keep the student's order
    return tuple(stage for stage in scores if stage in ranked)
