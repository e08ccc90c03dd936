"""Median, trimmed mean and the largest share of a centre: against SciPy and NumPy, by hand, and in a study's server."""

import numpy as np
import pytest
import torch
from scipy.stats import trim_mean

from vfmgl_lib.federation.aggregation import Gathered, Median, TrimmedMean, capped_shares
from vfmgl_lib.federation.rounds import run_rounds
from vfmgl_lib.federation.servers import Update, WeightedMean
from vfmgl_lib.methods.settings import load_settings


def updates(centers: int, shape=(7, 3), seed=0) -> list[Update]:
    generator = torch.Generator().manual_seed(seed)
    return [Update(f"S{k}", {"w": torch.randn(shape, generator=generator), "n": torch.tensor(3 * k)}, 10 + k, {}) for k in range(centers)]


def shared(mean, given) -> dict:
    for update in given:
        mean.add(update)
    return mean.state()


@pytest.mark.parametrize("centers", [1, 2, 3, 4, 5, 10, 11, 50])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.34, 0.49])
def test_the_trimmed_mean_is_scipy_s(centers, share):
    given = updates(centers)
    stack = np.stack([update.state["w"].double().numpy() for update in given])
    found = shared(TrimmedMean("samples", share), given)["w"]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), trim_mean(stack, share, axis=0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("centers", [1, 2, 3, 4, 5, 10, 11, 50])
def test_the_median_is_numpy_s(centers):
    given = updates(centers)
    stack = np.stack([update.state["w"].double().numpy() for update in given])
    found = shared(Median(), given)
    assert np.array_equal(found["w"].numpy(), np.median(stack, axis=0).astype(np.float32))
    assert found["n"].dtype == torch.int64 and found["n"] == round(3 * (centers - 1) / 2), "counters, rounded"


def test_one_centre_moves_the_mean_at_will_and_the_robust_ones_hardly():
    given = updates(5)
    bad = [*given[:4], Update("S4", {"w": torch.full((7, 3), 1e6), "n": torch.tensor(0)}, 10, {})]
    honest = torch.stack([update.state["w"] for update in given[:4]])
    assert shared(WeightedMean(), bad)["w"].min() > 1e5
    for robust in (Median(), TrimmedMean("samples", 0.2)):
        found = shared(robust, bad)["w"]
        assert (found >= honest.min(0).values).all() and (found <= honest.max(0).values).all()


def test_no_centre_has_more_than_the_largest_share():
    assert capped_shares([800, 150, 50], 0.5) == pytest.approx([0.5, 0.375, 0.125])
    assert capped_shares([1, 2**60], 0.5) == pytest.approx([0.5, 0.5])
    assert capped_shares([60, 39, 1], 0.4) == pytest.approx([0.4, 0.4, 0.2]), "what one loses may bring another to the limit"
    assert capped_shares([3, 1], 0.1) == pytest.approx([0.5, 0.5]), "of two centres one has half at least"
    assert capped_shares([1, 2, 1], 1.0) == [0.25, 0.5, 0.25]
    given = [Update("A", {"w": torch.tensor([8.0])}, 900, {}), Update("B", {"w": torch.tensor([0.0])}, 100, {})]
    assert shared(Gathered("samples", 0.5), given)["w"].item() == 4.0
    assert shared(WeightedMean(), given)["w"].item() == pytest.approx(7.2)


def test_an_addition_that_ended_half_way_makes_no_shared_model(monkeypatch):
    mean, (first, second) = WeightedMean(), updates(2)
    mean.add(first)
    monkeypatch.setattr(mean, "_take", lambda *arguments: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        mean.add(second)
    with pytest.raises(RuntimeError, match="the update of centre S1 was added in part"):
        mean.state()


@pytest.mark.parametrize("method", ["vfmgl", "harmofl", "fedbn"])
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"federation__aggregation": "median"}, lambda stack, counts: np.median(stack, axis=0)),
        (
            {"federation__aggregation": "trimmed_mean", "federation__trimmed_share": 0.4},
            lambda stack, counts: trim_mean(stack, 0.4, axis=0),
        ),
        ({"faults__largest_share": 0.5}, lambda stack, counts: stack.mean(0)),
    ],
    ids=["median", "trimmed_mean", "largest_share"],
)
def test_a_study_s_server_makes_its_shared_model_so(federation, received, method, overrides, expected):
    clients, server = federation("nuclei", method, optimizer__lr=0.005, **overrides)
    taken = received(server)
    done = next(iter(run_rounds(clients, server, 1)))
    for name, tensor in done.shared.items():
        stack = np.stack([(update.state | update.aggregates)[name].double().numpy() for update in taken])
        made = expected(stack, [update.samples for update in taken])
        np.testing.assert_allclose(tensor.numpy(), made if tensor.is_floating_point() else np.round(made), rtol=1e-6, atol=1e-7)


def test_what_changes_the_shared_model_is_part_of_a_study_s_key_and_the_defaults_are_not():
    plain = load_settings("nuclei", "smoke")
    others = [
        {"federation__aggregation": "median"},
        {"federation__aggregation": "trimmed_mean"},
        {"federation__aggregation": "trimmed_mean", "federation__trimmed_share": 0.3},
        {"faults__largest_share": 0.5},
    ]
    keys = {load_settings("nuclei", "smoke", **values).key() for values in others}
    assert len(keys | {plain.key()}) == 5
    assert load_settings("nuclei", "smoke", federation__trimmed_share=0.3, faults__deadline_factor=9).key() == plain.key()
