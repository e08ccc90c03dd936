"""The sections of a study's settings: what each setting means and may be. `config` makes a study's settings of them and of a profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from vfmgl_lib.base.strict_yaml import StrictModel
from vfmgl_lib.models.student_names import check_student_name, has_width
from vfmgl_lib.tasks.records import TaskRecord, find_task


class Settings(StrictModel):
    model_config = ConfigDict(allow_inf_nan=False)


class SplitSettings(Settings):
    """A division of every training centre's patients anew, instead of the data's own (`vfmgl_lib.data.divisions.resplit`)."""

    train: float = Field(gt=0, lt=1, description="share of a centre's patients that train; the others test")
    seed: int = Field(ge=0)

    @property
    def name(self) -> str:
        """As the tables' column split_id has it, e.g. "0.6-3"."""
        return f"{self.train:g}-{self.seed}"


class FoldSettings(Settings):
    """One fold of a cross-validation by patient, at every training centre (`vfmgl_lib.data.divisions.fold`)."""

    folds: int = Field(ge=2)
    fold: int = Field(ge=1, description="whose patients test; the others train")
    seed: int = Field(ge=0, description="of the division into folds")

    @model_validator(mode="after")
    def _is_one_of_them(self) -> FoldSettings:
        if self.fold > self.folds:
            raise ValueError(f"fold {self.fold} of {self.folds}: must be one of them")
        return self

    @property
    def name(self) -> str:
        """As the tables' column split_id has it, e.g. "fold2of5-0"."""
        return f"fold{self.fold}of{self.folds}-{self.seed}"


Division = SplitSettings | FoldSettings
# Which of the two is meant is asked first: an error then names the setting of the one alone. "_": no part of a setting's name.
_OneDivision = Annotated[
    Annotated[SplitSettings, Tag("_share")] | Annotated[FoldSettings, Tag("_fold")],
    Discriminator(lambda given: "_fold" if "folds" in (given if isinstance(given, Mapping) else dir(given)) else "_share"),
]


class DataSettings(Settings):
    layout: str = Field(description="the task, as `tasks.records.TASKS` names it")
    classes: tuple[str, ...] = Field(
        default=(), description="names of more than two classes, in the order of their numbers; empty: two, whatever they are called"
    )
    own_task: TaskRecord | None = Field(default=None, description="the task's record where it is none of the built-in ones")
    image_size: int = Field(ge=32, description="side of the student's square input in pixels")
    validation_share: float = Field(
        ge=0, lt=1, description="share of the training patients set aside where the layout has no validation set"
    )
    per_center: dict[Literal["train", "val", "test"], int] = Field(
        description="at most so many samples per centre and split, of test the same for every seed; empty: all"
    )
    augmentation: Literal["none", "turns_and_flips"] = Field(description="of training images (vfmgl_lib.data.loading.ORIENTATIONS)")
    split: _OneDivision | None = Field(description="none: the data's own division")
    workers: int = Field(ge=0, description="loader processes")

    @field_validator("classes")
    @classmethod
    def _told_apart(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(names) == 1:
            raise ValueError("one class alone leaves nothing to tell apart: name at least two")
        if len(set(names)) < len(names):
            raise ValueError(f"a class is named twice: {', '.join(names)}")
        return names

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The data of a built-in task are written, and hashed, as before there were others."""
        return {name: value for name, value in write(self).items() if name != "own_task" or value is not None}

    @property
    def class_count(self) -> int:
        """K."""
        return len(self.classes) or 2

    @property
    def record(self) -> TaskRecord:
        """The task's record. Raises: TaskError: a task that is not there."""
        return self.own_task or find_task(self.layout)

    @property
    def split_id(self) -> str:
        """As the tables have it: "own", or the name of the division, e.g. "0.6-3" or "fold2of5-0"."""
        return self.split.name if self.split else "own"


class PhantomSettings(Settings):
    centers: int = Field(ge=2)
    samples: dict[Literal["train", "val", "test"], int]
    image_size: int = Field(ge=32)
    heterogeneity: float = Field(ge=0)
    artefacts: float = Field(default=0.1, ge=0, le=1, description="share of a centre's training images with one that only it has")


TEACHER_HELP = "pocket_vit, NAME, FILE, NAME=FILE or random:TEXT; an existing file is FILE, also with '=' in it; default: the profile's"
Mean = Annotated[float, Field(ge=0, le=1)]  # of images in [0, 1]
Deviation = Annotated[float, Field(gt=0, le=1)]


class TeacherSettings(Settings):
    source: str = Field(min_length=1, description="as vfmgl_lib.models.teachers names it; a second choice after ' else '")
    grid: int = Field(ge=1, description="tokens along a side; 16 in the paper's FLOP count, 64 in the released code")
    image_size: int | None = Field(description="explicit side of the teacher's input; none: grid x patch, or the nearest it takes")
    blocks: tuple[int, ...] | None = Field(description="1-based, of a network of blocks; none: 1, D/3, 2D/3, D")
    cache_gib: float = Field(ge=0, description="disk for features of all teachers, GiB; 0: computed anew in every epoch")
    mean: tuple[Mean, Mean, Mean] | None = Field(default=None, description="its images are normalised by; none: as its file or timm says")
    std: tuple[Deviation, Deviation, Deviation] | None = Field(default=None, description="the same")

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A teacher without a normalisation of its own is written, and hashed, as before there was one."""
        return {name: value for name, value in write(self).items() if name not in ("mean", "std") or value is not None}


class StudentSettings(Settings):
    name: str = Field(
        description="the paper's resnet18 or any CNN of timm for a classification, the paper's unet or unet:NAME for a segmentation "
        "(models.student_names)"
    )
    width: int = Field(
        ge=4, description="of resnet18, unet and the decoder of unet:NAME; a CNN of timm has that of its name, and this is not read"
    )
    weights: str = Field(description="none, hub or a safetensors file; of unet:NAME the encoder's")

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        check_student_name(name)
        return name

    @property
    def network(self) -> str:
        """In words, e.g. "resnet18, width 64" or "resnet34"."""
        return f"{self.name}, width {self.width}" if has_width(self.name) else self.name


class OptimizerSettings(Settings):
    """The task optimiser."""

    name: Literal["sgd", "adam"]
    lr: float = Field(gt=0)
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    batch_size: int = Field(ge=2)


class TransferSettings(Settings):
    """HGKT; `momentum` and `weight_decay` are the transfer optimiser's, whose lr is the task's.

    From `teacher_scale` on, what the paper does not have; paper.yaml has each of them off.
    """

    beta: float = Field(ge=0)
    inner_steps: int = Field(ge=0, description="T, virtual steps on the matching loss")
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    meta_lr: float = Field(ge=0)
    meta_momentum: float = Field(ge=0, lt=1)
    meta_weight_decay: float = Field(ge=0)
    outer_batch: Literal["same", "next"]
    critical_stages: int = Field(ge=0, description="stages frozen in stage II")
    teacher_scale: Literal["none", "channel"] = Field(description="channel: features standardised by the centre's (transfer.channel_scale)")
    projection: Literal["sgd", "ridge"] = Field(
        description="ridge: P fitted once a round (vfmgl_lib.method.projections), sgd: P learnt by each step"
    )
    ridge_penalty: float = Field(gt=0, description="of ridge, relative to the mean variance of a stage's channels")
    pair_init: Literal["random", "zero"] = Field(description="weights of the layers that give lambda; zero: all pairs start at 1")
    meta_optimizer: Literal["sgd", "adam"] = Field(description="adam: meta_momentum is its beta 1, beta 2 is 0.999")
    meta_schedule: Literal["constant", "cosine"] = Field(description="cosine: meta_lr falls to 0 over federation.rounds, round by round")
    hypergradient_every: int = Field(ge=1, description="phi moves at every n-th batch of a round, from the first on")


class DeductionSettings(Settings):
    """Stage II; whether it runs, and whether it drops batches, is the method's (`federation.servers.Switches`)."""

    task_share: float = Field(ge=0, le=1, description="alpha: share of the task loss beside the KL")
    rule: Literal["kappa", "quantile"] = Field(description="kappa: the paper's threshold; quantile: a fixed share of the batches")
    keep_ratio: float = Field(gt=0, description="kappa: a batch is kept iff KL <= kappa * mean task loss")
    quantile: float = Field(gt=0, le=1, description="q: kept iff the KL before stage II is at or under the q-quantile of the stage's")
    temperature: float = Field(gt=0, description="tau; with pixel_sum at a side of 256, rescaled to tau * side / 256")
    tau_squared: bool = Field(description="KL times (rescaled) tau^2, as in Hinton et al. 2015; with pixel_sum it dwarfs the task loss")
    reduction: Literal["pixel_sum", "pixel_mean"]
    gradient_every: int = Field(ge=0, description="k: |grad KL| / |grad task| is logged at every k-th batch; 0: never; changes no number")


class FederationSettings(Settings):
    rounds: int = Field(ge=1)
    local_epochs: int = Field(ge=1)
    weights: Literal["samples", "uniform"]
    aggregation: Literal["mean", "median", "trimmed_mean"] = Field(
        description="how a server that averages makes the shared model: the mean by `weights`, or value by value the median or the mean "
        "without the extremes, where all centres count alike"
    )
    trimmed_share: float = Field(
        ge=0, lt=0.5, description="of trimmed_mean: share of the centres left out at either end, rounded down; 0.25 leaves out one of four"
    )
    local_start: Literal["own", "shared", "mix"] = Field(
        description="what stage I of a method with stage II starts from: the centre's own model, the shared one, or the mean of both; "
        "a method without stage II starts from its own, so that with another value HGKT+KD differs from HGKT in its start too"
    )
    match_updates: bool = Field(
        description="a method with one update a batch goes on beyond `rounds` to as many as VFMGL's three, and is reported on the way at "
        "as many as HGKT's two; HGKT and pooled training stay at `rounds`"
    )
    match_by: Literal["rounds", "epochs"] = Field(
        description="what it goes on by to match updates: more rounds, or more local epochs in as many rounds (studies of their own)"
    )
    match_compute: bool = Field(
        description="it also goes on to as many passes of the student as VFMGL makes, which is many times the rounds"
    )
    epoch_factor: int = Field(
        ge=1, description="set by the method, whatever is given: with match_by epochs how many times the local epochs"
    )

    @property
    def epochs(self) -> int:
        """Local epochs of a round."""
        return self.local_epochs * self.epoch_factor


class ExchangeSettings(Settings):
    """How an update is written before it leaves a centre; the same in one process and over a network."""

    number_format: Literal["float32", "float16", "float16_change"] = Field(
        description="float16 halves the traffic; float16_change sends the difference from the model received, where there is one"
    )
    share_counts: bool = Field(description="false: counts, BN's counters, losses and scores stay at the centre; needs uniform weights")
    clip: float = Field(ge=0, description="longest change of the model received that a centre sends, L2 norm; 0: any")
    noise: float = Field(ge=0, description="SD of the noise on every value sent, in units of clip (vfmgl_lib.federation.exchange)")


class FaultSettings(Settings):
    """When a round goes on without a centre, and what one centre may do to it.

    None of it but `largest_share` changes a number of a round in which nothing goes wrong.
    """

    quorum: float = Field(gt=0, le=1, description="share of the centres that a round needs")
    deadline: float = Field(gt=0, description="seconds from the start of a round after which a centre that has not answered is left out")
    deadline_factor: float = Field(
        ge=1, description="it is left out earlier: after so many times the longest time that a centre last took (tools.flower.deadlines)"
    )
    largest_share: float = Field(gt=0, le=1, description="of one centre in a mean; where its samples give it more, the others get the rest")
    largest_norm: float = Field(gt=1, description="an update's norm, as a multiple of the shared model's, above which it is refused")


class ComparatorSettings(Settings):
    """One section a method that has settings of its own; `methods.settings` makes the class that has them all."""

    if TYPE_CHECKING:

        def __getattr__(self, section: str) -> Any: ...

    def of(self, method: str) -> dict[str, dict[str, Any]]:
        """The sections that a method reads, as plain values."""
        raise NotImplementedError


class TuningSettings(Settings):
    """What `vfmgl sweep --tune` tries; a sweep takes what it chose as settings of each method's studies."""

    factors: tuple[float, ...] = Field(min_length=1, description="each tuned setting is tried at its value times each of these; 1 is one")
    seed: int = Field(ge=0, lt=2**31, description="of the tuning's studies; a sweep refuses it, so that it is never reported")

    @model_validator(mode="after")
    def _has_the_profile_s_own(self) -> TuningSettings:
        if 1 not in self.factors or min(self.factors) <= 0 or len(set(self.factors)) < len(self.factors):
            raise ValueError("factors must be above 0, each one once, and 1 among them")
        return self


class ComparisonSettings(Settings):
    """Which studies the comparison is made of; none of it is part of a study."""

    methods: tuple[str, ...] = Field(description="those that notebook 05 runs; empty: all of methods.registry.METHODS")
    seeds: int = Field(ge=1, description="notebook 05 runs the seeds from the study's on, so many")
    splits: tuple[tuple[float, int], ...] = Field(description="(train share, seed) of every division that notebook 06 runs")
    tuning: TuningSettings


class InterpretationSettings(Settings):
    """What notebook 07 asks of trained models; none of it is part of a study."""

    features: int = Field(ge=2, description="features that mRMR selects of each local model; 256 in the paper")
    top: int = Field(ge=2, description="adaptive, and common, features of each centre in a heatmap")


class FootprintSettings(Settings):
    """What notebook 08 measures, at the paper's sizes; none of it is part of a study."""

    student_batches: tuple[int, ...] = Field(min_length=1, description="images at once")
    teacher_batches: tuple[int, ...] = Field(min_length=1, description="images at once; a ViT-B takes a CPU up to a second an image")
    seconds: float = Field(gt=0, description="how long each measurement is repeated")


class ComputeSettings(Settings):
    """How the device is used; a CPU computes in float32 and, unless it is asked for, in torch's own layout."""

    autocast: bool = Field(description="bfloat16 for the frozen teacher and the frozen shared model; what is trained stays float32")
    channels_last: Literal["never", "gpu", "always"] = Field(description="where students' convolutions are in NHWC")
    compile_teacher: bool = Field(description="torch.compile for the teacher; some minutes at the start")


PLAIN_EXCHANGE = ExchangeSettings(number_format="float32", share_counts=True, clip=0, noise=0)
