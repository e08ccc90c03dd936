"""FedBN (Li et al. 2021, "FedBN: federated learning on non-IID features via local batch normalization", ICLR; code: med-air/FedBN): all of
batch normalisation stays, affine parameters and statistics. It is FedAvg otherwise and needs no client of its own. Deviations from the
official code: the task's optimiser, which keeps its momenta (official: SGD, new in every round); weights as in FedAvg
(`federation.weights`; official: uniform).

A student without batch normalisation (`models.students.part_names`): the parameters of its LayerNorm or GroupNorm layers stay instead. That
is the same rule on layers that the paper does not speak of. One without any such layer is refused, because FedBN would be FedAvg.

What is measured is each centre's whole model, after it has taken over the shared part. What the server has is no whole model, so no shared
model is reported.
"""

from vfmgl_lib.federation.servers import Switches
from vfmgl_lib.methods.record import Method

METHODS = (
    Method(
        "fedbn",
        "FedBN",
        "Li et al. 2021, ICLR",
        order=70,
        color="#44AA99",
        line="long_dashes",
        marker="d",
        switches=Switches(sends=True, adopts=True, keeps="batch_norm"),
    ),
)
