"""The mean of the last labels, whatever the features say: the least that a prediction can know.

A member for stacks, where it tells the others' calibration from a moving base rate. Beside models that read target means
it has little to add.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.definition.loss import LOG_LOSS, Loss
from headrace.events import Columns
from headrace.models.contract import Arrays, Clock, Floats, row_count
from headrace.models.text import kernel

_PRIOR = 0.5  # what one label's worth says before the first one
_NONE = np.empty(0)


class LabelMean:
    """p = (S + 1/2) / (N + 1); at a label of weight w: S = (1 - 1/labels) S + w y, N = (1 - 1/labels) N + w.

    Where labels are numbers p = S / N, and 0 before the first.

    Parameters
    ----------
    labels
        How many of the last labels count.
    loss
        Says whether labels are numbers; the mean is what it is for either of their losses.
    """

    memo_width = 0

    def __init__(self, labels: float = 200, loss: Loss = LOG_LOSS) -> None:
        self._keep = 1.0 - 1.0 / labels
        self._prior = 0.0 if loss.regression else _PRIOR
        self._sums = np.zeros(2)

    def prepare(self, X: Columns) -> Columns:
        """Return rows without a column's worth of anything: int8[n, 0]."""
        return {"nothing": np.empty((row_count(X), 0), dtype=np.int8)}

    def run(
        self,
        order: NDArray[np.int64],
        events: Columns,
        labels: Columns,
        y: Floats,
        weight: Floats,
        clock: Clock,
        row: NDArray[np.intp] | None = None,
    ) -> Floats:
        """Predict events and learn labels, in their order; see `headrace.models.contract.Sequential`."""
        p = np.empty(row_count(events))
        _run(order, y, weight, self._keep, self._prior, self._sums, p)
        return p

    def ask(self, X: Columns, clock: Clock, outstanding: int) -> tuple[Floats, Floats]:
        """Predict n events; see `headrace.models.contract.Model`."""
        return self.predict(X), np.empty((row_count(X), 0))

    def learn(self, X: Columns, y: Floats, memo: Floats, weight: Floats, clock: Clock) -> None:
        """Learn n labels one after the other."""
        _run(~np.arange(len(y)), y, weight, self._keep, self._prior, self._sums, _NONE)

    def predict(self, X: Columns) -> Floats:
        """Return float64[n] and change nothing."""
        p = np.empty(row_count(X))
        _run(np.arange(len(p)), _NONE, _NONE, self._keep, self._prior, self._sums, p)
        return p

    def save(self) -> tuple[Arrays, dict[str, Any]]:
        """Return the two sums."""
        return {"sums": self._sums.copy()}, {}

    def load(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Take over saved sums."""
        self._sums = arrays["sums"].copy()


@kernel
def _run(order: Any, y: Any, weight: Any, keep: Any, prior: Any, sums: Any, p: Any) -> None:
    for i in order:
        if i >= 0:
            labels = sums[1] + 2.0 * prior
            p[i] = (sums[0] + prior) / labels if labels > 0.0 else 0.0
        else:
            sums[0] = keep * sums[0] + weight[-1 - i] * y[-1 - i]
            sums[1] = keep * sums[1] + weight[-1 - i]
