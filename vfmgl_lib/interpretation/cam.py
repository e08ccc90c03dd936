"""What a prediction rests on: class activation maps, where their energy lies, and whether they depend on what was learnt.

A map holds, per place of a layer's feature map, the evidence for the positive class *against* the negative one: of two softmax classes
only the difference of the logits counts, so the maps are those of the difference. Of more classes it is the evidence for the class asked
for against the mean of the others (`against_others`), and of all foreground classes of a segmentation together their log-odds. Positive
values speak for the class, negative ones against it; "energy" is the positive part.

References: Zhou et al. 2016, "Learning deep features for discriminative localization" (CAM); Selvaraju et al. 2017
(Grad-CAM) and, for its use on segmentations, Vinogradova et al. 2020; Adebayo et al. 2018, "Sanity checks for saliency maps".
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from itertools import product
from typing import cast

import numpy as np
import pandas as pd
import scipy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmgl_lib.base.randomness import seed_sequence, torch_seed
from vfmgl_lib.data.images import decode_mask
from vfmgl_lib.data.loading import ImageDataset, fixed_batches, load_batches
from vfmgl_lib.data.manifest import Manifest
from vfmgl_lib.data.preprocessing import squashed_mask
from vfmgl_lib.evaluation.statistics import MIN_PATIENTS, Interval, bootstrap_interval
from vfmgl_lib.models.students import Student
from vfmgl_lib.tasks.phantoms import lesion_masks

SMALLEST_MAP = 7  # places along a side: what layer4 has at the paper's 224 px
ABOUT = ("id", "patient", "center", "split")
HEAD = "head"  # everything behind the stages
BOTTLENECK = "bottleneck"  # of the paper's UNet: its features


def layers(student: Student, image_size: int) -> dict[str, int]:
    """Name -> side of its map, from the first to the last: the stages and, where features are a map of their own, the bottleneck.

    Raises: ValueError: a model without stages.
    """
    if not student.stage_channels:
        raise ValueError(f"maps need a student with stages, got {type(student).__name__}")
    empty = copy.deepcopy(student).to("meta").eval()
    maps = empty.encode(torch.zeros(1, 3, image_size, image_size, device="meta"))
    found = {stage: own.shape[-1] for stage, own in zip(student.stage_channels, maps, strict=True)}
    features = empty.features(maps)
    return found | ({BOTTLENECK: features.shape[-1]} if _is_map_of_its_own(features, maps) else {})


def _is_map_of_its_own(features: Tensor, maps: list[Tensor]) -> bool:
    return features.dim() == 4 and features is not maps[-1]


def default_layer(student: Student, image_size: int) -> str:
    """The deepest layer whose map is at least 7 places wide: layer4 at 224 px; where it has only 2 x 2 (64 px), an earlier one."""
    known = layers(student, image_size)
    wide = [name for name, side in known.items() if side >= SMALLEST_MAP]
    return wide[-1] if wide else next(iter(known))


def against_others(values: Tensor, target: int) -> Tensor:
    """One class against the mean of the others: values (K, ...) of the classes -> (...), of two classes their difference."""
    others = [value for number, value in enumerate(values) if number != target]
    return values[target] - (others[0] if len(others) == 1 else torch.stack(others).mean(0))


@torch.inference_mode()
def class_activation(student: Student, images: Tensor, target: int = 1) -> np.ndarray:
    """CAM of Zhou et al. 2016: Σ_c (w_1c − w_0c) · map_c of the last stage, from the weights of the classifier.

    The mean over the places, plus the difference of the biases, is the difference of the logits. Of more than two classes w_0 is the mean
    of the weights of the classes that are not the target.

    Args:
        student: in eval mode; its classifier reads the mean of the last stage's map (`Student.pooled_classifier`).
        images: (B, 3, H, W) in [0, 1].
        target: the class that the evidence is for.
    Returns: (B, h, w) float32 in logits, the size of that map.
    Raises: ValueError: another student or images of another shape.
    """
    classifier = student.pooled_classifier
    if classifier is None:
        raise ValueError(
            f"CAM needs a classifier on the mean of the last map, as a ResNet18 has; got {type(student).__name__}: use grad_cam"
        )
    _check_images(images)
    weight = classifier.weight
    maps = student.encode(images)[-1]
    return torch.einsum("c,bchw->bhw", against_others(weight, target), maps).float().cpu().numpy()


def grad_cam(student: Student, images: Tensor, layer: str, target: int | None = 1) -> np.ndarray:
    """Grad-CAM of any student, before its rectification: the channels of a layer's map weighted by their mean gradient.

    The gradient is that of the difference of the two logits, of more classes of `against_others`; of a segmentation, of its sum over the
    pixels predicted as the class (as foreground), or over all pixels where none is. At a ResNet18's layer4 the map equals the CAM divided
    by the number of places (Selvaraju et al. 2017, section 3.1).

    Args:
        student: in eval mode.
        images: (B, 3, H, W) in [0, 1].
        layer: one of `layers`.
        target: the class that the evidence is for; None: all foreground classes of a segmentation.
    Returns: (B, h, w) float32.
    Raises: ValueError: an unknown layer, images of another shape.
    """
    _check_images(images)
    with torch.enable_grad():
        maps = student.encode(images.detach().requires_grad_(True))  # frozen weights alone would give no gradient
        features = student.features(maps)
        known = dict(zip(student.stage_channels, maps, strict=True))
        known |= {BOTTLENECK: features} if _is_map_of_its_own(features, maps) else {}
        _check_layer(layer, known)
        logits = student.head_from_features(maps, features)
        (gradient,) = torch.autograd.grad(cast(Tensor, sum(_evidence(own, target) for own in logits)), known[layer])
    weights = gradient.cpu().numpy().mean((2, 3), keepdims=True)
    return (weights * known[layer].detach().cpu().numpy()).sum(1)


def _evidence(logits: Tensor, target: int | None) -> Tensor:
    """The scalar whose gradient is taken; logits (K,) or (K, H, W) of one image."""
    if logits.dim() == 1:
        assert target is not None  # a classification has no foreground
        return against_others(logits, target)
    several = len(logits) > 2
    evidence = (
        logits[1:].logsumexp(0) - logits[0] if several and target is None else against_others(logits, 1 if target is None else target)
    )
    called = logits.detach().argmax(0)
    chosen = evidence.detach() > 0 if not several else called > 0 if target is None else called == target
    return evidence[chosen].sum() if chosen.any() else evidence.sum()


def _check_layer(name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise ValueError(f"layer must be one of {', '.join(known)}, got {name!r}")


def _check_images(images: Tensor) -> None:
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}: a grey image has three equal channels")


def activation_maps(
    student: Student,
    data: ImageDataset,
    layer: str = "",
    *,
    target: int | None = None,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """The map of every sample of a data set: the CAM at the last stage where the student allows it, Grad-CAM anywhere else.

    Args:
        layer: one of `layers`; "": `default_layer`.
        target: the number of the class that the evidence is for; None: of two classes the positive one, of more each image's own, of
            pixels the foreground.
    Returns: id, patient, center, split, map (h, w) float32, in the data set's order.
    Raises: ValueError: an unknown layer or class; a map that is not finite.
    """
    if target is not None and not 0 <= target < len(data.classes):
        raise ValueError(f"class {target} is none of the data's, expected 0 to {len(data.classes) - 1} ({', '.join(data.classes)})")
    student = student.to(device).eval()
    layer = layer or default_layer(student, data.image_size)
    _check_layer(layer, layers(student, data.image_size))
    is_cam = student.pooled_classifier is not None and layer == list(student.stages)[-1]
    own = target is None and len(data.classes) > 2 and pd.api.types.is_integer_dtype(data.table["label"])
    maps: list[np.ndarray] = []
    for batch in load_batches(data, fixed_batches(len(data), batch_size, join_last=False)):
        images = batch["image"].to(device)
        if data.is_segmentation:
            maps += list(grad_cam(student, images, layer, 1 if target is None and len(data.classes) == 2 else target))
            continue
        targets = batch["target"] if own else torch.full((len(images),), 1 if target is None else target)
        found: dict[int, np.ndarray] = {}
        for number in targets.unique().tolist():
            rows = torch.nonzero(targets == number)[:, 0]
            part = images[rows.to(images.device)]
            made = class_activation(student, part, number) if is_cam else grad_cam(student, part, layer, number)
            found |= dict(zip(rows.tolist(), made, strict=True))
        maps += [found[row] for row in range(len(images))]
    for name, own_map in zip(data.table["id"], maps, strict=True):
        if not np.isfinite(own_map).all():
            raise ValueError(f"image {name!r}: its map at {layer} is not finite; the model's weights are not, or its input is not")
    return data.table[list(ABOUT)].assign(map=maps)


def enlarged(maps: np.ndarray, size: int) -> np.ndarray:
    """(h, w) or (B, h, w) to (..., size, size), bilinear."""
    coarse = torch.from_numpy(np.array(maps, dtype=np.float32))
    wide = F.interpolate(coarse.reshape(-1, 1, *maps.shape[-2:]), size=(size, size), mode="bilinear", align_corners=False)
    return wide.reshape(*maps.shape[:-2], size, size).numpy()


def lesions(manifest: Manifest, ids: Sequence[str], size: int, target: int | None = None) -> dict[str, np.ndarray]:
    """Where the lesion of each sample is: the mask of a segmentation, the drawn lesion of a classification's phantom.

    Args:
        ids: of the manifest.
        size: side in pixels, as the student sees it.
        target: of a segmentation the class asked for; None: all that is not background.
    Returns: id -> (size, size) bool.
    Raises: ValueError: real images of a classification, whose lesions nobody has outlined.
    """
    table = manifest.table.set_index("id").loc[list(ids)]
    if manifest.task_kind == "segmentation":
        indices = (decode_mask(manifest.root / name, name, manifest.mask_values) for name in table["label"])
        masks = [(mask > 0 if target is None else mask == target).astype(np.uint8) for mask in indices]
    else:
        masks = [mask.astype(np.uint8) for mask in lesion_masks(manifest.root, table["path"].tolist())]
    return {name: squashed_mask(mask, size, manifest.reading.resize) > 0 for name, mask in zip(ids, masks, strict=True)}


def localisation(maps: pd.DataFrame, places: dict[str, np.ndarray], model: str) -> pd.DataFrame:
    """How much of each map's energy is inside the lesion, beside the lesion's share of the image: what an even map would have.

    Lesions lie near the middle of most images, and so may any map's energy. `elsewhere` tells the two apart: the mean share that the
    maps of the centre's other patients have inside this very lesion, that is what the place alone gives.

    Args:
        maps: from `activation_maps`.
        places: id -> (S, S) bool, from `lesions`; samples without one or with an empty one are left out.
        model: what is written into the column `model`.
    Returns: model, id, patient, center, inside (NaN for a map without energy), area, elsewhere (NaN where there is no other patient).
    """
    rows = []
    for center, group in maps.groupby("center", sort=False):
        group = group[[name in places and bool(places[name].any()) for name in group["id"]]]
        if group.empty:
            continue
        energy = np.maximum(enlarged(np.stack(list(group["map"])), len(next(iter(places.values())))), 0)
        total = energy.sum(axis=(1, 2), keepdims=True)
        energy = np.divide(energy, total, out=np.full_like(energy, np.nan), where=total > 0)
        patients = group["patient"].to_numpy()
        for place, sample in enumerate(group.itertuples()):
            lesion = places[sample.id]
            others = energy[(patients != sample.patient) & (total[:, 0, 0] > 0)]
            elsewhere = others[:, lesion].sum(1).mean() if len(others) else np.nan
            inside = energy[place][lesion].sum()
            rows.append((model, sample.id, sample.patient, center, float(inside), float(lesion.mean()), float(elsewhere)))
    return pd.DataFrame(rows, columns=["model", "id", "patient", "center", "inside", "area", "elsewhere"])


def localisation_summary(cases: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Gain of each model over chance, with a 95 % interval by bootstrap over patients (within centres).

    Args:
        cases: from `localisation`, of one or several models; rows of several randomised models may share one name: their mean counts.
        seed: of the bootstrap.
    Returns: per model and centre, and per model over all centres ("all"): model, center, images, patients, undefined (maps without energy),
        inside, area (means over patients), gain = inside − area with low and high, gain_over_place = inside − elsewhere with place_low
        and place_high, verdict: "above chance" where both intervals lie above 0, else "not above chance"; "undefined" where
        there is no interval, and the reason.
    """
    rows = []
    for model, part in cases.groupby("model", sort=False):
        centers = sorted(part["center"].unique())
        for center in [*centers, "all"] if len(centers) > 1 else centers:
            rows.append({"model": model, "center": center, **_gain(part if center == "all" else part[part["center"] == center], seed)})
    return pd.DataFrame(rows)


def _gain(cases: pd.DataFrame, seed: int) -> dict[str, object]:
    defined = cases.dropna(subset="inside")
    values = defined.assign(gain=defined["inside"] - defined["area"], over_place=defined["inside"] - defined["elsewhere"])
    per_patient = values.groupby(["center", "patient"])[["inside", "area", "gain", "over_place"]].mean()
    row: dict[str, object] = {"images": cases["id"].nunique(), "patients": len(per_patient), "undefined": int(cases["inside"].isna().sum())}
    row |= {"inside": per_patient["inside"].mean(), "area": per_patient["area"].mean()}
    gain, over_place = (per_patient[name].dropna() for name in ("gain", "over_place"))
    first, second = (_mean_interval(own, seed) for own in (gain, over_place))
    row |= {"gain": gain.mean(), "low": first.low, "high": first.high}
    row |= {"gain_over_place": over_place.mean(), "place_low": second.low, "place_high": second.high}
    verdict = "above chance" if min(first.low, second.low) > 0 else "not above chance"
    reason = first.reason or second.reason
    return row | {"verdict": "undefined" if reason else verdict, "reason": reason}


def _mean_interval(means: pd.Series, seed: int) -> Interval:
    """Of a mean over patients (`means`, by center and patient), who are drawn within their centres.

    Where a centre has fewer than `statistics.MIN_PATIENTS`, patients are drawn from all together: within it they would vary too little.
    """
    values, centers = means.to_numpy(), means.index.get_level_values("center")
    strata = np.zeros(len(values)) if centers.value_counts().min() < MIN_PATIENTS else centers.to_numpy()

    def mean(drawn: Sequence[np.ndarray]) -> np.ndarray:
        return sum(values[rows].sum(axis=1) for rows in drawn) / len(values)

    return bootstrap_interval(strata, mean, np.random.default_rng(seed_sequence(seed, "localisation")))


def randomised(student: Student, seed: int, parts: Sequence[str] | None = None) -> Student:
    """A copy whose weights are drawn anew, batch-norm statistics included, as at the start of a training from nothing.

    Args:
        seed: of the weights.
        parts: names of stages, or "head" for everything behind the stages; None: all.
    Raises: ValueError: an unknown part.
    """
    known = [HEAD, *student.stages]
    if unknown := sorted(set(parts or ()) - set(known)):
        raise ValueError(f"parts {unknown} are not among {known}")
    model = copy.deepcopy(student)
    staged = {id(child): stage for stage, modules in model.stages.items() for module in modules for child in module.modules()}
    with torch_seed(seed_sequence(seed, "randomised weights")):
        chosen = [(name, module) for name, module in model.named_modules() if parts is None or staged.get(id(module), HEAD) in parts]
        left = [(name, module, keys) for name, module in chosen if (keys := _not_reset(module))]
        if left:  # scales of timm's layers, which have no reset of their own: those of another student at its start
            start = student.anew()
            for name, module, keys in left:
                for key in keys:
                    _own_tensors(module)[key].copy_(_own_tensors(start.get_submodule(name))[key])
    return model.eval()


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What a module itself holds: parameters, and statistics or filters of floating point."""
    buffers = {key: tensor for key, tensor in module.named_buffers(recurse=False) if tensor.is_floating_point()}
    return {key: parameter.data for key, parameter in module.named_parameters(recurse=False)} | buffers


def _not_reset(module: nn.Module) -> list[str]:
    """Draws what a module itself holds anew, as far as it can do that; the names of what it cannot."""
    for tensor in _own_tensors(module).values():
        tensor.fill_(torch.nan)  # whatever is still so afterwards was not drawn
    if callable(reset := getattr(module, "reset_parameters", None)):
        reset()
    return [key for key, tensor in _own_tensors(module).items() if bool(tensor.isnan().any())]


def cascade(
    student: Student, data: ImageDataset, seed: int, layer: str = "", *, draws: int = 3, device: torch.device | str = "cpu"
) -> pd.DataFrame:
    """Adebayo's cascading randomisation: from the head down to the first stage, more and more weights are drawn anew.

    A map that shows what was learnt changes; one that shows edges of the image stays.

    Args:
        data: the samples whose maps are compared.  layer: as in `activation_maps`.
        draws: sets of random weights; each draws its cascade from weights of its own.
    Returns: step, randomised (what is drawn anew at this step, in addition), draw, id, patient, center, correlation: Spearman's rank
        correlation of the map with that of the trained model, over its places with sign; NaN where one of the two is constant.
    """
    trained = activation_maps(student, data, layer, device=device)
    parts, rows = [HEAD, *reversed(list(student.stages))], []
    for step, draw in product(range(1, len(parts) + 1), range(draws)):
        changed = activation_maps(randomised(student, seed + draw, parts[:step]), data, layer, device=device)
        for sample, before, after in zip(trained.itertuples(), trained["map"], changed["map"], strict=True):
            rows.append((step, parts[step - 1], draw, sample.id, sample.patient, sample.center, rank_correlation(before, after)))
    return pd.DataFrame(rows, columns=["step", "randomised", "draw", "id", "patient", "center", "correlation"])


def cascade_summary(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """How alike the maps still are at each step: the mean over patients of all centres with a 95 % interval by bootstrap over patients.

    Args:
        table: from `cascade`, of one or more centres.
    Returns: step, randomised, correlation, low, high, patients, undefined (constant maps, left out), reason (why there is no interval).
    """
    rows = []
    for (step, part), group in table.groupby(["step", "randomised"], sort=True):
        means = group.dropna(subset="correlation").groupby(["center", "patient"])["correlation"].mean()
        low, high, reason = _mean_interval(means, seed)
        rows.append((step, part, means.mean(), low, high, len(means), int(group["correlation"].isna().sum()), reason))
    return pd.DataFrame(rows, columns=["step", "randomised", "correlation", "low", "high", "patients", "undefined", "reason"])


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation of two maps over their places; NaN where one of them is constant."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(scipy.stats.spearmanr(one.ravel(), other.ravel()).statistic)


def case_table(
    chosen: pd.DataFrame, samples: pd.DataFrame, maps: pd.DataFrame, size: int, lesions: dict[str, np.ndarray] | None = None
) -> pd.DataFrame:
    """The chosen images with their maps, as figures show them.

    Args:
        chosen: center, label, id, score, from `interpretation.features.median_cases`, or rows like these.
        samples: id, image and, where it is known, mask, from `evaluation.samples.read_samples`.
        maps: id, map, from `activation_maps`.
        size: side of the images in pixels.
        lesions: id -> (S, S) bool, from `lesions`; None where no lesion's place is known.
    Returns: the columns of `chosen`, image, map (S, S), lesion (None where it is not known), truth: the sample's mask or None.
    Raises: KeyError: a chosen image without a map or an image.
    """
    image, found = samples.set_index("id")["image"], maps.set_index("id")["map"]
    ids = list(chosen["id"])
    if missing := [name for name in ids if name not in image.index or name not in found.index]:
        raise KeyError(f"no image or map of the chosen case {missing[0]!r}")
    table = chosen.reset_index(drop=True)
    table["image"] = pd.Series([image[name] for name in ids], dtype=object)
    table["map"] = pd.Series([enlarged(found[name], size) for name in ids], dtype=object)
    masks = samples.set_index("id")["mask"] if "mask" in samples else {}
    table["truth"] = pd.Series([masks.get(name) for name in ids], dtype=object)
    table["lesion"] = pd.Series([(lesions or {}).get(name) for name in ids], dtype=object)
    return table
