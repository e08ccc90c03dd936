"""Endometrial phantoms at heterogeneity 0: colour and intensity do not say the class, a small network does.

A set that a histogram solves would show nothing about a method; one that a network cannot solve, neither.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vfmgl_lib.evaluation.heterogeneity import IDENTITY, image_features
from vfmgl_lib.tasks.endometrial import phantom as endometrial

SIZE, SEED = 48, 1


def drawn(split: str, count: int, one_each: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, SIZE, SIZE) in [0, 1] and labels of four centres, `count` slices each or, of those, one a patient."""
    planned = endometrial.plan(4, {split: count}, 0.0, SEED)
    planned = [s for s in planned if endometrial.CENTER_NAMES[s.center] not in endometrial.EXTERNAL_CENTERS]
    planned = [s for s in planned if s.image == 0 or not one_each]
    images = np.stack([endometrial.render(sample, SIZE, 0.0, SEED)[0] for sample in planned])
    return images / 255, np.array([sample.label for sample in planned])


def statistics(images: np.ndarray) -> pd.DataFrame:
    names = {name: [str(i) for i in range(len(images))] for name in IDENTITY}
    pictures = pd.DataFrame(names).assign(image=list(np.repeat(images[..., None], 3, axis=3)))
    return image_features(pictures).drop(columns=list(IDENTITY))


def interval(label: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the AUC."""
    rng = np.random.default_rng(0)
    draws = rng.integers(len(label), size=(400, len(label)))
    return tuple(np.quantile([roc_auc_score(label[draw], score[draw]) for draw in draws], (0.025, 0.975)))


@pytest.fixture(scope="module")
def patients():
    """One slice of each of about 600 training and 1000 test patients, the centres pooled."""
    (train, train_labels), (test, test_labels) = drawn("train", 300, one_each=True), drawn("test", 500, one_each=True)
    assert len(train) > 580 and len(test) > 950
    return statistics(train), train_labels, statistics(test), test_labels


# With 1000 patients the interval reaches 0.036 to either side. Measured, seeds 0 to 4: mean and SD 0.52 to 0.54, all 0.54 to 0.58.
@pytest.mark.parametrize("chosen", [["grey mean", "grey SD"], "all"], ids=["mean and SD", "all"])
def test_intensity_statistics_do_not_say_the_class(patients, chosen):
    train, train_labels, test, test_labels = patients
    columns = list(train) if chosen == "all" else chosen
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(train[columns], train_labels)
    score = model.predict_proba(test[columns])[:, 1]
    low, high = interval(test_labels, score)
    assert high - low < 0.08, "enough patients for the bound to mean something"
    assert high <= 0.65
    assert roc_auc_score(train_labels, model.predict_proba(train[columns])[:, 1]) <= 0.65


def block(before: int, after: int) -> list[torch.nn.Module]:
    layers: list[torch.nn.Module] = []
    for width in (before, after):
        layers += [torch.nn.Conv2d(width, after, 3, padding=1), torch.nn.BatchNorm2d(after), torch.nn.ReLU()]
    return [*layers, torch.nn.MaxPool2d(2)]


@pytest.mark.slow
def test_a_small_cnn_learns_the_class():
    """Three convolution blocks, 500 slices of 48², six epochs: about 10 s on one core. Measured, seeds 0 to 4: AUC 0.96 to 0.98."""
    images, labels = drawn("train", 125)
    images, labels = torch.from_numpy(images).float()[:, None], torch.from_numpy(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 2)]
        model = torch.nn.Sequential(*block(1, 16), *block(16, 32), *block(32, 64), *head)
        steps = 6 * -(-len(images) // 32)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
        for _ in range(6):
            for batch in torch.randperm(len(images)).split(32):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
                schedule.step()
    model.eval()
    images, labels = drawn("test", 200, one_each=True)
    with torch.no_grad():
        score = model(torch.from_numpy(images).float()[:, None]).softmax(1)[:, 1].numpy()
    assert len(labels) > 380
    assert interval(labels, score)[0] >= 0.85
