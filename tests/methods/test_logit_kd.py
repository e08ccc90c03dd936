"""Logit distillation: (1 - a) task + a tau^2 KL against the centre's own frozen probe."""

import pytest
import torch


@pytest.mark.parametrize("task", ["nuclei", "endometrial"])
def test_the_loss_by_hand(federation, task):
    settings = {"comparators__logit_kd__distillation_share": 0.3, "comparators__logit_kd__temperature": 2.0}
    client = federation(task, "logit_kd", **settings)[0][0]
    client.begin_round(1, None)
    client.student.eval()
    images, target, batch = next(iter(client._load(1, "I", 0)))
    task_loss, loss = client.training_loss(images, target, batch)
    with torch.no_grad():
        p = (client.probe(batch["teacher_image"]).double() / 2).softmax(1)
        q = (client.student(images).double() / 2).softmax(1)
    kl = (p * (p / q).log()).sum(1).mean()  # over samples, and pixels
    assert task_loss.item() == pytest.approx(client.task_loss(client.student(images), target).item(), rel=1e-5)
    assert loss.item() == pytest.approx(0.7 * task_loss.item() + 0.3 * 4 * kl.item(), rel=1e-3)
    loss.backward()
    assert all(p.grad is None for p in client.probe.parameters()), "the teacher is frozen"


def test_the_probe_is_that_of_the_frozen_comparator_and_stands_still(federation):
    client, probe = federation("nuclei", "logit_kd")[0][0], federation("nuclei", "frozen_probe")[0][0]
    probe.run_round(1, None)
    for number in (1, 2):
        client.run_round(number, None)
        assert torch.equal(client.probe.classifier.weight, probe.student.classifier.weight)


def test_without_distillation_it_is_local_training(federation):
    client, local = (
        federation("nuclei", "logit_kd", comparators__logit_kd__distillation_share=0.0)[0][0],
        federation("nuclei", "local")[0][0],
    )
    for one in (client, local):
        one.run_round(1, None)
    for name, tensor in client.student.state_dict().items():
        torch.testing.assert_close(tensor, local.student.state_dict()[name], rtol=1e-6, atol=1e-8)
