"""The frozen teacher's linear classifier: scikit-learn's optimum as one layer, tokens upsampled, one class, nothing sent."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vfmgl_lib.evaluation.prediction import predict
from vfmgl_lib.methods.frozen_probe import Probe, linear_classifier, linear_classifiers
from vfmgl_lib.models.teachers import load_teacher


@pytest.fixture
def problem():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(60, 5)) * [1, 10, 0.1, 1, 1] + [0, 50, 0, 0, 3]
    label = (rows[:, 0] + rows[:, 1] / 10 - 5 + generator.normal(size=60) > 0).astype(float)
    return rows, label


def test_the_layer_is_the_logistic_regression_on_standardised_rows(problem):
    rows, label = problem
    weight, bias = linear_classifier(rows, label, 0.3)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=1000)).fit(rows, label)
    np.testing.assert_allclose(1 / (1 + np.exp(-(rows @ weight + bias))), model.predict_proba(rows)[:, 1], atol=1e-6)


def test_a_share_counts_for_both_classes(problem):
    rows, label = problem
    share = np.where(np.arange(60) % 3 == 0, 0.25, label)
    weight, bias = linear_classifier(rows, share, 1.0)
    mean, deviation = rows.mean(0), rows.std(0)
    w, logits = weight * deviation, rows @ weight + bias
    # At the optimum the gradient of C sum(cross-entropy against the share) + |w|^2 / 2 vanishes.
    residual = 1 / (1 + np.exp(-logits)) - share
    np.testing.assert_allclose(((rows - mean) / deviation).T @ residual + w, 0, atol=2e-3)
    assert residual.sum() == pytest.approx(0, abs=2e-3)


@pytest.mark.parametrize("there", [(0, 1, 2), (0, 2), (1,)])
def test_more_classes_are_the_multinomial_regression_on_standardised_rows(problem, there):
    rows, _ = problem
    labels = np.asarray(there)[np.random.default_rng(2).integers(len(there), size=60)]
    weights, biases = linear_classifiers(rows, np.eye(3)[labels], 0.3)
    chances = torch.from_numpy(rows @ weights.T + biases).softmax(1).numpy()
    expected = np.zeros((60, 3))
    if len(there) > 1:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=1000)).fit(rows, labels)
        expected[:, there] = model.predict_proba(rows)
    else:
        expected[:, there] = 1
    np.testing.assert_allclose(chances, expected, atol=1e-6)


@pytest.mark.parametrize("only", [0.0, 1.0])
def test_one_class_is_predicted_for_certain(only):
    weight, bias = linear_classifier(np.random.default_rng(1).normal(size=(7, 3)), np.full(7, only), 1.0)
    probability = torch.tensor([0.0, bias]).softmax(0)[1].item()
    assert not weight.any() and probability == pytest.approx(only, abs=1e-12)


def test_a_share_counts_for_all_of_several_classes(problem):
    rows, label = problem
    shares = np.stack([0.5 * label, 0.25 + 0 * label, 0.75 - 0.5 * label], 1)
    weights, biases = linear_classifiers(rows, shares, 1.0)
    mean, deviation = rows.mean(0), rows.std(0)
    logits = rows @ weights.T + biases
    residual = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - shares
    # At the optimum the gradient of C sum(cross-entropy against the shares) + |w|^2 / 2 vanishes.
    np.testing.assert_allclose(residual.T @ ((rows - mean) / deviation) + weights * deviation, 0, atol=5e-3)
    np.testing.assert_allclose(residual.sum(0), 0, atol=5e-3)


def test_a_probe_of_three_classes_marks_small_structures_of_each():
    """Each class on a tenth of its patches: the biases are moved until both are found there and nowhere else."""
    probe = Probe(load_teacher("random:resnet18", grid=2), None, 32, 3)
    kind = torch.randint(0, 3, (40, 2, 2), generator=torch.Generator().manual_seed(0))
    embeddings = torch.stack([(kind == place).float() for place in (1, 2)], 1).repeat(1, 128, 1, 1)
    masks = torch.zeros(40, 2, 16, 2, 16, dtype=torch.long)
    masks[:, :, 4:10, :, 4:8] = kind[:, :, None, :, None]
    probe.fit(embeddings, masks.reshape(40, 32, 32), 1.0)
    called = probe.head(embeddings).argmax(1).reshape(40, 2, 16, 2, 16)[:, :, 4:10, :, 4:8]
    for place in (1, 2):
        share = (called == place).float().mean((2, 4))
        assert share[kind == place].mean() > 0.8 and share[kind != place].mean() < 0.35


def test_every_token_of_one_share_between_the_classes_is_predicted_with_that_share():
    weight, bias = linear_classifier(np.ones((6, 3)), np.full(6, 0.25), 1.0)
    assert 1 / (1 + np.exp(-(np.ones(3) @ weight + bias))) == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize("task", ["nuclei", "endometrial"])
def test_a_round_fits_the_centre_s_own_training_set_by_the_teacher_s_own_resize(federation, teacher, task):
    client = federation(task, "frozen_probe")[0][0]
    update = client.run_round(1, None)
    assert update.state == {} and set(client.student.state_dict()) == {"classifier.weight", "classifier.bias"}
    items = [client.data[index] for index in range(len(client.data))]
    stack = torch.cat([teacher(item["teacher_image"][None])[0].half().float() for item in items])[:, -1]
    if task == "endometrial":
        rows, share = stack.mean((2, 3)), torch.stack([item["target"] for item in items]).double()
    else:
        masks = torch.stack([item["target"] for item in items])
        share = F.avg_pool2d(masks.double()[:, None], 16).flatten()  # 2 x 2 patches of 16 px
        rows = stack.permute(0, 2, 3, 1).flatten(0, 2)
    weight, bias = linear_classifier(rows.double().numpy(), share.numpy(), 1.0)
    np.testing.assert_allclose(client.student.classifier.weight[1].detach().numpy(), weight, rtol=1e-3, atol=1e-5)
    table = predict(client.student, client.data, batch_size=3, device=client.device)
    if task == "endometrial":
        expected = 1 / (1 + np.exp(-(rows.double().numpy() @ weight + bias)))
        np.testing.assert_allclose(table["probability"], expected, atol=1e-4)
        assert ((table["probability"] > 0.5) == table["label"]).all(), "six images in 192 dimensions are told apart"
    else:
        logits = client.student(torch.stack([item["teacher_image"] for item in items]))
        assert logits.shape == (4, 2, 32, 32)
        shift = client.student.classifier.bias[1].item()
        tokens = (stack * torch.from_numpy(weight).float()[:, None, None]).sum(1, keepdim=True) + shift
        by_hand = F.interpolate(tokens, size=(32, 32), mode="bilinear", align_corners=False)
        torch.testing.assert_close((logits[:, 1] - logits[:, 0])[:, None], by_hand, rtol=1e-2, atol=2e-2)
        assert set(table["tp"] + table["fp"] + table["fn"] + table["tn"]) == {32 * 32}


def test_half_is_the_cutoff_with_the_highest_dice_on_the_training_set(federation):
    """Against shifts of the bias by tenths of a logit, with the Dice of the evaluation."""
    client = federation("nuclei", "frozen_probe")[0][0]
    client.run_round(1, None)
    layer = client.student.classifier
    reached = {}
    fitted = layer.bias[1].item()
    for tenth in range(-45, 46):
        with torch.no_grad():
            layer.bias[1] = fitted + tenth / 10
        reached[tenth] = predict(client.student, client.data, batch_size=3, device=client.device)["dice"].mean()
    assert reached[0] >= max(reached.values()) - 0.01 and reached[0] > min(reached.values()) + 0.05


def test_a_probe_of_small_structures_marks_them():
    """Foreground on a tenth of every patch that has some: no share reaches 0.5, and the cutoff finds those patches all the same."""
    cnn = load_teacher("random:resnet18", grid=2)
    probe = Probe(cnn, None, 32)
    some = torch.rand(40, 2, 2, generator=torch.Generator().manual_seed(0)) > 0.5
    embeddings = some[:, None].float().expand(-1, 256, -1, -1).contiguous()
    masks = torch.zeros(40, 2, 16, 2, 16, dtype=torch.long)
    masks[:, :, 4:10, :, 4:8] = some[:, :, None, :, None].long()
    probe.fit(embeddings, masks.reshape(40, 32, 32), 1.0)
    called = probe.head(embeddings).argmax(1).reshape(40, 2, 16, 2, 16).bool()
    inside = called[:, :, 4:10, :, 4:8].float().mean((2, 4))
    assert inside[some].mean() > 0.9 and inside[~some].mean() < 0.35


def test_a_cnn_serves_by_its_last_level_or_by_its_stride_16_level():
    cnn = load_teacher("random:resnet18", grid=2)
    images = torch.rand(2, 3, 32, 32)
    levels = cnn(images)
    classifier, segmenter = Probe(cnn, None, None), Probe(cnn, None, 32)
    assert torch.equal(classifier.embedding(levels), levels[3][:, 0].mean((2, 3))) and torch.equal(
        segmenter.embedding(levels), levels[2][:, 0]
    )
    assert classifier(images).shape == (2, 2) and segmenter(images).shape == (2, 2, 32, 32)


def test_it_does_not_depend_on_what_the_student_would_be(federation):
    one, other = (federation("endometrial", "frozen_probe", student__width=width)[0][0] for width in (4, 8))
    one.run_round(1, None)
    other.run_round(1, None)
    assert torch.equal(one.student.classifier.weight, other.student.classifier.weight)
