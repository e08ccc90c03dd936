"""What a small teacher is worth: its linear probe, and the students' gain by transfer from it.

    python benchmarks/pocket_teacher.py --processes 2                          # the whole table; the same call goes on where it ended
    python benchmarks/pocket_teacher.py --sets nuclei --teachers none,random,mobilenet --images 20 --seeds 0
    python benchmarks/pocket_teacher.py --status

Teachers: "random" (the pocket ViT's architecture with random weights), "pocket" (the pocket ViT), "mobilenet" (ImageNet MobileNetV2) and
"none", the students without transfer. Sets: phantoms, drawn anew for every seed, and the real images below --data; three centres of each.
Settings: `notebooks/profiles/pocket_teacher.yaml`, whose `local_epochs` hold for 100 training images a centre: with fewer there are as
many more epochs as make about as many updates.

The student with transfer is the method `hgkt`, which makes two updates a batch, without transfer `local`, which makes one: it has twice
the rounds and is measured after as many rounds as `hgkt` ("rounds") and at its end, after as many updates ("updates"). This is matched to
HGKT; the comparison of methods matches to VFMGL's three. The probe is the method `frozen_probe`. No rate, round or epoch is chosen on a
test set; the pocket ViT itself was chosen among two or three by probes on test images, some of them the same (results/pocket_teacher).

`--out` has `rows.csv`, a row for each set, images, teacher, method, seed, centre and budget, and `summary.csv`, made from it
(results/pocket_teacher/README.md); both are brought up to date after every study, and a study whose rows are there is not run again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import timm
import torch
from safetensors.torch import save

from vfmgl_lib.base.files import write_bytes, write_text
from vfmgl_lib.base.randomness import seed_sequence, torch_seed
from vfmgl_lib.evaluation.statistics import crossed_interval
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.models.teacher_names import TeacherError
from vfmgl_lib.models.teachers import load_teacher
from vfmgl_lib.study.workspace import Workspace, open_workspace
from vfmgl_lib.tools.pretrain.training import ARCHITECTURE, MODEL_ARGS

ROOT = Path(__file__).resolve().parent.parent
PROFILE = "pocket_teacher"
FULL = 100  # training images a centre for which the profile's local_epochs hold
ROWS, SUMMARY = "rows.csv", "summary.csv"
STUDY = ["set", "images", "teacher", "method", "seed"]
TEACHERS = ("none", "random", "pocket", "mobilenet")
METHODS = {"none": ("local",), **dict.fromkeys(TEACHERS[1:], ("frozen_probe", "hgkt"))}
UPDATES = {"local": 1, "hgkt": 2}  # of the student a batch
POCKET = MODEL_ARGS | {"num_classes": 0}


class ImageSet(NamedTuple):
    """A task, the folder below --data ("": phantoms), its centres (none: all), and the layout where it is not the task's own."""

    task: str
    folder: str = ""
    centers: tuple[str, ...] | None = None
    layout: str = ""


SETS = {
    "nuclei_phantoms": ImageSet("nuclei"),
    "camelyon17_phantoms": ImageSet("camelyon17"),
    "nuclei": ImageSet("nuclei", "nuclei", ("SiteA", "SiteB", "SiteD")),
    "prostate": ImageSet("prostate", "prostate", ("BIDMC", "HK", "UCL")),
    "idc_patches": ImageSet("camelyon17", "idc_patches", ("A", "B", "C"), "endometrial"),
}


@dataclass(frozen=True)
class Job:
    """One study. `data`: its images ("": phantoms); `source`: the teacher as `load_teacher` takes it; `identity`: of its weights."""

    set: str
    images: int
    teacher: str
    method: str
    seed: int
    data: str
    source: str
    identity: str
    runs: Path

    @property
    def key(self) -> tuple:
        return tuple(getattr(self, name) for name in STUDY)


def main(words: Sequence[str] | None = None) -> int:
    arguments = command_line().parse_args(words)
    jobs = plan(arguments)
    rows = read_rows(arguments.out, jobs)
    if arguments.status:
        print(status(jobs, rows))
        return 0
    if failures := run(jobs, rows, arguments):
        print("\n".join(["failed:", *failures]), file=sys.stderr)
    if (arguments.out / SUMMARY).is_file():
        print(pd.read_csv(arguments.out / SUMMARY).to_string(index=False))
    return int(bool(failures))


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("VFMGL_DATA") or ROOT.parent / "shared" / "data")
    weights = data.parent / "weights" / "mobilenetv2_100_imagenet.safetensors"
    parser.add_argument("--sets", type=_choice(SETS), default=list(SETS), help=f"by commas, of {', '.join(SETS)} (default all)")
    parser.add_argument("--teachers", type=_choice(TEACHERS), default=list(TEACHERS), help=f"of {', '.join(TEACHERS)} (default all)")
    parser.add_argument("--images", type=_numbers, default=[20, 100], help="training images a centre, at most (default 20,100)")
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2], help="study seeds (default 0,1,2)")
    parser.add_argument("--processes", type=int, default=1, help="studies at a time, one thread each (default 1)")
    parser.add_argument("--data", type=Path, default=data, help="folder of the real sets (default VFMGL_DATA)")
    parser.add_argument("--mobilenet", default=str(weights), help="MobileNetV2's weights (default: weights/ beside --data's default)")
    parser.add_argument("--pocket", default="pocket_vit", help="the pocket ViT: name or file (default pocket_vit)")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / PROFILE, help="folder of the CSVs (default results/pocket_teacher)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="studies, phantoms, teacher features (default runs)")
    parser.add_argument("--time-limit", type=float, default=float("inf"), help="seconds after which no further study begins")
    parser.add_argument("--status", action="store_true", help="show how far the table is and run nothing")
    return parser


def plan(arguments: argparse.Namespace) -> list[Job]:
    """The studies in their order, those of one set, number of images and seed together; what cannot be had is left out, and said."""
    sources = {"none": "", "pocket": arguments.pocket, "mobilenet": arguments.mobilenet}
    if "random" in arguments.teachers:
        sources["random"] = str(random_pocket(arguments.runs))
    grid, identities = load_settings("nuclei", PROFILE).teacher.grid, {}
    for teacher in arguments.teachers:
        try:
            identities[teacher] = load_teacher(sources[teacher], grid=grid).identity[:10] if sources[teacher] else ""
        except TeacherError as error:
            print(f"LEFT OUT: teacher {teacher}: {error}", file=sys.stderr)
    jobs = []
    for seed in arguments.seeds:
        for name in arguments.sets:
            folder = SETS[name].folder
            if folder and not (arguments.data / folder).is_dir():
                if seed == arguments.seeds[0]:
                    print(f"LEFT OUT: set {name}: there is no folder {arguments.data / folder}; give --data or VFMGL_DATA", file=sys.stderr)
                continue
            data = str(arguments.data / folder) if folder else ""
            jobs += [
                Job(name, images, teacher, method, seed, data, sources[teacher], identity, arguments.runs)
                for images in arguments.images
                for teacher, identity in identities.items()
                for method in METHODS[teacher]
            ]
    return jobs


def random_pocket(runs: Path) -> Path:
    """A file of the pocket ViT's architecture with random weights, the same on every call and every x86 machine."""
    file = runs / PROFILE / "random_pocket_vit.safetensors"
    if not file.is_file():
        # In a process of its own: truncated normals are MKL's inverse error function, which rounds otherwise on another kind of processor
        # unless it is told before its first use not to.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), os.putenv, ("MKL_CBWR", "COMPATIBLE")) as pool:
            pool.submit(draw_random_pocket, file).result()
    return file


def draw_random_pocket(file: Path) -> None:
    with torch_seed(seed_sequence(0, "random pocket ViT")):
        model = timm.create_model(ARCHITECTURE, pretrained=False, **POCKET)
    half = [0.5, 0.5, 0.5]
    described = {"architecture": ARCHITECTURE, "model_args": json.dumps(POCKET), "mean": json.dumps(half), "std": json.dumps(half)}
    write_bytes(file, save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, described))


def run(jobs: list[Job], rows: pd.DataFrame, arguments: argparse.Namespace) -> list[str]:
    """Runs what has no rows yet and writes both CSVs after every study; returns what failed."""
    started, failures = time.monotonic(), []
    todo = [job for job in jobs if job.key not in done(rows)]
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with ProcessPoolExecutor(arguments.processes, multiprocessing.get_context("spawn")) as pool:
        # Once each, before two studies would both write them: phantoms are a seed's, real images are prepared once.
        sets = {(job.set, job.seed if not job.data else None): job for job in reversed(todo)}
        list(pool.map(prepare, reversed(sets.values())))
        running: dict[Future, Job] = {}
        while todo or running:
            while todo and len(running) < arguments.processes and time.monotonic() - started < arguments.time_limit:
                job = todo.pop(0)
                running[pool.submit(study_rows, job)] = job
            if not running:
                print(f"time limit: {len(todo)} studies are left", file=sys.stderr)
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                if error := future.exception():
                    failures.append(f"{' '.join(map(str, job.key))}: {type(error).__name__}: {error}")
                    continue
                rows = pd.concat([rows, pd.DataFrame(future.result())], ignore_index=True)
                write(arguments.out, rows)
                print(f"{' '.join(map(str, job.key))}: {future.result()[0]['seconds']} s, {len(todo)} left", flush=True)
    return failures


def prepare(job: Job) -> None:
    """The set's images, drawn or prepared."""
    workspace(job)


def study_rows(job: Job) -> list[dict]:
    """Runs a study, or goes on with it; its rows of the table."""
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    torch.set_num_threads(1)
    started, here = time.process_time(), workspace(job)
    study = here.run(job.method, SETS[job.set].centers, progress=False)
    seconds = round(time.process_time() - started, 1)
    settings, metrics = study.settings, study.metrics
    metric = "dice" if settings.is_segmentation else "auc"
    own = metrics[(metrics["model_center"] == metrics["test_center"]) & (metrics["split"] == "test") & (metrics["metric"] == metric)]
    trained = study.manifest.table.query("split == 'train'").groupby("center").size()
    start = json.loads((study.folder / "environment.json").read_text(encoding="utf-8"))[-1]
    budgets = {"updates": study.last_round}
    if job.method == "local":
        budgets = {"rounds": study.last_round // UPDATES["hgkt"], "updates": study.last_round}
    return [
        dict(zip(STUDY, job.key, strict=True))
        | {
            "center": row.test_center,
            "kind": "probe" if job.method == "frozen_probe" else "student",
            "budget": budget if job.method == "local" else "both",
            "rounds": number,
            "epochs": settings.federation.local_epochs if job.method in UPDATES else "",
            "metric": metric,
            "value": float(f"{row.value:.5g}"),
            "n_test": row.n,
            "n_train": trained[row.test_center],
            "seconds": seconds,
            "settings": settings_key(job),
            "weights": job.identity,
            "commit": start["commit"][:12] + "+" * start["commit"].endswith("+"),
        }
        for budget, number in budgets.items()
        for row in own[own["round"] == number].itertuples()
    ]


def overrides(job: Job) -> dict:
    """What the study's settings have beside the profile's, as `load_settings` takes it; epochs are still those for `FULL` images."""
    task, _, _, layout = SETS[job.set]
    profile = load_settings(task, PROFILE)
    rounds = profile.federation.rounds * UPDATES["hgkt"] // UPDATES.get(job.method, UPDATES["hgkt"])
    return {
        "seed": job.seed,
        "data__per_center": profile.data.per_center | {"train": job.images},
        "federation__rounds": rounds,
        "federation__match_updates": False,
        **({"data__layout": layout} if layout else {}),
    }


def settings_key(job: Job) -> str:
    """Hash of all settings that the studies of a set and number of images share."""
    settings = load_settings(SETS[job.set].task, PROFILE, **overrides(replace(job, method="local", seed=0)))
    return settings.key(settings.phantoms.model_dump_json(), str(settings.teacher.grid), str(SETS[job.set].centers))


def workspace(job: Job) -> Workspace:
    """The study's images and settings, with the epochs for as many training images as its centres have."""
    task, _, centers, _ = SETS[job.set]
    opened = open_workspace(task, PROFILE, data=job.data, teacher=job.source, runs=job.runs, **overrides(job))
    images = np.mean([len(opened.manifest.select(center, "train")) for center in centers or opened.manifest.training_centers])
    federation = opened.settings.federation
    epochs = max(1, round(federation.local_epochs * FULL / images))
    settings = opened.settings.model_copy(update={"federation": federation.model_copy(update={"local_epochs": epochs})})
    return replace(opened, settings=settings)


def read_rows(folder: Path, jobs: Sequence[Job]) -> pd.DataFrame:
    """The rows that are there.

    Raises: SystemExit: some of the jobs' rows were made with other settings or another teacher of the same name.
    """
    file, text = folder / ROWS, dict.fromkeys(("center", "settings", "weights", "commit"), str)
    rows = pd.read_csv(file, dtype=text, keep_default_na=False, na_values={"value": [""]}) if file.is_file() else pd.DataFrame()
    there = {key[:5]: key[5:] for key in rows[[*STUDY, "settings", "weights"]].itertuples(index=False, name=None)} if len(rows) else {}
    for job in jobs:
        found, asked = there.get(job.key), (settings_key(job), job.identity)
        if found not in (None, asked):
            raise SystemExit(
                f"{file}: {' '.join(map(str, job.key))} has settings and weights {found}, now they are {asked}; "
                "delete those rows or give another --out"
            )
    return rows


def done(rows: pd.DataFrame) -> set[tuple]:
    return set(rows[STUDY].itertuples(index=False, name=None)) if len(rows) else set()


def write(folder: Path, rows: pd.DataFrame) -> None:
    """Both CSVs, each whole or not at all; the order does not depend on which study ended first."""
    rows = rows.sort_values([*STUDY, "center", "budget"])
    write_text(folder / ROWS, rows.to_csv(index=False, lineterminator="\n"))
    write_text(folder / SUMMARY, summary(rows).to_csv(index=False, lineterminator="\n", float_format="%.4g"))


def status(jobs: Sequence[Job], rows: pd.DataFrame) -> str:
    """How many studies of each set and number of images are done, and the process-seconds that those done took."""
    finished = done(rows)
    table = pd.DataFrame([dict(zip(STUDY, job.key, strict=True)) | {"done": job.key in finished} for job in jobs])
    lines = table.groupby(["set", "images", "teacher", "method"])["done"].agg(["sum", "size"]).set_axis(["done", "of"], axis=1)
    if len(rows):
        once = rows.drop_duplicates(STUDY)
        lines["seconds"] = once.groupby(["set", "images", "teacher", "method"])["seconds"].mean().round(1)
    return f"{lines.to_string()}\n{table['done'].sum()} of {len(table)} studies are done; seconds: mean of a study"


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Levels and gains with 95 % intervals, one row for each set, images, teacher and quantity.

    A gain is paired: differences of the same centre and seed. The value is the mean over seeds of the means over centres.
    """
    found = []
    for (name, images), part in rows.groupby(["set", "images"], sort=False):
        # (teacher, method, budget) -> values, a row a seed and a column a centre
        values = {
            key: of_one.pivot(index="seed", columns="center", values="value")
            for key, of_one in part.groupby(["teacher", "method", "budget"])
        }
        metric = part["metric"].iloc[0]
        found += [
            {"set": name, "images": images, "teacher": teacher, "quantity": quantity, "metric": metric, **_described(table)}
            for teacher, quantity, table in _quantities(values)
        ]
    return pd.DataFrame(found)


def _quantities(values: dict[tuple, pd.DataFrame]) -> Iterator[tuple[str, str, pd.DataFrame]]:
    for teacher in TEACHERS:
        for key, table in values.items():
            if key[0] == teacher:
                _, method, budget = key
                yield teacher, "probe" if method == "frozen_probe" else f"student, {budget}" if method == "local" else "student", table
        differences = {
            "gain, matched updates": ((teacher, "hgkt", "both"), ("none", "local", "updates")),
            "gain, matched rounds": ((teacher, "hgkt", "both"), ("none", "local", "rounds")),
            "student less random's": ((teacher, "hgkt", "both"), ("random", "hgkt", "both")),
            "probe less random's": ((teacher, "frozen_probe", "both"), ("random", "frozen_probe", "both")),
        }
        for quantity, (one, other) in differences.items():
            if one in values and other in values and one != other:
                yield teacher, quantity, values[one] - values[other]


def _described(table: pd.DataFrame) -> dict:
    """Mean and interval of a table of seeds x centres; seeds that lack a centre are left out of both."""
    whole = table.dropna()
    value = float(whole.to_numpy().mean()) if len(whole) else float("nan")
    low, high, _ = crossed_interval(whole.to_numpy())
    return {"value": value, "low": low, "high": high, "seeds": len(whole), "centers": table.shape[1]}


def _choice(known: Sequence[str]):
    def parse(text: str) -> list[str]:
        words = text.split(",")
        if unknown := set(words) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: must be of {', '.join(known)}")
        return words

    return parse


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
