"""How hard a wrong number pulls at what predicted it: the gradients of absolute and of capped squared error.

A squared error pulls in proportion and no harder than at its cap (Huber 1964), so that a label which is scored no worse
than the cap teaches no more than that. An absolute error pulls equally whatever its size, but for a narrow middle in which
it pulls in proportion: the prediction settles at the median instead of trembling about it. Pure and sequential, for
kernels.
"""

from __future__ import annotations

import math
from typing import Any

from headrace.definition.loss import Loss
from headrace.models.text import kernel

LOGISTIC = -1.0
"""Instead of a reach: labels are no numbers."""

_MIDDLE = 0.1  # of a unit


def reach_of(loss: Loss) -> float:
    """What kernels know of a loss: how far a squared error pulls harder, in the label's unit; 0 for absolute ones.

    >>> reach_of(Loss("squared", cap=400.0)), reach_of(Loss("absolute")), reach_of(Loss())
    (20.0, 0.0, -1.0)
    """
    if not loss.regression:
        return LOGISTIC
    return math.sqrt(loss.cap) if loss.kind == "squared" else 0.0


@kernel
def pull(error: Any, unit: Any, reach: Any) -> Any:
    """Negative gradient of the loss at label - prediction, both in units of `unit`, which is positive.

    >>> pull(30.0, 10.0, 20.0), pull(-5.0, 10.0, 20.0), pull(-30.0, 10.0, 0.0), pull(0.5, 10.0, 0.0)
    (2.0, -0.5, -1.0, 0.5)
    """
    if reach > 0.0:
        return min(max(error, -reach), reach) / unit
    return min(max(error / (_MIDDLE * unit), -1.0), 1.0)
