"""Controls: each differs from its parent in one thing alone. What a part of VFMGL is worth is its parent's lead over it."""

from vfmgl_lib.federation.servers import Switches
from vfmgl_lib.methods.record import Method

RANDOM = "random:"  # before a teacher's text: its network with random weights (`models.teachers`)


def with_random_weights(teacher: str) -> str:
    """The same network with random weights, always the same ones; a text that asks for random ones stays as it is."""
    return teacher if teacher.startswith(RANDOM) else RANDOM + teacher


METHODS = (
    Method(
        "hgkt_beta0",
        "HGKT, β = 0",
        "control: HGKT's schedule without its teacher",
        order=170,
        color="#6A5ACD",
        line="dotted",
        marker=(4, 1, 0),
        switches=Switches(transfer=True, teacher=True, sends=True),
        updates=2,
        parent="hgkt",
        overrides={"transfer.beta": 0.0},
    ),
    Method(
        "hgkt_random",
        "HGKT, random teacher",
        "control: HGKT from the teacher's architecture with random weights",
        order=180,
        color="#7F6FBF",
        line="long_dashes",
        marker=(4, 1, 45),
        switches=Switches(transfer=True, teacher=True, sends=True),
        updates=2,
        parent="hgkt",
        overrides={"teacher.source": with_random_weights},
    ),
    Method(
        "vfmgl_task",
        "VFMGL without KL",
        "control: stage II on the task loss alone, every batch",
        order=200,
        color="#B07A5A",
        line="dotted",
        marker=(5, 1, 0),
        switches=Switches(transfer=True, distillation=True, task_only=True, teacher=True, sends=True),
        updates=3,
        parent="hgkt_kd",
    ),
    Method(
        "vfmgl_random",
        "VFMGL, random drops",
        "control: DDBL's decisions permuted within centre and round",
        order=210,
        color="#E07A6B",
        line="dash_dot",
        marker=(5, 1, 36),
        switches=Switches(transfer=True, distillation=True, deduction=True, permuted=True, teacher=True, sends=True),
        updates=3,
        parent="vfmgl",
    ),
)
