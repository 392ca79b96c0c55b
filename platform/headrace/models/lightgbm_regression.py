"""Frozen boosted trees that predict numbers, recalibrated online.

p = s + noise (a z + b) with s the trees' score, z the same standardised, noise their held-out error; (a, b) starts at
(0, 0) and follows the labels by one Kalman step each, as `headrace.models.lightgbm` does on logits. An absolute error moves
them as a median does, a squared one as a mean does, up to its cap. The trees come as an artifact and are no part of the
state; LightGBM itself is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.definition.loss import Loss
from headrace.errors import ModelError
from headrace.events import Columns
from headrace.models.boosting import Ensemble
from headrace.models.contract import Arrays, Clock, Floats, Turns
from headrace.models.influence import pull, reach_of
from headrace.models.lightgbm import RESTORE, SCALE
from headrace.models.text import kernel

_CLIP = 8.0  # of z: one absurd row must not swing the calibration
_NONE, _NO_EVENTS = np.empty(0), np.empty(0, dtype=np.int64)


class LightGbmRegression:
    """Boosted trees with a two-parameter linear recalibration.

    z = clip((s - centre) / spread, ±8), x = (z, 1), w = (0, 0), P = v I, v = scale / sqrt(1 + D), D the mean number of
    outstanding labels. At a label with the weights of then: e = pull(y - p) in units of the noise, see
    `headrace.models.influence`; u = P x, d = 1 + weight x'u, w += weight u e / d, P -= (weight / d) u u', and each P_aa below
    v gets restore v / (1 + D) back. At events D += (outstanding - D) / 1000.

    Parameters
    ----------
    ensemble
        The frozen trees.
    scale, restore
        How far and how fast the recalibration may move.
    loss
        What is learned.

    Raises
    ------
    ModelError
        The trees predict no numbers.
    """

    memo_width = 0

    def __init__(self, ensemble: Ensemble, scale: float = SCALE, restore: float = RESTORE, *, loss: Loss) -> None:
        if ensemble.target is None:
            raise ModelError("found trees of a yes or no, expected trees that were trained on numbers")
        self._ensemble = ensemble
        target = ensemble.target
        self._fixed = np.array([target.centre, target.spread, target.noise, reach_of(loss), restore])
        start = scale / np.sqrt(1.0 + ensemble.outstanding)
        # One array, so that a call of one row hands few arguments over: a, b, P_aa, P_ab, P_bb, D, v.
        self._state = np.array([0.0, 0.0, start, 0.0, start, ensemble.outstanding, start])

    def prepare(self, X: Columns) -> Columns:
        """Return the trees' score of each row."""
        return {"score": self._ensemble.trees.walk(self._ensemble.encoding.matrix(X))[1]}

    def follow(self, turns: Turns, events: Columns, labels: Columns) -> tuple[Floats, Floats]:
        """Predict events and learn labels, in their order; see `headrace.models.contract.Following`."""
        p = np.empty(len(events["score"]))
        _run(
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
        _run(~rows, _NONE, _NO_EVENTS, X["score"], rows, y, weight, self._fixed, self._state, _NONE)

    def predict(self, X: Columns) -> Floats:
        """Return float64[n] and change nothing."""
        return self._predict(X["score"], 0, self._state.copy())

    def _predict(self, score: Floats, outstanding: int, state: Floats) -> Floats:
        p, rows = np.empty(len(score)), np.arange(len(score))
        _run(rows, score, outstanding + rows, _NONE, _NO_EVENTS, _NONE, _NONE, self._fixed, state, p)
        return p

    def save(self) -> tuple[Arrays, dict[str, Any]]:
        """Return the recalibration; the trees are an artifact of their own."""
        return {"recalibration": self._state.copy()}, {}

    def load(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Take over a saved recalibration."""
        self._state = arrays["recalibration"].copy()


@kernel
def _run(
    order: Any, e_score: Any, outstanding: Any, l_score: Any, rows: Any, y: Any, weight: Any, fixed: Any, state: Any,
    p: Any,
) -> None:  # fmt: skip
    centre, spread, noise, reach, restore = fixed
    for i in order:
        a, b, paa, pab, pbb, delay, start = state
        if i >= 0:
            z = min(max((e_score[i] - centre) / spread, -_CLIP), _CLIP)
            p[i] = e_score[i] + noise * (a * z + b)
            state[5] += (outstanding[i] - delay) / 1000.0
            continue
        i = -1 - i
        score = l_score[rows[i]]
        z = min(max((score - centre) / spread, -_CLIP), _CLIP)
        e = pull(y[i] - (score + noise * (a * z + b)), noise, reach)
        u, v = paa * z + pab, pab * z + pbb
        gain = weight[i] / (1.0 + weight[i] * (z * u + v))
        state[0], state[1] = a + gain * u * e, b + gain * v * e
        paa, pbb = paa - gain * u * u, pbb - gain * v * v
        state[3] = pab - gain * u * v
        back = restore * start / (1.0 + delay)
        state[2] = paa + back if paa < start else paa
        state[4] = pbb + back if pbb < start else pbb
