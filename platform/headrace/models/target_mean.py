"""Streaming target means: the mean of the latest labels, for each value of some keys and overall.

One exactly sequential pass over log entries: an event reads the means as they stand at its clock, a label updates them
at its own. Values therefore hold only labels that had arrived, and do not depend on how the log is cut into batches.
Guarantees bit-equal continuation after `save` and `load`. It knows nothing about models, events' other features or the
log's storage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.definition.features import HALF_LIVES, target_mean
from headrace.errors import ModelError
from headrace.events import Columns
from headrace.models.contract import Arrays, Clock, Floats, row_count
from headrace.models.decay import COUNT, FORGOTTEN, decays
from headrace.models.table import LAST, OWN, Table, find, insert, must_grow
from headrace.models.text import kernel, keys_of, seed_of

SHRINKAGE = 10.0
"""How many labels of the overall mean stand beside a key's own (c of the formula)."""

MAX_VALUES = 1 << 20
"""Values of all keys together that are remembered, 160 bytes each; then those without labels for longest go."""

_NEVER = -(2**63)

Keys = NDArray[np.uint64]


class TargetMeans:
    """Decayed means of the label for each value of each key.

    State for each half-life h, of the overall stream and of each value of each key: S, N and the time T of the last
    label. At a label y with weight w: d = 2^(-(now - T)/h), S = S d + w y, N = N d + w, T = now. At an event the
    overall mean is g = (S d + c prior)/(N d + c) and a value's is (S d + c g)/(N d + c), c = 10; a value without
    labels, or a missing one, reads g.

    Parameters
    ----------
    keys
        Names of the categories to follow.
    prior
        Share of positive labels to start from, in (0, 1). None where labels are numbers: the mean of all labels so far stands
        in its place, 0 before the first.
    max_values
        Values that are remembered at most.

    Examples
    --------
    >>> means = TargetMeans(("carrier",), prior=0.5)
    >>> carrier = means.keys_of({"carrier": np.array(["AA", "AA"], dtype=object)})
    >>> ones, clock = np.ones(2), np.zeros(2, dtype=np.int64)
    >>> at = means.run(carrier, np.array([True, False]), ones, ones, clock)
    >>> [round(float(at[name][0]), 4) for name in ("mean_all_1h", "mean_carrier_1h")]
    [0.5455, 0.5868]
    """

    def __init__(self, keys: tuple[str, ...], prior: float | None, max_values: int = MAX_VALUES) -> None:
        if prior is not None and not 0.0 < prior < 1.0:
            raise ModelError(f"found prior {prior} for target means, expected a share between 0 and 1")
        self.keys = keys
        # The mean that the overall one is drawn to, and how many labels it is of; fewer than none: it stays what it is.
        self._level = np.array([0.0, 0.0] if prior is None else [prior, -1.0])
        self.columns = target_mean(*keys).names()
        self._seeds = [seed_of(f"target_mean {key}") for key in keys]
        # Of each value its sums of labels and of weights by half-life; the last label's time is the table's own column.
        self._table = Table(2 * len(HALF_LIVES), max_values)
        self._overall = np.zeros((1, OWN + 2 * len(HALF_LIVES)), dtype=np.uint64)  # a row of the same form
        self._now = _NEVER

    def __len__(self) -> int:
        return len(self._table)

    def keys_of(self, X: Columns) -> Keys:
        """uint64[n, keys] of n rows of model columns, as `run` and `peek` take them; 0 for a missing value."""
        out = np.empty((row_count(X), len(self.keys)), dtype=np.uint64)
        for column, (key, seed) in enumerate(zip(self.keys, self._seeds, strict=True)):
            out[:, column] = keys_of(X[key], seed)
        return out

    def run(
        self,
        values: Keys,
        is_label: NDArray[np.bool_],
        y: Floats,
        weight: Floats,
        clock: Clock,
        before: Floats | None = None,
        since: Clock | None = None,
        weight_before: Floats | None = None,
    ) -> dict[str, Floats]:
        """Pass over n log entries and return the features of the events among them.

        Parameters
        ----------
        values
            uint64[n, keys]: `keys_of` the event, for a label that of its event.
        is_label
            bool[n]; False means an event.
        y, weight
            float64[n], read at labels only.
        clock
            int64[n] microseconds, never falling, not below that of an earlier run.
        before, since, weight_before
            For labels that correct earlier ones: float64[n] the earlier value, NaN elsewhere, int64[n] its clock, and
            float64[n] its weight v, the label's own when not given. Such a label changes S by
            (w y - v before) 2^(-(now - since)/h), and N by (w - v) 2^(-(now - since)/h).

        Returns
        -------
        dict
            `columns` by name, each float64[number of events] in log order.

        Raises
        ------
        ModelError
            The clock falls.
        """
        if len(clock) and (int(clock[0]) < self._now or bool((np.diff(clock) < 0).any())):
            raise ModelError(
                f"found a clock that falls (last {self._now}, then {int(clock.min())}), expected log order: read the "
                "entries by seq"
            )
        out = np.empty((len(clock) - int(np.count_nonzero(is_label)), len(self.columns)))
        before = np.full(len(clock), np.nan) if before is None else before
        since = clock if since is None else since
        weight_before = weight if weight_before is None else weight_before
        entries = (values, is_label, y, weight, clock, before, since, weight_before)
        at, event = self._pass(0, 0, *entries, out)
        while at < len(clock):  # the table was half full, perhaps at the very first entry
            self._table.grow()
            at, event = self._pass(at, event, *entries, out)
        if len(clock):
            self._now = int(clock[-1])
        return dict(zip(self.columns, np.ascontiguousarray(out.T), strict=True))

    def _pass(self, at: int, event: int, *entries: Any) -> tuple[int, int]:
        arguments = [at, event, *entries[:-1], *self._state(), self._level, entries[-1]]
        stopped: tuple[int, int] = _run(*arguments)
        return stopped

    def peek(self, values: Keys, clock: Clock) -> dict[str, Floats]:
        """Return the features that n events would read at `clock`; nothing changes."""
        none = np.zeros(len(clock))
        out = np.empty((len(clock), len(self.columns)))
        events = np.zeros(len(clock), dtype=np.bool_)
        _run(0, 0, values, events, none, none, clock, none, clock, none, *self._state(), self._level, out)
        return dict(zip(self.columns, np.ascontiguousarray(out.T), strict=True))

    def _state(self) -> tuple[Any, Any, Any, Any, Any]:
        table = self._table
        return table.cells, table.floats, table.state, self._overall, self._overall.view(np.float64)

    def save(self) -> tuple[Arrays, dict[str, Any]]:
        """Return the state as arrays and JSON; of the values it holds keys, not names."""
        arrays, table = self._table.save("means")
        arrays["overall"] = self._overall.copy()
        meta = {"keys": list(self.keys), "prior": self.prior, "now": self._now, "table": table}
        return arrays, meta | ({} if self._level[1] < 0.0 else {"labels": float(self._level[1])})

    @property
    def prior(self) -> float:
        """What the overall means are drawn to."""
        return float(self._level[0])

    def load(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Take over a state that `save` returned.

        Raises
        ------
        ModelError
            It was saved for other keys.
        """
        if tuple(meta["keys"]) != self.keys:
            raise ModelError(f"found a state of target means over {meta['keys']}, expected {list(self.keys)}")
        self._level, self._now = np.array([meta["prior"], meta.get("labels", -1.0)]), int(meta["now"])
        self._table.load("means", arrays, meta["table"])
        self._overall = arrays["overall"].copy()


@kernel
def _run(
    at: Any,
    event: Any,
    values: Any,
    is_label: Any,
    y: Any,
    weight: Any,
    clock: Any,
    before: Any,
    since: Any,
    weight_before: Any,
    cells: Any,
    floats: Any,
    state: Any,
    overall: Any,
    overall_floats: Any,
    level: Any,
    out: Any,
) -> Any:
    """Entries from `at` on; returns where it stopped, before the end when the table must grow."""
    keys, width = values.shape[1], COUNT
    decay, old = np.empty(width), np.empty(width)
    for i in range(at, clock.shape[0]):
        if is_label[i]:
            if must_grow(cells, state, keys):
                return i, event
            corrects = before[i] == before[i]
            if corrects:
                decays(float(clock[i] - since[i]), old)
            if level[1] >= 0.0:
                level[1] += 0.0 if corrects else weight[i]
                level[0] += weight[i] * (y[i] - (before[i] if corrects else level[0])) / max(level[1], weight[i])
            for k in range(-1, keys):
                row, mine, sums = np.int64(0), overall, overall_floats
                if k >= 0:
                    if values[i, k] == np.uint64(0):
                        continue
                    row, mine, sums = find(cells, values[i, k]), cells, floats
                    if row < 0:
                        row = insert(cells, state, values[i, k], clock[i], clock[i] - FORGOTTEN)
                # Before its first label the overall row has no time; its sums are 0, whatever they decay by.
                decays(max(float(clock[i] - np.int64(mine[row, LAST])), 0.0), decay)
                for h in range(width):
                    gain, count = weight[i] * y[i], weight[i]
                    if corrects:
                        gain = (weight[i] * y[i] - weight_before[i] * before[i]) * old[h]
                        count = (weight[i] - weight_before[i]) * old[h]
                    sums[row, OWN + h] = sums[row, OWN + h] * decay[h] + gain
                    sums[row, OWN + width + h] = sums[row, OWN + width + h] * decay[h] + count
                mine[row, LAST] = np.uint64(clock[i])
            continue
        for k in range(-1, keys):
            row, mine, sums = np.int64(0), overall, overall_floats
            if k >= 0:
                row = find(cells, values[i, k]) if values[i, k] != np.uint64(0) else np.int64(-1)
                mine, sums = cells, floats
            # A row without labels reads the same whether it is there or not.
            known = row >= 0 and sums[row, OWN + width] != 0.0
            if known:
                decays(float(clock[i] - np.int64(mine[row, LAST])), decay)
            for h in range(width):
                towards = level[0] if k < 0 else out[event, h]
                out[event, (k + 1) * width + h] = towards
                if known:
                    positive, total = sums[row, OWN + h] * decay[h], sums[row, OWN + width + h] * decay[h]
                    out[event, (k + 1) * width + h] = (positive + SHRINKAGE * towards) / (total + SHRINKAGE)
        event += 1
    return clock.shape[0], event
