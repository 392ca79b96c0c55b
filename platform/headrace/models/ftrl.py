"""FTRL-Proximal regression straight from columns: categories, numbers, lists of tokens, missing values.

McMahan et al., "Ad Click Prediction: a View from the Trenches" (2013), sections 3.1 and 4. Every value of a category has a
weight of its own in a table without collisions; a number has a linear weight on its standardised value, and, with `bins`,
one for each quarter of a standard deviation, as a category would; a token has one, of value 1 in rows that hold it. All of
it is one compiled pass, exactly sequential: a range of the log gives the same bits however it is cut. Where labels are
numbers the link is linear, on labels less their running mean over their running mean absolute deviation: learning rates then
mean the same for minutes and for millions. A row's features are laid out side by side, so that their roots and divisions are
worked out several at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
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
from headrace.models.tokens import Tokens, beside, item, readable, width

_Z, _ROOT, _W = 0, 1, 2  # of a weight: z, the square root of n, and what it is; in the table after `OWN`
_GROUP_BITS = np.uint64(56)  # a key's high byte is its feature's number: rates are reported by feature
_PAIRS = 255  # the number of all pairs together: it stays when there are more categories
_TOKENS = 254  # the number of the first column of tokens; the others come down from it
_MAX_CATEGORIES = 250
_MAX_NUMBERS = 4096  # a row has a place for each, used or not
_COUNT, _MEAN, _SQUARES, _PER_SPREAD, _CENTRE, _BIN = 0, 1, 2, 3, 4, 5  # rows of `_scale`
_CLIP = 8.0  # standard deviations: one absurd number must not wreck a weight
_FAR = 100.0  # standard deviations: nor must it stretch the scale for ever
_LARGEST = 1e100  # beyond it a number counts as missing: its square would be infinite
_BINS = 4.0  # to a standard deviation
_OUTER = 20  # the last bin, in bins from the middle
_PLACES = 2 * _OUTER + 2  # of each number: its bins, and its being missing
_FIRST_BINS = 64.0  # labels after which numbers have bins; they are fitted again whenever that number doubles
# Of `_target`: see `pull`; labels, their mean and mean absolute deviation.
_REACH, _LABELS, _LEVEL, _SPREAD = 0, 1, 2, 3
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
    """FTRL-Proximal over a row's categories, numbers and tokens.

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
        Whether every pair of categories is a category as well; tokens make none.
    admit_after
        Sightings, counted in a sketch, before a value gets a weight: values that are seen once cost no memory.
    expire_after
        Microseconds without a label after which a weight is forgotten; None for never.
    max_weights
        Weights of categories and tokens at most, 80 bytes each, up to twice that when it is no power of two; then those
        without a label for longest go.
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
        self._laid: Floats

    def prepare(self, X: Columns) -> Columns:
        """Return uint64[n, categories and pairs] keys, 0 where missing, and float64[n, numbers], NaN where missing.

        With tokens the keys are `Tokens`: of each row those, and then its tokens'.
        """
        layout, n = self._fitted(X), row_count(X)
        keys = np.empty((n, layout.width), dtype=np.uint64)
        for column, (name, seed) in enumerate(zip(layout.categories, layout.seeds, strict=True)):
            _enter(keys_of(X[name], seed), np.uint64(column + 1), keys, column)
        if self._pairs:
            _pair(keys, len(layout.categories), np.uint64(_PAIRS))
        numbers = np.empty((n, len(layout.numbers)))
        for column, name in enumerate(layout.numbers):
            numbers[:, column] = X[name]
        if not layout.tokens:
            return {"keys": keys, "numbers": numbers}
        lists = [X[name].keys(seed_of(name)) for name in layout.tokens]
        for column, values in enumerate(lists):
            _enter(values.values, np.uint64(_TOKENS - column), values.values[:, None], 0)
        return {"keys": beside(keys, lists), "numbers": numbers}

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
        e_keys, l_keys = events["keys"], labels["keys"]
        if isinstance(e_keys, Tokens):
            e_keys, l_keys = self._readable(e_keys), self._readable(l_keys)
        while True:
            table = self._table
            at = _run(
                at, order, e_keys, events["numbers"], l_keys, labels["numbers"], row, y, weight, clock,
                table.cells, table.floats, table.state, self._sketch, self._state, self._laid, self._bins, self._scale,
                self._params, self._target, p,
            )  # fmt: skip
            if at == len(order):
                return p
            table.grow()

    def _readable(self, keys: Tokens) -> Any:
        """Keys as kernels take them; makes room for the row with most of them."""
        if (lanes := self._lanes(keys.widest)) > self._laid.shape[1]:
            laid: Floats = np.zeros((3, lanes))
            laid[:, : self._linear.shape[1]] = self._linear
            self._laid = laid
        return readable(keys)

    def _lanes(self, keys: int) -> int:
        """Room for a row of so many keys, beside its numbers, the bias and their bins."""
        count = len(self.columns[1])
        return _whole_lanes(count + 1 + keys + (count if len(self._bins) else 0))

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
        out, keys = np.empty(len(X["keys"])), X["keys"]
        if isinstance(keys, Tokens):
            keys = self._readable(keys)
        table = self._table
        _uncertainty(
            keys, X["numbers"], table.cells, table.floats, self._laid, self._bins, self._scale, self._state, self._params,
            out,
        )  # fmt: skip
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
        categories, numbers, tokens = map(list, self.columns)
        return arrays, {"columns": [categories, numbers, *([tokens] if tokens else [])], "table": table}

    def load(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Take over saved weights.

        Raises
        ------
        ModelError
            The table was of another form: the recipe has changed.
        """
        if not meta:
            return
        categories, numbers, *tokens = map(tuple, meta["columns"])
        self._lay_out(_Layout(categories, numbers, tokens[0] if tokens else (), self._pairs))
        self._table.load("weights", arrays, meta["table"])
        self._linear[:] = arrays["linear"]
        self._bins, self._scale, self._state = (arrays[name].copy() for name in ("bins", "scale", "state"))
        if "sketch" in arrays:
            self._sketch = arrays["sketch"].copy()
        if self._numeric:
            self._target = arrays["target"].copy()

    @property
    def columns(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Categories, numbers and tokens that the model reads; none before it saw any."""
        layout = self._layout
        return ((), (), ()) if layout is None else (layout.categories, layout.numbers, layout.tokens)

    def widen(self, X: Columns) -> None:
        """Read these columns as well from now on; they come after the others, whose weights stay what they are.

        Raises
        ------
        ModelError
            There are too many.
        """
        count = len(self.columns[1])
        before = None if self._layout is None else (self._linear, self._bins, self._scale)
        categories, numbers, tokens = (known + more for known, more in zip(self.columns, _names(X), strict=True))
        self._lay_out(_Layout(categories, numbers, tokens, self._pairs))
        if before is not None:
            linear, bins, scale = before
            self._linear[:, :count], self._linear[:, -1] = linear[:, :-1], linear[:, -1]
            self._bins[: len(bins)] = bins
            self._scale[:, :count] = scale[:, :count]

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
        found = _names(X)
        if self._layout is None:
            self._lay_out(_Layout(*found, self._pairs))
        layout = self._layout
        assert layout is not None
        if self.columns != found:
            raise ModelError(
                f"found columns {', '.join(chain(*found))}, expected those that the model began with: "
                f"{', '.join(chain(*self.columns))}"
            )
        return layout

    def _lay_out(self, layout: _Layout) -> None:
        count, named = len(layout.numbers), len(layout.categories) + len(layout.tokens)
        if named > _MAX_CATEGORIES or count > _MAX_NUMBERS:
            raise ModelError(
                f"found {named} categories and {count} numbers for FTRL, expected at most {_MAX_CATEGORIES} and "
                f"{_MAX_NUMBERS}: what is 0 in nearly every row belongs into a category as a value, or into a list of tokens"
            )
        self._layout = layout
        self._bins = np.zeros((count * _PLACES if self._params[4] else 0, 3))
        # z, roots and weights of the numbers and the bias; behind them is room for a row's categories, tokens and bins.
        self._laid = np.zeros((3, self._lanes(layout.width)))
        self._scale = np.zeros((6, _whole_lanes(count)))


def _names(X: Columns) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Categories, numbers and tokens among the columns."""
    tokens = tuple(name for name, values in X.items() if isinstance(values, Tokens))
    categories = tuple(name for name, values in X.items() if name not in tokens and is_category(values))
    return categories, tuple(name for name in X if name not in (*categories, *tokens)), tokens


def _whole_lanes(count: int) -> int:
    return -(-count // _LANES) * _LANES


class _Layout:
    """Which columns a model reads, and in which order.

    A feature's number is the high byte of its keys: 1 for the first category, and so on; 254 for the first tokens, 253, ...
    """

    def __init__(
        self, categories: tuple[str, ...], numbers: tuple[str, ...], tokens: tuple[str, ...], pairs: bool
    ) -> None:
        self.categories, self.numbers, self.tokens, self._pairs = categories, numbers, tokens, pairs
        self.seeds = [seed_of(name) for name in categories]
        count = len(categories)
        self.width = count + (count * (count - 1) // 2 if pairs else 0)

    def groups(self) -> list[tuple[str, int]]:
        """Features with weights in the table, and their numbers."""
        own = [(name, number) for number, name in enumerate(self.categories, start=1)]
        pairs = [("pairs", _PAIRS)] if self._pairs else []
        return own + pairs + [(name, _TOKENS - column) for column, name in enumerate(self.tokens)]


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
    if abs(x) <= _LARGEST:
        away = np.floor((x - centre) * in_spread)
        place = _OUTER + np.int64(min(max(away, -_OUTER), _OUTER)) if in_spread > 0.0 else np.int64(-1)
    return place


@kernel
def _update_scale(raw: Any, scale: Any) -> None:
    """Welford's means and sums of squares; bins are fitted again whenever a count doubles."""
    counts, means, squares, per_spread = scale[_COUNT], scale[_MEAN], scale[_SQUARES], scale[_PER_SPREAD]
    for j in range(raw.shape[0]):
        known = abs(raw[j]) <= _LARGEST
        x = raw[j] if known else means[j]
        if per_spread[j] > 0.0:
            x = min(max(x, means[j] - _FAR / per_spread[j]), means[j] + _FAR / per_spread[j])
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
    """Lay the features of a row side by side: their values in `x`, their weights in `laid`, and in `rows` where those are.

    Returns how many lanes the row takes: what lies behind them is another row's.
    """
    own = width(keys, i)
    for j in range(raw.shape[0]):
        away = (raw[j] - scale[_MEAN, j]) * scale[_PER_SPREAD, j]
        away = -_CLIP if away < -_CLIP else away
        away = _CLIP if away > _CLIP else away
        x[j] = away if abs(raw[j]) <= _LARGEST else 0.0
    x[count] = 1.0
    at = count + 1
    for k in range(own):
        key, row = item(keys, i, k), np.int64(-1)
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
            rows[own + j] = row if place >= 0 else -1
            if place >= 0:
                laid[_Z, at], laid[_ROOT, at], laid[_W, at] = bins[row, _Z], bins[row, _ROOT], bins[row, _W]
            at += 1
    lanes = -(-at // _LANES) * _LANES
    for j in range(at, lanes):
        x[j] = 0.0
    return lanes


@kernel
def _dot(x: Any, w: Any, lanes: Any) -> Any:
    """Four sums side by side: one would wait for itself at every feature."""
    a = b = c = d = 0.0
    for j in range(0, lanes, 4):
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
    count = e_numbers.shape[1]
    z, root, w = laid[_Z], laid[_ROOT], laid[_W]
    rows, x = np.empty(w.shape[0], dtype=np.int64), np.zeros(w.shape[0])
    raw = np.full(scale.shape[1], np.nan)
    expires, stands = np.int64(params[_EXPIRES]), params[_STANDS] > 0.0
    for at_entry in range(at, order.shape[0]):
        i = order[at_entry]
        if i >= 0:
            oldest = state[_NOW] - expires if expires else np.int64(_NEVER)
            for j in range(count):
                raw[j] = e_numbers[i, j]
            lanes = _lay(e_keys, i, count, cells, floats, oldest, laid, bins, scale, rows, raw, x)
            dot = _dot(x, w, lanes)
            p[i] = sigmoid(dot) if target[_REACH] == LOGISTIC else target[_LEVEL] + target[_SPREAD] * dot
            continue
        label = -1 - i
        i = l_row[label]
        own = width(l_keys, i)
        if must_grow(cells, counters, own):
            return at_entry
        now = clock[label]
        state[_NOW] = now
        oldest = now - expires if expires else np.int64(_NEVER)
        for j in range(count):
            raw[j] = l_numbers[i, j]
        if not stands:
            _update_scale(raw, scale)
        lanes = _lay(l_keys, i, count, cells, floats, oldest, laid, bins, scale, rows, raw, x)
        g = weight[label] * _gradient(_dot(x, w, lanes), y[label], target, stands)
        for j in range(lanes):
            z[j], root[j], w[j] = _learned(z[j], root[j], w[j], g * x[j], params)
        moved = False
        for k in range(own):
            key, row = item(l_keys, i, k), rows[k]
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
                row, k = rows[own + j], count + 1 + own + j
                if row >= 0:
                    bins[row, _Z], bins[row, _ROOT], bins[row, _W] = z[k], root[k], w[k]
    return order.shape[0]


@kernel
def _uncertainty(
    keys: Any,
    numbers: Any,
    cells: Any,
    floats: Any,
    laid: Any,
    bins: Any,
    scale: Any,
    state: Any,
    params: Any,
    out: Any,
) -> None:
    count = numbers.shape[1]
    expires = np.int64(params[_EXPIRES])
    oldest = state[_NOW] - expires if expires else np.int64(_NEVER)
    rows, x = np.empty(laid.shape[1], dtype=np.int64), np.zeros(laid.shape[1])
    raw = np.full(scale.shape[1], np.nan)
    for i in range(numbers.shape[0]):
        for j in range(count):
            raw[j] = numbers[i, j]
        lanes = _lay(keys, i, count, cells, floats, oldest, laid, bins, scale, rows, raw, x)
        total = 0.0
        for j in range(lanes):
            total += abs(x[j]) / (params[1] + laid[_ROOT, j])
        out[i] = total / params[0]
