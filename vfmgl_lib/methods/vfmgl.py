"""VFMGL and its parts: HGKT alone, with distillation (HGKT+KD), with DDBL (VFMGL itself), and HGKT under FedAvg's averaging.

Their client is the plain one (`federation.client`), whose stage I is `method.hgkt` and whose stage II is `method.ddbl`.
"""

from vfmgl_lib.federation.servers import Switches
from vfmgl_lib.methods.record import Method

METHODS = (
    Method(
        "hgkt",
        "HGKT",
        "the paper's Fig. 9, first matrix",
        order=150,
        color="#332288",
        line="dashed",
        marker="<",
        switches=Switches(transfer=True, teacher=True, sends=True),
        updates=2,
    ),
    Method(
        "fedavg_hgkt",
        "FedAvg + HGKT",
        "HGKT's stage I, then FedAvg's averaging and adoption",
        order=160,
        color="#5B2A86",
        line="dash_dot",
        marker=(6, 1, 0),
        switches=Switches(transfer=True, teacher=True, sends=True, adopts=True),
        updates=2,
    ),
    Method(
        "hgkt_kd",
        "HGKT+KD",
        "the paper's Fig. 9, second matrix",
        order=190,
        color="#8C5A2B",
        line="long_dashes",
        marker=">",
        switches=Switches(transfer=True, distillation=True, teacher=True, sends=True),
        updates=3,
    ),
    Method(
        "vfmgl",
        "VFMGL",
        "the paper: HGKT+KD+DDBL",
        order=220,
        color="#C1121F",
        line="solid",
        marker="D",
        switches=Switches(transfer=True, distillation=True, deduction=True, teacher=True, sends=True),
        updates=3,
    ),
)
