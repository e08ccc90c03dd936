"""What a method is: a record, of which every method's file holds one or more as `METHODS`; `registry` collects them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vfmgl_lib.config import StudySettings
from vfmgl_lib.config.sections import Settings
from vfmgl_lib.federation.aggregation import mean_of
from vfmgl_lib.federation.client import Client
from vfmgl_lib.federation.servers import Averaging, Server, Switches
from vfmgl_lib.models.students import Student, part_names


@dataclass(frozen=True)
class Method:
    """A method of the comparison.

    Attributes:
        name: as settings and tables have it, e.g. "fedprox".
        title: as figures and legends have it.
        source: where it was published.
        order: its place in tables and legends; the built-in methods have multiples of ten.
        color, line, marker: of its line in figures; marker as matplotlib takes it.
        switches: what its client does.
        client: its client; all take the same arguments.
        server: makes its server of the settings, the training centres (sorted) and a student in the state that every client's starts from;
            None: averaging where models are sent, else a server that sends nothing.
        settings: the class of its section of `comparators`, with the defaults of the paper's profile; None: it has none.
        reads: sections of other methods that it reads too.
        updates: of the reported model per batch: VFMGL makes one by HGKT, one on the task and one in stage II. Ditto's and ProxyFL's second
            model and FedRep's head, trained beside it, do not count here, but in `extra_passes`. 0: it has neither rounds nor updates, and
            its one model stands in every budget.
        extra_passes: passes of the student a batch beside those that the switches tell (`methods.passes`).
        own_images: a round is each centre's batches of its own images; false: updates are not counted beside VFMGL's. A round of pooled
            training makes as many as all centres together.
        last_round_differs: from those before, so that it is reported where it ends and nowhere on the way (budget "hgkt_updates").
        needs_validation: it takes decisions on a validation set: where the data have none, a fifth of the training patients becomes one.
        tunes: settings of its own that `vfmgl sweep --tune` chooses on validation sets, beside the rate.
        revision: raised when the method's numbers change and its settings do not; part of what names a study.
        private: images stay at their centres; a method of which this is false runs in one process alone.
        in_paper: the paper compares VFMGL with it.
        parent: of a control and of nothing else (`is_control`), the method that it is held against and differs from in one thing alone: its
            `overrides` or one switch. What a part of the method is worth is its parent's lead.
        overrides: settings that are this method's own, whatever the profile says: "section.name" -> value, or a function of the
            profile's value (`methods.settings.with_overrides`).
    """

    name: str
    title: str
    source: str
    order: int
    color: str
    line: Literal["solid", "dashed", "dotted", "dash_dot", "long_dashes"]
    marker: str | tuple
    switches: Switches = field(default_factory=Switches)
    client: type[Client] = Client
    server: Callable[[StudySettings, list[str], Student], Server] | None = None
    settings: type[Settings] | None = None
    reads: tuple[str, ...] = ()
    updates: int = 1
    extra_passes: Callable[[StudySettings], float] = lambda settings: 0.0
    own_images: bool = True
    needs_validation: bool = False
    last_round_differs: bool = False
    revision: int = 1
    tunes: tuple[str, ...] = ()
    private: bool = True
    in_paper: bool = False
    parent: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_control(self) -> bool:
        return bool(self.parent)

    @property
    def sections(self) -> tuple[str, ...]:
        """The sections of `comparators` that it reads."""
        return ((self.name,) if self.settings else ()) + self.reads


def averaging_server(settings: StudySettings, student: Student, switches: Switches, build: type[Averaging] = Averaging) -> Averaging:
    """The server of FedAvg and of what averages as it does, without the parts that stay at the centres."""
    kept = part_names(student, switches.keeps)
    initial = {name: tensor for name, tensor in student.state_dict().items() if name not in kept}
    limit, new_mean = settings.faults.largest_norm, mean_of(settings)
    return build(initial, settings.federation.weights, sends_initial=switches.adopts, largest_norm=limit, new_mean=new_mean)
