"""MetaFed (Chen et al. 2023, "MetaFed: federated learning among federations with cyclic knowledge distillation for personalized
healthcare", IEEE TNNLS; code: microsoft/PersonalizedFL). No server model: the centres form a ring, in the order of their names.

    init             every centre trains alone; at the end its flag is whether its validation score exceeds the threshold
    common           teacher = the previous centre's current model (the first centre's: the last's; none in the first visit). Flag off: the
                     teacher is copied, once a visit, then the task is trained. Flag on: task + lambda MSE(f, f_t) between the features.
                     After a visit the flag is looked at again; it only ever switches on.
    personalisation  teacher = the last centre's model; v, v_t the validation scores of student and teacher before training;
                     lambda' = 0 if v_t <= v and v_t < 0.5, else lambda 10^min(1, 5 (v_t - v)) / 10; task + lambda' MSE(f, f_t)

Score: accuracy (classification, cutoff 0.5) or mean foreground Dice. Features: penultimate, or the UNet's bottleneck map.

Deviations from the official code: a fifth of the rounds for init, the others but the last common, the last one personalisation (official:
30 local epochs each for init, common rounds and personalisation apart from the budget). Where a study goes on to match updates,
the personalisation takes place in both reported rounds, and the common stage goes on between them: at the first the centres' models are
those that a study of so many rounds ends with. The task's optimiser (official: SGD without momentum), started anew after a copy. Dice and
bottleneck maps for segmentation, for which the official code has nothing. In the personalisation a centre whose flag is off learns from its
neighbour like the others (official: it copies the model). Copying at every local epoch and two passes a batch, which move
batch normalisation twice, are not taken over. Where a task has no validation set, a fifth of the training patients becomes one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vfmgl_lib.config import ConfigError, StudySettings
from vfmgl_lib.config.sections import Settings
from vfmgl_lib.data.loading import ImageDataset, fixed_batches, load_batches
from vfmgl_lib.federation.client import Client
from vfmgl_lib.federation.servers import Server, State, Switches, Update
from vfmgl_lib.kernels.overlap import foreground_dice
from vfmgl_lib.methods.budgets import report_rounds
from vfmgl_lib.methods.record import Method
from vfmgl_lib.models.batch_norm import uses_batch_statistics
from vfmgl_lib.models.students import Student, part_names

BETTER_THAN_CHANCE = 0.5  # a teacher that is no better than the student and below this teaches nothing


class MetaFedSettings(Settings):
    """Theirs, not taken: SGD lr 1e-2 without momentum."""

    # The code's default; the shipped script's 1.1 never distils.
    threshold: float = Field(default=0.6, ge=0, le=1, description="validation score above which a centre distils instead of copying")
    distillation: float = Field(default=1.0, ge=0, description="lambda, weight of the feature distance")
    # Theirs is 30 local epochs; a fifth of the rounds here, so that the budget is everybody's.
    init_share: float = Field(
        default=0.2, gt=0, lt=1, description="share of federation.rounds in which every centre trains alone; at least one round"
    )
    copy_bn: bool = Field(default=True, description="copying takes the teacher's batch normalisation too")


def init_rounds(settings: StudySettings) -> int:
    """Rounds in which every centre trains alone, at least one."""
    return max(1, round(settings.comparators.metafed.init_share * settings.federation.rounds))


def phase(settings: StudySettings, round_number: int) -> str:
    """ "init", "common" or "personalisation"."""
    if round_number <= init_rounds(settings):
        return "init"
    return "personalisation" if round_number in report_rounds(settings).values() else "common"


def personal_weight(weight: float, student_score: float, teacher_score: float) -> float:
    """lambda' of the personalisation stage from lambda and both models' validation scores, in [0, 1]."""
    if teacher_score <= student_score and teacher_score < BETTER_THAN_CHANCE:
        return 0.0
    return weight * 10 ** min(1.0, 5 * (teacher_score - student_score)) / 10


class Ring(Server):
    """Passes on the centres' latest models; a centre's update is received before the next centre's message is formed.

    Args:
        settings: the study's.
        centers: in the ring's order.
        initial: the state that all students start from; every update must have its names, shapes and types.
    """

    checkpoint = "ring.state"  # for resuming only, as the centres' own state
    sequential = True

    def __init__(self, settings: StudySettings, centers: list[str], initial: State):
        self.settings, self.centers = settings, list(centers)
        self.initial = initial
        self.largest_norm = settings.faults.largest_norm
        self.models: dict[str, State] = {}

    def order(self, centers: list[str], round_number: int) -> list[str]:
        return [center for center in self.centers if center in centers]

    def message(self, center: str, round_number: int) -> State | None:
        stage, position = phase(self.settings, round_number), self.centers.index(center)
        if stage == "init" or (round_number == init_rounds(self.settings) + 1 and stage == "common" and position == 0):
            return None
        # The last centre trains last, so that until its own turn its model is that of the round before.
        # A centre whose updates were all refused has no model here: it teaches nothing.
        return self.models.get(self.centers[-1 if stage == "personalisation" else position - 1])

    def declared(self) -> tuple[State, dict[str, tuple[int, ...]]]:
        return self.initial, {}

    def receive(self, update: Update) -> None:
        super().receive(update)
        self.models[update.center] = update.state

    def state_dict(self) -> State:
        return {f"{center}/{name}": tensor for center, model in self.models.items() for name, tensor in model.items()}

    def load_state_dict(self, state: State) -> None:
        self.models = {}
        for key, tensor in state.items():
            center, _, name = key.rpartition("/")
            self.models.setdefault(center, {})[name] = tensor


class MetaFedClient(Client):
    """A centre of the ring: it copies its predecessor's model or learns from its features."""

    flag = False  # its model is good enough to be kept

    def begin_round(self, round_number: int, received: State | None) -> None:
        if self.validation is None:
            raise ConfigError(
                f"method metafed, centre {self.center}: it decides on a validation set and none was given; "
                "set data.validation_share, e.g. 0.2"
            )
        chosen = self.settings.comparators.metafed
        self.lesson: Student | None = None
        self.lesson_weight = 0.0
        if received is None:
            return
        teacher = self.teaching_copy(received)
        if phase(self.settings, round_number) == "personalisation":
            scores = (validation_score(model, self.validation, self.settings, self.device) for model in (self.student, teacher))
            self.lesson_weight = personal_weight(chosen.distillation, *scores)
        elif self.flag:
            self.lesson_weight = chosen.distillation
        else:
            self.copy(received)
        if self.lesson_weight:
            self.lesson = teacher

    def copy(self, received: State) -> None:
        """The received model overwrites the local one, on request without its batch normalisation."""
        kept: State = {}
        if not self.settings.comparators.metafed.copy_bn:
            norms = part_names(self.student, "batch_norm")
            kept = {name: tensor for name, tensor in self.student.state_dict().items() if name in norms}
        self.student.load_state_dict(received | kept)
        self.optimizer = self._task_optimizer()  # a neighbour's model, not a mean that this centre's own steps are part of

    def training_loss(self, images: Tensor, target: Tensor, batch: dict) -> tuple[Tensor, Tensor]:
        if self.lesson is None:
            return super().training_loss(images, target, batch)
        logits, features = self.student.forward_features(images)
        with torch.no_grad():
            _, taught = self.lesson.forward_features(images)
        task = self.task_loss(logits, target)
        return task, task + self.lesson_weight * F.mse_loss(features, taught)

    def end_round(self, round_number: int) -> None:
        if round_number >= init_rounds(self.settings) and not self.flag:
            assert self.validation is not None  # `begin_round`
            score = validation_score(self.student, self.validation, self.settings, self.device)
            self.flag = score > self.settings.comparators.metafed.threshold

    def state_dict(self) -> State:
        return super().state_dict() | {"metafed.flag": torch.tensor(self.flag)}

    def load_state_dict(self, state: State, student: State, stage_one: State) -> None:
        super().load_state_dict(state, student, stage_one)
        self.flag = bool(state["metafed.flag"])


@torch.inference_mode()
def validation_score(student: Student, data: ImageDataset, settings: StudySettings, device: torch.device) -> float:
    """Accuracy at cutoff 0.5, or mean foreground Dice (both masks empty: 1), in [0, 1]; the student is put into eval mode."""
    student.eval()
    scores = []
    members = fixed_batches(len(data), settings.evaluation_batch_size, uses_batch_statistics(student))
    for batch in load_batches(data, members):
        logits, target = student(batch["image"].to(device)), batch["target"]
        predicted = logits.argmax(1).cpu()
        if target.dim() == 1:
            scores += (predicted == target).double().tolist()
            continue
        scores += foreground_dice(predicted, target, logits.shape[1]).tolist()
    return sum(scores) / len(scores)


METHODS = (
    Method(
        "metafed",
        "MetaFed",
        "Chen et al. 2023, IEEE TNNLS",
        order=60,
        color="#DD8FBF",
        line="solid",
        marker="v",
        switches=Switches(sends=True),
        client=MetaFedClient,
        server=lambda settings, centers, student: Ring(settings, centers, student.state_dict()),
        settings=MetaFedSettings,
        extra_passes=lambda settings: 1.0,  # the neighbour's model, also in the rounds in which it is only copied
        needs_validation=True,
        last_round_differs=True,
        in_paper=True,
    ),
)
