"""A centre of a networked federation: its client with a memory on disk, so that it survives its own end and the server's.

A site's folder:

    rounds/NNN/   student, stage I's student, the client's state, the update that left, the round's log; whole or not there
    shared/       the shared model of the last round, where the method has one: as received, and "adapted", as `finish` says
    ledger.jsonl  what has left the site (`ledger`)

A round is answered once. Asked for again with the same message (the server did not get the answer, or was restarted) it is answered from
disk, byte for byte: nothing is trained twice, nothing counted twice, no noise drawn twice. All else is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from vfmgl_lib import __version__
from vfmgl_lib.base.checkpoint import load_tensors, save_tensors
from vfmgl_lib.base.files import content_of, new_folder, write_json, write_text
from vfmgl_lib.config import FIRST_VERSION, StudySettings, check_version
from vfmgl_lib.data.manifest import Manifest
from vfmgl_lib.evaluation.metric import metrics_of
from vfmgl_lib.evaluation.prediction import predict, scoring_unit
from vfmgl_lib.federation.client import Client, RoundLog
from vfmgl_lib.federation.servers import VALIDATION_METRICS, State, Update
from vfmgl_lib.methods.budgets import report_rounds
from vfmgl_lib.models.students import Student
from vfmgl_lib.tools.flower.ledger import LEDGER, REMEDY, Ledger

log = logging.getLogger(__name__)
RESTORE = "restore it from a backup, or choose another folder"
KEPT_ROUNDS = 3


class Site:
    """A client that trains the rounds it is asked for.

    Args:
        client: in its initial state.
        folder: the site's own; what is there is gone on with.
        key: of the study's settings and this centre's data; a folder of another study is refused.
        share_validation: what the own model and the one received are worth on the own validation set leaves with an update.
    Raises: ValueError: a folder that holds the rounds of another study or version of the library, or whose ledger is damaged or missing.
    """

    def __init__(self, client: Client, folder: Path, key: str, share_validation: bool = False):
        self.client, self.folder, self.key, self.share_validation = client, folder, key, share_validation
        self._ready = 0  # the client is in the state after this round; -1: in an unknown one
        self.from_disk = False  # the last update that was given had been trained before
        hold_to_study(folder, key)
        ledger = folder / LEDGER
        if not ledger.is_file() and (folder / "rounds").is_dir():
            raise ValueError(f"{ledger}: is missing beside the rounds that this site has trained; {REMEDY}")
        settings = client.settings
        self.ledger = Ledger(ledger, key, max(report_rounds(settings).values()), settings.exchange.noise)
        self.ledger.hold_to_rounds(self._kept())
        if not self._round(0).is_dir():
            with new_folder(self._round(0)) as part:
                save_client(client, part)

    @staticmethod
    def study_key(settings: StudySettings, manifest: Manifest) -> str:
        """Names a study at a centre: its settings and the centre's own data."""
        return settings.key(manifest.sha256)

    def train(self, number: int, received: State | None) -> Update:
        """The update of a round: trained now, or from disk where this very message was answered before.

        Raises: RoundRefusedError: a round that is not to be answered (`Ledger.asked`). ValueError: its update is not on the disk any more.
            What `Client.run_round` raises; the state before the round is kept.
        """
        message = message_hash(received)
        entry = self.ledger.asked(number, message)
        self.from_disk = entry is not None or self._answered(number) == message
        if self.from_disk:
            log.info("round %d was trained before: answered from disk", number)
            update = self._stored_update(number)
            if entry and entry.update != update_hash(update):
                raise ValueError(f"{self._round(number)}: is not the update that was sent before, so that the round is not answered again")
        else:
            update = self._trained(number, received, message)
        if not entry:
            self.ledger.write(number, message, update_hash(update), state_bytes(update.state | update.aggregates))
        return update

    def _trained(self, number: int, received: State | None, message: str) -> Update:
        """The update of a round, trained and kept."""
        stored = self._round(number)
        self._go_to(number - 1)
        self._ready = -1
        update = self.client.run_round(number, received)
        update = replace(update, metrics=update.metrics | self._validated(received))
        for later in self._kept():
            if later >= number:
                shutil.rmtree(self._round(later))
        with new_folder(stored) as part:
            sent = {"update": update.state, "aggregates": update.aggregates}
            save_client(self.client, part, sent)
            about = {"message": message, "samples": update.samples, "metrics": update.metrics}
            write_text(part / "about.json", json.dumps(about))  # not sorted: asked again, the answer is the same to the byte
        self._ready = number
        for old in self._kept():
            if 0 < old <= number - KEPT_ROUNDS:
                shutil.rmtree(self._round(old))
        return update

    def _validated(self, received: State | None) -> dict[str, float]:
        """What leaves of the validation set: two numbers; nothing where site or study withholds them, or there is no such set."""
        client = self.client
        if not (self.share_validation and client.validation and client.settings.exchange.share_counts):
            return {}
        models = [client.student] if received is None else [client.student, client.teaching_copy(received)]
        return {name: validation_score(model, client) for name, model in zip(VALIDATION_METRICS, models, strict=False)}

    def finish(self, shared: State) -> None:
        """Keeps the shared model of the last round: as received, and "adapted", as this centre would use it.

        That is with this centre's statistics of batch normalisation under `batch_norm: recalibrated`, and with the part that stays at home
        where the method keeps one; otherwise the two are equal.
        """
        adapted = self.client.teaching_copy(shared).state_dict()
        with new_folder(self.folder / "shared") as part:
            save_tensors(part, {"shared": shared, "adapted": adapted})
            shutil.rmtree(self.folder / "shared", ignore_errors=True)  # told twice: the server was started again after the last round

    def _go_to(self, number: int) -> None:
        """The client into the state after a round, or after the last one before it in which this site took part."""
        rounds_kept = self._kept()
        last = max(kept for kept in rounds_kept if kept <= number)
        if last == 0 and number > 0 and any(kept > number for kept in rounds_kept):
            raise ValueError(f"{self.folder}: round {number + 1} was asked for, but the state before it is not kept any more")
        if self._ready != last:
            load_client(self.client, self._round(last))
            self._ready = last

    def _answered(self, number: int) -> str:
        """Names the message that a round on disk was trained with; "": there is no such round."""
        about = self._round(number) / "about.json"
        with content_of(about, RESTORE):
            return str(json.loads(about.read_text(encoding="utf-8"))["message"]) if about.is_file() else ""

    def _kept(self) -> list[int]:
        return sorted(int(path.name) for path in (self.folder / "rounds").glob("*") if path.name.isdigit())

    def _stored_update(self, number: int) -> Update:
        folder = self._round(number)
        with content_of(folder / "about.json", RESTORE):
            about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
            samples, metrics = about["samples"], about["metrics"]
        state, aggregates = (load_tensors(folder, name, RESTORE) for name in ("update", "aggregates"))
        return Update(self.client.center, state, samples, metrics, aggregates)

    def _round(self, number: int) -> Path:
        return self.folder / "rounds" / f"{number:03d}"


def validation_score(model: Student, client: Client) -> float:
    """AUC or mean foreground Dice of a model on a centre's validation set, in [0, 1], as a study on one machine has it; NaN: undefined."""
    settings, data = client.settings, client.validation
    assert data is not None
    predictions = predict(model, data, batch_size=settings.evaluation_batch_size, device=client.device)
    metrics = metrics_of(predictions, scoring_unit(data.table, settings.is_segmentation), None)
    return next(metric.value for metric in metrics if metric.name == ("dice" if settings.is_segmentation else "auc"))


def hold_to_study(folder: Path, key: str) -> None:
    """Ties a folder with rounds, a site's or the server's, to a study.

    Raises: ValueError: it holds the rounds of another study, or of another version of the library.
    """
    mark = folder / "study.json"
    if mark.is_file():
        with content_of(mark, RESTORE):
            found = json.loads(mark.read_text(encoding="utf-8"))
            studied, made_with = found["key"], found.get("vfmgl_lib", FIRST_VERSION)
        check_version(folder, made_with, "choose another folder, or go on with the version that made it")
        if studied != key:
            raise ValueError(f"{folder}: holds the rounds of study {studied}, this one is {key}; choose another folder")
    elif (folder / "rounds").is_dir():
        raise ValueError(f"{folder}: holds rounds of an unknown study, its study.json is missing; choose another folder")
    else:
        write_json(mark, {"key": key, "vfmgl_lib": __version__})  # first, so that no rounds are without it


def save_client(client: Client, folder: Path, more: dict[str, State] | None = None) -> None:
    """Everything that the client's next round depends on, and its log of the round."""
    states = {"student": client.student.state_dict(), "stage_one": client.stage_one_state, "state": client.state_dict()}
    save_tensors(folder, states | (more or {}))
    # As text, not by `write_json`, which sorts: the order of a row's names is the order of a table's columns.
    write_text(folder / "log.json", json.dumps({"last_stage": client.last_stage, **vars(client.log)}))


def load_client(client: Client, folder: Path) -> None:
    """Takes back what `save_client` wrote."""
    state, student, stage_one = (load_tensors(folder, name, RESTORE) for name in ("state", "student", "stage_one"))
    client.load_state_dict(state, student, stage_one)
    with content_of(folder / "log.json", RESTORE):
        written = json.loads((folder / "log.json").read_text(encoding="utf-8"))
        client.last_stage = written.pop("last_stage")
        client.log = RoundLog(**written)


def update_hash(update: Update) -> str:
    """Names everything that leaves a centre with an update."""
    tensors = message_hash(update.state) + message_hash(update.aggregates)
    return hashlib.sha256(json.dumps([tensors, update.center, update.samples, update.metrics], sort_keys=True).encode()).hexdigest()


def state_bytes(state: State) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def message_hash(received: State | None) -> str:
    """Names the content of a message, tensor by tensor."""
    digest = hashlib.sha256()
    for name, tensor in sorted((received or {}).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
