"""The frozen foundation model with a linear classifier (the paper's Virchow row; Vorontsov et al. 2024 for Virchow's own probes).

Classification: logistic regression (of more than two classes multinomial) on the mean of the last block's patch tokens, standardised on the
centre's own training set.
Segmentation: logistic regression on each patch token, labelled by the share of its patch that the mask covers; its logits are upsampled
bilinearly to the student's size, and their bias is moved so that 0.5 becomes the cutoff with the highest mean Dice on the training set: a
probe that is fitted to shares reaches 0.5 nowhere where the structures are small. More than two classes have a multinomial logistic
regression on the shares of each, and the biases of the foreground classes are moved one after the other. Either becomes one linear layer,
so that the model is an ordinary module. A CNN or another network of levels serves by its last level, pooled, or by its stride-16 level as
tokens. One round, nothing leaves the centre.

Deviations: the paper does not say which classifier it puts on Virchow nor which embedding; Virchow's own probes read the class token beside
the mean of the patch tokens. The classifier is fitted to its optimum and not by steps of gradient descent. The model sees the teacher's own
resize of the image, whatever the student's input size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vfmgl_lib.config.sections import Settings
from vfmgl_lib.data.feature_cache import FeatureCache, teacher_stacks
from vfmgl_lib.data.loading import load_batches
from vfmgl_lib.federation.client import Client
from vfmgl_lib.federation.servers import Switches
from vfmgl_lib.kernels.overlap import foreground_dice
from vfmgl_lib.methods.record import Method
from vfmgl_lib.models.students import Student
from vfmgl_lib.models.teachers import Teacher

CERTAIN = 30.0  # logit of a class that is the only one: its probability is 1 in float32
ITERATIONS = 1000
CHUNK = 32  # samples whose logits are in memory at once
CUTOFFS = sorted((percent / 100 for percent in range(1, 100)), key=lambda cutoff: abs(cutoff - 0.5))


class FrozenProbeSettings(Settings):
    # scikit-learn's default
    inverse_regularization: float = Field(default=1.0, gt=0, description="C of the logistic regression on standardised features")


class Probe(Student):
    """A frozen teacher with one linear layer; its state is that layer's alone.

    Args:
        teacher: frozen; not part of the state.
        cache: of its features.
        output_size: side of the logits of a segmentation; None: classification.
        classes: K.
    """

    def __init__(self, teacher: Teacher, cache: FeatureCache | None, output_size: int | None, classes: int = 2):
        super().__init__()
        self.extract = _Frozen(teacher, cache)
        self.output_size, self.stage_channels = output_size, {}
        stack = teacher.dense_stack if output_size else -1
        self.stack, self.classifier = stack, nn.Linear(teacher.stack_shapes[stack][1], classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    @property
    def stages(self) -> dict[str, list[nn.Module]]:
        return {}

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1], of any size -> logits (B, K) or (B, K, S, S)."""
        return self.head(self.embedding(self.extract.teacher(images)))

    def infer(self, batch: dict[str, Tensor], image_hashes: list[str], device: torch.device) -> Tensor:
        """Logits from the teacher's own resize of the image."""
        return self.head(self.embedding(self.extract(batch["teacher_image"].to(device), image_hashes)))

    def embed(self, images: Tensor) -> Tensor:
        embedding = self.embedding(self.extract.teacher(images))
        return embedding.flatten(2).mean(2) if embedding.dim() == 4 else embedding

    def embedding(self, stacks: list[Tensor]) -> Tensor:
        """What the layer reads: (B, C), the last block's mean token, or (B, C, g, g), its tokens."""
        tokens = stacks[self.stack][:, -1]
        return tokens if self.output_size else tokens.flatten(2).mean(2)

    def head(self, embedding: Tensor) -> Tensor:
        """Logits (B, K) from (B, C), or (B, K, S, S) from (B, C, g, g)."""
        if not self.output_size:
            return self.classifier(embedding)
        logits = F.conv2d(embedding, self.classifier.weight[:, :, None, None], self.classifier.bias)
        return F.interpolate(logits, size=(self.output_size, self.output_size), mode="bilinear", align_corners=False)

    def fit(self, embeddings: Tensor, targets: Tensor, inverse_regularization: float) -> None:
        """Fits the layer to a training set.

        Args:
            embeddings: (n, C) or (n, C, g, g).  targets: (n,) or (n, H, W), class indices.
        """
        classes = self.classifier.out_features
        if self.output_size:
            # Of two classes the foreground's alone: the other has the rest.
            wanted = targets[:, None] if classes == 2 else torch.stack([targets == place for place in range(classes)], 1)
            shares = F.adaptive_avg_pool2d(wanted.double(), (embeddings.shape[-2], embeddings.shape[-1]))
            share = shares.flatten() if classes == 2 else shares.permute(0, 2, 3, 1).flatten(0, 2)
            rows = embeddings.permute(0, 2, 3, 1).flatten(0, 2)
        else:
            share, rows = targets.double() if classes == 2 else F.one_hot(targets, classes).double(), embeddings
        fitted = linear_classifier if classes == 2 else linear_classifiers
        weight, bias = fitted(rows.double().cpu().numpy(), share.cpu().numpy(), inverse_regularization)
        with torch.no_grad():
            if classes == 2:  # class 0 has the logit 0
                self.classifier.weight.copy_(torch.stack([torch.zeros(len(weight)), torch.from_numpy(weight).float()]))
                self.classifier.bias.copy_(torch.tensor([0.0, bias]))
            else:
                self.classifier.weight.copy_(torch.from_numpy(weight).float())
                self.classifier.bias.copy_(torch.from_numpy(bias).float())
            if self.output_size and classes == 2:
                cutoff = self._cutoff(embeddings, targets)
                self.classifier.bias[1] -= math.log(cutoff / (1 - cutoff))
            elif self.output_size:
                self._move_biases(embeddings, targets)

    def _cutoff(self, embeddings: Tensor, targets: Tensor) -> float:
        """Of `CUTOFFS` the probability that gives the highest mean Dice on these images; of equal ones the first."""
        scores = []
        for part, masks in zip(embeddings.split(CHUNK), targets.to(embeddings.device).split(CHUNK), strict=True):
            foreground, truth = self.head(part).softmax(1)[:, 1], masks > 0
            scores.append([foreground_dice((foreground >= cutoff).long(), truth.long()).cpu().numpy() for cutoff in CUTOFFS])
        return CUTOFFS[int(np.concatenate(scores, axis=1).mean(1).argmax())]

    def _move_biases(self, embeddings: Tensor, targets: Tensor) -> None:
        """Moves the bias of one foreground class after the other to the highest mean Dice, over the steps that `CUTOFFS` are for two."""
        classes, steps = self.classifier.out_features, [-math.log(cutoff / (1 - cutoff)) for cutoff in CUTOFFS]
        for place in range(1, classes):
            scores = []
            for part, masks in zip(embeddings.split(CHUNK), targets.to(embeddings.device).split(CHUNK), strict=True):
                logits = self.head(part)
                others = torch.cat([logits[:, :place], logits[:, place + 1 :]], 1).max(1)
                other = others.indices + (others.indices >= place)
                margin = logits[:, place] - others.values
                found = (foreground_dice(torch.where(margin + step > 0, place, other), masks, classes) for step in steps)
                scores.append([score.cpu().numpy() for score in found])
            self.classifier.bias[place] += steps[int(np.concatenate(scores, axis=1).mean(1).argmax())]


class _Frozen:
    """The teacher behind its cache. Not a module: neither in a state nor copied with the layer."""

    def __init__(self, teacher: Teacher, cache: FeatureCache | None):
        self.teacher, self.cache = teacher, cache

    def __call__(self, images: Tensor, image_hashes: list[str]) -> list[Tensor]:
        return teacher_stacks(self.teacher, images, image_hashes, self.cache)

    def __deepcopy__(self, memo: dict) -> _Frozen:
        return self


def linear_classifier(rows: np.ndarray, share: np.ndarray, inverse_regularization: float) -> tuple[np.ndarray, float]:
    """Logistic regression on standardised rows, as weight (C,) and bias of the rows as they are.

    Args:
        rows: (n, C).  share: (n,) in [0, 1], of class 1: a row between the classes counts for both, by its share.
    Returns: logit of class 1 = rows @ weight + bias. With one class only: weight 0 and a bias that makes it certain.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if share.min() == share.max() and share[0] in (0.0, 1.0):
        return np.zeros(rows.shape[1]), CERTAIN if share[0] else -CERTAIN
    scaler = StandardScaler().fit(rows)
    positive, negative = share > 0, share < 1
    standard = scaler.transform(rows)
    model = LogisticRegression(C=inverse_regularization, max_iter=ITERATIONS).fit(
        np.concatenate([standard[positive], standard[negative]]),
        np.concatenate([np.ones(positive.sum()), np.zeros(negative.sum())]),
        sample_weight=np.concatenate([share[positive], 1 - share[negative]]),
    )
    weight = model.coef_[0] / scaler.scale_
    return weight, float(model.intercept_[0] - weight @ scaler.mean_)


def linear_classifiers(rows: np.ndarray, shares: np.ndarray, inverse_regularization: float) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression on standardised rows, as weights (K, C) and biases (K,) of the rows as they are.

    Args:
        rows: (n, C).  shares: (n, K), K > 2, in [0, 1], each row's sum is 1: a row between classes counts for all of them, by their shares.
    Returns: logits = rows @ weights.T + biases. Of a class without a row the weights are 0 and the bias is so low that it is never called:
        the highest logit of the others is never below 0.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    weights, biases = np.zeros((shares.shape[1], rows.shape[1])), np.full(shares.shape[1], -CERTAIN)
    present = np.flatnonzero(shares.any(axis=0))
    biases[present] = 0
    if len(present) == 1:
        return weights, biases
    scaler = StandardScaler().fit(rows)
    standard, owned = scaler.transform(rows), [shares[:, place] > 0 for place in present]
    model = LogisticRegression(C=inverse_regularization, max_iter=ITERATIONS).fit(
        np.concatenate([standard[own] for own in owned]),
        np.repeat(present, [own.sum() for own in owned]),
        sample_weight=np.concatenate([shares[own, place] for own, place in zip(owned, present, strict=True)]),
    )
    coefficients, intercepts = model.coef_, model.intercept_
    if len(present) == 2:  # scikit-learn gives the second's alone; the first has the logit 0
        coefficients, intercepts = np.concatenate([0 * coefficients, coefficients]), np.concatenate([0 * intercepts, intercepts])
    weights[present] = coefficients / scaler.scale_
    biases[present] = intercepts - weights[present] @ scaler.mean_
    return weights, biases


def fit_probe(client: Client, probe: Probe, progress: Callable[[int], object] = lambda batches: None) -> tuple[Tensor, Tensor]:
    """Fits a probe to the client's own training set, its images as they are; returns embeddings and targets."""
    embeddings, targets = [], []
    for batch in load_batches(client.data, client.batches(0, "I"), client.settings.data.workers):
        embeddings.append(probe.embedding(client.teacher_features(batch)))
        targets.append(batch["target"].to(client.device))
        progress(1)
    found = torch.cat(embeddings), torch.cat(targets)
    probe.fit(*found, client.settings.comparators.frozen_probe.inverse_regularization)
    return found


class FrozenProbeClient(Client):
    """A centre that fits its classifier and is done."""

    student: Probe

    def local_model(self, student: Student) -> Student:
        """The probe; the student that other methods start from is not used."""
        return new_probe(self)

    def batch_count(self, round_number: int) -> int:
        return len(self.batches(0, "I"))

    def _stage_one(self, round_number: int, progress: Callable[[int], object]) -> tuple[float, tuple[str, ...]]:
        started = time.perf_counter()
        with torch.no_grad():
            embeddings, targets = fit_probe(self, self.student, progress)
            parts = zip(embeddings.split(CHUNK), targets.split(CHUNK), strict=True)
            losses = [self.task_loss(self.student.head(embedding), target).item() for embedding, target in parts]
        self._log_stage_one(round_number, losses, [], time.perf_counter() - started)
        return sum(losses) / len(losses), ()


def new_probe(client: Client) -> Probe:
    """An unfitted probe on the client's teacher."""
    settings = client.settings
    assert client.teacher is not None
    output_size = settings.data.image_size if settings.is_segmentation else None
    return Probe(client.teacher, client.cache, output_size, settings.data.class_count).to(client.device)


METHODS = (
    Method(
        "frozen_probe",
        "Frozen VFM + linear",
        "linear probe, as the paper's Virchow row (Vorontsov et al. 2024)",
        order=130,
        color="#000000",
        line="dotted",
        marker="P",
        switches=Switches(teacher=True, embeds=True),
        client=FrozenProbeClient,
        settings=FrozenProbeSettings,
        updates=0,
        revision=2,
        in_paper=True,
    ),
)
