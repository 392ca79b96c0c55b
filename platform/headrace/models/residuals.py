"""A calibration layer for each value of some categories: what a model got wrong lately, where, corrects what it says now.

A model's errors have company: if the last flights of a plane, or those into one airport, were late more often than was
said, the next one will be. For each value, and overall, the layer keeps decayed sums of the residuals y - p at several
half-lives; a logistic regression that learns online weighs them beside the model's own logit. All that it reads at an event
had arrived by then. Exactly sequential; one call over a range of the log and turns give the same bits. It knows nothing of
the model whose probabilities it corrects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.events import Columns
from headrace.models.arithmetic import logit, sigmoid
from headrace.models.contract import Arrays, Floats, Turns, row_count
from headrace.models.decay import COUNT, FORGOTTEN, decays
from headrace.models.kalman import dot, learn
from headrace.models.table import LAST, OWN, Table, find, insert, must_grow
from headrace.models.text import kernel, keys_of, seed_of

MAX_VALUES = 1 << 20
"""Values of all categories together that are remembered, 160 bytes each; then those without labels for longest go."""

_SHRINKAGE = (
    0.3  # of curvature, beside a value's own: one surprise must not move its intercept by more than a few logits
)
_SCALE = 3.0  # variance of the weights at first, times their number and sqrt(1 + D)
_LEAST = 1e-6  # of a probability
_NEVER = -(2**62)


class ResidualMeans:
    """A calibration layer over K categories.

    State for each half-life h, of the overall stream and of each value of each category: S, V and the time T of the last
    label. At a label y of weight a, with p as it was at the event: d = 2^(-(now - T)/h), S = S d + a (y - p),
    V = V d + a p (1 - p), T = now. At an event, with `now` the time of the last label: r = S d / (V d + 0.3), one Newton
    step of the value's own intercept; 0 where nothing is known. With x = (logit p, every r, 1), of R numbers, and w = (1, 0,
    ..., 0) at first, the corrected probability is sigmoid(w x). At a label w takes the step of `headrace.models.kalman`,
    with x as it was at the event; P = v I at first, v = 3 / (R sqrt(1 + D)), D the mean number of outstanding labels then.

    The sums are those of `headrace.models.target_mean`, with residuals for labels.

    Parameters
    ----------
    names
        The categories.
    outstanding
        D of the start.
    max_values
        Values that are remembered at most.

    Attributes
    ----------
    width
        How many numbers it keeps of an open event: x without its last.
    """

    def __init__(self, names: Sequence[str], outstanding: float, max_values: int = MAX_VALUES) -> None:
        self.names = tuple(names)
        self._seeds = [seed_of(f"residuals {name}") for name in names]
        self.width = 1 + (1 + len(names)) * COUNT
        self._table = Table(2 * COUNT, max_values)
        self._overall = np.zeros((1, OWN + 2 * COUNT), dtype=np.uint64)  # a row of the same form
        self._now = np.array([_NEVER])
        self._w = np.zeros(self.width + 1)
        self._w[0] = 1.0
        self._P = _SCALE / ((self.width + 1) * np.sqrt(1.0 + outstanding)) * np.eye(self.width + 1)

    def keys_of(self, X: Columns) -> NDArray[np.uint64]:
        """uint64[n, K] of n rows, 0 for a missing value."""
        out = np.empty((row_count(X), len(self.names)), dtype=np.uint64)
        for column, (name, seed) in enumerate(zip(self.names, self._seeds, strict=True)):
            out[:, column] = keys_of(X[name], seed)
        return out

    def follow(
        self, turns: Turns, p: Floats, memo: Floats, first: int, events: NDArray[np.uint64], labels: NDArray[np.uint64]
    ) -> Floats:
        """Correct events and learn labels, in their order.

        Parameters
        ----------
        p
            float64[events], what the model said.
        memo
            float64[events, ...]: columns from `first` on are filled with what a label wants back of its event.
        events, labels
            `keys_of` both.

        Returns
        -------
        float64[events]
            Corrected probabilities. A label whose memo is NaN teaches nothing.
        """
        out, at = np.empty(len(p)), 0
        while True:
            floats = self._overall.view(np.float64)
            at = _run(
                at, turns.order, events, p, labels, turns.row, turns.asked, turns.memo, turns.y, turns.weight, turns.clock,
                first, self._table.cells, self._table.floats, self._table.state, self._overall, floats, self._now, self._w,
                self._P, memo, out,
            )  # fmt: skip
            if at == len(turns.order):
                return out
            self._table.grow()

    def save(self) -> tuple[Arrays, dict[str, Any]]:
        """Return the state."""
        arrays, table = self._table.save("residuals")
        own = {"overall": self._overall, "now": self._now, "w": self._w, "P": self._P}
        return arrays | {name: values.copy() for name, values in own.items()}, table

    def load(self, arrays: Mapping[str, NDArray[Any]], table: Mapping[str, Any]) -> None:
        """Take over a saved state."""
        self._table.load("residuals", arrays, table)
        self._overall, self._now = arrays["overall"].copy(), arrays["now"].copy()
        self._w, self._P = arrays["w"].copy(), arrays["P"].copy()


@kernel
def _read(
    keys: Any, i: Any, cells: Any, floats: Any, overall: Any, overall_floats: Any, now: Any, decay: Any, x: Any
) -> Any:
    """Fill x with what is known of a row's values."""
    count = decay.shape[0]
    for k in range(-1, keys.shape[1]):
        row, mine, sums = np.int64(0), overall, overall_floats
        if k >= 0:
            row = find(cells, keys[i, k]) if keys[i, k] != np.uint64(0) else np.int64(-1)
            mine, sums = cells, floats
        known = row >= 0 and sums[row, OWN + count] != 0.0
        if known:
            decays(float(now - np.int64(mine[row, LAST])), decay)
        for h in range(count):
            x[1 + (k + 1) * count + h] = 0.0
            if known:
                curvature = sums[row, OWN + count + h] * decay[h] + _SHRINKAGE
                x[1 + (k + 1) * count + h] = sums[row, OWN + h] * decay[h] / curvature


@kernel
def _add(
    keys: Any, i: Any, cells: Any, floats: Any, state: Any, overall: Any, overall_floats: Any, now: Any, residual: Any,
    curvature: Any, decay: Any,
) -> None:  # fmt: skip
    count = decay.shape[0]
    for k in range(-1, keys.shape[1]):
        row, mine, sums = np.int64(0), overall, overall_floats
        if k >= 0:
            if keys[i, k] == np.uint64(0):
                continue
            row, mine, sums = find(cells, keys[i, k]), cells, floats
            if row < 0:
                row = insert(cells, state, keys[i, k], now, now - FORGOTTEN)
        decays(max(float(now - np.int64(mine[row, LAST])), 0.0), decay)
        for h in range(count):
            sums[row, OWN + h] = sums[row, OWN + h] * decay[h] + residual
            sums[row, OWN + count + h] = sums[row, OWN + count + h] * decay[h] + curvature
        mine[row, LAST] = np.uint64(now)


@kernel
def _run(
    at: Any, order: Any, e_keys: Any, p: Any, l_keys: Any, l_row: Any, asked: Any, waited: Any, y: Any, weight: Any,
    clock: Any, first: Any, cells: Any, floats: Any, state: Any, overall: Any, overall_floats: Any, now: Any, w: Any,
    P: Any, memo: Any, out: Any,
) -> Any:  # fmt: skip
    """Entries from `at` on; returns where it stopped, before the end when the table must grow."""
    size = w.shape[0]
    x, u, decay = np.ones(size), np.empty(size), np.empty(COUNT)
    for place in range(at, order.shape[0]):
        i = order[place]
        if i >= 0:
            x[0] = logit(min(max(p[i], _LEAST), 1.0 - _LEAST))
            _read(e_keys, i, cells, floats, overall, overall_floats, now[0], decay, x)
            for k in range(size - 1):
                memo[i, first + k] = x[k]
            # NaN says that the model is broken, which must be seen.
            out[i] = sigmoid(dot(w, x)) if p[i] == p[i] else np.nan
            continue
        i = -1 - i
        if must_grow(cells, state, l_keys.shape[1]):
            return place
        now[0] = clock[i]
        kept, row = (memo, asked[i]) if asked[i] >= 0 else (waited, i)
        if kept[row, first] != kept[row, first]:
            continue
        for k in range(size - 1):
            x[k] = kept[row, first + k]
        learn(x, y[i], weight[i], w, P, 0.0, 0.0, u)
        said = sigmoid(x[0])
        residual, curvature = weight[i] * (y[i] - said), weight[i] * said * (1.0 - said)
        _add(l_keys, l_row[i], cells, floats, state, overall, overall_floats, now[0], residual, curvature, decay)
    return order.shape[0]
