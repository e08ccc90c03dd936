"""What protection of the updates costs: test metric of FedAvg and VFMGL under every number format, clipping and several noises.

    python benchmarks/privacy.py [--task nuclei] [--seeds 0,1] [--rounds 6] [--out results/privacy/utility.csv]
    python benchmarks/privacy.py --batch-norm running,recalibrated --only float32     which part of a change are statistics, in both ways

Phantoms and students of the smoke profile, uniform weights in all settings, so that they differ in the exchange alone; both methods have
the same number of rounds. `clip` is the median length of a centre's change over centres and rounds of the same method and seed without
clipping, "clip x 4" four times that; a hospital would have to choose it without looking at everybody's changes.
`noise` is in units of clip; epsilon is that of (epsilon, 1e-5)-differential privacy of one centre over all rounds
(`federation.exchange.epsilon`).

The CSV has a row for each method, setting and seed: the mean over centres of each centre's own model and of the shared model on the
centres' test sets (none where the server refused too many updates), the bytes of one update, and in_statistics: which part of the squared
length of the changes was in the statistics of batch normalisation, the median over centres and rounds. `trivial` is the metric of marking
every pixel, or of chance.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import pandas as pd
import torch
from measure import commit

from vfmgl_lib.base.files import write_text
from vfmgl_lib.config import StudySettings
from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.data.manifest import Manifest
from vfmgl_lib.evaluation.metric import metrics_of
from vfmgl_lib.evaluation.prediction import predict, scoring_unit
from vfmgl_lib.federation.exchange import epsilon, outgoing
from vfmgl_lib.federation.rounds import QuorumError, run_rounds
from vfmgl_lib.federation.servers import Update
from vfmgl_lib.methods.registry import new_server
from vfmgl_lib.methods.settings import checked_settings
from vfmgl_lib.models.students import Student
from vfmgl_lib.study.assembly import center_datasets, new_client, new_student, study_teacher
from vfmgl_lib.study.workspace import open_workspace

OUT = Path(__file__).resolve().parent.parent / "results" / "privacy" / "utility.csv"
SAMPLES = {"train": 16, "val": 6, "test": 12}  # a centre
NOISES = (0.001, 0.01, 0.1, 1.0)
DELTA = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="nuclei", choices=("camelyon17", "nuclei"))
    parser.add_argument("--seeds", default="0,1", help="study seeds, by commas (default 0,1)")
    parser.add_argument("--methods", default="fedavg,vfmgl", help="by commas (default fedavg,vfmgl)")
    parser.add_argument("--batch-norm", default="recalibrated", help="recalibrated (default), running, or both by commas")
    parser.add_argument("--only", default="", help="of the settings these alone, by commas, e.g. float32; default: all")
    parser.add_argument("--rounds", type=int, default=6, help="of both methods (default 6)")
    parser.add_argument("--out", type=Path, default=OUT, help="CSV (default results/privacy/utility.csv); what it has is not run again")
    arguments = parser.parse_args()
    done = pd.read_csv(arguments.out, keep_default_na=False, na_values=[""]).to_dict("records") if arguments.out.is_file() else []

    def run(batch_norm: str, method: str, seed: int, name: str, exchange: dict) -> dict:
        wanted = {"task": arguments.task, "method": method, "batch_norm": batch_norm, "setting": name, "seed": seed}
        wanted["rounds"] = arguments.rounds
        for row in done:
            if all(row[key] == value for key, value in wanted.items()):
                return row
        row = _run(arguments, Path(temporary), batch_norm, method, name, exchange, seed) | {"commit": commit()}
        done.append(row)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.out, pd.DataFrame(done).to_csv(index=False, float_format="%.4g"))
        return row

    with tempfile.TemporaryDirectory() as temporary:
        cases = itertools.product(arguments.batch_norm.split(","), arguments.methods.split(","), map(int, arguments.seeds.split(",")))
        for batch_norm, method, seed in cases:
            clip = float(f"{run(batch_norm, method, seed, 'float32', {})['median_change']:.3g}")
            settings = {"float16_change": {"number_format": "float16_change"}, "clip": {"clip": clip}, "clip x 4": {"clip": 4 * clip}}
            settings |= {f"clip, noise {noise:g}": {"clip": clip, "noise": noise, "share_counts": False} for noise in NOISES}
            settings["float16"] = {"number_format": "float16"}
            for name, exchange in settings.items():
                if not arguments.only or name in arguments.only.split(","):
                    run(batch_norm, method, seed, name, exchange)
    table = pd.DataFrame(done)
    shown = ["epsilon", "own_models", "shared_model", "bytes", "in_statistics"]
    print(table.groupby(["task", "batch_norm", "method", "setting"], sort=False)[shown].mean().to_string())


def _run(arguments: argparse.Namespace, folder: Path, batch_norm: str, method: str, name: str, exchange: dict, seed: int) -> dict:
    started = time.process_time()
    workspace = open_workspace(arguments.task, "smoke", seed=seed, runs=folder, phantoms__samples=SAMPLES)
    values = workspace.settings.model_dump() | {"method": method, "batch_norm": batch_norm}
    values["federation"] |= {"weights": "uniform", "rounds": arguments.rounds}
    values["exchange"] |= exchange
    settings, manifest = checked_settings(values), workspace.manifest
    teacher = study_teacher(settings)
    sets = {center: center_datasets(settings, manifest, center, teacher) for center in manifest.centers}
    clients = [new_client(settings, center, sets[center], teacher, None) for center in manifest.training_centers]
    initial = new_student(settings).state_dict()
    server = new_server(settings, list(manifest.training_centers), new_student(settings))
    receive, lengths, in_statistics = server.receive, list[float](), list[float]()

    def measured(update: Update) -> None:
        squares = {
            n: float((t.double() - server.state[n].double()).square().sum()) for n, t in update.state.items() if t.is_floating_point()
        }
        lengths.append(math.sqrt(sum(squares.values())))
        in_statistics.append(sum(square for n, square in squares.items() if "running_" in n) / sum(squares.values()))
        receive(update)

    server.receive = measured  # type: ignore[method-assign]
    own = common = [math.nan]
    try:
        done = list(run_rounds(clients, server, arguments.rounds, quorum=settings.faults.quorum))
    except QuorumError as error:
        outcome = str(error).partition(";")[0]
    else:
        outcome = "finished"
        shared = clients[0].frozen_copy(done[-1].shared)
        own = [_metric(settings, manifest, client.student, sets[client.center]["test"]) for client in clients]
        common = [_metric(settings, manifest, shared, sets[client.center]["test"]) for client in clients]
    trivial = [_marking_everything(settings, sets[client.center]["test"]) for client in clients]
    sent = outgoing(Update("A", initial, 1, {}), initial, initial, settings.exchange).state
    noise = settings.exchange.noise
    row = {
        "task": arguments.task,
        "method": method,
        "batch_norm": batch_norm,
        "setting": name,
        "clip": settings.exchange.clip,
        "noise": noise,
        "epsilon": epsilon(noise, arguments.rounds, DELTA),
        "delta": DELTA,
        "rounds": arguments.rounds,
        "seed": seed,
        "metric": "dice" if settings.is_segmentation else "auc",
        "own_models": statistics.fmean(own),
        "shared_model": statistics.fmean(common),
        "trivial": statistics.fmean(trivial),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in sent.values()),
        "median_change": statistics.median(lengths),
        "in_statistics": statistics.median(in_statistics),
        "outcome": outcome,
        "cpu_seconds": time.process_time() - started,
    }
    print(" ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items()), flush=True)
    return row


def _metric(settings: StudySettings, manifest: Manifest, student: Student, data: ImageDataset) -> float:
    """AUC or Dice on one test set; NaN where the model's outputs are not finite any more."""
    predictions = predict(student, data, batch_size=32, device=torch.device("cpu"))
    if "probability" in predictions and predictions["probability"].isna().any():
        return math.nan
    measured = {m.name: m.value for m in metrics_of(predictions, scoring_unit(manifest.table, settings.is_segmentation), math.nan)}
    return measured["dice" if settings.is_segmentation else "auc"]


def _marking_everything(settings: StudySettings, data: ImageDataset) -> float:
    """Mean Dice over images of a mask that is all foreground; of a classification an AUC of 0.5."""
    if not settings.is_segmentation:
        return 0.5
    shares = [float((data[row]["target"] == 1).float().mean()) for row in range(len(data))]
    return statistics.fmean(2 * share / (1 + share) for share in shares)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    main()
