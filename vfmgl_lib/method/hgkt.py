"""HGKT: what and where to transfer from the frozen teacher into a student (paper: "HGKT"; Jang et al. 2019, L2T-ww).

For every pair (teacher block m, student stage n)

    L_match = beta sum_mn mean_b [ lambda_b,mn sum_c w_bc,mn mean_hw ( up(T_m)_bc,hw - (P_mn S_n)_bc,hw )^2 ]

with channel weights w = softmax(Linear(GAP T_m)) and pair weights lambda = relu6(Linear(GAP T_m)). Symbols: theta student, P projections,
phi = {both families of Linear}; `MetaNetworks.forward` gives both, lambda as `pair_weights`. One step on a batch (`HGKT.step`):

    1  theta, P <- SGD(L_task + L_match), the transfer optimiser. This is the step that is kept.
    2  from there, virtually: T steps on L_match, then one on L_task, with the same optimiser's momentum and weight decay
    3  outer loss: L_task at the virtual parameters
    4  phi <- SGD on the exact hypergradient d outer / d phi through the T + 1 virtual steps
    5  the virtual steps leave no trace: parameters, momenta and BN statistics are those after 1

Parameters that a loss does not reach have a zero gradient, so weight decay and momentum still move them, virtually as in the kept step.

With `transfer.teacher_scale: channel` T is standardised by channel, for the matching and for phi (`channel_scale`). With
`transfer.projection: ridge` P is no parameter: it is fitted once a round and a constant in all of the above (`method.projections`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import get_total_norm

from vfmgl_lib.config.sections import TransferSettings
from vfmgl_lib.kernels import tensor_lists
from vfmgl_lib.kernels.matching import TeacherTerms, pair_matching, prepare_teacher
from vfmgl_lib.kernels.twice_differentiable import twice_differentiable_layers
from vfmgl_lib.method.projections import Moments, r_squared, ridge
from vfmgl_lib.models.students import Student

TaskLoss = Callable[[Tensor, Tensor], Tensor]
State = dict[str, Tensor]
Batches = Iterable[tuple[Tensor, list[Tensor]]]  # images (B, 3, H, W) and the teacher's stacks (B, M, C_t, g, g)
Scale = list[tuple[Tensor, Tensor]]  # mean and factor, (M, C_t) each, of every teacher stack
Pairing = tuple[list[Tensor], list[Tensor]]  # channel weights (B, M, N, C_t) and pair weights (B, M, N), one each per teacher stack

FLOOR = 1e-6  # is added to a channel's SD; at or below it a channel is dead
HALF_STEP = 2**-11  # features are rounded to float16: an SD below this share of the mean is rounding
META_STATE = {"meta_momentum": "momentum_buffer", "meta_mean": "exp_avg", "meta_square": "exp_avg_sq", "meta_step": "step"}  # torch.optim's


class MetaNetworks(nn.Module):
    """phi: the channel weights and pair weights of every (teacher block, student stage), from the blocks' pooled features.

    Args:
        stack_shapes: (M, C_t, g) per teacher stack.
        stages: N, number of student stages.
        pair_init: "zero": the pair layers' weights start at 0, so that every lambda starts at 1; "random": as torch initialises them.
    """

    def __init__(self, stack_shapes: Sequence[tuple[int, int, int]], stages: int, pair_init: str = "random"):
        super().__init__()
        self.channel = nn.ModuleList()  # C_t -> C_t per pair, zero at the start: uniform weights
        self.pair = nn.ModuleList()  # C_t -> 1 per pair, bias 1 at the start
        for blocks, channels, _ in stack_shapes:
            self.channel.append(nn.ModuleList(nn.Linear(channels, stages * channels) for _ in range(blocks)))
            self.pair.append(nn.ModuleList(nn.Linear(channels, stages) for _ in range(blocks)))
        for parameter in self.channel.parameters():
            nn.init.zeros_(parameter)
        for name, parameter in self.pair.named_parameters():
            if name.endswith("bias"):
                nn.init.ones_(parameter)
            elif pair_init == "zero":
                nn.init.zeros_(parameter)

    def forward(self, stacks: list[Tensor]) -> Pairing:
        """Teacher stacks (B, M, C_t, g, g) -> channel weights (B, M, N, C_t) and pair weights (B, M, N) per stack."""
        channel_weights, pair_weights = [], []
        for stack, channel, pair in zip(stacks, self.channel, self.pair, strict=True):
            pooled = stack.mean((-2, -1)).unbind(1)
            logits = [linear(x).unflatten(1, (-1, x.shape[1])) for linear, x in zip(channel.children(), pooled, strict=True)]
            channel_weights.append(torch.stack(logits, dim=1).softmax(-1))
            pair_weights.append(torch.stack([nn.functional.relu6(linear(x)) for linear, x in zip(pair.children(), pooled, strict=True)], 1))
        return channel_weights, pair_weights


class TeacherBatch:
    """The teacher's features of one batch, with the teacher-only terms of the matching loss computed once per student stage."""

    def __init__(self, stacks: list[Tensor]):
        self.stacks = stacks
        self._terms: dict[tuple[int, ...], TeacherTerms] = {}

    def terms(self, stack: int, stage_map: Tensor) -> TeacherTerms:
        """The terms of one stack for a student stage (B, C_n, H, W)."""
        key = (stack, *stage_map.shape[1:])
        if key not in self._terms:
            self._terms[key] = prepare_teacher(self.stacks[stack], (stage_map.shape[2], stage_map.shape[3]), stage_map.shape[1])
        return self._terms[key]


def channel_scale(stacks: Iterable[list[Tensor]]) -> Scale:
    """What standardises a teacher's channels: mean and 1 / (SD + 1e-6), over all images and places of every block and channel.

    A channel without variance in these images (SD at most 1e-6, or within float16's rounding of its mean) is dead: its factor is 0.

    Args:
        stacks: per batch the teacher's stacks (B, M, C_t, g, g); the centre's training images, as they are. Sums are in float64.
    """
    sums: list[Tensor] = []  # a stack: (2, M, C_t), of the means over places of the values and of their squares
    count = 0
    for batch in stacks:
        values = [stack.double() for stack in batch]
        added = [torch.stack([v, v.square()]).mean((-2, -1)).sum(1) for v in values]
        sums = [old + new for old, new in zip(sums, added, strict=True)] if sums else added
        count += len(batch[0])
    scale = []
    for mean, square in (total / count for total in sums):
        deviation = (square - mean.square()).clamp(min=0).sqrt()
        dead = deviation <= torch.clamp(HALF_STEP * mean.abs(), min=FLOOR)
        scale.append((mean.to(batch[0].dtype), torch.where(dead, 0, 1 / (deviation + FLOOR)).to(batch[0].dtype)))
    return scale


class TransferModel(nn.Module):
    """theta and P: a student with one 1x1 projection C_n -> C_t with bias per pair, initialised as torch does a 1x1 convolution.

    learnt: whether P is moved by gradients; else it is a constant that somebody else fits.
    """

    def __init__(self, student: Student, stack_shapes: Sequence[tuple[int, int, int]], learnt: bool = True):
        super().__init__()
        self.student = student
        self.weight, self.bias = nn.ParameterDict(), nn.ParameterDict()
        for k, (blocks, channels, _) in enumerate(stack_shapes):
            for stage, width in student.stage_channels.items():
                bound = width**-0.5
                self.weight[f"{k}_{stage}"] = nn.Parameter(torch.empty(blocks, channels, width).uniform_(-bound, bound))
                self.bias[f"{k}_{stage}"] = nn.Parameter(torch.empty(blocks, channels).uniform_(-bound, bound))
        for part in (self.weight, self.bias):
            part.requires_grad_(learnt)

    def forward(
        self, images: Tensor, teacher: TeacherBatch | None, pairing: Pairing | None, head: bool = True, upstream_only: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        """Logits (None without `head`) and the matching loss (B,) before beta (None without a teacher).

        upstream_only: see `kernels.matching.pair_matching`.
        """
        maps = self.student.encode(images)
        logits = self.student.head_from_stages(maps) if head else None
        if teacher is None or pairing is None:
            return logits, None
        loss = images.new_zeros(len(images))
        for k, (channel_weights, pair_weights) in enumerate(zip(*pairing, strict=True)):
            for n, (stage, stage_map) in enumerate(zip(self.student.stage_channels, maps, strict=True)):
                key = f"{k}_{stage}"
                loss = loss + pair_matching(
                    teacher.terms(k, stage_map),
                    stage_map,
                    self.weight[key],
                    self.bias[key],
                    channel_weights[:, :, n],
                    pair_weights[:, :, n],
                    upstream_only,
                )
        return logits, loss


@dataclass
class StepRecord:
    """What one HGKT step measured; scalars are 0-d tensors left on the device (no synchronisation inside a step).

    outer_loss and hypergradient_norm are NaN where phi did not move.
    """

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
        self.model = TransferModel(student, stack_shapes, settings.projection == "sgd").to(reference.device, reference.dtype)
        self.meta = MetaNetworks(stack_shapes, len(student.stage_channels), settings.pair_init).to(reference.device, reference.dtype)
        # What the transfer optimiser moves: theta and, unless it is fitted, P.
        self.momenta: State = {name: torch.zeros_like(p) for name, p in self.model.named_parameters() if p.requires_grad}
        self.scale: Scale = []  # of `channel_scale`; empty: features as they are
        # fused: one pass over parameters that are as many as the student's
        options: dict[str, Any] = {"lr": settings.meta_lr, "weight_decay": settings.meta_weight_decay, "fused": True}
        if settings.meta_optimizer == "sgd":
            self.meta_optimizer: torch.optim.Optimizer = torch.optim.SGD(self.meta.parameters(), momentum=settings.meta_momentum, **options)
        else:
            self.meta_optimizer = torch.optim.Adam(self.meta.parameters(), betas=(settings.meta_momentum, 0.999), **options)

    def set_meta_rate(self, round_number: int, rounds: int) -> None:
        """The meta-optimiser's rate in a round, from 1: with `meta_schedule: cosine` meta_lr (1 + cos(pi (round - 1) / rounds)) / 2.

        Rounds beyond `rounds` (`federation.match_updates`) have the rate 0, so that what is reported at `rounds` does not depend on them.
        """
        if self.settings.meta_schedule == "cosine":
            share = min((round_number - 1) / rounds, 1)
            self.meta_optimizer.param_groups[0]["lr"] = self.settings.meta_lr * (1 + math.cos(math.pi * share)) / 2

    def standardised(self, stacks: list[Tensor]) -> list[Tensor]:
        """The stacks (B, M, C_t, g, g) by `self.scale`; the same where there is none."""
        if not self.scale:
            return stacks
        parts = zip(stacks, self.scale, strict=True)
        return [(stack - mean[..., None, None]) * factor[..., None, None] for stack, (mean, factor) in parts]

    def moments(self, batches: Batches) -> Moments:
        """Of standardised teacher features and student maps over these images; nothing of the student changes.

        The student normalises by the batch, as it does in stage I, where the projections are used; a copy keeps its running statistics.
        """
        student, moments = copy.deepcopy(self.model.student).train(), Moments()
        with torch.no_grad():
            for images, stacks in batches:
                maps = dict(zip(student.stage_channels, student.encode(images), strict=True))
                moments.add(maps, self.standardised(stacks))
        return moments

    def fit_projections(self, batches: Batches) -> None:
        """P of every pair by ridge regression on these images (`method.projections.ridge`); constant until the next call."""
        moments = self.moments(batches)
        with torch.no_grad():
            for key, stack, stage in self._pairs():
                weight, bias = ridge(moments.pair(stack, stage), self.settings.ridge_penalty)
                self.model.weight[key].copy_(weight)
                self.model.bias[key].copy_(bias)

    def r_squared(self, batches: Batches) -> Tensor:
        """R2 of every pair (M over all stacks, N) on these images, at least two, as `method.projections.r_squared`; float64 on the CPU."""
        moments = self.moments(batches)
        with torch.no_grad():
            values = [r_squared(moments.pair(k, stage), self.model.weight[key], self.model.bias[key]) for key, k, stage in self._pairs()]
        stages = len(self.model.student.stage_channels)
        return torch.cat([torch.stack(values[start : start + stages], dim=1) for start in range(0, len(values), stages)]).cpu()

    def _pairs(self) -> list[tuple[str, int, str]]:
        """Key in the projections, teacher stack and student stage, stack by stack."""
        return [(f"{k}_{stage}", k, stage) for k in range(len(self.meta.pair)) for stage in self.model.student.stage_channels]

    def step(
        self, images: Tensor, target: Tensor, stacks: list[Tensor], outer: tuple[Tensor, Tensor] | None = None, meta_step: bool = True
    ) -> StepRecord:
        """Steps 1 to 5 of the module's docstring on one batch; theta, P and phi move, nothing else.

        Args:
            images: (B, 3, H, W) in [0, 1].  target: (B,) or (B, H, W) int64.
            stacks: the frozen teacher's features of this batch.
            outer: (images, target) of the held-out batch for the outer loss; None: this same batch.
            meta_step: false: step 1 alone.
        """
        self.meta_optimizer.zero_grad(set_to_none=True)
        stacks = self.standardised(stacks)
        pairing = self.meta(stacks)
        constant = [tensor.detach() for tensor in pairing[0]], [tensor.detach() for tensor in pairing[1]]
        teacher = TeacherBatch(stacks)

        logits, match = self.model(images, teacher, constant)
        task, match = self.task_loss(logits, target), self.settings.beta * match.mean()
        parameters, momenta = list(self._moving().values()), list(self.momenta.values())
        gradients = torch.autograd.grad(task + match, parameters)
        with torch.no_grad():
            self._sgd_step(parameters, list(gradients), momenta)
        weights = torch.cat([stack.detach() for stack in pairing[1]], dim=1)
        if not meta_step:
            absent = torch.full_like(task.detach(), torch.nan)
            return StepRecord(task.detach(), match.detach(), absent, absent, weights)

        outer_loss, derivatives = self.hypergradient(images, target, teacher, constant, outer or (images, target))
        torch.autograd.backward([*pairing[0], *pairing[1]], derivatives, inputs=list(self.meta.parameters()))
        norm = get_total_norm([p.grad for p in self.meta.parameters() if p.grad is not None])
        self.meta_optimizer.step()
        return StepRecord(task.detach(), match.detach(), outer_loss.detach(), norm, weights)

    def hypergradient(
        self, images: Tensor, target: Tensor, teacher: TeacherBatch, pairing: Pairing, outer: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Outer loss and its exact derivatives by all channel and pair weights, by the adjoint of the virtual steps.

        With u = (theta, P), v the momenta and g_t the gradient of step t, the virtual steps and their adjoint (A of u, V of v) are

            v' = mu v + g_t(u) + wd u,     V = mu V' - lr A'
            u' = u - lr v'                 A = A' + wd V + (d g_t / d u)^T V,     d outer / d(w, lambda) += (d g_t / d(w, lambda))^T V

        so a step costs one Hessian-vector product, the first only its part in (w, lambda), and parameters are updated outside the graph.
        """
        settings, names = self.settings, list(self.momenta)
        weights = [tensor.detach().requires_grad_() for part in pairing for tensor in part]
        halves = weights[: len(pairing[0])], weights[len(pairing[0]) :]
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        position = [p.detach() for p in self._moving().values()]
        momenta = [self.momenta[name] for name in names]
        trajectory = []
        for step in range(settings.inner_steps + 1):
            leaves = [p.requires_grad_() for p in (q.detach() for q in position)]
            parameters = dict(zip(names, leaves, strict=True)), buffers
            first = step == 0  # its Hessian-vector product is needed in the direction of (w, lambda) only
            with twice_differentiable_layers(upstream_only=first):
                if step < settings.inner_steps:
                    _, match = functional_call(self.model, parameters, (images, teacher, halves, False, first))
                    loss = settings.beta * match.mean()
                else:
                    loss = self.task_loss(functional_call(self.model, parameters, (images, None, None))[0], target)
                gradients = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
            reached = [index for index, gradient in enumerate(gradients) if gradient is not None]
            trajectory.append((leaves, tuple(gradients[index] for index in reached), reached))
            with torch.no_grad():
                position = [p.clone() for p in position]
                momenta = momenta if step else [momentum.clone() for momentum in momenta]
                self._sgd_step(
                    position, [g if g is not None else torch.zeros_like(p) for g, p in zip(gradients, position, strict=True)], momenta
                )

        leaves = [p.requires_grad_() for p in position]
        logits, _ = functional_call(self.model, (dict(zip(names, leaves, strict=True)), buffers), (outer[0], None, None))
        outer_loss = self.task_loss(logits, outer[1])
        adjoint: Sequence[Tensor] = torch.autograd.grad(outer_loss, leaves, materialize_grads=True)
        momentum_adjoint = [torch.zeros_like(a) for a in adjoint]
        derivatives = [torch.zeros_like(weight) for weight in weights]
        while trajectory:
            leaves, gradients, reached = trajectory.pop()
            # V = mu V' - lr A' and A' + wd V are an update by SGD too, of A' with itself as the gradient.
            self._sgd_step(adjoint, adjoint, momentum_adjoint, lr=-settings.weight_decay, weight_decay=0.0, dampening=1 + self.lr)
            wanted = [*leaves, *weights] if trajectory else weights
            directions = [momentum_adjoint[index] for index in reached]
            products = torch.autograd.grad(gradients, wanted, directions, materialize_grads=True)
            tensor_lists.add_(derivatives, products[-len(weights) :])
            if trajectory:
                adjoint = tensor_lists.add(adjoint, products[: len(leaves)])
        return outer_loss.detach(), derivatives

    def unrolled_outer_loss(
        self, images: Tensor, target: Tensor, teacher: TeacherBatch, pairing: Pairing, outer: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Steps 2 and 3 as one graph: the outer loss as a function of phi (through `pairing`). The definition that tests hold
        `hypergradient` against; slower, because it carries every parameter's update in the graph.
        """
        parameters = {name: p.detach().requires_grad_() for name, p in self._moving().items()}
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
        """P, phi, all momenta and the teacher's scale (not the student), flat, for checkpoints."""
        state: State = {f"model.{name}": p for name, p in self.model.named_parameters() if not name.startswith("student.")}
        state |= {f"momentum.{name}": tensor for name, tensor in self.momenta.items()}
        state |= {f"meta.{name}": p for name, p in self.meta.named_parameters()}
        for name, parameter in self.meta.named_parameters():
            entries = self.meta_optimizer.state.get(parameter, {})
            state |= {f"{key}.{name}": entries[entry] for key, entry in META_STATE.items() if entries.get(entry) is not None}
        for k, (mean, factor) in enumerate(self.scale):
            state |= {f"scale.{k}.mean": mean, f"scale.{k}.factor": factor}
        return {name: tensor.detach() for name, tensor in state.items()}

    def load_state_dict(self, state: State) -> None:
        """Takes back what `state_dict` gave; every tensor must be there (KeyError names the one that is not)."""
        self.meta_optimizer.state.clear()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if not name.startswith("student."):
                    parameter.copy_(state[f"model.{name}"])
            for name, momentum in self.momenta.items():
                momentum.copy_(state[f"momentum.{name}"])
            for name, parameter in self.meta.named_parameters():
                parameter.copy_(state[f"meta.{name}"])
                for key, entry in META_STATE.items():
                    if f"{key}.{name}" in state:
                        self.meta_optimizer.state[parameter][entry] = state[f"{key}.{name}"].to(parameter.device).clone()
        reference, stacks = next(self.meta.parameters()), range(len(self.meta.pair)) if "scale.0.mean" in state else ()
        self.scale = [(state[f"scale.{k}.mean"].to(reference), state[f"scale.{k}.factor"].to(reference)) for k in stacks]

    def _moving(self) -> State:
        """The parameters that the transfer optimiser moves, by name."""
        parameters = dict(self.model.named_parameters())
        return {name: parameters[name] for name in self.momenta}

    def _sgd_step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], momenta: list[Tensor], **changes: float) -> None:
        """One step of the transfer optimiser (torch.optim.SGD's dynamics) in place, in one pass over the memory."""
        gradients = [g if g.stride() == p.stride() else torch.empty_like(p).copy_(g) for g, p in zip(gradients, parameters, strict=True)]
        options = {"lr": self.lr, "weight_decay": self.settings.weight_decay, "dampening": 0.0} | changes
        tensor_lists.sgd_(parameters, gradients, momenta, momentum=self.settings.momentum, **options)

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
