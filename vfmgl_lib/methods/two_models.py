"""A centre with two models: its own, which is measured and never sent, and one that is sent, which the server's message overwrites."""

from __future__ import annotations

import copy

from vfmgl_lib.federation.client import Client, load_optimizer_state, optimizer_state
from vfmgl_lib.federation.servers import State

SENT, OPTIMIZER = "sent", "sent_optimizer"  # in the client's checkpoint


class TwoModelClient(Client):
    """`student` is the centre's own model, `sent` the other; each has its optimiser, and both start from the common initial weights."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.sent = copy.deepcopy(self.student)
        self.sent_optimizer = self._task_optimizer(self.sent)

    def begin_round(self, round_number: int, received: State | None) -> None:
        super().begin_round(round_number, received)
        self.sent.train()

    def overwrite(self, state: State) -> None:
        self.sent.load_state_dict(state)

    def adopt(self, state: State) -> None:
        """Nothing at the end of a round: the centre's own model stays, and the message of the next round overwrites the other."""

    def end_round(self, round_number: int) -> None:
        self.recalibrate(self.sent)

    def sent_state(self) -> tuple[State, State]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.sent.state_dict().items()}, {}

    def state_dict(self) -> State:
        sent = {f"{SENT}.{name}": tensor for name, tensor in self.sent.state_dict().items()}
        return super().state_dict() | sent | optimizer_state(self.sent_optimizer, OPTIMIZER)

    def load_state_dict(self, state: State, student: State, stage_one: State) -> None:
        super().load_state_dict(state, student, stage_one)
        self.sent.load_state_dict({name.removeprefix(f"{SENT}."): t for name, t in state.items() if name.startswith(f"{SENT}.")})
        self.sent_optimizer = self._task_optimizer(self.sent)
        load_optimizer_state(self.sent_optimizer, state, OPTIMIZER)
