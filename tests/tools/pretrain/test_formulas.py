"""Scenes depend on their seed alone, and what is said about their pixels is so."""

import pytest
import torch

from vfmgl_lib.tools.pretrain.formulas import KINDS, SYSTEMS, Painter, _systems

SIDE = 64


@pytest.fixture(scope="module")
def scenes():
    return Painter(SIDE, torch.device("cpu")).draw(24, 3)


def test_shapes_and_ranges(scenes):
    assert scenes.images.shape == (24, 3, SIDE, SIDE) and scenes.kinds.shape == scenes.edges.shape == (24, SIDE, SIDE)
    assert scenes.images.min() >= 0 and scenes.images.max() <= 1 and scenes.images.isfinite().all()
    assert set(scenes.kinds.unique().tolist()) == set(range(len(KINDS))), "every kind occurs"
    assert 0.5 < (scenes.kinds == 0).float().mean() < 0.95, "most of a scene is ground"
    assert scenes.spectrum.shape == (24, 3) and scenes.spectrum.abs().max() <= 1.01
    assert scenes.images.flatten(1).std(1).min() > 0.005, "no scene is empty"


def test_the_same_seed_draws_the_same_scenes_and_another_others(scenes):
    again, other = (Painter(SIDE, torch.device("cpu")).draw(24, seed) for seed in (3, 4))
    for name in ("images", "kinds", "edges", "system", "spectrum"):
        assert torch.equal(getattr(scenes, name), getattr(again, name))
    assert not torch.equal(scenes.images, other.images)


def test_a_fractal_is_named_where_there_is_one(scenes):
    drawn = (scenes.kinds == KINDS.index("fractal")).flatten(1).any(1)
    assert (scenes.system[drawn] >= 0).all() and scenes.system.max() < SYSTEMS
    assert 0 < (scenes.system >= 0).sum() < 24


def test_edges_lie_where_something_begins(scenes):
    """Wherever two neighbours are of different kinds there is an edge; within the ground there is none."""
    kinds, edges = scenes.kinds, scenes.edges
    assert edges[:, 1:][kinds[:, 1:] != kinds[:, :-1]].all() and edges[:, :, 1:][kinds[:, :, 1:] != kinds[:, :, :-1]].all()
    ground = kinds == 0
    within = ground.clone()
    within[:, 1:] &= ground[:, :-1]
    within[:, :, 1:] &= ground[:, :, :-1]
    within[:, 0] = within[:, :, 0] = False
    assert not edges[within].any()


def test_an_object_can_be_seen_against_what_it_lies_on(scenes):
    """Labels that pointed beside the objects would leave no contrast across their edges."""
    step = (scenes.images[:, :, :, 1:] - scenes.images[:, :, :, :-1]).abs().mean(1)
    across, elsewhere = scenes.edges[:, :, 1:], ~scenes.edges[:, :, 1:]
    assert step[across].mean() > 1.3 * step[elsewhere].mean()


def test_systems_are_contractions_whose_chances_add_up():
    maps, chances = _systems()
    matrices = maps[..., [0, 1, 3, 4]].view(SYSTEMS, -1, 2, 2)
    assert torch.linalg.matrix_norm(matrices, ord=2).max() < 0.86
    torch.testing.assert_close(chances[:, -1], torch.ones(SYSTEMS))
    assert (chances.diff(dim=1) >= 0).all() and torch.equal(maps, _systems()[0])
