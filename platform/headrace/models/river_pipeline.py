"""Any river classifier, or regressor, behind the model contract, one row at a time.

A row becomes the dict that river expects: `str` for categories, `float` for numbers, a list of `str` for tokens, nothing
for a missing value.
Guarantees that a range of the log gives the same predictions however it is cut. Its state is a pickle, signed and
loaded through `headrace.models.snapshot`; equal models may pickle to different bytes, so compare their predictions.
River's own mini-batch methods are not used: for most estimators they are another algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ModelError
from headrace.events import Columns
from headrace.models.contract import Arrays, Clock, Floats, row_count
from headrace.models.snapshot import Pair, sign, unsign
from headrace.models.text import Text
from headrace.models.tokens import Tokens

_ROW = "river_row"


class RiverModel:
    """A river classifier that follows the log.

    Parameters
    ----------
    build
        Returns a new, untrained classifier, seeded if it draws random numbers.
    key
        Signs the pickled state; at least 16 bytes.
    declared
        (module, name) pairs of the user's own classes and functions within the pipeline.

    Examples
    --------
    >>> from river import linear_model
    >>> model = RiverModel(linear_model.LogisticRegression, key=bytes(16))
    >>> X = model.prepare({"wind": np.array([1.0, np.nan]), "origin": np.array([None, None], dtype=object)})
    >>> X["river_row"].tolist()
    [{'wind': 1.0}, {}]
    >>> model.predict(X).tolist()
    [0.5, 0.5]
    """

    memo_width = 0

    def __init__(self, build: Callable[[], Any], key: bytes, declared: Collection[Pair] = ()) -> None:
        self._key = key
        self._declared = frozenset(declared)
        self._bind(build())

    def prepare(self, X: Columns) -> Columns:
        """Turn n rows into one dict each; a missing value has no entry."""
        out = np.empty(row_count(X), dtype=object)
        names = list(X)
        # v == v is False for NaN alone: cheaper than isnan, and true of every str.
        out[:] = [
            {name: v for name, v in zip(names, row, strict=True) if v is not None and v == v}
            for row in zip(*map(_plain, X.values()), strict=True)
        ]
        return {_ROW: out}

    def ask(self, X: Columns, clock: Clock, outstanding: int) -> tuple[Floats, Floats]:
        """Predict n events; see `headrace.models.contract.Model`."""
        p = self.predict(X)
        return p, np.empty((len(p), 0))

    def learn(self, X: Columns, y: Floats, memo: Floats, weight: Floats, clock: Clock) -> None:
        """Learn n labels one after the other; a weight other than 1 needs a classifier that takes one."""
        for row, label, w in zip(X[_ROW], y.tolist(), weight.tolist(), strict=True):
            if w == 1.0:
                self._learn_one(row, label == 1.0)
            else:
                self._learn_one(row, label == 1.0, w=w)

    def predict(self, X: Columns) -> Floats:
        """Return float64[n]; a classifier that has not seen both classes answers as far as it can."""
        proba = self._proba_one
        p = np.empty(len(X[_ROW]))
        for i, row in enumerate(X[_ROW]):
            answer = proba(row)
            # Untrained classifiers answer {}, and those that saw one class leave the other out.
            p[i] = answer[True] if True in answer else 1.0 - answer[False] if False in answer else 0.5
        return p

    def save(self) -> tuple[Arrays, dict[str, Any]]:
        """Return the signed pickle as one array of bytes."""
        return {"pickle": np.frombuffer(sign(self._model, self._key), dtype=np.uint8)}, {"library": "river"}

    def load(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Take over a saved state.

        Raises
        ------
        SnapshotError
            The signature does not match, or the state holds a pair that is not allowed.
        """
        self._bind(unsign(arrays["pickle"].tobytes(), self._key, self._declared))

    def _bind(self, model: Any) -> None:
        from river import base  # the pipeline has imported it by now

        last = _last_step(model)
        if isinstance(last, base.Regressor):
            raise ModelError(
                f"found {type(last).__name__}, a river regressor, expected a classifier: the stream's labels are a yes or no "
                '(Label(task="regression", ...) is for numbers)'
            )
        missing = [name for name in ("predict_proba_one", "learn_one") if not hasattr(model, name)]
        if missing:
            raise ModelError(f"found {type(model).__name__} without {', '.join(missing)}, expected a river classifier")
        self._model = model
        self._proba_one, self._learn_one = model.predict_proba_one, model.learn_one


class RiverRegressor(RiverModel):
    """A river regressor that follows the log of a stream whose labels are numbers; see `RiverModel`.

    It minimises what the pipeline's own loss says, whatever the stream's verdicts stand on.

    Examples
    --------
    >>> from river import linear_model
    >>> model = RiverRegressor(linear_model.LinearRegression, key=bytes(16))
    >>> model.predict(model.prepare({"wind": np.array([1.0])})).tolist()
    [0.0]
    """

    def learn(self, X: Columns, y: Floats, memo: Floats, weight: Floats, clock: Clock) -> None:
        """Learn n labels one after the other; a weight other than 1 needs a regressor that takes one."""
        for row, label, w in zip(X[_ROW], y.tolist(), weight.tolist(), strict=True):
            if w == 1.0:
                self._learn_one(row, label)
            else:
                self._learn_one(row, label, w=w)

    def predict(self, X: Columns) -> Floats:
        """Return float64[n]; a regressor that has nothing to say yet says 0."""
        answers = (self._predict_one(row) for row in X[_ROW])
        return np.array([0.0 if answer is None else answer for answer in answers], dtype=np.float64)

    def _bind(self, model: Any) -> None:
        from river import base  # the pipeline has imported it by now

        last = _last_step(model)
        missing = [name for name in ("predict_one", "learn_one") if not hasattr(last, name)]
        if missing or isinstance(last, base.Classifier):
            raise ModelError(
                f"found {type(last).__name__}, expected a river regressor: the stream's labels are numbers"
            )
        self._model = model
        self._predict_one, self._learn_one = model.predict_one, model.learn_one


def _last_step(model: Any) -> Any:
    """What predicts at the end of a pipeline."""
    while hasattr(model, "steps"):
        model = list(model.steps.values())[-1]
    return model


def _plain(values: Text | Tokens | NDArray[Any]) -> list[Any]:
    if isinstance(values, Tokens):
        return values.lists()
    plain: list[Any] = (values.names() if isinstance(values, Text) else values).tolist()
    return plain
