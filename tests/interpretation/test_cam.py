"""Class activation maps: what they must add up to, where planted evidence lies, and that they depend on the weights."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.interpretation import cam
from vfmgl_lib.models.students import ResNet18, UNet, build_student
from vfmgl_lib.tasks.folders import read_folders
from vfmgl_lib.tasks.phantoms import lesion_masks, write_phantoms


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    student = ResNet18(2, width=4)
    with torch.no_grad():  # blocks start as identities; evidence of either sign
        for module in student.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    return student.eval()


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(1)
    return UNet(2, width=4).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return write_phantoms(
        tmp_path_factory.mktemp("p") / "endometrial", "endometrial", centers=2, samples={"train": 4, "test": 6}, image_size=64
    )


def test_the_mean_of_a_cam_is_the_difference_of_the_logits(resnet, images):
    found = cam.class_activation(resnet, images)
    with torch.inference_mode():
        logits, bias = resnet(images), resnet.net.fc.bias.detach()
    expected = (logits[:, 1] - bias[1]) - (logits[:, 0] - bias[0])
    assert found.shape == (3, 2, 2)
    assert found.mean((1, 2)) == pytest.approx(expected.numpy(), abs=1e-5)


def test_grad_cam_is_the_cam_over_the_number_of_places(resnet, images):
    assert cam.grad_cam(resnet, images, "layer4") == pytest.approx(cam.class_activation(resnet, images) / 4, abs=1e-6)
    assert all(parameter.grad is None for parameter in resnet.parameters()), "gradients are left behind"


def test_grad_cam_of_a_segmentation_by_hand(unet, images):
    """One image at a time, with the bottleneck's map as a leaf."""
    found = cam.grad_cam(unet, images, "bottleneck")
    for image, own in zip(images, found, strict=True):
        maps = unet.encode(image[None])
        leaf = unet.features(maps).detach().requires_grad_(True)
        difference = torch.diff(unet.head_from_features(maps, leaf), dim=1)
        foreground = difference > 0
        (difference[foreground].sum() if foreground.any() else difference.sum()).backward()
        expected = (leaf.grad.mean((2, 3), keepdim=True) * leaf).sum(1)[0]
        assert own == pytest.approx(expected.detach().numpy(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("target", [None, 1, 2])
def test_grad_cam_of_several_classes_of_pixels_by_hand(images, target):
    torch.manual_seed(3)
    student = UNet(3, width=4).eval()
    found = cam.grad_cam(student, images, "bottleneck", target)
    for image, own in zip(images, found, strict=True):
        maps = student.encode(image[None])
        leaf = student.features(maps).detach().requires_grad_(True)
        logits = student.head_from_features(maps, leaf)[0]
        called = logits.argmax(0)
        if target is None:
            evidence, chosen = torch.log(logits[1].exp() + logits[2].exp()) - logits[0], called > 0
        else:
            evidence, chosen = logits[target] - (logits[0] + logits[3 - target]) / 2, called == target
        (evidence[chosen].sum() if chosen.any() else evidence.sum()).backward()
        expected = (leaf.grad.mean((2, 3), keepdim=True) * leaf).sum(1)[0]
        assert own == pytest.approx(expected.detach().numpy(), rel=1e-3, abs=1e-4)


def test_the_default_layer_is_the_deepest_one_with_seven_places(resnet, unet):
    assert [cam.default_layer(resnet, size) for size in (224, 128, 64, 32)] == ["layer4", "layer3", "layer2", "layer1"]
    assert [cam.default_layer(unet, size) for size in (256, 64, 32)] == ["bottleneck", "encoder4", "encoder3"]


def table_of(maps, patients=None, center="A"):
    ids = [f"i{place}" for place in range(len(maps))]
    return pd.DataFrame({"id": ids, "patient": patients or ids, "center": center, "split": "test", "map": maps})


def blob(x, y, size=16):
    rows, columns = np.mgrid[:size, :size]
    return np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 4).astype(np.float32)


def test_energy_inside():
    lesion = np.zeros((8, 8), bool)
    lesion[:, :4] = True
    against, even, none = np.where(lesion, 1.0, -5.0), np.ones((2, 2)), -np.ones((2, 2))  # what speaks against the class is no energy
    inside = [cam.localisation(table_of([found]), {"i0": lesion}, "m")["inside"].item() for found in (against, even, none)]
    assert inside == pytest.approx([1, 0.5, np.nan], nan_ok=True)


def test_localisation_tells_the_lesion_from_the_usual_place():
    rng = np.random.default_rng(3)
    middles = rng.integers(5, 11, (30, 2))
    places = {f"i{i}": blob(x, y) > 0.4 for i, (x, y) in enumerate(middles)}
    seen = cam.localisation(table_of([blob(x, y) for x, y in middles]), places, "sees it")
    usual = cam.localisation(table_of([blob(7.5, 7.5)] * 30), places, "middle")
    even = cam.localisation(table_of([np.ones((4, 4))] * 30), places, "even")
    summary = cam.localisation_summary(pd.concat([seen, usual, even]), seed=0).set_index("model")
    assert summary["verdict"].to_dict() == {"sees it": "above chance", "middle": "not above chance", "even": "not above chance"}
    # The middle alone beats an even map: that is why the second kind of chance is asked for.
    assert summary.loc["middle", "low"] > 0 and summary.loc["middle", "gain_over_place"] == pytest.approx(0, abs=1e-6)
    assert summary.loc["even", "inside"] == pytest.approx(summary.loc["even", "area"], abs=1e-6)
    assert summary.loc["sees it", "low"] < summary.loc["sees it", "gain"] < summary.loc["sees it", "high"]


def test_localisation_leaves_out_what_has_no_lesion_or_no_energy_and_says_so():
    lesion = np.zeros((8, 8), bool)
    lesion[2:4, 2:4] = True
    places = {"i0": lesion, "i1": lesion, "i2": np.zeros((8, 8), bool)}
    cases = cam.localisation(table_of([np.ones((2, 2)), -np.ones((2, 2)), np.ones((2, 2))]), places, "m")
    assert cases["id"].tolist() == ["i0", "i1"] and cases["inside"].isna().tolist() == [False, True]
    summary = cam.localisation_summary(cases, seed=0)
    assert summary["undefined"].tolist() == [1] and summary["verdict"].tolist() == ["undefined"]
    assert summary["reason"].tolist() == ["no interval: one patient, at least 5 are needed"]


def test_the_interval_is_over_patients_not_images():
    lesion = blob(7, 7) > 0.4
    rng = np.random.default_rng(4)
    maps = [blob(7, 7) + rng.uniform(0, 1, (16, 16)).astype(np.float32) for _ in range(40)]
    places = {f"i{i}": lesion for i in range(40)}
    wide, narrow = (
        cam.localisation_summary(cam.localisation(table_of(maps, patients), places, "m"), seed=0).iloc[0]
        for patients in ([f"p{i % 2}" for i in range(40)], None)
    )
    assert (wide["patients"], narrow["patients"]) == (2, 40) and wide["images"] == 40


def test_lesions_of_phantoms_lie_where_they_are_painted(phantoms):
    paths = sorted(path.relative_to(phantoms).as_posix() for path in phantoms.rglob("*.png"))
    masks = lesion_masks(phantoms, paths)
    inside = []
    for path, mask in zip(paths, masks, strict=True):
        image = np.asarray(Image.open(phantoms / path), float)
        assert mask.shape == image.shape and 0.03 < mask.mean() < 0.2
        inside.append(image[mask].std() / image.std())
    assert np.mean(inside) < 0.6, "a tumour is more even than the whole image"
    with pytest.raises(ValueError, match=r"X\.png is not one of the phantoms"):
        lesion_masks(phantoms, ["X.png"])


def test_camelyon_nests_are_in_class_1_alone(tmp_path):
    root = write_phantoms(tmp_path / "c", "camelyon17", centers=1, samples={"train": 12}, image_size=48)
    metadata = pd.read_csv(root / "metadata.csv", dtype=str)
    slides = "patient_" + metadata["patient"] + "_node_" + metadata["node"]
    paths = "patches/" + slides + "/patch_" + slides + "_x_" + metadata["x_coord"] + "_y_" + metadata["y_coord"] + ".png"
    for path, label, mask in zip(paths, metadata["tumor"], lesion_masks(root, paths.tolist()), strict=True):
        middle = mask[18:30, 18:30]
        assert middle.all() if label == "1" else not mask.any(), path


def test_no_lesions_of_real_images_and_of_layouts_with_masks(tmp_path):
    with pytest.raises(ValueError, match=r"has no phantoms\.json: only of phantoms"):
        lesion_masks(tmp_path, ["a.png"])
    root = write_phantoms(tmp_path / "n", "nuclei", centers=1, samples={"train": 2, "test": 1}, image_size=32)
    with pytest.raises(ValueError, match="the layout nuclei has masks"):
        lesion_masks(root, ["a.png"])


def test_randomised_draws_the_named_parts_anew_and_no_other(resnet):
    before = {name: tensor.clone() for name, tensor in resnet.state_dict().items()}
    changed = cam.randomised(resnet, 0, ["head", "layer4"]).state_dict()
    again = cam.randomised(resnet, 0, ["head", "layer4"]).state_dict()
    for name, tensor in before.items():
        assert torch.equal(tensor, resnet.state_dict()[name]), "the student itself was touched"
        assert torch.equal(changed[name], again[name]), "not the same for the same seed"
        if name.endswith("conv1.weight") or "fc" in name:
            assert torch.equal(tensor, changed[name]) != ("layer4" in name or "fc" in name), name
    assert not torch.equal(cam.randomised(resnet, 1).state_dict()["net.conv1.weight"], before["net.conv1.weight"])
    with pytest.raises(ValueError, match=r"parts \['layer9'\] are not among \['head', 'stem'"):
        cam.randomised(resnet, 0, ["layer9"])


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        "test_convnext",  # LayerScale
        "test_efficientnet_gn",
        "test_nfnet",  # gains of its convolutions
        "test_efficientnet_evos",
        "convnextv2_atto",  # GRN
        "hgnetv2_b0",  # learnt affine blocks
        "unet:test_convnext",
    ],
)
def test_nothing_that_was_learnt_is_left_where_all_is_drawn_anew(name):
    torch.manual_seed(0)
    student = build_student(name, 2, 4)
    with torch.no_grad():
        for tensor in student.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.1 + 0.03 * torch.rand_like(tensor)
    before = {key: tensor.clone() for key, tensor in student.state_dict().items() if tensor.is_floating_point()}
    drawn, again = (cam.randomised(student, seed).state_dict() for seed in (5, 5))
    for key, tensor in before.items():
        assert torch.equal(student.state_dict()[key], tensor), "the student itself was touched"
        assert torch.isfinite(drawn[key]).all() and torch.equal(drawn[key], again[key]), key
        assert not (drawn[key] == tensor).any(), f"{key} is as it was trained"
    last = list(student.stages)[-1]
    part, ours = cam.randomised(student, 5, [last]), {id(p) for module in student.stages[last] for p in module.parameters()}
    for (key, old), new in zip(student.named_parameters(), part.parameters(), strict=True):
        assert torch.equal(old, new) != (id(old) in ours), key


def test_rank_correlation():
    first = np.arange(9.0).reshape(3, 3)
    assert cam.rank_correlation(first, np.exp(first)) == pytest.approx(1)
    assert cam.rank_correlation(first, -first) == pytest.approx(-1)
    assert np.isnan(cam.rank_correlation(first, np.ones((3, 3))))


def test_bad_input(resnet, unet, images):
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), got \(3, 1, 64, 64\)"):
        cam.class_activation(resnet, images[:, :1])
    with pytest.raises(ValueError, match=r"CAM needs a classifier .* got UNet"):
        cam.class_activation(unet, images)
    with pytest.raises(ValueError, match=r"layer must be one of stem, layer1, .*, got 'bottleneck'"):
        cam.grad_cam(resnet, images, "bottleneck")
    with pytest.raises(ValueError, match="multiples of 16"):
        cam.grad_cam(unet, images[..., :60], "bottleneck")


def test_maps_of_a_data_set_and_weights_that_are_not_finite(resnet, phantoms):
    manifest = read_folders(phantoms, "endometrial", progress=False)
    data = ImageDataset(manifest, manifest.select("A", "test"), 64)
    found = cam.activation_maps(resnet, data, batch_size=4)
    assert found["id"].tolist() == data.table["id"].tolist() and found["map"][0].shape == (8, 8)
    one = cam.activation_maps(resnet, ImageDataset(manifest, manifest.select("A", "test").iloc[[4]], 64))
    assert one["map"][0] == pytest.approx(found["map"][4], abs=1e-5)
    table = cam.cascade(resnet, data, seed=0, draws=2)
    assert table.groupby("step").size().tolist() == [12] * 6 and table["randomised"].iloc[0] == "head"
    assert cam.cascade_summary(table, 0)["correlation"].abs().iloc[-1] < 0.9
    broken = cam.randomised(resnet, 0)
    broken.net.fc.weight.data[1, 0] = np.nan
    with pytest.raises(ValueError, match=f"image '{data.table['id'][0]}': its map at layer4 is not finite"):
        cam.activation_maps(broken, data, "layer4")


def test_other_patients_maps_are_not_ones_own():
    lesion = np.zeros((8, 8), bool)
    lesion[:4] = True
    upper, even = np.where(lesion, 1.0, 0.0).astype(np.float32), np.ones((8, 8), np.float32)
    cases = cam.localisation(table_of([upper, upper, even, -even], ["p", "p", "q", "r"]), {f"i{i}": lesion for i in range(4)}, "m")
    # p has q's map beside it (r's has no energy), q both of p.
    assert cases["elsewhere"].tolist()[:3] == pytest.approx([0.5, 0.5, 1.0])
