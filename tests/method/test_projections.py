"""Ridge projections are scikit-learn's on the flattened, explicitly upsampled features; R2 is its variance-weighted R2."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from vfmgl_lib.method.projections import Moments, held_out_rows, r_squared, ridge

WIDTHS, SIZES = {"fine": 5, "coarse": 7}, {"fine": (12, 9), "coarse": (3, 4)}  # larger and smaller than the teachers' grids
STACKS = [(2, 6, 4), (1, 3, 5)]


def _images(samples: int, seed: int, common: float = 0.7) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Maps and stacks with means of their own, the student partly a function of the teacher's pooled features."""
    generator = torch.Generator().manual_seed(seed)
    stacks = [torch.randn(samples, *shape, shape[-1], generator=generator, dtype=torch.float64) + 3 for shape in STACKS]
    shared = stacks[0].mean((1, 2, 3, 4))[:, None, None, None]
    maps = {
        stage: torch.randn(samples, width, *SIZES[stage], generator=generator, dtype=torch.float64) + common * shared - 2
        for stage, width in WIDTHS.items()
    }
    return maps, stacks


def _flat(maps: dict, stacks: list, k: int, block: int, stage: str) -> tuple:
    up = F.interpolate(stacks[k][:, block], size=SIZES[stage], mode="bilinear", align_corners=False)
    return (part.movedim(1, -1).flatten(0, 2).numpy() for part in (maps[stage], up))


@pytest.fixture(scope="module")
def images():
    return _images(9, 0)


def _moments(maps, stacks, batches=((0, 4), (4, 9))):
    moments = Moments()
    for start, end in batches:
        moments.add({stage: m[start:end] for stage, m in maps.items()}, [stack[start:end] for stack in stacks])
    return moments


@pytest.mark.parametrize("stage", list(WIDTHS))
@pytest.mark.parametrize("penalty", [1e-3, 0.5])
def test_ridge_equals_scikit_learns(images, stage, penalty):
    moments = _moments(*images)
    for k, (blocks, _, _) in enumerate(STACKS):
        weight, bias = ridge(moments.pair(k, stage), penalty)
        for block in range(blocks):
            x, y = _flat(*images, k, block, stage)
            alpha = penalty * x.var(0).mean() * len(x)
            reference = Ridge(alpha=alpha).fit(x, y)
            torch.testing.assert_close(weight[block], torch.from_numpy(reference.coef_), rtol=1e-8, atol=1e-11)
            torch.testing.assert_close(bias[block], torch.from_numpy(reference.intercept_), rtol=1e-8, atol=1e-11)


def test_r_squared_is_that_of_images_that_were_not_fitted(images):
    fitted, (maps, stacks) = _moments(*images), _images(6, 1)
    new = _moments(maps, stacks, [(0, 6)])
    for k, (blocks, _, _) in enumerate(STACKS):
        for stage in WIDTHS:
            weight, bias = ridge(fitted.pair(k, stage), 1e-2)
            found = r_squared(new.pair(k, stage), weight, bias)
            for block in range(blocks):
                x, y = _flat(maps, stacks, k, block, stage)
                predicted = x @ weight[block].numpy().T + bias[block].numpy()
                assert found[block].item() == pytest.approx(r2_score(y, predicted, multioutput="variance_weighted"), rel=1e-9)


def test_a_constant_stage_gets_no_projection_and_a_constant_block_no_r_squared(images):
    maps, stacks = {stage: torch.full_like(m, 2) for stage, m in images[0].items()}, [images[1][0], torch.zeros_like(images[1][1])]
    moments = _moments(maps, stacks)
    weight, bias = ridge(moments.pair(0, "fine"), 1e-2)
    assert weight.abs().max() < 1e-4, "what is left of rounding"
    torch.testing.assert_close(bias + weight.sum(-1) * 2, moments.pair(0, "fine").teacher_mean)
    assert r_squared(moments.pair(0, "fine"), weight, bias).abs().max() < 1e-9
    assert r_squared(moments.pair(1, "fine"), *ridge(moments.pair(1, "fine"), 1e-2)).isnan().all()


def test_every_fifth_patient_is_held_out():
    patients = [f"p{n}" for n in (0, 0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9)]
    assert held_out_rows(patients) == [5, 6, 11]
    assert held_out_rows(["a", "a", "b", "b", "b", "b"]) == [4]  # fewer than five patients: images
    assert held_out_rows(["a", "b"]) == []
