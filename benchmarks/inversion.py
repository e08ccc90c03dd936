"""What gradient inversion finds in a centre's update: PSNR and SSIM of reconstructions, beside what is known without an update.

    python benchmarks/inversion.py [--tasks nuclei,camelyon17] [--seeds 0,1] [--iterations 80] [--out results/privacy/inversion.csv]

Phantoms of the smoke profile, an untrained student of width 8 (UNet) or 16 (ResNet18), 64 px; a seed is a study's: other phantoms, another
student, other dummy images. `evaluation.inversion` says what the server is granted. Two images a seed. "Whole epoch simulated" goes through
every local step instead of one; it takes minutes and is made for the first task and seed alone.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
from measure import commit

from vfmgl_lib.base.files import write_text
from vfmgl_lib.evaluation.inversion import TRUE, Attack, View, inversion
from vfmgl_lib.study.workspace import open_workspace

OUT = Path(__file__).resolve().parent.parent / "results" / "privacy" / "inversion.csv"
SAMPLES = {"nuclei": {"train": 16, "val": 6, "test": 12}, "camelyon17": {"train": 48, "val": 12, "test": 24}}  # a centre
NOISE = 0.001  # a noise of 1 is a thousand times the change: nothing to be learnt from an attack on it
VIEWS = (
    View("one step on one image"),
    View("one step on one image, float16_change", number_format="float16_change"),
    View(f"one step on one image, noise {NOISE:g}", noise=NOISE),
    View("one step on four images", images=4),
    View("one local epoch", images=0),
    View("one local epoch, float16_change", images=0, number_format="float16_change"),
    View(f"one local epoch, noise {NOISE:g}", images=0, noise=NOISE),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="nuclei,camelyon17", help="by commas")
    parser.add_argument("--seeds", default="0,1", help="study seeds, by commas")
    parser.add_argument("--iterations", type=int, default=80, help="of every attack")
    parser.add_argument("--out", type=Path, default=OUT, help="CSV, written anew")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    parts: list[pd.DataFrame] = []
    with tempfile.TemporaryDirectory() as temporary:
        for task in arguments.tasks.split(","):
            for seed in seeds:
                workspace = open_workspace(task, "smoke", seed=seed, runs=temporary, phantoms__samples=SAMPLES[task])
                center, attack = workspace.manifest.training_centers[0], Attack(arguments.iterations, seed=seed)
                chosen = [(VIEWS, attack)]
                if not parts:
                    chosen.append(((View("one local epoch, whole epoch simulated", images=0),), replace(attack, simulated=100)))
                for views, strength in chosen:
                    table = inversion(workspace.settings, workspace.manifest, center, views, 2, strength)
                    kept = table[table["view"] != TRUE] if strength is attack else table[table["view"] == views[0].label]
                    parts.append(kept.drop(columns="image").assign(task=task, seed=seed, iterations=strength.iterations, commit=commit()))
                    print(parts[-1].to_string(header=len(parts) == 1, index=False), flush=True)
                    result = pd.concat(parts, ignore_index=True)
                    write_text(arguments.out, result.to_csv(index=False, float_format="%.4g"))
    print(result.groupby(["task", "view"], sort=False)[["psnr", "ssim", "cpu_seconds"]].mean().round(2).to_string())


if __name__ == "__main__":
    main()
