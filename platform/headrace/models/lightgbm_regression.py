"""Frozen boosted trees that predict numbers, recalibrated online.

p = s + noise (a z + b) with s the trees' score, z the same standardised, noise their held-out error; (a, b) starts at
(0, 0) and follows the labels by one Kalman step each, as `headrace.models.lightgbm` does on logits. An absolute error moves
them as a median does, a squared one as a mean does, up to its cap. The trees come as an artifact and are no part of the
state; LightGBM itself is not imported.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.definition.loss import Loss
from headrace.errors import ModelError
from headrace.models.boosting import Ensemble
from headrace.models.influence import pull, reach_of
from headrace.models.recalibrated import RESTORE, SCALE, Recalibrated
from headrace.models.text import kernel

_CLIP = 8.0  # of z: one absurd row must not swing the calibration


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


class LightGbmRegression(Recalibrated):
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

    _kernel = staticmethod(_run)

    def __init__(self, ensemble: Ensemble, scale: float = SCALE, restore: float = RESTORE, *, loss: Loss) -> None:
        if (target := ensemble.target) is None:
            raise ModelError("found trees of a yes or no, expected trees that were trained on numbers")
        fixed = np.array([target.centre, target.spread, target.noise, reach_of(loss), restore])
        super().__init__(ensemble, 0.0, scale, fixed)
