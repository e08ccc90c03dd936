"""What a trained model looks at and what its features say: numbers, no drawing.

`cam` maps what a prediction rests on and measures where that lies, `features` compares penultimate features between centres, classes and
stages, `correlation` finds adaptive and common features, `mrmr` selects features. Everything reads checkpoints; nothing trains.
"""

from vfmgl_lib.interpretation.mrmr import MIQ_OFFSET, mrmr, pymrmr_orders, shortfall

__all__ = ["MIQ_OFFSET", "mrmr", "pymrmr_orders", "shortfall"]
