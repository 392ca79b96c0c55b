"""Streaming target means: how often the label was positive lately, for each value of some keys and overall.

One exactly sequential pass over log entries: an event reads the means as they stand at its clock, a label updates them
at its own. Values therefore hold only labels that had arrived, and do not depend on how the log is cut into batches.
Guarantees bit-equal continuation after `save` and `load`. It knows nothing about models, events' other features or the
log's storage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from headrace.definition.features import HALF_LIVES, target_mean
from headrace.errors import ModelError
from headrace.events import Columns
from headrace.models.arithmetic import exp2
from headrace.models.contract import Arrays, Clock, Floats

SHRINKAGE = 10.0
"""How many labels of the overall mean stand beside a key's own (c of the formula)."""

_HALF_LIVES = np.array(list(HALF_LIVES.values()), dtype=np.float64)


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
        Share of positive labels to start from, in (0, 1).

    Examples
    --------
    >>> means = TargetMeans(("carrier",), prior=0.5)
    >>> carrier = np.array(["AA", "AA"], dtype=object)
    >>> ones, clock = np.ones(2), np.zeros(2, dtype=np.int64)
    >>> at = means.run({"carrier": carrier}, np.array([True, False]), ones, ones, clock)
    >>> [round(float(at[name][0]), 4) for name in ("mean_all_1h", "mean_carrier_1h")]
    [0.5455, 0.5868]
    """

    def __init__(self, keys: tuple[str, ...], prior: float) -> None:
        if not 0.0 < prior < 1.0:
            raise ModelError(f"found prior {prior} for target means, expected a share between 0 and 1")
        self.keys = keys
        self.prior = prior
        self.columns = target_mean(*keys).names()
        # Row 0 is the overall stream; each value of each key gets a row at its first label.
        self._ids: tuple[dict[str, int], ...] = tuple({} for _ in keys)
        self._names: list[tuple[int, str]] = []
        self._sums = np.zeros((64, 2, len(HALF_LIVES)))
        self._last = np.zeros(64, dtype=np.int64)
        self._now = np.iinfo(np.int64).min

    def run(
        self,
        values: Columns,
        is_label: NDArray[np.bool_],
        y: Floats,
        weight: Floats,
        clock: Clock,
        before: Floats | None = None,
        since: Clock | None = None,
    ) -> dict[str, Floats]:
        """Pass over n log entries and return the features of the events among them.

        Parameters
        ----------
        values
            For each key, an object array of n `str` or None: the event's value, for a label that of its event.
        is_label
            bool[n]; False means an event.
        y, weight
            float64[n], read at labels only.
        clock
            int64[n] microseconds, never falling, not below that of an earlier run.
        before, since
            For labels that correct earlier ones: float64[n] the earlier value, NaN elsewhere, and int64[n] its clock.
            Such a label changes S by w (y - before) 2^(-(now - since)/h), and N not at all.

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
        ids = self._enter(values, is_label)
        out = np.empty((len(clock) - int(np.count_nonzero(is_label)), len(self.columns)))
        before = np.full(len(clock), np.nan) if before is None else before
        since = clock if since is None else since
        _run(ids, is_label, y, weight, clock, before, since, self._sums, self._last, _HALF_LIVES, self.prior, out)
        if len(clock):
            self._now = int(clock[-1])
        return dict(zip(self.columns, np.ascontiguousarray(out.T), strict=True))

    def peek(self, values: Columns, clock: Clock) -> dict[str, Floats]:
        """Return the features that n events would read at `clock`; nothing changes."""
        ids = np.empty((len(clock), len(self.keys)), dtype=np.int64)
        for column, (key, known) in enumerate(zip(self.keys, self._ids, strict=True)):
            ids[:, column] = [known.get(value, -1) for value in values[key].tolist()]
        none = np.zeros(len(clock))
        out = np.empty((len(clock), len(self.columns)))
        events = np.zeros(len(clock), dtype=np.bool_)
        _run(ids, events, none, none, clock, none, clock, self._sums, self._last, _HALF_LIVES, self.prior, out)
        return dict(zip(self.columns, np.ascontiguousarray(out.T), strict=True))

    def save(self) -> tuple[Arrays, dict[str, Any]]:
        """Return the state as arrays and JSON."""
        used = len(self._names) + 1
        arrays: Arrays = {"sums": self._sums[:used].copy(), "last": self._last[:used].copy()}
        return arrays, {"keys": list(self.keys), "prior": self.prior, "now": self._now, "names": list(self._names)}

    def load(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Take over a state that `save` returned.

        Raises
        ------
        ModelError
            It was saved for other keys.
        """
        if tuple(meta["keys"]) != self.keys:
            raise ModelError(f"found a state of target means over {meta['keys']}, expected {list(self.keys)}")
        self.prior, self._now = float(meta["prior"]), int(meta["now"])
        self._names = [(int(key), str(value)) for key, value in meta["names"]]
        self._ids = tuple({} for _ in self.keys)
        for row, (key, value) in enumerate(self._names, start=1):
            self._ids[key][value] = row
        self._sums, self._last = arrays["sums"].copy(), arrays["last"].copy()

    def _enter(self, values: Columns, is_label: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return int64[n, keys] rows of the state, -1 for none; a value gets its row at its first label."""
        ids = np.empty((len(is_label), len(self.keys)), dtype=np.int64)
        labels = np.flatnonzero(is_label).tolist()
        lists = [values[key].tolist() for key in self.keys]
        for at in labels:
            for key, known in enumerate(self._ids):
                value = lists[key][at]
                if value is not None and value not in known:
                    self._names.append((key, value))
                    known[value] = len(self._names)
        for key, known in enumerate(self._ids):
            ids[:, key] = [known.get(value, -1) for value in lists[key]]
        if len(self._names) >= len(self._last):
            more = 2 * len(self._names) + 1 - len(self._last)
            self._sums = np.concatenate([self._sums, np.zeros((more, *self._sums.shape[1:]))])
            self._last = np.concatenate([self._last, np.zeros(more, dtype=np.int64)])
        return ids


@njit(cache=True)
def _run(
    ids: NDArray[np.int64],
    is_label: NDArray[np.bool_],
    y: Floats,
    weight: Floats,
    clock: Clock,
    before: Floats,
    since: Clock,
    sums: Floats,
    last: NDArray[np.int64],
    half_lives: Floats,
    prior: float,
    out: Floats,
) -> None:
    keys, width = ids.shape[1], half_lives.shape[0]
    event = 0
    for i in range(clock.shape[0]):
        for k in range(-1, keys):
            row = 0 if k < 0 else ids[i, k]
            if is_label[i]:
                if row >= 0:
                    age = max(float(clock[i] - last[row]), 0.0)  # a new row's T is 1970, and its S and N are 0
                    for h in range(width):
                        decay = exp2(-age / half_lives[h])
                        gain, count = weight[i] * y[i], weight[i]
                        if before[i] == before[i]:
                            old = exp2(-float(clock[i] - since[i]) / half_lives[h])
                            gain, count = weight[i] * (y[i] - before[i]) * old, 0.0
                        sums[row, 0, h] = sums[row, 0, h] * decay + gain
                        sums[row, 1, h] = sums[row, 1, h] * decay + count
                    last[row] = clock[i]
                continue
            for h in range(width):
                towards = prior if k < 0 else out[event, h]
                # A row without labels must read the same whether it exists yet or not: batches differ in that.
                if row < 0 or sums[row, 1, h] == 0.0:
                    out[event, (k + 1) * width + h] = towards
                    continue
                decay = exp2(-float(clock[i] - last[row]) / half_lives[h])
                positive, total = sums[row, 0, h] * decay, sums[row, 1, h] * decay
                out[event, (k + 1) * width + h] = (positive + SHRINKAGE * towards) / (total + SHRINKAGE)
        if not is_label[i]:
            event += 1
