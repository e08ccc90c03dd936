"""The shared model equals the weighted mean; bad updates are refused by name."""

import pytest
import torch

from vfmgl_lib.federation.servers import LARGEST_COUNTER, Averaging, Update, UpdateError, WeightedMean


def average(updates, weights="samples"):
    mean = WeightedMean(weights)
    for update in updates:
        mean.add(update)
    return mean.state()


def _update(center, value, samples, counter=1, **changes):
    state = {"weight": torch.full((2, 3), value), "running_mean": torch.full((3,), -value), "batches": torch.tensor(counter)}
    return Update(center, state | changes, samples, {})


def test_weighted_and_uniform_mean_by_hand_including_bn():
    updates = [_update("A", 1.0, 30, counter=10), _update("B", 5.0, 10, counter=21)]
    weighted, uniform = average(updates), average(updates, "uniform")
    assert torch.equal(weighted["weight"], torch.full((2, 3), 2.0)) and torch.equal(weighted["running_mean"], torch.full((3,), -2.0))
    assert torch.equal(uniform["weight"], torch.full((2, 3), 3.0))
    assert weighted["batches"] == 13 and weighted["batches"].dtype == torch.int64  # 12.75, rounded
    assert weighted["weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ([], "one update per centre"),
        ([_update("A", 1.0, 1), _update("A", 2.0, 1)], "centre A: one update per centre is needed, got a second one"),
        ([_update("A", 1.0, 1), _update("B", 2.0, 1, extra=torch.zeros(1))], r"centre B.*extra"),
        ([_update("A", 1.0, 1), _update("B", 2.0, 1, weight=torch.zeros(2, 4))], r"centre B: tensor weight must be \(2, 3\), got \(2, 4\)"),
        ([_update("A", 1.0, 1), _update("B", float("nan"), 1)], "centre B: .* not finite"),
        ([_update("A", 1.0, 1), _update("B", 1.0, 0)], "positive"),
    ],
)
def test_bad_updates_are_refused_by_name(updates, message):
    with pytest.raises(ValueError, match=message):
        average(updates)


def test_unknown_weights_are_refused():
    with pytest.raises(ValueError, match="samples or uniform, got 'equal'"):
        average([_update("A", 1.0, 1)], "equal")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bn.running_var", torch.tensor([1.0, -3.0]), "centre A: bn.running_var is a variance and must not be negative, got -3"),
        ("bn.num_batches_tracked", torch.tensor(-1), "centre A: bn.num_batches_tracked counts batches and must be in 0 to .*, got -1"),
        ("bn.num_batches_tracked", torch.tensor(LARGEST_COUNTER + 1), "centre A: bn.num_batches_tracked counts batches"),
    ],
)
def test_statistics_that_no_batch_can_have_are_refused(name, value, message):
    initial = {"bn.running_var": torch.ones(2), "bn.num_batches_tracked": torch.tensor(0), "w": torch.ones(3)}
    server = Averaging(initial)
    server.receive(Update("B", dict(initial), 1, {}))
    with pytest.raises(UpdateError, match=message):
        server.receive(Update("A", initial | {name: value}, 1, {}))
    assert torch.equal(server.finish_round()["bn.running_var"], torch.ones(2)), "nothing of it was taken"
