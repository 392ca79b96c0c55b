"""Frozen boosted trees whose logit is recalibrated online.

p = sigmoid(a s + b) with s the trees' score; (a, b) starts at (1, 0) and follows the labels by one Kalman step each.
Costs nothing where the trees stay calibrated and repairs them where the base rate or their sharpness drifts. The trees
come as an artifact and are no part of the state; LightGBM itself is not imported.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.models.arithmetic import sigmoid
from headrace.models.boosting import Ensemble
from headrace.models.recalibrated import RESTORE, SCALE, Recalibrated
from headrace.models.text import kernel

_CLIP = 6.9  # of the score, about logit(1e-3): one absurd row must not swing the calibration
_LEAST = 1e-3  # of the curvature p (1 - p)


@kernel
def _run(
    order: Any, e_score: Any, outstanding: Any, l_score: Any, rows: Any, y: Any, weight: Any, fixed: Any, state: Any,
    p: Any,
) -> None:  # fmt: skip
    restore = fixed[0]
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


class LightGbmModel(Recalibrated):
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

    _kernel = staticmethod(_run)

    def __init__(self, ensemble: Ensemble, scale: float = SCALE, restore: float = RESTORE) -> None:
        super().__init__(ensemble, 1.0, scale, np.array([restore]))
