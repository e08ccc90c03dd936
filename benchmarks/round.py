"""A federated round through `run_rounds` against the bare training loops on the same tensors: what the driver costs.

    python benchmarks/round.py [--device cpu] [--runs 5]

Three centres, UNet students of the quick profile on phantoms, method vfmgl, round 2: stage I (HGKT and the task step) and stage II (DDBL)
at each centre, then the weighted mean. The bare loops call the same three steps on batches that lie ready in memory, so that the
difference is the driver with its loading, logging and copying. The resulting students and shared model are compared bit by bit. Both with
running statistics of batch normalisation; a third run has them re-estimated (after stage I, after stage II, and of the shared model).
"""

from __future__ import annotations

import copy
import tempfile

import torch
from measure import Row, command_line, measure, ratios, report
from torch import Tensor

from vfmgl_lib.base.randomness import seed_sequence, torch_seed
from vfmgl_lib.config import StudySettings
from vfmgl_lib.data.feature_cache import teacher_stacks
from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.federation.client import Client
from vfmgl_lib.federation.rounds import run_rounds
from vfmgl_lib.federation.servers import Averaging, Update, WeightedMean
from vfmgl_lib.method.ddbl import deduction_step
from vfmgl_lib.method.hgkt import critical_stages
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.models.students import STUDENTS, set_training_mode
from vfmgl_lib.models.teachers import load_teacher
from vfmgl_lib.study.workspace import open_workspace

TARGET = 0.02  # driver's share
RECALIBRATION = 0.05  # share of re-estimating batch normalisation's statistics


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as temporary:
        few = {"phantoms__centers": 3, "phantoms__samples": {"train": 12, "val": 2, "test": 2}}
        workspace = open_workspace("nuclei", "quick", teacher="random:vit_tiny_patch16_224", runs=temporary, **few)
        settings, manifest = workspace.settings.model_copy(update={"batch_norm": "running"}), workspace.manifest
        teacher = load_teacher(settings.teacher.source, grid=settings.teacher.grid).to(device)
        with torch_seed(seed_sequence(0, "student")):
            student = STUDENTS[settings.student.name](2, settings.student.width)

        def federation(settings: StudySettings = settings) -> tuple[list[Client], Averaging]:
            clients = []
            for center in manifest.centers:
                data = ImageDataset(manifest, manifest.select(center, "train"), settings.data.image_size, teacher.image_size)
                clients.append(Client(center, settings, METHODS[settings.method].switches, copy.deepcopy(student), teacher, data, device))
            server = Averaging(student.state_dict())
            list(run_rounds(clients, server, 1))  # round 1: momenta, and a shared model that is not the initial one
            return clients, server

        driven, bare, precise = federation(), federation(), federation(workspace.settings)
        ready = {client.center: _batches(client) for client in bare[0]}
        starts = [_state(clients, server) for clients, server in (driven, bare, precise)]
        results: dict[str, list[dict[str, Tensor]]] = {}

        def through_driver() -> None:
            _restore(*driven, starts[0])
            (done,) = run_rounds(*driven, 2, start=1)
            results["driver"] = [*(client.student.state_dict() for client in driven[0]), done.shared]

        def through_loops() -> None:
            _restore(*bare, starts[1])
            results["loops"] = _bare_round(*bare, ready)

        def recalibrated() -> None:
            _restore(*precise, starts[2])
            list(run_rounds(*precise, 2, start=1))

        contenders = {"driver": through_driver, "loops": through_loops, "recalibrated": recalibrated}
        seconds = measure(contenders, runs=arguments.runs)
        equal = all(
            torch.equal(tensor, other[name])
            for state, other in zip(results["driver"], results["loops"], strict=True)
            for name, tensor in state.items()
        )
        batches = sum(len(part[0]) + len(part[1]) for part in ready.values())
    report(
        "round",
        f"3 centres, {batches} batches, {settings.data.image_size}px, vfmgl round 2",
        [Row(name, values) for name, values in seconds.items()]
        + [Row("driver's share", [ratio - 1 for ratio in ratios(seconds, "driver", "loops")], f"(target {TARGET})")]
        + [Row("recalibration's share", [ratio - 1 for ratio in ratios(seconds, "recalibrated", "driver")], f"(target {RECALIBRATION})")],
        checks={"students and shared model are bitwise equal": equal},
        device=arguments.device,
        packages=("numpy", "torch", "timm"),
        csv_file=arguments.csv,
    )


def _batches(client: Client) -> tuple[list[tuple], list[tuple]]:
    """The batches of stages I and II of round 2 as the client loads them, with the teacher's features of stage I left out."""
    stages = []
    for stage in ("I", "II"):
        stages.append([(images, target, batch["teacher_image"].to(client.device)) for images, target, batch in client._load(2, stage, 0)])
    return stages[0], stages[1]


def _bare_round(clients: list[Client], server: Averaging, ready: dict[str, tuple[list, list]]) -> list[dict[str, Tensor]]:
    """Round 2 written out."""
    updates = []
    for client in clients:
        losses, weights = [], 0.0
        set_training_mode(client.student)
        for images, target, seen in ready[client.center][0]:
            stacks = teacher_stacks(client.teacher, seen, [])
            weights = weights + client.hgkt.step(images, target, stacks).pair_weights.sum(0)
            client.optimizer.zero_grad(set_to_none=True)
            loss = client.task_loss(client.student(images), target)
            loss.backward()
            client.optimizer.step()
            losses.append(loss.detach())
        losses = torch.stack(losses).tolist()
        names = list(client.student.stage_channels)
        scores = dict(zip(names, (weights / len(client.data)).mean(0).tolist(), strict=True))
        frozen = critical_stages(scores, client.settings.transfer.critical_stages)
        frozen_shared = client.frozen_copy(server.state)
        set_training_mode(client.student, frozen)
        for images, target, _ in ready[client.center][1]:
            deduction_step(
                client.student,
                frozen_shared,
                images,
                target,
                optimizer=client.optimizer,
                task_loss=client.task_loss,
                threshold=client.settings.deduction.keep_ratio * (sum(losses) / len(losses)),
                settings=client.settings.deduction,
            )
        set_training_mode(client.student)
        updates.append(Update(client.center, client.student.state_dict(), len(client.data), {}))
    mean = WeightedMean()
    for update in updates:
        mean.add(update)
    return [*(update.state for update in updates), mean.state()]


def _state(clients: list[Client], server: Averaging) -> tuple:
    return copy.deepcopy(([(c.state_dict(), c.student.state_dict(), c.stage_one_state) for c in clients], server.state_dict()))


def _restore(clients: list[Client], server: Averaging, state: tuple) -> None:
    for client, own in zip(clients, state[0], strict=True):
        client.load_state_dict(*own)
    server.load_state_dict(state[1])


if __name__ == "__main__":
    main()
