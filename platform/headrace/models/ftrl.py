"""FTRL-Proximal regression straight from columns: categories, numbers, missing values.

McMahan et al., "Ad Click Prediction: a View from the Trenches" (2013), sections 3.1 and 4. Every value of a category has a
weight of its own in a table without collisions; a number has a linear weight on its standardised value, and, with `bins`,
one for each quarter of a standard deviation, as a category would. All of it is one compiled pass, exactly sequential: a
range of the log gives the same bits however it is cut. Where labels are numbers the link is linear, on labels less their
running mean over their running mean absolute deviation: learning rates then mean the same for minutes and for millions. A
row's features are laid out side by side, so that their roots and
divisions are worked out several at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.definition.loss import LOG_LOSS, Loss
from headrace.definition.recipes import Recipe
from headrace.errors import ModelError
from headrace.events import Columns
from headrace.models.arithmetic import sigmoid
from headrace.models.contract import Arrays, Clock, Floats, Rates, row_count, take
from headrace.models.influence import LOGISTIC, pull, reach_of
from headrace.models.table import KEY, LAST, OWN, Table, find, insert, must_grow
from headrace.models.text import is_category, kernel, keys_of, mix64, seed_of

_Z, _ROOT, _W = 0, 1, 2  # of a weight: z, the square root of n, and what it is; in the table after `OWN`
_GROUP_BITS = np.uint64(56)  # a key's high byte is its feature's number: rates are reported by feature
_PAIRS = 255  # the number of all pairs together: it stays when there are more categories
_MAX_CATEGORIES = 250
_MAX_NUMBERS = 4096  # a row has a place for each, used or not
_COUNT, _MEAN, _SQUARES, _PER_SPREAD, _CENTRE, _BIN = 0, 1, 2, 3, 4, 5  # rows of `_scale`
_CLIP = 8.0  # standard deviations: one absurd number must not wreck a weight
_BINS = 4.0  # to a standard deviation
_OUTER = 20  # the last bin, in bins from the middle
_PLACES = 2 * _OUTER + 2  # of each number: its bins, and its being missing
_FIRST_BINS = 64.0  # labels after which numbers have bins; they are fitted again whenever that number doubles
_REACH, _LABELS, _LEVEL, _SPREAD = (
    0,
    1,
    2,
    3,
)  # of `_target`: see `pull`; labels, their mean and mean absolute deviation
_WILD = 1000.0  # spreads: one absurd label must not stretch the scale
_EXPIRES, _STANDS = 6, 7  # of `_params`: microseconds; whether scales stand still
_SAW, _AT, _NOW = 0, 1, 2  # of `_state`: sightings, the cell that ages next, the last label's clock
_AGING = 8  # sightings after which one cell of the sketch is halved
_SKETCH = 1 << 20
_LOOKED_AT = 1 << 18  # rows of the table, for `rates`
_NEVER = -(2**63)
_LANES = 8  # what a vector register holds: rows are laid out in multiples of it
_NONE, _NO_CLOCK = np.empty(0), np.empty(0, dtype=np.int64)


class Ftrl:
    """FTRL-Proximal over a row's categories and numbers.

    A feature of value x has z and n, and the weight w = 0 if |z| <= l1, else -(z - sgn(z) l1) / ((beta + sqrt(n)) / alpha +
    l2). At a label: g = weight (p - y) x, z += g - (sqrt(n + g^2) - sqrt(n)) / alpha w, n += g^2. Where labels are numbers,
    p = level + spread w.x and g = -weight pull(y - p) x, see `headrace.models.influence`; the label itself has moved level and
    spread by then.

    Parameters
    ----------
    alpha, beta, l1, l2
        As above. The best alpha differs tenfold between streams.
    bins
        Whether numbers also have a weight for each quarter of a standard deviation, and one for being missing.
    pairs
        Whether every pair of categories is a category as well.
    admit_after
        Sightings, counted in a sketch, before a value gets a weight: values that are seen once cost no memory.
    expire_after
        Microseconds without a label after which a weight is forgotten; None for never.
    max_weights
        Weights of categories at most, 80 bytes each, up to twice that when it is no power of two; then those without a label
        for longest go.
    loss
        What is learned: log loss of a yes or no, or a number's absolute or capped squared error.

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
        loss: Loss = LOG_LOSS,
    ) -> None:
        own: dict[str, Any] = {"alpha": alpha, "beta": beta, "l1": l1, "l2": l2, "admit_after": admit_after}
        own |= {"expire_after": expire_after, "max_weights": max_weights}
        if mistakes := Recipe("ftrl", "ftrl", False, own).mistakes():
            raise ModelError(f"FTRL: {'; '.join(mistakes)}")
        self._params = np.array(
            [1.0 / alpha, beta, l1, l2, float(bins), float(admit_after), float(expire_after or 0), 0.0]
        )
        self._pairs = pairs
        self._table = Table(3, max_weights)
        self._sketch = np.zeros((2, _SKETCH if admit_after > 1 else 1), dtype=np.uint8)
        self._state = np.zeros(3, dtype=np.int64)
        self._target = np.array([reach_of(loss), 0.0, 0.0, 0.0])
        self._layout: _Layout | None = None

    def prepare(self, X: Columns) -> Columns:
        """Return uint64[n, categories and pairs] keys, 0 where missing, and float64[n, numbers], NaN where missing."""
        layout, n = self._fitted(X), row_count(X)
        keys = np.empty((n, layout.width), dtype=np.uint64)
        for column, (name, seed) in enumerate(zip(layout.categories, layout.seeds, strict=True)):
            _enter(keys_of(X[name], seed), np.uint64(column + 1), keys, column)
        if self._pairs:
            _pair(keys, len(layout.categories), np.uint64(_PAIRS))
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
        row: NDArray[np.intp] | None = None,
    ) -> Floats:
        """Predict events and learn labels, in their order; see `headrace.models.contract.Sequential`."""
        p, at = np.empty(len(events["keys"])), 0
        row = np.arange(len(y)) if row is None else row
        while True:
            table = self._table
            at = _run(
                at, order, events["keys"], events["numbers"], labels["keys"], labels["numbers"], row, y, weight, clock,
                table.cells, table.floats, table.state, self._sketch, self._state, self._laid, self._bins, self._scale,
                self._params, self._target, p,
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

    def scale_by(self, X: Columns, y: Floats) -> None:
        """Scale numbers, and labels that are numbers, by n prepared rows as well, in their order; nothing else is learned."""
        if X["numbers"].shape[1]:
            _update_scales(X["numbers"], self._scale)
        if self._numeric:
            _update_targets(y, self._target)

    @contextmanager
    def again(self, rate: float, *, ordered: bool) -> Iterator[None]:
        """While it lasts, labels are learned that were, or will be, learned more than once: a pass of batch training.

        Numbers and labels are scaled as they are, which `scale_by` has seen to. alpha is `rate` times what it was; for no
        weight to jump, z becomes z - w (beta + sqrt(n)) (1 / alpha' - 1 / alpha), which gives the same w with the new alpha,
        and goes back in the same way. n stays: what was learned twice is known twice as well.

        Parameters
        ----------
        ordered
            Whether labels come in the log's order. If not, no weight expires and no sighting counts on.
        """
        params, sketch, state = self._params.copy(), self._sketch.copy(), self._state.copy()
        self._params[_STANDS] = 1.0
        self._turn(params[0] / rate)
        if not ordered:
            self._params[_EXPIRES] = 0.0
        try:
            yield
        finally:
            self._turn(params[0])
            self._params[:] = params
            if not ordered:
                self._sketch, self._state = sketch, state

    def _turn(self, in_alpha: float) -> None:
        """Go on with another 1 / alpha and the same weights."""
        more = in_alpha - self._params[0]
        if more:
            for part in (self._table.floats[:, OWN:], self._bins, self._linear.T):
                part[:, _Z] -= part[:, _W] * (self._params[1] + part[:, _ROOT]) * more
        self._params[0] = in_alpha

    def uncertainty(self, X: Columns) -> Floats:
        """Return float64[n]: the sum over a row's features of |x| alpha / (beta + sqrt(n)), how much one label may move it.

        McMahan et al. (2013), section 5; beta keeps it finite for features that were never seen. Where labels are numbers it
        is in their unit.
        """
        out = np.empty(len(X["keys"]))
        table = self._table
        _uncertainty(
            X["keys"], X["numbers"], table.cells, table.floats, self._laid, self._bins, self._scale, self._params, out
        )
        return out * self._target[_SPREAD] if self._numeric else out

    @property
    def _numeric(self) -> bool:
        return bool(self._target[_REACH] != LOGISTIC)

    def rates(self) -> list[Rates]:
        """Effective learning rates of each feature that has weights, alpha / (beta + sqrt(n)).

        Of a large table it looks at the first rows: keys are hashes, so they are a fair sample.
        """
        if self._layout is None:
            return []
        cells, share = self._table.cells[:_LOOKED_AT], min(1.0, _LOOKED_AT / len(self._table.cells))
        used = np.flatnonzero(cells[:, KEY])
        group = (cells[used, KEY] >> _GROUP_BITS).astype(np.int64)
        weights, linear = self._table.floats[used, OWN:], self._linear.T
        parts = [(name, weights[group == number], share) for name, number in self._layout.groups()]
        for at, name in enumerate(self._layout.numbers):
            own = self._bins[at * _PLACES : (at + 1) * _PLACES]
            parts.append((f"{name} (bins)", own[own[:, _ROOT] > 0.0], 1.0))
        parts += [(name, linear[at : at + 1], 1.0) for at, name in enumerate((*self._layout.numbers, "bias"))]
        return [self._rates_of(name, own, looked_at) for name, own, looked_at in parts if len(own)]

    def _rates_of(self, feature: str, weights: Floats, share: float) -> Rates:
        p50, p90 = np.quantile(1.0 / (self._params[0] * (self._params[1] + weights[:, _ROOT])), (0.5, 0.9)).tolist()
        nonzero = np.count_nonzero(weights[:, _W])
        return Rates(feature, round(len(weights) / share), round(nonzero / share), p50, p90)

    def save(self) -> tuple[Arrays, dict[str, Any]]:
        """Return the weights and what the numbers are scaled by."""
        if self._layout is None:
            return {}, {}
        arrays, table = self._table.save("weights")
        arrays |= {name: getattr(self, f"_{name}").copy() for name in ("linear", "bins", "scale", "state")}
        if self._sketch.shape[1] > 1:
            arrays["sketch"] = self._sketch.copy()
        if self._numeric:
            arrays["target"] = self._target.copy()
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
        self._linear[:] = arrays["linear"]
        self._bins, self._scale, self._state = (arrays[name].copy() for name in ("bins", "scale", "state"))
        if "sketch" in arrays:
            self._sketch = arrays["sketch"].copy()
        if self._numeric:
            self._target = arrays["target"].copy()

    @property
    def columns(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Categories and numbers that the model reads; none before it saw any."""
        return ((), ()) if self._layout is None else (self._layout.categories, self._layout.numbers)

    def widen(self, X: Columns) -> None:
        """Read these columns as well from now on; they come after the others, whose weights stay what they are.

        Raises
        ------
        ModelError
            There are too many.
        """
        more_categories, more_numbers = _names(X)
        categories, numbers = self.columns
        before = None if self._layout is None else (self._linear, self._bins, self._scale)
        self._lay_out(_Layout(categories + more_categories, numbers + more_numbers, self._pairs))
        if before is not None:
            linear, bins, scale = before
            self._linear[:, : len(numbers)], self._linear[:, -1] = linear[:, :-1], linear[:, -1]
            self._bins[: len(bins)] = bins
            self._scale[:, : len(numbers)] = scale[:, : len(numbers)]

    @property
    def _linear(self) -> Floats:
        """z, roots and weights of the numbers and the bias: the first columns of `_laid`."""
        return self._laid[:, : len(self.columns[1]) + 1]

    def _fitted(self, X: Columns) -> _Layout:
        """The layout of the columns; the first ones decide.

        Raises
        ------
        ModelError
            Later ones differ, or there are too many.
        """
        categories, numbers = _names(X)
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
        count = len(layout.numbers)
        if len(layout.categories) > _MAX_CATEGORIES or count > _MAX_NUMBERS:
            raise ModelError(
                f"found {len(layout.categories)} categories and {count} numbers for FTRL, expected at most "
                f"{_MAX_CATEGORIES} and {_MAX_NUMBERS}: what is 0 in nearly every row belongs into a category as a value"
            )
        self._layout = layout
        self._bins = np.zeros((count * _PLACES if self._params[4] else 0, 3))
        # z, roots and weights of the numbers and the bias; behind them is room for a row's categories and bins.
        self._laid = np.zeros((3, _whole_lanes(count + 1 + layout.width + (count if len(self._bins) else 0))))
        self._scale = np.zeros((6, _whole_lanes(count)))


def _names(X: Columns) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Categories and numbers among the columns."""
    categories = tuple(name for name, values in X.items() if is_category(values))
    return categories, tuple(name for name in X if name not in categories)


def _whole_lanes(count: int) -> int:
    return -(-count // _LANES) * _LANES


class _Layout:
    """Which columns a model reads, and in which order.

    A feature's number is the high byte of its keys: 1 for the first category, and so on.
    """

    def __init__(self, categories: tuple[str, ...], numbers: tuple[str, ...], pairs: bool) -> None:
        self.categories, self.numbers, self._pairs = categories, numbers, pairs
        self.seeds = [seed_of(name) for name in categories]
        count = len(categories)
        self.width = count + (count * (count - 1) // 2 if pairs else 0)

    def groups(self) -> list[tuple[str, int]]:
        """Features with weights in the table, and their numbers."""
        own = [(name, number) for number, name in enumerate(self.categories, start=1)]
        return own + ([("pairs", _PAIRS)] if self._pairs else [])


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
def _learned(z: Any, root: Any, w: Any, g: Any, params: Any) -> Any:
    """A weight's numbers after a gradient; without a branch, so that several are worked out side by side."""
    after = np.sqrt(root * root + g * g)
    z += g - (after - root) * params[0] * w
    over = abs(z) - params[2]
    over = 0.0 if over < 0.0 else over
    return z, after, -math.copysign(over, z) / ((params[1] + after) * params[0] + params[3])


@kernel
def _bin(x: Any, centre: Any, in_spread: Any) -> Any:
    """The number of x's bin, or of its being missing; -1 before there are bins."""
    place = np.int64(_PLACES - 1)
    if x - x == 0.0:
        away = np.floor((x - centre) * in_spread)
        place = _OUTER + np.int64(min(max(away, -_OUTER), _OUTER)) if in_spread > 0.0 else np.int64(-1)
    return place


@kernel
def _update_scale(raw: Any, scale: Any) -> None:
    """Welford's means and sums of squares; bins are fitted again whenever a count doubles."""
    counts, means, squares, per_spread = scale[_COUNT], scale[_MEAN], scale[_SQUARES], scale[_PER_SPREAD]
    for j in range(raw.shape[0]):
        known = raw[j] - raw[j] == 0.0
        x = raw[j] if known else means[j]
        more = counts[j] + 1.0
        middle = means[j] + (x - means[j]) / more
        grown = squares[j] + (x - means[j]) * (x - middle)
        counts[j] = more if known else counts[j]
        means[j], squares[j] = middle, grown
        per_spread[j] = np.sqrt(counts[j] / grown) if grown > 0.0 else 0.0
    for j in range(raw.shape[0]):
        count = np.int64(counts[j])
        if count & (count - 1) == 0 and count >= _FIRST_BINS:  # again and again to the same, while it is missing
            scale[_CENTRE, j], scale[_BIN, j] = means[j], _BINS * per_spread[j]


@kernel
def _update_target(y: Any, target: Any) -> None:
    """Labels' running mean and mean absolute deviation from it."""
    target[_LABELS] += 1.0
    if target[_LABELS] == 1.0:
        target[_LEVEL] = y
        return
    away, wild = y - target[_LEVEL], _WILD * target[_SPREAD]
    if wild > 0.0:
        away = min(max(away, -wild), wild)
    target[_LEVEL] += away / target[_LABELS]
    target[_SPREAD] += (abs(away) - target[_SPREAD]) / target[_LABELS]


@kernel
def _update_targets(y: Any, target: Any) -> None:
    for label in y:
        _update_target(label, target)


@kernel
def _gradient(dot: Any, y: Any, target: Any, stands: Any) -> Any:
    """Of the loss, at w.x = `dot`; 0 as long as all labels are the same number."""
    if target[_REACH] == LOGISTIC:
        return sigmoid(dot) - y
    if not stands:
        _update_target(y, target)
    if target[_SPREAD] == 0.0:
        return 0.0
    return -pull(y - (target[_LEVEL] + target[_SPREAD] * dot), target[_SPREAD], target[_REACH])


@kernel
def _update_scales(numbers: Any, scale: Any) -> None:
    raw = np.full(scale.shape[1], np.nan)
    for i in range(numbers.shape[0]):
        for j in range(numbers.shape[1]):
            raw[j] = numbers[i, j]
        _update_scale(raw, scale)


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
def _lay(
    keys: Any, i: Any, count: Any, cells: Any, floats: Any, oldest: Any, laid: Any, bins: Any, scale: Any, rows: Any,
    raw: Any, x: Any,
) -> Any:  # fmt: skip
    """Lay the features of a row side by side: their values in `x`, their weights in `laid`, and in `rows` where those are."""
    for j in range(raw.shape[0]):
        away = (raw[j] - scale[_MEAN, j]) * scale[_PER_SPREAD, j]
        away = -_CLIP if away < -_CLIP else away
        away = _CLIP if away > _CLIP else away
        x[j] = away if raw[j] - raw[j] == 0.0 else 0.0
    x[count] = 1.0
    at = count + 1
    for k in range(keys.shape[1]):
        key, row = keys[i, k], np.int64(-1)
        x[at] = 0.0
        if key != np.uint64(0):
            row = find(cells, key)
            x[at] = 1.0
        rows[k] = row
        if row >= 0 and np.int64(cells[row, LAST]) >= oldest:
            laid[_Z, at], laid[_ROOT, at] = floats[row, OWN + _Z], floats[row, OWN + _ROOT]
            laid[_W, at] = floats[row, OWN + _W]
        else:
            laid[_Z, at] = laid[_ROOT, at] = laid[_W, at] = 0.0
        at += 1
    if bins.shape[0]:
        for j in range(count):
            place = _bin(raw[j], scale[_CENTRE, j], scale[_BIN, j])
            row = j * _PLACES + place
            x[at] = 0.0 if place < 0 else 1.0
            rows[keys.shape[1] + j] = row if place >= 0 else -1
            if place >= 0:
                laid[_Z, at], laid[_ROOT, at], laid[_W, at] = bins[row, _Z], bins[row, _ROOT], bins[row, _W]
            at += 1


@kernel
def _dot(x: Any, w: Any) -> Any:
    """Four sums side by side: one would wait for itself at every feature."""
    a = b = c = d = 0.0
    for j in range(0, x.shape[0], 4):
        a += x[j] * w[j]
        b += x[j + 1] * w[j + 1]
        c += x[j + 2] * w[j + 2]
        d += x[j + 3] * w[j + 3]
    return (a + b) + (c + d)


@kernel
def _run(
    at: Any, order: Any, e_keys: Any, e_numbers: Any, l_keys: Any, l_numbers: Any, l_row: Any, y: Any, weight: Any,
    clock: Any, cells: Any, floats: Any, counters: Any, sketch: Any, state: Any, laid: Any, bins: Any, scale: Any,
    params: Any, target: Any, p: Any,
) -> Any:  # fmt: skip
    """Entries from `at` on; returns where it stopped, before the end when the table must grow."""
    width, count = e_keys.shape[1], e_numbers.shape[1]
    z, root, w = laid[_Z], laid[_ROOT], laid[_W]
    rows, x = np.empty(width + count, dtype=np.int64), np.zeros(w.shape[0])
    raw = np.full(scale.shape[1], np.nan)
    expires, stands = np.int64(params[_EXPIRES]), params[_STANDS] > 0.0
    for at_entry in range(at, order.shape[0]):
        i = order[at_entry]
        if i >= 0:
            oldest = state[_NOW] - expires if expires else np.int64(_NEVER)
            for j in range(count):
                raw[j] = e_numbers[i, j]
            _lay(e_keys, i, count, cells, floats, oldest, laid, bins, scale, rows, raw, x)
            dot = _dot(x, w)
            p[i] = sigmoid(dot) if target[_REACH] == LOGISTIC else target[_LEVEL] + target[_SPREAD] * dot
            continue
        label = -1 - i
        i = l_row[label]
        if must_grow(cells, counters, width):
            return at_entry
        now = clock[label]
        state[_NOW] = now
        oldest = now - expires if expires else np.int64(_NEVER)
        for j in range(count):
            raw[j] = l_numbers[i, j]
        if not stands:
            _update_scale(raw, scale)
        _lay(l_keys, i, count, cells, floats, oldest, laid, bins, scale, rows, raw, x)
        g = weight[label] * _gradient(_dot(x, w), y[label], target, stands)
        for j in range(w.shape[0]):
            z[j], root[j], w[j] = _learned(z[j], root[j], w[j], g * x[j], params)
        moved = False
        for k in range(width):
            key, row = l_keys[i, k], rows[k]
            if key == np.uint64(0):
                continue
            if row < 0 or moved:  # without a weight, or perhaps no more where it was
                row = find(cells, key)
                if row < 0:
                    if params[5] > 1.0 and not _admitted(key, sketch, state, params[5]):
                        continue
                    row = insert(cells, counters, key, now, oldest)
                    moved = True
            j = count + 1 + k
            floats[row, OWN + _Z], floats[row, OWN + _ROOT], floats[row, OWN + _W] = z[j], root[j], w[j]
            cells[row, LAST] = np.uint64(now)
        if bins.shape[0]:
            for j in range(count):
                row, k = rows[width + j], count + 1 + width + j
                if row >= 0:
                    bins[row, _Z], bins[row, _ROOT], bins[row, _W] = z[k], root[k], w[k]
    return order.shape[0]


@kernel
def _uncertainty(
    keys: Any, numbers: Any, cells: Any, floats: Any, laid: Any, bins: Any, scale: Any, params: Any, out: Any
) -> None:
    width, count = keys.shape[1], numbers.shape[1]
    rows, x = np.empty(width + count, dtype=np.int64), np.zeros(laid.shape[1])
    raw = np.full(scale.shape[1], np.nan)
    for i in range(keys.shape[0]):
        for j in range(count):
            raw[j] = numbers[i, j]
        _lay(keys, i, count, cells, floats, np.int64(_NEVER), laid, bins, scale, rows, raw, x)
        total = 0.0
        for j in range(x.shape[0]):
            total += abs(x[j]) / (params[1] + laid[_ROOT, j])
        out[i] = total / params[0]
