"""Frozen boosted trees whose logit is recalibrated online.

p = sigmoid(a s + b) with s the trees' score; (a, b) starts at (1, 0) and follows the labels by one Kalman step each.
Costs nothing where the trees stay calibrated and repairs them where the base rate or their sharpness drifts. The trees
come as an artifact and are no part of the state; LightGBM itself is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.events import Columns
from headrace.models.arithmetic import sigmoid
from headrace.models.boosting import Ensemble
from headrace.models.contract import Arrays, Clock, Floats, Turns
from headrace.models.text import kernel

SCALE = 0.03
"""s of the stacker: variance of the start, times sqrt(1 + D)."""

RESTORE = 3e-3
"""r of the stacker: share of the start's variance given back per label, times 1 + D."""

_CLIP = 6.9  # of the score, about logit(1e-3): one absurd row must not swing the calibration
_LEAST = 1e-3  # of the curvature p (1 - p)
_NONE, _NO_EVENTS = np.empty(0), np.empty(0, dtype=np.int64)


class LightGbmModel:
    """Boosted trees with a two-parameter logistic recalibration.

    One delay-scaled Kalman stacker with a single member: x = (clip(s, ±6.9), 1), w = (1, 0), P = v I,
    v = scale / sqrt(1 + D), D the mean number of outstanding labels. At a label with the weights of then:
    q = sigmoid(w x), h = max(q (1 - q), 1e-3), u = P x, d = 1 + h x'u, w += u (y - q) / d, P -= (h / d) u u', and each
    P_aa below v gets restore v / (1 + D) back. At events D += (outstanding - D) / 1000.

    Parameters
    ----------
    ensemble
        The frozen trees.
    scale, restore
        How far and how fast the recalibration may move.
    """

    memo_width = 0

    def __init__(self, ensemble: Ensemble, scale: float = SCALE, restore: float = RESTORE) -> None:
        self._ensemble = ensemble
        self._restore = restore
        start = scale / np.sqrt(1.0 + ensemble.outstanding)
        # One array, so that a call of one row hands few arguments over: a, b, P_aa, P_ab, P_bb, D, v.
        self._state = np.array([1.0, 0.0, start, 0.0, start, ensemble.outstanding, start])

    def prepare(self, X: Columns) -> Columns:
        """Return the trees' score of each row."""
        return {"score": self._ensemble.trees.walk(self._ensemble.encoding.matrix(X))[1]}

    def follow(self, turns: Turns, events: Columns, labels: Columns) -> tuple[Floats, Floats]:
        """Predict events and learn labels, in their order; see `headrace.models.contract.Following`."""
        p = np.empty(len(events["score"]))
        _run(
            turns.order, events["score"], turns.outstanding, labels["score"], turns.row, turns.y, turns.weight,
            self._state, self._restore, p,
        )  # fmt: skip
        return p, np.empty((len(p), 0))

    def ask(self, X: Columns, clock: Clock, outstanding: int) -> tuple[Floats, Floats]:
        """Predict n events; see `headrace.models.contract.Model`."""
        p = self._predict(X["score"], outstanding, self._state)
        return p, np.empty((len(p), 0))

    def learn(self, X: Columns, y: Floats, memo: Floats, weight: Floats, clock: Clock) -> None:
        """Learn n labels one after the other; a weight counts as that many equal labels in one step."""
        rows = np.arange(len(y))
        _run(~rows, _NONE, _NO_EVENTS, X["score"], rows, y, weight, self._state, self._restore, _NONE)

    def predict(self, X: Columns) -> Floats:
        """Return float64[n] and change nothing."""
        return self._predict(X["score"], 0, self._state.copy())

    def _predict(self, score: Floats, outstanding: int, state: Floats) -> Floats:
        p, rows = np.empty(len(score)), np.arange(len(score))
        _run(rows, score, outstanding + rows, _NONE, _NO_EVENTS, _NONE, _NONE, state, self._restore, p)
        return p

    def save(self) -> tuple[Arrays, dict[str, Any]]:
        """Return the recalibration; the trees are an artifact of their own."""
        return {"recalibration": self._state.copy()}, {}

    def load(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Take over a saved recalibration."""
        self._state = arrays["recalibration"].copy()


@kernel
def _run(
    order: Any, e_score: Any, outstanding: Any, l_score: Any, rows: Any, y: Any, weight: Any, state: Any, restore: Any,
    p: Any,
) -> None:  # fmt: skip
    for i in order:
        if i >= 0:
            p[i] = sigmoid(state[0] * min(max(e_score[i], -_CLIP), _CLIP) + state[1])
            state[5] += (outstanding[i] - state[5]) / 1000.0
            continue
        i = -1 - i
        a, b, paa, pab, pbb, delay, start = state
        x = min(max(l_score[rows[i]], -_CLIP), _CLIP)
        q = sigmoid(a * x + b)
        h = weight[i] * max(q * (1.0 - q), _LEAST)
        u, v = paa * x + pab, pab * x + pbb
        d = 1.0 + h * (x * u + v)
        step = weight[i] * (y[i] - q) / d
        state[0], state[1] = a + u * step, b + v * step
        paa, pbb = paa - h / d * u * u, pbb - h / d * v * v
        state[3] = pab - h / d * u * v
        back = restore * start / (1.0 + delay)
        state[2] = paa + back if paa < start else paa
        state[4] = pbb + back if pbb < start else pbb
