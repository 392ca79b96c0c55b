"""Training boosted trees on a window of the log, and the artifact that comes out.

Trains with LightGBM on the window's first part, stops where the held-out last part is predicted best, then trains again
on the whole window with that number of trees. Guarantees that the split respects time, label delay included, and that
the same window and settings give the same trees on the same engine. The artifact holds text and JSON and is never
retrained to be loaded. This module reads no log and registers nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.definition.loss import LOG_LOSS, Loss
from headrace.errors import ModelError
from headrace.events import Columns
from headrace.models import snapshot, trees
from headrace.models.contract import Floats, row_count, take
from headrace.models.search import SPACE, Searched, search
from headrace.models.text import is_category, kernel, keys_of
from headrace.models.tokens import Tokens

logger = logging.getLogger(__name__)

MAX_CATEGORIES = 256
"""Categories with more values than this are left to target means and linear terms: trees memorise them."""

MAX_TOKENS = 64
"""Tokens of each column that trees see, the most frequent ones; all of them are left to linear terms."""

DEFAULTS: dict[str, Any] = {
    "num_leaves": 31,
    "learning_rate": 0.1,
    "min_data_in_leaf": 200,
    "feature_fraction": 0.5,
    "max_bin": 63,
}
"""LightGBM's parameters unless the recipe sets them; measured on flights, about 11 CPU seconds for 240,000 rows."""

HELD_OUT = 0.2
"""Share of a window's labelled events, the last ones, that tells when to stop."""

MAX_TREES = 1000
PATIENCE = 30  # trees without a better held-out loss before training stops

_NAMES = {
    **dict.fromkeys(("eta", "shrinkage_rate"), "learning_rate"),
    **dict.fromkeys(("num_leaf", "max_leaves", "max_leaf", "max_leaf_nodes"), "num_leaves"),
    **dict.fromkeys(("min_data", "min_data_per_leaf", "min_child_samples", "min_samples_leaf"), "min_data_in_leaf"),
    **dict.fromkeys(("sub_feature", "colsample_bytree"), "feature_fraction"),
    **dict.fromkeys(("reg_lambda", "lambda", "l2_regularization"), "lambda_l2"),
    **dict.fromkeys(
        (
            *("num_iterations", "num_iteration", "n_iter", "num_tree", "num_trees", "num_round", "num_rounds"),
            *("nrounds", "num_boost_round", "n_estimators", "max_iter"),
        ),
        "max_trees",
    ),
    **dict.fromkeys(
        ("early_stopping_round", "early_stopping_rounds", "early_stopping", "n_iter_no_change"), "patience"
    ),
    "max_bins": "max_bin",
}
"""LightGBM's other names of what `DEFAULTS` and the search set, and its names of what stops the training."""

_USUAL: dict[str, Any] = {"lambda_l2": SPACE["lambda_l2"][0]}  # LightGBM's own is 0, which has no logarithm

# Not the recipe's to change: equal trees for equal windows, and the objective that everything above expects.
_FIXED: dict[str, Any] = {
    "deterministic": True,
    "force_row_wise": True,
    "seed": 0,
    "verbosity": -1,
}
_LEAST_NOISE = 1e-6  # of the spread: trees that were never wrong may be yet
_CAPPED = "capped_l2"  # LightGBM has no such metric


def _objective(loss: Loss) -> dict[str, Any]:
    """What LightGBM minimises, and the metric that stops it: the stream's loss."""
    match loss.kind:
        case "log":
            return {"objective": "binary", "metric": "binary_logloss"}
        case "absolute":
            return {"objective": "regression_l1", "metric": "l1"}
        case "squared":  # a label that costs the cap pulls no harder than that
            return {"objective": "huber", "alpha": math.sqrt(loss.cap), "metric": _CAPPED, "reg_sqrt": False}


@dataclass(frozen=True)
class Encoding:
    """Which columns the trees read, and the code of every category; frozen at training.

    Attributes
    ----------
    categories
        Column and the keys of its values (`Text.keys`), sorted; a value's code is its key's place. Values not listed count
        as missing.
    numbers
        Columns taken as they are, after the categories.
    wide
        Categories with too many values for trees, which linear terms may still use.
    tokens
        Column and the keys of its most frequent tokens, sorted. After the numbers each gives the number of a row's tokens,
        and for every key whether the row has it; all missing where the list is.
    """

    categories: tuple[tuple[str, NDArray[np.uint64]], ...]
    numbers: tuple[str, ...]
    wide: tuple[str, ...] = ()
    tokens: tuple[tuple[str, NDArray[np.uint64]], ...] = ()

    @classmethod
    def fit(cls, X: Columns, max_categories: int = MAX_CATEGORIES) -> Encoding:
        """Take every number, every category of at most `max_categories` values, and of lists the `MAX_TOKENS` commonest tokens.

        >>> fitted = Encoding.fit({"wind": np.array([3.0]), "origin": np.array(["JFK", None], dtype=object)})
        >>> fitted.numbers, [(name, len(keys)) for name, keys in fitted.categories], fitted.wide
        (('wind',), [('origin', 1)], ())
        """
        lists = {name: values for name, values in X.items() if isinstance(values, Tokens)}
        found = {name: _distinct_keys(v) for name, v in X.items() if name not in lists and is_category(v)}
        categories = tuple((name, keys) for name, keys in found.items() if 0 < len(keys) <= max_categories)
        wide = tuple(name for name, keys in found.items() if len(keys) > max_categories)
        numbers = tuple(name for name in X if name not in found and name not in lists)
        return cls(categories, numbers, wide, tuple((name, _commonest(values)) for name, values in lists.items()))

    @property
    def category_names(self) -> tuple[str, ...]:
        """Every category, those that trees do not read included."""
        return (*(name for name, _ in self.categories), *self.wide)

    @property
    def token_names(self) -> tuple[str, ...]:
        """Every column of tokens."""
        return tuple(name for name, _ in self.tokens)

    def matrix(self, X: Columns) -> Floats:
        """Return float64[n, columns]: codes, then numbers, then what is said of tokens; NaN where missing or unknown."""
        width = len(self.categories) + len(self.numbers)
        out = np.empty((row_count(X), width + sum(1 + len(known) for _, known in self.tokens)))
        for column, (name, known) in enumerate(self.categories):
            keys = keys_of(X[name])
            place = np.searchsorted(known, keys)
            place[place == len(known)] = 0
            out[:, column] = np.where(known[place] == keys, place, np.nan)
        for column, name in enumerate(self.numbers, start=len(self.categories)):
            out[:, column] = X[name]
        for name, known in self.tokens:
            lists = X[name].keys()
            _mark(lists.values, lists.start, lists.count, known, out[:, width : width + 1 + len(known)])
            width += 1 + len(known)
        return out


def _distinct_keys(values: Any) -> NDArray[np.uint64]:
    keys = np.unique(keys_of(values))
    known: NDArray[np.uint64] = keys[keys != 0]
    return known


def _commonest(values: Tokens) -> NDArray[np.uint64]:
    keys, counts = np.unique(values.keys().values, return_counts=True)
    chosen: NDArray[np.uint64] = np.sort(keys[np.argsort(-counts, kind="stable")[:MAX_TOKENS]])
    return chosen


@kernel
def _mark(values: Any, start: Any, count: Any, known: Any, out: Any) -> None:
    for i in range(count.shape[0]):
        missing = count[i] < 0
        for k in range(out.shape[1]):
            out[i, k] = np.nan if missing else 0.0
        if not missing:
            out[i, 0] = count[i]
        for k in range(count[i]):
            place = np.searchsorted(known, values[start[i] + k])
            if place < known.shape[0] and known[place] == values[start[i] + k]:
                out[i, 1 + place] = 1.0


@dataclass(frozen=True)
class Target:
    """Labels that are numbers, as the window had them, in their unit."""

    centre: float  # median
    spread: float  # mean absolute deviation from it
    noise: float  # of the held-out residuals: mean absolute, or root mean capped square


@dataclass(frozen=True)
class Ensemble:
    """Frozen boosted trees with what is needed to use them.

    Attributes
    ----------
    text
        The booster as LightGBM writes it.
    encoding
        From columns to the trees' matrix.
    outstanding
        Mean number of events without a label, over the window, at the moments when events entered.
    target
        Of labels that are numbers; None for a yes or no.
    """

    text: str = field(repr=False)  # megabytes
    encoding: Encoding = field(repr=False)
    outstanding: float
    target: Target | None = None

    @cached_property
    def trees(self) -> trees.Trees:
        """The parsed trees."""
        return trees.parse(self.text)

    def dump(self) -> bytes:
        """Return the artifact as bytes; see `headrace.models.snapshot.dump`."""
        meta = {
            "categories": [name for name, _ in self.encoding.categories],
            "numbers": list(self.encoding.numbers),
            "wide": list(self.encoding.wide),
            "tokens": list(self.encoding.token_names),
            "outstanding": self.outstanding,
        }
        if self.target is not None:
            meta["target"] = list(astuple(self.target))
        keys = {f"keys {name}": keys for name, keys in (*self.encoding.categories, *self.encoding.tokens)}
        return snapshot.dump({"booster": np.frombuffer(self.text.encode(), dtype=np.uint8), **keys}, meta)

    @classmethod
    def parse(cls, artifact: bytes) -> Ensemble:
        """Read an artifact; raises SnapshotError when it is damaged."""
        arrays, meta = snapshot.parse(artifact)
        categories, tokens = (
            tuple((name, arrays[f"keys {name}"]) for name in meta[kind]) for kind in ("categories", "tokens")
        )
        encoding = Encoding(categories, tuple(meta["numbers"]), tuple(meta["wide"]), tokens)
        target = Target(*meta["target"]) if "target" in meta else None
        return cls(arrays["booster"].tobytes().decode(), encoding, float(meta["outstanding"]), target)


@dataclass(frozen=True)
class Trained:
    """What `train` returns.

    Attributes
    ----------
    ensemble
        Trained on the whole window.
    held_out
        Trained on the window's first part only: what the held-out rows may be judged with.
    valid_from
        First held-out row; rows from here on are scored by `held_out`.
    curve_train, curve_valid
        Loss after each tree.
    best_trees
        Number of trees with the least held-out loss.
    learning_rate
        That of each tree.
    searched
        What the search for parameters found, when the recipe asked for one.
    """

    ensemble: Ensemble
    held_out: Ensemble
    valid_from: int
    curve_train: tuple[float, ...]
    curve_valid: tuple[float, ...]
    best_trees: int
    learning_rate: float
    searched: Searched | None = None


def train(
    X: Columns,
    y: Floats,
    event_time: NDArray[np.int64],
    label_time: NDArray[np.int64],
    params: Mapping[str, Any] | None = None,
    *,
    loss: Loss = LOG_LOSS,
    weight: Floats | None = None,
    threads: int = 1,
) -> Trained:
    """Train boosted trees on a window.

    Parameters
    ----------
    X, y
        n labelled events in the order of their times; y is 0 or 1, or a number where the loss is one of numbers.
    event_time, label_time
        int64[n] microseconds. Rows whose label came after the first held-out event teach nothing before it.
    params
        LightGBM's parameters, over `DEFAULTS`; also `max_trees`, `patience`, `max_categories`, and `search` with the
        budget of a search, {"trials": n or None, "seconds": s or None}.
    loss
        What is minimised, and what stops the training.
    weight
        float64[n], what each row weighs; one of 0 neither teaches nor validates. None: all rows weigh the same.
    threads
        For training only; the trees do not depend on it. More than one is slower where other processes share the cores.

    Raises
    ------
    ModelError
        Too few rows, labels that are all the same, or rows out of order.
    """
    own = {_NAMES.get(name, name): value for name, value in (params or {}).items()}
    rounds, patience = int(own.pop("max_trees", MAX_TREES)), int(own.pop("patience", PATIENCE))
    max_categories, budget = int(own.pop("max_categories", MAX_CATEGORIES)), own.pop("search", None)
    settings = DEFAULTS | own | _FIXED | _objective(loss) | {"num_threads": threads}

    valid_from = split(y, event_time, label_time, loss, weight)
    outstanding, begins, judged_from = _outstanding(event_time, label_time), event_time[valid_from], valid_from
    if weight is not None:
        rows = np.flatnonzero(weight)
        X, y, event_time, label_time = take(X, rows), y[rows], event_time[rows], label_time[rows]
        weight = weight[rows] if (weight[rows] != 1.0).any() else None
        judged_from = int(np.searchsorted(rows, valid_from))
    early = np.flatnonzero(label_time[:judged_from] < begins)
    encoding = Encoding.fit(X, max_categories)
    sheet = _Sheet(encoding.matrix(X), y, weight, len(encoding.categories), loss, rounds, patience)
    searched = None
    if budget is not None:
        settings["feature_pre_filter"] = False  # which features can be split depends on what is searched
        searched = _search(sheet, _parts(early, event_time, label_time), settings, own, budget)
        settings |= {} if searched is None else searched.params
    booster, curve_train, curve_valid = sheet.fit(early, np.arange(judged_from, len(y)), settings)
    best = max(1, booster.best_iteration)
    target = None
    if loss.regression:
        residual = y[judged_from:] - booster.predict(sheet.matrix[judged_from:], num_iteration=best)
        target = _target(y, residual, loss)
    return Trained(
        ensemble=Ensemble(sheet.grow(settings, best).model_to_string(), encoding, outstanding, target),
        held_out=Ensemble(booster.model_to_string(num_iteration=best), encoding, outstanding, target),
        valid_from=valid_from,
        curve_train=curve_train,
        curve_valid=curve_valid,
        best_trees=best,
        learning_rate=float(settings["learning_rate"]),
        searched=searched,
    )


@dataclass(frozen=True)
class _Sheet:
    """Rows for LightGBM, the categories' codes first, and when to stop."""

    matrix: Floats
    y: Floats
    weight: Floats | None  # None: all weigh the same
    categories: int
    loss: Loss
    rounds: int  # trees at most
    patience: int

    def fit(
        self, rows: NDArray[np.intp], valid: NDArray[np.intp], settings: Mapping[str, Any]
    ) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
        """The booster of some rows that stopped by others, and the losses of both after each tree."""
        import lightgbm  # here, so that using trained trees does not load the library

        metric = settings["metric"]
        curves: dict[str, dict[str, list[float]]] = {}
        first = self._data(rows, settings)
        booster = lightgbm.train(
            dict(settings),
            first,
            self.rounds,
            valid_sets=[first, self._data(valid, settings, first)],
            valid_names=["train", "valid"],
            feval=self._capped if metric == _CAPPED else None,
            callbacks=[
                lightgbm.early_stopping(self.patience, first_metric_only=True, verbose=False),
                lightgbm.record_evaluation(curves),
            ],
        )
        return booster, tuple(curves["train"][metric]), tuple(curves["valid"][metric])

    def grow(self, settings: Mapping[str, Any], trees: int) -> Any:
        """The booster of so many trees of all rows."""
        import lightgbm

        return lightgbm.train(dict(settings), self._data(slice(None), settings), trees)

    def _data(self, rows: slice | NDArray[np.intp], settings: Mapping[str, Any], reference: Any = None) -> Any:
        import lightgbm

        return lightgbm.Dataset(
            self.matrix[rows],
            self.y[rows],
            weight=None if self.weight is None else self.weight[rows],
            reference=reference,
            categorical_feature=list(range(self.categories)),
            params=dict(settings),
            free_raw_data=False,
        )

    def _capped(self, predicted: Floats, rows: Any) -> tuple[str, float, bool]:
        return _CAPPED, float(np.minimum((rows.get_label() - predicted) ** 2, self.loss.cap).mean()), False


def _search(
    sheet: _Sheet,
    parts: tuple[NDArray[np.intp], NDArray[np.intp]],
    settings: Mapping[str, Any],
    own: Mapping[str, Any],
    budget: Mapping[str, Any],
) -> Searched | None:
    """Look for the parameters that the recipe does not set; None when labels of a part of the rows are all the same."""
    if any(len(np.unique(sheet.y[rows])) < 2 for rows in parts):
        logger.warning("the window is too short to search in: the trees get the usual parameters")
        return None

    def evaluate(params: Mapping[str, Any]) -> float:
        return min(sheet.fit(*parts, {**settings, **params})[2])

    return search(evaluate, _USUAL | DEFAULTS, own, budget["trials"], budget["seconds"])


def _target(y: Floats, residual: Floats, loss: Loss) -> Target:
    centre = float(np.median(y))
    spread = float(np.abs(y - centre).mean())
    mean = np.minimum(residual**2, loss.cap).mean() ** 0.5 if loss.kind == "squared" else np.abs(residual).mean()
    return Target(centre, spread, max(float(mean), _LEAST_NOISE * spread))


def _parts(
    rows: NDArray[np.intp], event_time: NDArray[np.int64], label_time: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the rows whose labels had come before the last ones began, and those last ones."""
    first = rows[int(len(rows) * (1.0 - HELD_OUT))]
    return rows[(rows < first) & (label_time[rows] < event_time[first])], rows[rows >= first]


def split(
    y: Floats,
    event_time: NDArray[np.int64],
    label_time: NDArray[np.int64],
    loss: Loss = LOG_LOSS,
    weight: Floats | None = None,
) -> int:
    """Return the first held-out row of a window, after checking that there is something to learn and to validate.

    Parameters
    ----------
    y, event_time, label_time, loss, weight
        As `train` has them.

    Raises
    ------
    ModelError
        Rows out of order, or a part whose labels are all the same.
    """
    if bool((np.diff(event_time) < 0).any()):
        raise ModelError("found training rows out of order, expected them by event time: order the window by seq")
    first = int(len(y) * (1.0 - HELD_OUT))
    early = np.zeros(len(y), dtype=np.bool_)
    if first < len(y):
        early[:first] = label_time[:first] < event_time[first]
    teaches = np.ones(len(y), dtype=np.bool_) if weight is None else weight > 0.0
    for part, labels in (("training", y[early & teaches]), ("held-out", y[first:][teaches[first:]])):
        if (kinds := len(np.unique(labels))) < 2:
            found, expected = ("value(s)", "different ones") if loss.regression else ("class(es)", "both classes")
            raise ModelError(
                f"found {len(labels)} labels of {kinds} {found} in the {part} part of the window, expected {expected}: "
                "choose a longer window"
            )
    return first


def _outstanding(event_time: NDArray[np.int64], label_time: NDArray[np.int64]) -> float:
    """Return the mean number of open events when an event enters."""
    arrived = np.searchsorted(np.sort(label_time), event_time, side="left")
    return float(np.mean(np.arange(len(event_time)) - arrived))
