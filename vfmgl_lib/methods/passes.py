"""What a batch costs, counted in passes of the student.

The unit is one forward pass of the student on one batch; a backward pass counts two, so that an update costs three. Only the student's own
layers are counted, as they are in training: not the teacher (its features are cached), not the projections and meta-networks of HGKT, not
evaluation, and not the pass over the training images that re-estimates the statistics of batch normalisation, which all methods make.
Nor is what only a control needs to be one: `vfmgl_random` runs stage II twice where its random order is another than DDBL's, and counts as
VFMGL.

    update                  3
    HGKT, T virtual steps   9 + 6 + 3 e + 9 e (T - 1)     kept step, virtual task step and outer loss; the task step's Hessian-vector
                                                          product; T matching steps, which run the encoder alone, and T - 1 products of
                                                          theirs (T = 0: 9). All but the kept step in every n-th batch alone
                                                          (`transfer.hypergradient_every`)
    stage II                4 + 2 (1 - e)                 an update, the shared model's pass, and its head there and back; of every batch,
                                                          kept or not
    rule quantile           2                             the shared model's pass, the encoder and the shared head, before stage II

e is the share of the encoder in a forward pass: of the paper's students a constant, of others counted (`encoder_share`). A test holds
these counts against torch's own flop counter.
"""

from __future__ import annotations

import functools

import torch

from vfmgl_lib.config import StudySettings
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.models.students import build_student

UPDATE = 3.0
ENCODER_SHARE = {"unet": 0.29, "resnet18": 1.0}  # of the multiplications of a forward pass


@functools.cache
def encoder_share(name: str, width: int, image_size: int) -> float:
    """e of a student: as `ENCODER_SHARE` has it, else counted without computing; a classifier's encoder is nearly all of it."""
    from torch.utils.flop_counter import FlopCounterMode

    if name in ENCODER_SHARE:
        return ENCODER_SHARE[name]
    images = torch.zeros(1, 3, image_size, image_size, device="meta")
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        student = build_student(name, 2, width).eval()
    counts = []
    for run in (student.encode, student):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(images)
        counts.append(counter.get_total_flops())
    return counts[0] / counts[1]


def hgkt_passes(inner_steps: int, encoder: float, every: int = 1) -> float:
    """Passes of one HGKT step.

    Args:
        inner_steps: T, virtual steps on the matching loss.
        encoder: e, share of the encoder in a forward pass, in (0, 1].
        every: a hypergradient is taken in every n-th batch.
    """
    virtual = 2 * UPDATE + ((6 + 3 * encoder + 9 * encoder * (inner_steps - 1)) if inner_steps else 0.0)
    return UPDATE + virtual / every


def distillation_passes(encoder: float, quantile: bool = False) -> float:
    """Passes of one batch of stage II; what dropped batches and frozen stages save is not counted.

    Args:
        quantile: the batches are measured before the stage (`deduction.rule`).
    """
    return UPDATE + 1 + 2 * (1 - encoder) + (2 if quantile else 0)


def student_passes(settings: StudySettings, rounds: int) -> float:
    """Passes a batch of one local epoch of the study's method, the mean over so many rounds; 0 for a frozen model with a fitted classifier.

    Example:
        student_passes(load_settings("nuclei", "paper", method="fedavg"), 100) == 3.0
    """
    method, student = METHODS[settings.method], settings.student
    switches, encoder = method.switches, encoder_share(student.name, student.width, settings.data.image_size)
    if switches.embeds:
        return 0.0
    passes = UPDATE + method.extra_passes(settings)
    if switches.transfer:
        passes += hgkt_passes(settings.transfer.inner_steps, encoder, settings.transfer.hypergradient_every)
    if switches.distillation:
        quantile = switches.deduction and settings.deduction.rule == "quantile"
        passes += distillation_passes(encoder, quantile) * (rounds - 1) / rounds  # from the second round on
    return passes
