"""The loss that a stream's verdicts stand on: log loss for a yes or no, absolute or capped squared error for a number.

Scoring, training, early stopping and the decision rule all ask this one object, so they cannot disagree about it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Task = Literal["classification", "regression"]
Kind = Literal["log", "absolute", "squared"]

LARGEST = 1e100
"""Numbers of this size and beyond are neither labels nor predictions: sums of their squares would overflow."""


@dataclass(frozen=True)
class Loss:
    """What a prediction costs.

    Examples
    --------
    >>> Loss("squared", cap=400.0).name, LOG_LOSS.regression
    ('squared error', False)
    """

    kind: Kind = "log"
    cap: float = math.inf  # of a squared error, in squared units of the label: no label costs more

    @property
    def regression(self) -> bool:
        """Whether labels are numbers."""
        return self.kind != "log"

    @property
    def name(self) -> str:
        """As people read it."""
        return "log loss" if self.kind == "log" else f"{self.kind} error"


LOG_LOSS = Loss()
