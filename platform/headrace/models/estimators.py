"""headrace's array models as river estimators: dicts or pandas frames in, at home in river's pipelines and checks.

A feature that is a `str` or `bool` is a category, any other number a number, a list of `str` its tokens, None or NaN a
missing value; what a row leaves out is missing from it. Guarantees that `learn_many` gives the bits that `learn_one` gives
row after row, and that a saved estimator goes on to the bit. Importing this module imports river, so nothing that follows a
log does.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from river import base

from headrace.definition.loss import LARGEST, Loss
from headrace.definition.recipes import Recipe, default_members
from headrace.definition.recipes import stack as stack_recipe
from headrace.errors import ModelError
from headrace.events import Columns
from headrace.models import boosting, build, gbdt_lr, lightgbm, recalibrated, target_mean
from headrace.models.boosting import Ensemble
from headrace.models.contract import Arrays, Floats, Model, Turns, take
from headrace.models.ftrl import Ftrl
from headrace.models.label_mean import LabelMean
from headrace.models.text import Text, is_category
from headrace.models.tokens import Tokens

if TYPE_CHECKING:
    import pandas as pd

    from headrace.models.stack import Stack

Features = Mapping[Any, Any]
"""What river hands over: a row's features by name."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KINDS = {"category": "a category (str or bool)", "number": "a number", "tokens": "tokens (a list of str)"}
_MICROSECOND = timedelta(microseconds=1)


class ArrayEstimator(base.Estimator):
    """What the estimators below have in common."""

    def _begin(
        self, model: Model, categories: Sequence[str] = (), numbers: Sequence[str] = (), tokens: Sequence[str] = ()
    ) -> None:
        self._model = model
        self._labels = 0  # learned so far: the model's clock
        self._reads = _kinds(categories, numbers, tokens)

    def learn_one(self, x: Features, y: Any, w: float = 1.0) -> None:
        """Learn a row's label, True or False (or 1 or 0), or a regressor's number, with weight `w`."""
        self._learn(_row(x), self._labels_of([y]), np.array([w], dtype=np.float64))

    def learn_many(self, X: pd.DataFrame, y: pd.Series, w: float | pd.Series = 1.0) -> None:
        """Learn the labels of a frame's rows, the first one first: to the bit what `learn_one` would."""
        targets = self._labels_of(y)
        if len(targets) != len(X):
            raise ModelError(f"found {len(targets)} labels for {len(X)} rows, expected one for each")
        self._learn(_frame(X), targets, np.broadcast_to(np.asarray(w, dtype=np.float64), targets.shape).copy())

    @abstractmethod
    def _labels_of(self, y: Any) -> Floats:
        """Labels as the model takes them."""

    def save(self) -> tuple[Arrays, dict[str, Any]]:
        """Return the state as arrays and JSON; `headrace.models.snapshot.dump` makes bytes of both."""
        arrays, meta = self._model.save()
        return arrays, {"estimator": type(self).__name__, "labels": self._labels, "model": meta}

    def load(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Take over what an estimator with the same parameters saved, in this process or another, and go on to the bit.

        Raises
        ------
        ModelError
            The state is that of another estimator, or of one with other parameters.
        """
        _check_saved_by(self, meta)
        self._model.load(arrays, meta["model"])
        self._labels = int(meta["labels"])

    def _learn(self, found: Columns, y: Floats, w: Floats) -> None:
        X = self._model.prepare(self._arranged(found, len(y)))
        self._teach(X, y, w, self._labels + np.arange(len(y)))
        self._labels += len(y)

    def _teach(self, X: Columns, y: Floats, w: Floats, clock: NDArray[np.int64]) -> None:
        self._model.learn(X, y, np.empty((len(y), 0)), w, clock)

    def _predict(self, found: Columns, n: int) -> Floats:
        return self._model.predict(self._model.prepare(self._arranged(found, n)))

    def _arranged(self, found: Columns, n: int) -> dict[str, Any]:
        """The columns that the model reads, in its order; missing values where there is none of that name.

        Raises
        ------
        ModelError
            A category comes as a number, or the like.
        """
        arranged: dict[str, Any] = {}
        for name, kind in self._reads.items():
            values = found.get(name)
            if values is None:
                values = _missing(kind, n)
            elif (comes := _kind(values)) != kind:
                raise ModelError(f"found {_KINDS[comes]} for feature {name!r}, expected {_KINDS[kind]} as before")
            arranged[name] = values
        return arranged


class ArrayClassifier(ArrayEstimator, base.MiniBatchClassifier):
    """What the classifiers below have in common."""

    def predict_proba_one(self, x: Features, **kwargs: Any) -> dict[base.typing.ClfTarget, float]:
        """Return the probabilities of False and True."""
        p = float(self._predict(_row(x), 1)[0])
        return {False: 1.0 - p, True: p}

    def predict_proba_many(self, X: pd.DataFrame) -> pd.DataFrame:
        """Return a frame of the probabilities of False and True, with the index of `X`."""
        import pandas as pd

        p = self._predict(_frame(X), len(X))
        return pd.DataFrame({False: 1.0 - p, True: p}, index=X.index)

    def _labels_of(self, y: Any) -> Floats:
        return _targets(y)


class FtrlEstimator(ArrayEstimator):
    """An FTRL model that takes in a feature at the first row that has a value for it."""

    _model: Ftrl
    _before: float  # what is predicted before there is any feature

    def _learn(self, found: Columns, y: Floats, w: Floats) -> None:
        """Learn rows; the model grows at the very row that brings a feature's first value, however rows come."""
        first = {name: _first_known(found[name]) for name in sorted(found) if name not in self._reads}
        for start, stop in pairwise(sorted({0, len(y), *first.values()})):
            if new := {name: found[name][:0] for name, row in first.items() if row == start}:
                self._model.widen(new)
                self._reads |= {name: _kind(values) for name, values in new.items()}
            rows = slice(start, stop)
            if self._reads:
                super()._learn(take(found, rows), y[rows], w[rows])
            else:
                self._labels += stop - start  # before the first value of all there is nothing to learn from

    def _predict(self, found: Columns, n: int) -> Floats:
        return super()._predict(found, n) if self._reads else np.full(n, self._before)

    def load(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        super().load(arrays, meta)
        self._reads = _kinds(*self._model.columns)


class FtrlClassifier(FtrlEstimator, ArrayClassifier):
    """FTRL-Proximal logistic regression over categories, tokens and numbers as they are; no encoder or scaler is needed.

    Every value of a category and every token has a weight, a number one on its standardised value and one for each quarter of
    a standard deviation. A feature counts from the first row that has a value for it, and is missing from rows without one.
    Memory is bounded by `max_weights` and by 250 categories (lists of tokens among them) and 4,096 numbers at most.

    Parameters
    ----------
    alpha, beta, l1, l2
        Learning rate alpha / (beta + sqrt(n)) of a weight with n squared gradients, and its penalties.
    bins
        Whether numbers also have the weights for quarters of a standard deviation, and one for being missing.
    pairs
        Whether every pair of categories is a category as well.
    admit_after
        Sightings before a value gets a weight.
    expire_after
        Labels after which a weight that met none is forgotten; None for never.
    max_weights
        Weights of categories and tokens at most, 80 bytes each; then those without a label for longest go.

    Examples
    --------
    >>> from river import datasets, evaluate, metrics
    >>> model = FtrlClassifier(alpha=0.3)
    >>> evaluate.progressive_val_score(datasets.Phishing(), model, metrics.ROCAUC())
    ROCAUC: 96.18%

    References
    ----------
    McMahan et al., "Ad Click Prediction: a View from the Trenches" (2013), section 3.1.
    """

    _before = 0.5

    def __init__(
        self,
        alpha: float = 0.1,
        beta: float = 1.0,
        l1: float = 0.0,
        l2: float = 0.0,
        bins: bool = True,
        pairs: bool = False,
        admit_after: int = 1,
        expire_after: int | None = None,
        max_weights: int = 1 << 22,
    ) -> None:
        self.alpha, self.beta, self.l1, self.l2 = alpha, beta, l1, l2
        self.bins, self.pairs = bins, pairs
        self.admit_after, self.expire_after, self.max_weights = admit_after, expire_after, max_weights
        self._begin(Ftrl(**self._get_params()))


class FtrlRegressor(FtrlEstimator, base.MiniBatchRegressor):
    """FTRL-Proximal linear regression over categories and numbers as they are; no encoder or scaler is needed.

    Labels are standardised by their running mean and mean absolute deviation, so that learning rates mean the same in any
    unit; otherwise as `FtrlClassifier`.

    Parameters
    ----------
    loss
        "squared" settles at the mean, "absolute" at the median.
    cap
        The most that a label costs under squared loss, in squared units: it pulls no harder than that.
    alpha, beta, l1, l2, bins, pairs, admit_after, expire_after, max_weights
        As in `FtrlClassifier`.

    Examples
    --------
    >>> from river import datasets, evaluate, metrics
    >>> model = FtrlRegressor(loss="absolute")
    >>> evaluate.progressive_val_score(datasets.TrumpApproval(), model, metrics.MAE())
    MAE: 0.354651
    """

    _before = 0.0

    def __init__(
        self,
        loss: Literal["absolute", "squared"] = "squared",
        cap: float = math.inf,
        alpha: float = 0.1,
        beta: float = 1.0,
        l1: float = 0.0,
        l2: float = 0.0,
        bins: bool = True,
        pairs: bool = False,
        admit_after: int = 1,
        expire_after: int | None = None,
        max_weights: int = 1 << 22,
    ) -> None:
        self.loss, self.cap = loss, cap
        self.alpha, self.beta, self.l1, self.l2 = alpha, beta, l1, l2
        self.bins, self.pairs = bins, pairs
        self.admit_after, self.expire_after, self.max_weights = admit_after, expire_after, max_weights
        own = {name: value for name, value in self._get_params().items() if name not in ("loss", "cap")}
        self._begin(Ftrl(**own, loss=Loss(loss, cap)))

    def predict_one(self, x: Features) -> float:
        """Return the number predicted; 0 before the first label."""
        return float(self._predict(_row(x), 1)[0])

    def predict_many(self, X: pd.DataFrame) -> pd.Series:
        """Return a series of the numbers predicted, with the index of `X`."""
        import pandas as pd

        return pd.Series(self._predict(_frame(X), len(X)), index=X.index)

    def _labels_of(self, y: Any) -> Floats:
        try:
            numbers = np.asarray(y, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ModelError(f"found labels that are no numbers ({error}), expected numbers") from error
        if not bool((np.abs(numbers) <= LARGEST).all()):
            raise ModelError(f"found a label that is not finite, or beyond {LARGEST:g}, expected numbers")
        return numbers


class LabelMeanClassifier(ArrayClassifier):
    """How often the last labels were positive, whatever the features say: the least to compare with.

    Parameters
    ----------
    labels
        How many of the last labels count.

    Examples
    --------
    >>> model = LabelMeanClassifier(labels=2)
    >>> for y in (True, True, False):
    ...     model.learn_one({}, y)
    >>> round(model.predict_proba_one({})[True], 3)
    0.455
    """

    def __init__(self, labels: float = 200) -> None:
        self.labels = labels
        self._begin(LabelMean(labels))

    def _arranged(self, found: Columns, n: int) -> dict[str, Any]:
        return {"row": np.arange(n)}  # it asks only how many there are


class TreesClassifier(ArrayClassifier):
    """What the classifiers with frozen trees have in common: they read the features that their trees were trained on."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble
        encoding = ensemble.encoding
        self._begin(self._built(), encoding.category_names, encoding.numbers, encoding.token_names)

    @abstractmethod
    def _built(self) -> Model:
        """The model over the trees, which has learned nothing."""

    @classmethod
    def _unit_test_params(cls) -> Iterator[dict[str, Any]]:
        """Small trees, for river's checks."""
        import pandas as pd

        x = np.random.default_rng(0).random(400)
        yield {"ensemble": train_trees(pd.DataFrame({"x": x}), pd.Series(x > 0.5), max_trees=2)}


class LightGbmClassifier(TreesClassifier):
    """Frozen boosted trees whose logit is recalibrated at each label.

    Parameters
    ----------
    ensemble
        The trees, as `train_trees` returns them.
    scale, restore
        How far and how fast the recalibration may move.
    """

    def __init__(
        self, ensemble: Ensemble, scale: float = recalibrated.SCALE, restore: float = recalibrated.RESTORE
    ) -> None:
        self.scale, self.restore = scale, restore
        super().__init__(ensemble)

    def _built(self) -> Model:
        return lightgbm.LightGbmModel(self.ensemble, self.scale, self.restore)


class GbdtLrClassifier(TreesClassifier):
    """Leaves of frozen boosted trees, and categories, in a logistic regression that learns at each label.

    Parameters
    ----------
    ensemble
        The trees, as `train_trees` returns them.
    leaf_alpha, category_alpha
        Learning rates.
    table_bits
        The categories' hash table has two to this many slots.
    offset
        Whether the trees' score is a fixed part of the logit. If not, the leaves' weights start at the trees' own values.

    References
    ----------
    He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook" (2014).
    """

    def __init__(
        self,
        ensemble: Ensemble,
        leaf_alpha: float = gbdt_lr.LEAF_ALPHA,
        category_alpha: float = gbdt_lr.CATEGORY_ALPHA,
        table_bits: int = gbdt_lr.TABLE_BITS,
        offset: bool = True,
    ) -> None:
        self.leaf_alpha, self.category_alpha, self.table_bits, self.offset = (
            leaf_alpha,
            category_alpha,
            table_bits,
            offset,
        )
        super().__init__(ensemble)

    def _built(self) -> Model:
        return gbdt_lr.GbdtLr(self.ensemble, self.leaf_alpha, self.category_alpha, self.table_bits, self.offset)


class StackClassifier(TreesClassifier):
    """Several models combined at each label, each weighed by what its predictions were worth lately.

    river hands nothing back with a label, so it is learned from what the stack would predict then, not from what it
    predicted when the label was still to come: under a delay give labels in time, or run the stack in headrace.

    Parameters
    ----------
    ensemble
        The trees, as `train_trees` returns them; they should not have seen the labels that the stack learns.
    members
        Recipes of kinds ftrl, lightgbm, gbdt_lr and label_mean; `recipes.default_members(target_means=False)` when not given.
    """

    _model: Stack

    def __init__(self, ensemble: Ensemble, members: tuple[Recipe, ...] | None = None) -> None:
        self.members = members
        super().__init__(ensemble)

    def _built(self) -> Model:
        members = default_members(target_means=False) if self.members is None else self.members
        recipe = stack_recipe(members=members, target_means=False)
        if mistakes := recipe.mistakes():
            raise ModelError(f"stack: {'; '.join(mistakes)}")
        return build.stack(recipe, self.ensemble)

    def _teach(self, X: Columns, y: Floats, w: Floats, clock: NDArray[np.int64]) -> None:
        n, row = len(y), np.arange(len(y))
        memo = np.full((n, self._model.memo_width), np.nan)
        order = np.stack([row, ~row], axis=1).ravel()
        self._model.follow(Turns(order, np.zeros(n, dtype=np.int64), y, w, clock, row, memo, row), X, X)


class TargetMean(base.SupervisedTransformer, base.Transformer):  # a pipeline's steps must be the latter too
    """How often the label was positive lately, for each value of some features and overall.

    Means decay with half-lives of 15 minutes, an hour, six hours and a day. Time is what `learn_one` is told: `t` is when
    the label came, and a row reads the means as they were after the last label. Without `t` no time passes. A row's values
    hold only labels that were learned before it.

    Parameters
    ----------
    by
        Names of the features to group by, one or several; a number counts by its value.
    prior
        Share of positive labels to start from.
    max_values
        Values that are remembered at most, 160 bytes each; then those without labels for longest go.

    Examples
    --------
    >>> means = TargetMean("carrier", prior=0.5)
    >>> means.learn_one({"carrier": "AA"}, True, t=datetime(2013, 1, 1, 12))
    >>> {name: round(p, 3) for name, p in means.transform_one({"carrier": "AA"}).items() if name.endswith("_1h")}
    {'mean_all_1h': 0.545, 'mean_carrier_1h': 0.587}
    """

    def __init__(self, by: str | Sequence[str], prior: float = 0.5, max_values: int = target_mean.MAX_VALUES) -> None:
        self.by, self.prior, self.max_values = by, prior, max_values
        self._means = target_mean.TargetMeans((by,) if isinstance(by, str) else tuple(by), prior, max_values)
        self._clock: int | None = None

    @classmethod
    def _unit_test_params(cls) -> Iterator[dict[str, Any]]:
        yield {"by": "gallup"}

    def transform_one(self, x: Features) -> dict[base.typing.FeatureName, Any]:
        """Return the means as numbers, named as headrace names them: `mean_all_1h`, `mean_carrier_1h` and so on."""
        means = self._means.peek(self._keys(x), np.array([self._clock or 0]))
        return {name: float(values[0]) for name, values in means.items()}

    def learn_one(  # type: ignore[override]  # river's two kinds of transformers differ in it; it asks `_supervised`
        self, x: Features, y: base.typing.Target, t: datetime | None = None
    ) -> None:
        """Learn a label that came at `t`, UTC unless it says otherwise; one earlier than the last counts as of then."""
        clock = 0 if t is None else (t.replace(tzinfo=t.tzinfo or UTC) - _EPOCH) // _MICROSECOND
        self._clock = clock if self._clock is None else max(clock, self._clock)
        self._means.run(
            self._keys(x), np.array([True]), np.array([y], dtype=np.float64), np.ones(1), np.array([self._clock])
        )

    def save(self) -> tuple[Arrays, dict[str, Any]]:
        """Return the state as arrays and JSON; it holds hashes of values, not the values."""
        arrays, meta = self._means.save()
        return arrays, {"estimator": type(self).__name__, "clock": self._clock, "means": meta}

    def load(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Take over what a transformer with the same parameters saved; see `ArrayEstimator.load`."""
        _check_saved_by(self, meta)
        self._means.load(arrays, meta["means"])
        self._clock = meta["clock"]

    def _keys(self, x: Features) -> target_mean.Keys:
        names = {name: np.array([_text(name, x.get(name))], dtype=object) for name in self._means.keys}
        return self._means.keys_of(names)


def train_trees(X: pd.DataFrame, y: pd.Series, **params: Any) -> Ensemble:
    """Train boosted trees on a frame's rows, the oldest first; its last fifth decides how many trees there are.

    Parameters
    ----------
    X, y
        Features, and labels that are True or False.
    params
        For LightGBM, over `headrace.models.boosting.DEFAULTS`; also `max_trees`, `patience`, `max_categories`.

    Raises
    ------
    ModelError
        One of the classes is missing.
    """
    time = 2 * np.arange(len(X))
    return boosting.train(_frame(X), _targets(y), time, time + 1, params).ensemble


def _check_saved_by(estimator: base.Estimator, meta: Mapping[str, Any]) -> None:
    if meta.get("estimator") != type(estimator).__name__:
        raise ModelError(f"found a state of {meta.get('estimator')}, expected one of {type(estimator).__name__}")


def _kinds(categories: Sequence[str], numbers: Sequence[str], tokens: Sequence[str]) -> dict[str, str]:
    """Columns, and what each is."""
    return dict.fromkeys(categories, "category") | dict.fromkeys(numbers, "number") | dict.fromkeys(tokens, "tokens")


def _kind(values: Any) -> str:
    return "tokens" if isinstance(values, Tokens) else "category" if is_category(values) else "number"


def _missing(kind: str, n: int) -> Any:
    if kind == "tokens":
        return Tokens.missing(n)
    return np.zeros(n, dtype=np.uint64) if kind == "category" else np.full(n, np.nan)


def _plain(name: Any, value: Any) -> str | float | list[str] | None:
    """A feature's value: a category's name, a number, a list of tokens, or None for a missing one.

    >>> _plain("wind", 3), _plain("late", True), _plain("wind", float("nan")), _plain("genres", ["war"])
    (3.0, 'true', None, ['war'])
    """
    if isinstance(value, list | tuple) and all(isinstance(token, str) for token in value):
        return list(value)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"found {type(value).__name__} for feature {name!r}, expected str, bool, a number, a list of str or None"
        ) from error
    return number if number == number else None


def _text(name: Any, value: Any) -> str | None:
    """A value to group by, as text; 3 and 3.0 are one.

    >>> _text("gate", 3), _text("gate", 3.0), _text("gate", 2.5), _text("gate", "3a")
    ('3', '3', '2.5', '3a')
    """
    plain = _plain(name, value)
    if isinstance(plain, float):
        return str(int(value)) if plain.is_integer() else str(plain)
    if isinstance(plain, list):
        raise ModelError(f"found a list for feature {name!r}, expected a single value to group by")
    return plain


def _row(x: Features) -> dict[str, Any]:
    """One row's known values: uint64[1] keys of categories, float64[1] numbers, tokens."""
    row = {str(name): value for name, raw in x.items() if (value := _plain(name, raw)) is not None}
    return {
        n: _key(v) if isinstance(v, str) else Tokens.of([v]).keys() if isinstance(v, list) else np.array([v])
        for n, v in row.items()
    }


@lru_cache(1 << 16)
def _key(value: str) -> NDArray[np.uint64]:
    """uint64[1], the key of a category's value; most values come again, and asking numba takes longer than they do."""
    return Text.of([value]).keys()


def _frame(X: pd.DataFrame) -> dict[str, Any]:
    """The same of a frame's rows, for columns with a known value: 0 and NaN where a row has none."""
    found = {str(name): _column(name, values) for name, values in X.items()}
    return {name: values for name, values in found.items() if values is not None}


def _column(name: Any, column: pd.Series) -> Any:
    if column.dtype.kind in "iuf":
        numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
        return None if bool(np.isnan(numbers).all()) else numbers
    pairs = zip(column.tolist(), column.isna().tolist(), strict=True)
    values: list[Any] = [None if missing else _plain(name, value) for value, missing in pairs]
    known = [value for value in values if value is not None]
    if not known:
        return None
    if (lists := sum(isinstance(value, list) for value in known)) == len(known):
        return Tokens.of(values).keys()
    if lists:
        raise ModelError(
            f"found lists and single values for feature {name!r}, expected one of them: convert the column"
        )
    names = [value for value in values if not isinstance(value, float)]
    if len(names) == len(values):
        return Text.of(names).keys()
    if any(isinstance(value, str) for value in known):
        raise ModelError(f"found categories and numbers for feature {name!r}, expected one of them: convert the column")
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _first_known(values: Any) -> int:
    if isinstance(values, Tokens):
        return int(np.argmax(values.count >= 0))
    return int(np.argmax(values != 0 if is_category(values) else values == values))


def _targets(y: Any) -> Floats:
    try:
        targets = np.asarray(y, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ModelError(f"found labels that are no booleans ({error}), expected True or False, or 1 or 0") from error
    if not bool(((targets == 0.0) | (targets == 1.0)).all()):
        raise ModelError(f"found labels {np.unique(targets)[:5].tolist()}, expected True or False, or 1 or 0")
    return targets
