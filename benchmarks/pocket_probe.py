"""What a teacher's features know, place by place: the linear probe by which the pocket teacher's objective was chosen.

    python benchmarks/pocket_probe.py                                     # the pocket ViT, its architecture at random, MobileNetV2
    python benchmarks/pocket_probe.py --teachers NAME=FILE-OR-TEACHER,...

AUC of a logistic regression on standardised features of one centre's training images, on its test images, mean over three centres. Of a
classification the mean over the places of the last block (a CNN: its last level); of a segmentation each of the 8 x 8 places of the last
block (a CNN: its stride-16 level), and whether the structure covers it more than the training images' median place (the prostate: more than
half of it). A Dice of such places, as the method `frozen_probe` draws them, says little about structures smaller than a place.

Phantoms have seed 0 of the studies; real sets are read below VFMGL_DATA and left out, with a message, where they are not there. The rows
of a set and teacher in results/pocket_teacher/places.csv are replaced: set, teacher, weights (hash), center, auc, places or images tested,
commit.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measure import commit
from pocket_teacher import random_pocket
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from vfmgl_lib.base.files import write_text
from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.models.teachers import Teacher, load_teacher
from vfmgl_lib.study.assembly import center_datasets
from vfmgl_lib.study.workspace import open_workspace

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "results" / "pocket_teacher" / "places.csv"
GRID, CENTERS = 8, 3
IMAGE, PLACE = 0.1, 0.01  # C of the regression: few images, many places
MANY = {"train": 60, "test": 60}
# set -> task, folder below VFMGL_DATA ("": phantoms), settings beside the smoke profile's
SETS: dict[str, tuple[str, str, dict]] = {
    "nuclei_phantoms": ("nuclei", "", {"data__image_size": 128}),
    "camelyon17_phantoms": (
        "camelyon17",
        "",
        {"data__image_size": 96, "phantoms__image_size": 96, "phantoms__samples": MANY | {"val": 12}},
    ),
    "endometrial_phantoms": ("endometrial", "", {"data__image_size": 128, "phantoms__image_size": 128, "phantoms__samples": MANY}),
    "nuclei": ("nuclei", "nuclei", {"data__image_size": 128}),
    "prostate": ("prostate", "prostate", {"data__image_size": 128, "data__per_center": {"train": 30, "val": 4, "test": 30}}),
    "idc_patches": (
        "camelyon17",
        "idc_patches",
        {"data__layout": "endometrial", "data__per_center": {"train": 100, "val": 10, "test": 100}},
    ),
}


def main() -> None:
    data = Path(os.environ.get("VFMGL_DATA") or ROOT.parent / "shared" / "data")
    mobilenet = data.parent / "weights" / "mobilenetv2_100_imagenet.safetensors"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", default=f"pocket=pocket_vit,random=,mobilenet={mobilenet}", help="NAME=TEACHER by commas")
    parser.add_argument("--sets", default=",".join(SETS), help="by commas (default all)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="phantoms and prepared sets (default runs)")
    arguments = parser.parse_args()
    teachers = dict(word.split("=", 1) for word in arguments.teachers.split(","))
    for name in arguments.sets.split(","):
        task, folder, overrides = SETS[name]
        if folder and not (data / folder).is_dir():
            print(f"LEFT OUT: {name}: there is no folder {data / folder}", file=sys.stderr)
            continue
        source = str(data / folder) if folder else ""
        workspace = open_workspace(task, "smoke", data=source, runs=arguments.runs, **overrides)
        for label, text in teachers.items():
            teacher = load_teacher(text or str(random_pocket(arguments.runs)), grid=GRID)
            rows = []
            for center in workspace.manifest.training_centers[:CENTERS]:
                sets = center_datasets(workspace.settings, workspace.manifest, center, teacher)
                (x, y), (x_test, y_test) = (points(teacher, sets[split], name) for split in ("train", "test"))
                if workspace.settings.is_segmentation:
                    limit = 0.5 if task == "prostate" else float(np.median(y))
                    y, y_test = (y > limit).astype(int), (y_test > limit).astype(int)
                if min(len(set(y)), len(set(y_test))) < 2:
                    print(f"LEFT OUT: {name} {center}: one class only", file=sys.stderr)
                    continue
                strength = PLACE if workspace.settings.is_segmentation else IMAGE
                probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000)).fit(x, y)
                auc = roc_auc_score(y_test, probe.predict_proba(x_test)[:, 1])
                row = {"set": name, "teacher": label, "weights": teacher.identity[:10], "center": center, "auc": f"{auc:.4f}"}
                rows.append(row | {"n": len(y_test), "commit": commit()})
            mean = np.mean([float(row["auc"]) for row in rows]) if rows else float("nan")
            print(f"{name:22s}{label:20s}{mean:.3f}", flush=True)
            before = pd.read_csv(OUT, dtype=str).to_dict("records") if OUT.is_file() else []
            before = [row for row in before if (row["set"], row["teacher"]) != (name, label)]
            write_text(OUT, pd.DataFrame(before + rows).sort_values(["set", "teacher", "center"]).to_csv(index=False, lineterminator="\n"))


def points(teacher: Teacher, data: ImageDataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, C) and labels (N,) of all images, or of all their places with the share of each that the structure covers."""
    features, labels = [], []
    for index in range(len(data)):
        sample = data[index]
        stacks = teacher(sample["image"][None])
        target = sample["target"]
        if target.ndim == 0:
            features.append(stacks[-1][0, -1].mean((1, 2))[None])
            labels.append(target[None].float())
        else:
            places: Tensor = stacks[-1][0, -1] if len(stacks) == 1 else stacks[2][0, 0]
            features.append(places.flatten(1).T)
            labels.append(torch.nn.functional.adaptive_avg_pool2d((target == 1).float()[None], places.shape[-1]).flatten())
    return torch.cat(features).numpy(), torch.cat(labels).numpy()


if __name__ == "__main__":
    main()
