"""Frozen boosted trees whose score is recalibrated online: what is the same for logits and for numbers.

(a, b) follows the labels by one Kalman step each; what a score and (a, b) say, and how a label moves them, is the kernel of
a subclass. The trees come as an artifact and are no part of the state; LightGBM itself is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headrace.events import Columns
from headrace.models.boosting import Ensemble
from headrace.models.contract import Arrays, Clock, Floats, Turns

SCALE = 0.03
"""s of the stacker: variance of the start, times sqrt(1 + D)."""

RESTORE = 3e-3
"""r of the stacker: share of the start's variance given back per label, times 1 + D."""

_NONE, _NO_EVENTS = np.empty(0), np.empty(0, dtype=np.int64)


class Recalibrated:
    """Boosted trees with a recalibration of two parameters.

    Parameters
    ----------
    ensemble
        The frozen trees.
    a
        Where the recalibration of the score starts.
    scale
        How far it may move.
    fixed
        float64[...], what the kernel wants to know beside the state.
    """

    memo_width = 0
    _kernel: ClassVar[Callable[..., None]]
    """Goes over entries: their order, scores of events, outstanding, scores of labels, their rows, y, weight, fixed, state, p."""

    def __init__(self, ensemble: Ensemble, a: float, scale: float, fixed: Floats) -> None:
        self._ensemble, self._fixed = ensemble, fixed
        start = scale / np.sqrt(1.0 + ensemble.outstanding)
        # One array, so that a call of one row hands few arguments over: a, b, P_aa, P_ab, P_bb, D, v.
        self._state = np.array([a, 0.0, start, 0.0, start, ensemble.outstanding, start])

    def prepare(self, X: Columns) -> Columns:
        """Return the trees' score of each row."""
        return {"score": self._ensemble.trees.walk(self._ensemble.encoding.matrix(X))[1]}

    def follow(self, turns: Turns, events: Columns, labels: Columns) -> tuple[Floats, Floats]:
        """Predict events and learn labels, in their order; see `headrace.models.contract.Following`."""
        p = np.empty(len(events["score"]))
        self._kernel(
            turns.order, events["score"], turns.outstanding, labels["score"], turns.row, turns.y, turns.weight,
            self._fixed, self._state, p,
        )  # fmt: skip
        return p, np.empty((len(p), 0))

    def ask(self, X: Columns, clock: Clock, outstanding: int) -> tuple[Floats, Floats]:
        """Predict n events; see `headrace.models.contract.Model`."""
        p = self._predict(X["score"], outstanding, self._state)
        return p, np.empty((len(p), 0))

    def learn(self, X: Columns, y: Floats, memo: Floats, weight: Floats, clock: Clock) -> None:
        """Learn n labels one after the other; a weight counts as that many equal labels in one step."""
        rows = np.arange(len(y))
        self._kernel(~rows, _NONE, _NO_EVENTS, X["score"], rows, y, weight, self._fixed, self._state, _NONE)

    def predict(self, X: Columns) -> Floats:
        """Return float64[n] and change nothing."""
        return self._predict(X["score"], 0, self._state.copy())

    def _predict(self, score: Floats, outstanding: int, state: Floats) -> Floats:
        p, rows = np.empty(len(score)), np.arange(len(score))
        self._kernel(rows, score, outstanding + rows, _NONE, _NO_EVENTS, _NONE, _NONE, self._fixed, state, p)
        return p

    def save(self) -> tuple[Arrays, dict[str, Any]]:
        """Return the recalibration; the trees are an artifact of their own."""
        return {"recalibration": self._state.copy()}, {}

    def load(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Take over a saved recalibration."""
        self._state = arrays["recalibration"].copy()
