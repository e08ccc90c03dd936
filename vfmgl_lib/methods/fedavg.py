"""FedAvg (McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data", AISTATS).

Its client is the plain one: after a round it sends its model and takes over the average.
"""

from vfmgl_lib.federation.servers import Switches
from vfmgl_lib.methods.record import Method

METHODS = (
    Method(
        "fedavg",
        "FedAvg",
        "McMahan et al. 2017, AISTATS",
        order=20,
        color="#0072B2",
        line="solid",
        marker="o",
        switches=Switches(sends=True, adopts=True),
        revision=2,
        in_paper=True,
    ),
)
