"""FTRL-Proximal logistic regression straight from columns: categories, numbers, missing values.

McMahan et al., "Ad Click Prediction: a View from the Trenches" (2013), sections 3.1 and 4. Every value of a category has a
weight of its own in a table without collisions; a number has a linear weight on its standardised value, and, with `bins`,
a weight for each half or so of its spread, as a category would. All of it is one compiled pass, exactly sequential: a
range of the log gives the same bits however it is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.definition.recipes import Recipe
from headrace.errors import ModelError
from headrace.events import Columns
from headrace.models.arithmetic import sigmoid
from headrace.models.contract import Arrays, Clock, Floats, row_count, take
from headrace.models.table import LAST, OWN, Table, find, insert, must_grow
from headrace.models.text import is_category, kernel, keys_of, mix64, seed_of

_Z, _N = OWN, OWN + 1
_GROUP_BITS = np.uint64(56)  # a key's high byte is its feature's number: rates are reported by feature
_MAX_GROUPS = 250
_COUNT, _MEAN, _SQUARES, _PER_SPREAD, _CENTRE, _BIN = 0, 1, 2, 3, 4, 5  # of `_scale`
_CLIP = 8.0  # standard deviations: one absurd number must not wreck a weight
_BINS = 4.0  # to a standard deviation
_OUTER = 20.0  # the last bin, in bins from the middle
_FIRST_BINS = 64.0  # labels after which numbers have bins; they are fitted again whenever that number doubles
_SAW, _AT, _NOW = 0, 1, 2  # of `_state`: sightings, the cell that ages next, the last label's clock
_AGING = 8  # sightings after which one cell of the sketch is halved
_SKETCH = 1 << 20
_NEVER = -(2**63)
_NONE, _NO_CLOCK = np.empty(0), np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Rates:
    """Effective learning rates of one feature, alpha / (beta + sqrt(n)): they fall as its values are seen."""

    feature: str
    weights: int
    nonzero: int
    p50: float
    p90: float


class Ftrl:
    """FTRL-Proximal over a row's categories and numbers.

    A feature of value x has z and n, and the weight w = 0 if |z| <= l1, else -(z - sgn(z) l1) / ((beta + sqrt(n)) / alpha +
    l2). At a label: g = weight (p - y) x, z += g - (sqrt(n + g^2) - sqrt(n)) / alpha w, n += g^2.

    Parameters
    ----------
    alpha, beta, l1, l2
        As above. The best alpha differs tenfold between streams.
    bins
        Whether numbers also have a weight for each quarter of a standard deviation.
    pairs
        Whether every pair of categories is a category as well.
    admit_after
        Sightings, counted in a sketch, before a value gets a weight: values that are seen once cost no memory.
    expire_after
        Microseconds without a label after which a weight is forgotten; None for never.
    max_weights
        Weights at most, 64 bytes each, up to twice that when it is no power of two; then those without a label for longest go.

    Examples
    --------
    >>> model = Ftrl(alpha=1.0)
    >>> X = model.prepare({"origin": np.array(["JFK", "LGA"], dtype=object), "wind": np.array([3.0, np.nan])})
    >>> zero, ones = np.zeros(2, dtype=np.int64), np.ones(2)
    >>> model.learn(X, np.array([1.0, 0.0]), np.empty((2, 0)), ones, zero)
    >>> model.predict(X).round(3).tolist()
    [0.583, 0.325]
    """

    memo_width = 0

    def __init__(
        self,
        alpha: float = 0.1,
        beta: float = 1.0,
        l1: float = 0.0,
        l2: float = 0.0,
        *,
        bins: bool = True,
        pairs: bool = False,
        admit_after: int = 1,
        expire_after: int | None = None,
        max_weights: int = 1 << 22,
    ) -> None:
        own: dict[str, Any] = {"alpha": alpha, "beta": beta, "l1": l1, "l2": l2, "admit_after": admit_after}
        own |= {"expire_after": expire_after, "max_weights": max_weights}
        if mistakes := Recipe("ftrl", "ftrl", False, own).mistakes():
            raise ModelError(f"FTRL: {'; '.join(mistakes)}")
        self._params = np.array([1.0 / alpha, beta, l1, l2, float(bins), float(admit_after), float(expire_after or 0)])
        self._pairs = pairs
        self._table = Table(2, max_weights)
        self._sketch = np.zeros((2, _SKETCH if admit_after > 1 else 1), dtype=np.uint8)
        self._state = np.zeros(3, dtype=np.int64)
        self._layout: _Layout | None = None

    def prepare(self, X: Columns) -> Columns:
        """Return uint64[n, categories and pairs] keys, 0 where missing, and float64[n, numbers], NaN where missing."""
        layout, n = self._fitted(X), row_count(X)
        keys = np.empty((n, layout.width), dtype=np.uint64)
        for column, (name, seed) in enumerate(zip(layout.categories, layout.seeds, strict=True)):
            _enter(keys_of(X[name], seed), np.uint64(column + 1), keys, column)
        if self._pairs:
            _pair(keys, len(layout.categories), np.uint64(layout.groups))
        numbers = np.empty((n, len(layout.numbers)))
        for column, name in enumerate(layout.numbers):
            numbers[:, column] = X[name]
        return {"keys": keys, "numbers": numbers}

    def run(
        self,
        order: NDArray[np.int64],
        events: Columns,
        labels: Columns,
        y: Floats,
        weight: Floats,
        clock: Clock,
    ) -> Floats:
        """Predict events and learn labels, in their order; see `headrace.models.contract.Sequential`."""
        p, at = np.empty(len(events["keys"])), 0
        while True:
            table = self._table
            at = _run(
                at, order, events["keys"], events["numbers"], labels["keys"], labels["numbers"], y, weight, clock,
                table.cells, table.floats, table.state, self._sketch, self._state, self._dense, self._scale,
                self._number_seeds, self._params, p,
            )  # fmt: skip
            if at == len(order):
                return p
            table.grow()

    def ask(self, X: Columns, clock: Clock, outstanding: int) -> tuple[Floats, Floats]:
        """Predict n events; see `headrace.models.contract.Model`."""
        p = self.predict(X)
        return p, np.empty((len(p), 0))

    def learn(self, X: Columns, y: Floats, memo: Floats, weight: Floats, clock: Clock) -> None:
        """Learn n labels one after the other, in log order."""
        self.run(~np.arange(len(y)), take(X, slice(0, 0)), X, y, weight, clock)

    def predict(self, X: Columns) -> Floats:
        """Return float64[n] and change nothing."""
        return self.run(np.arange(len(X["keys"])), X, take(X, slice(0, 0)), _NONE, _NONE, _NO_CLOCK)

    def uncertainty(self, X: Columns) -> Floats:
        """Return float64[n]: the sum over a row's features of |x| alpha / (beta + sqrt(n)), how much one label may move it.

        McMahan et al. (2013), section 5; beta keeps it finite for features that were never seen.
        """
        out = np.empty(len(X["keys"]))
        table = self._table
        _uncertainty(
            X["keys"], X["numbers"], table.cells, table.floats, self._dense, self._scale, self._number_seeds, self._params,
            out,
        )  # fmt: skip
        return out

    def rates(self) -> list[Rates]:
        """Effective learning rates of each feature that has weights."""
        if self._layout is None:
            return []
        used = self._table.used()
        group = (self._table.cells[used, 0] >> _GROUP_BITS).astype(np.int64)
        z, n = self._table.floats[used, _Z], self._table.floats[used, _N]
        made = []
        for number, feature in enumerate(self._layout.names(), start=1):
            mine = group == number
            if mine.any():
                made.append(self._rates_of(feature, z[mine], n[mine]))
        for row, feature in enumerate(("bias", *self._layout.numbers)):
            made.append(self._rates_of(feature, self._dense[row : row + 1, 0], self._dense[row : row + 1, 1]))
        return made

    def _rates_of(self, feature: str, z: Floats, n: Floats) -> Rates:
        rates = 1.0 / (self._params[0] * (self._params[1] + np.sqrt(n)))
        p50, p90 = np.quantile(rates, (0.5, 0.9)).tolist()
        return Rates(feature, len(z), int(np.count_nonzero(np.abs(z) > self._params[2])), p50, p90)

    def save(self) -> tuple[Arrays, dict[str, Any]]:
        """Return the weights and what the numbers are scaled by."""
        if self._layout is None:
            return {}, {}
        arrays, table = self._table.save("weights")
        arrays |= {"dense": self._dense.copy(), "scale": self._scale.copy(), "state": self._state.copy()}
        if self._sketch.shape[1] > 1:
            arrays["sketch"] = self._sketch.copy()
        return arrays, {"columns": [list(self._layout.categories), list(self._layout.numbers)], "table": table}

    def load(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Take over saved weights.

        Raises
        ------
        ModelError
            The table was of another form: the recipe has changed.
        """
        if not meta:
            return
        categories, numbers = meta["columns"]
        self._lay_out(_Layout(tuple(categories), tuple(numbers), self._pairs))
        self._table.load("weights", arrays, meta["table"])
        self._dense, self._scale, self._state = (arrays[name].copy() for name in ("dense", "scale", "state"))
        if "sketch" in arrays:
            self._sketch = arrays["sketch"].copy()

    def _fitted(self, X: Columns) -> _Layout:
        """The layout of the columns; the first ones decide.

        Raises
        ------
        ModelError
            Later ones differ, or there are too many.
        """
        categories = tuple(name for name, values in X.items() if is_category(values))
        numbers = tuple(name for name in X if name not in categories)
        if self._layout is None:
            self._lay_out(_Layout(categories, numbers, self._pairs))
        layout = self._layout
        assert layout is not None
        if (layout.categories, layout.numbers) != (categories, numbers):
            raise ModelError(
                f"found columns {', '.join((*categories, *numbers))}, expected those that the model began with: "
                f"{', '.join((*layout.categories, *layout.numbers))}"
            )
        return layout

    def _lay_out(self, layout: _Layout) -> None:
        if layout.groups > _MAX_GROUPS:
            raise ModelError(f"found {layout.groups} features for FTRL, expected at most {_MAX_GROUPS}")
        self._layout = layout
        self._number_seeds = np.array(
            [
                (seed_of(f"bin {name}") >> np.uint64(8)) | (np.uint64(number) << _GROUP_BITS)
                for number, name in enumerate(layout.numbers, start=len(layout.categories) + 1)
            ],
            dtype=np.uint64,
        )
        self._dense = np.zeros((1 + len(layout.numbers), 2))  # z and n of the bias and of each number
        self._scale = np.zeros((len(layout.numbers), 6))


class _Layout:
    """Which columns a model reads, and in which order.

    A feature's number is the high byte of its keys: categories come first, then numbers' bins, then all pairs together.
    """

    def __init__(self, categories: tuple[str, ...], numbers: tuple[str, ...], pairs: bool) -> None:
        self.categories, self.numbers, self._pairs = categories, numbers, pairs
        self.seeds = [seed_of(name) for name in categories]
        count = len(categories)
        self.width = count + (count * (count - 1) // 2 if pairs else 0)
        self.groups = count + len(numbers) + pairs

    def names(self) -> tuple[str, ...]:
        """Names of the features with weights in the table, in order of their numbers."""
        bins = tuple(f"{name} (bins)" for name in self.numbers)
        return (*self.categories, *bins, *(("pairs",) if self._pairs else ()))


@kernel
def _grouped(key: Any, group: Any) -> Any:
    return (key >> np.uint64(8)) | (group << _GROUP_BITS)


@kernel
def _enter(keys: Any, group: Any, out: Any, column: Any) -> None:
    for i in range(keys.shape[0]):
        out[i, column] = np.uint64(0) if keys[i] == np.uint64(0) else _grouped(keys[i], group)


@kernel
def _pair(keys: Any, count: Any, group: Any) -> None:
    for i in range(keys.shape[0]):
        at = count
        for a in range(count):
            for b in range(a + 1, count):
                first, second = keys[i, a], keys[i, b]
                missing = first == np.uint64(0) or second == np.uint64(0)
                # Keys of different columns differ, so that the order says which columns they are.
                keys[i, at] = np.uint64(0) if missing else _grouped(mix64(first * np.uint64(3) ^ second), group)
                at += 1


@kernel
def _weight(z: Any, root: Any, params: Any) -> Any:
    """The weight of z and of the square root of n."""
    if abs(z) <= params[2]:
        return 0.0
    shrunk = z - params[2] if z > 0.0 else z + params[2]
    return -shrunk / ((params[1] + root) * params[0] + params[3])


@kernel
def _scaled(x: Any, scale: Any, j: Any) -> Any:
    """A number in standard deviations from its mean; 0 when it is missing."""
    if not np.isfinite(x):
        return 0.0
    return min(max((x - scale[j, _MEAN]) * scale[j, _PER_SPREAD], -_CLIP), _CLIP)


@kernel
def _bin_key(x: Any, scale: Any, j: Any, seed: Any) -> Any:
    """The key of a number's bin, or of its being missing."""
    place = 1_000.0
    if np.isfinite(x):
        if scale[j, _BIN] <= 0.0:
            return np.uint64(0)
        place = np.floor((x - scale[j, _CENTRE]) * scale[j, _BIN])
        place = min(max(place, -_OUTER), _OUTER)
    # The seed's high byte is the feature's number, as that of its keys.
    return _grouped(mix64(np.uint64(np.int64(place) + 2_000) ^ seed), seed >> _GROUP_BITS)


@kernel
def _update_scale(x: Any, scale: Any, j: Any) -> None:
    """Welford's mean and sum of squares; bins are fitted again whenever the count doubles."""
    if not np.isfinite(x):
        return
    scale[j, _COUNT] += 1.0
    away = x - scale[j, _MEAN]
    scale[j, _MEAN] += away / scale[j, _COUNT]
    scale[j, _SQUARES] += away * (x - scale[j, _MEAN])
    if scale[j, _SQUARES] > 0.0:
        scale[j, _PER_SPREAD] = np.sqrt(scale[j, _COUNT] / scale[j, _SQUARES])
    count = np.int64(scale[j, _COUNT])
    if count >= _FIRST_BINS and count & (count - 1) == 0:
        scale[j, _CENTRE], scale[j, _BIN] = scale[j, _MEAN], _BINS * scale[j, _PER_SPREAD]


@kernel
def _admitted(key: Any, sketch: Any, state: Any, wanted: Any) -> Any:
    """Count a sighting of a key without a weight; whether it may have one now.

    A count-min sketch of two rows with conservative updates (Estan & Varghese 2002); old sightings fade, as its cells are
    halved in turn.
    """
    size = np.uint64(sketch.shape[1])
    a, b = key % size, mix64(key) % size
    seen = min(sketch[0, a], sketch[1, b])
    state[_SAW] += 1
    if state[_SAW] % _AGING == 0:
        at = state[_AT] % sketch.shape[1]
        sketch[0, at] >>= np.uint8(1)
        sketch[1, at] >>= np.uint8(1)
        state[_AT] = at + 1
    if seen + 1 >= wanted:
        return True
    sketch[0, a] = max(sketch[0, a], np.uint8(seen + 1))
    sketch[1, b] = max(sketch[1, b], np.uint8(seen + 1))
    return False


@kernel
def _logit(
    keys: Any, i: Any, numbers: Any, cells: Any, floats: Any, oldest: Any, dense: Any, scale: Any, seeds: Any,
    params: Any, rows: Any, scaled: Any, weights: Any, roots: Any,
) -> Any:  # fmt: skip
    """The logit of one row.

    Leaves in `rows` where its weights are and in `scaled` its numbers; in `weights` and `roots` the weights and the square
    roots of n of what is in the table, then of the bias and of the numbers.
    """
    width, count = keys.shape[1], numbers.shape[1]
    total = 0.0
    for j in range(count + 1):
        at = width + count + j
        roots[at] = np.sqrt(dense[j, 1])
        weights[at] = _weight(dense[j, 0], roots[at], params)
        if j == 0:
            total += weights[at]
        else:
            scaled[j - 1] = _scaled(numbers[i, j - 1], scale, j - 1)
            total += weights[at] * scaled[j - 1]
    for k in range(width + (count if params[4] != 0.0 else 0)):
        key = keys[i, k] if k < width else _bin_key(numbers[i, k - width], scale, k - width, seeds[k - width])
        rows[k] = -1
        if key != np.uint64(0):
            row = find(cells, key)
            rows[k] = row
            if row >= 0:
                roots[k] = np.sqrt(floats[row, _N])
                weights[k] = _weight(floats[row, _Z], roots[k], params)
                if np.int64(cells[row, LAST]) >= oldest:
                    total += weights[k]
    return total


@kernel
def _run(
    at: Any, order: Any, e_keys: Any, e_numbers: Any, l_keys: Any, l_numbers: Any, y: Any,
    weight: Any, clock: Any, cells: Any, floats: Any, counters: Any, sketch: Any, state: Any, dense: Any, scale: Any,
    seeds: Any, params: Any, p: Any,
) -> Any:  # fmt: skip
    """Entries from `at` on; returns where it stopped, before the end when the table must grow."""
    width, count = e_keys.shape[1], e_numbers.shape[1]
    binned = width + (count if params[4] != 0.0 else 0)
    rows, scaled = np.empty(width + count, dtype=np.int64), np.empty(count)
    weights, roots = np.empty(width + 2 * count + 1), np.empty(width + 2 * count + 1)
    expires = np.int64(params[6])
    for at_entry in range(at, order.shape[0]):
        i = order[at_entry]
        if i >= 0:
            oldest = state[_NOW] - expires if expires else np.int64(_NEVER)
            p[i] = sigmoid(
                _logit(
                    e_keys, i, e_numbers, cells, floats, oldest, dense, scale, seeds, params, rows, scaled,
                    weights, roots,
                )
            )  # fmt: skip
            continue
        i = -1 - i
        if must_grow(cells, counters, width + count):
            return at_entry
        now = clock[i]
        state[_NOW] = now
        oldest = now - expires if expires else np.int64(_NEVER)
        for j in range(count):
            _update_scale(l_numbers[i, j], scale, j)
        logit = _logit(
            l_keys, i, l_numbers, cells, floats, oldest, dense, scale, seeds, params, rows, scaled, weights,
            roots,
        )  # fmt: skip
        g = weight[i] * (sigmoid(logit) - y[i])
        for j in range(count + 1):
            mine = g if j == 0 else g * scaled[j - 1]
            if mine != 0.0:
                n = dense[j, 1] + mine * mine
                sigma = (np.sqrt(n) - roots[width + count + j]) * params[0]
                dense[j, 0] += mine - sigma * weights[width + count + j]
                dense[j, 1] = n
        moved = False
        for k in range(binned):
            row, root, old = rows[k], roots[k], weights[k]
            if row < 0 or moved:  # without a weight, or perhaps no more where it was
                key = (
                    l_keys[i, k] if k < width else _bin_key(l_numbers[i, k - width], scale, k - width, seeds[k - width])
                )
                if key == np.uint64(0):
                    continue
                row = find(cells, key)
                if row < 0:
                    if params[5] > 1.0 and not _admitted(key, sketch, state, params[5]):
                        continue
                    row = insert(cells, counters, key, now, oldest)
                    moved = True
                root = np.sqrt(floats[row, _N])
                old = _weight(floats[row, _Z], root, params)
            if np.int64(cells[row, LAST]) < oldest:
                floats[row, _Z], floats[row, _N], root, old = 0.0, 0.0, 0.0, 0.0
            n = floats[row, _N] + g * g
            floats[row, _Z] += g - (np.sqrt(n) - root) * params[0] * old
            floats[row, _N] = n
            cells[row, LAST] = np.uint64(now)
    return order.shape[0]


@kernel
def _uncertainty(
    keys: Any, numbers: Any, cells: Any, floats: Any, dense: Any, scale: Any, seeds: Any, params: Any, out: Any
) -> None:
    width = keys.shape[1]
    for i in range(keys.shape[0]):
        total = 1.0 / (params[1] + np.sqrt(dense[0, 1]))
        for k in range(width + numbers.shape[1]):
            key = np.uint64(0)
            if k < width:
                key = keys[i, k]
            else:
                j = k - width
                total += abs(_scaled(numbers[i, j], scale, j)) / (params[1] + np.sqrt(dense[j + 1, 1]))
                if params[4] != 0.0:
                    key = _bin_key(numbers[i, j], scale, j, seeds[j])
            if key != np.uint64(0):
                row = find(cells, key)
                total += 1.0 / (params[1] + np.sqrt(floats[row, _N] if row >= 0 else 0.0))
        out[i] = total / params[0]
