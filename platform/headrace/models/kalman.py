"""One step of a logistic regression that keeps its own uncertainty: an extended Kalman filter, for kernels."""

from __future__ import annotations

from typing import Any

from headrace.models.arithmetic import sigmoid
from headrace.models.text import kernel

LEAST = 1e-3
"""Of the curvature q (1 - q): a label that was certain still moves the weights."""


@kernel
def dot(a: Any, b: Any) -> Any:
    """Sum of products, one after the other."""
    total = 0.0
    for k in range(a.shape[0]):
        total += a[k] * b[k]
    return total


@kernel
def learn(x: Any, y: Any, weight: Any, w: Any, P: Any, start: Any, back: Any, u: Any) -> None:
    """Learn a label; P stays symmetric since both halves are written at once.

    q = sigmoid(w x), h = weight max(q (1 - q), 1e-3), u = P x, d = 1 + h x'u, w += weight u (y - q) / d,
    P -= (h / d) u u', and each P_aa below `start` gets `back`.
    """
    size = x.shape[0]
    q = sigmoid(dot(w, x))
    h = weight * max(q * (1.0 - q), LEAST)
    for a in range(size):
        u[a] = dot(P[a], x)
    d = 1.0 + h * dot(x, u)
    step = weight * (y - q) / d
    shrink = h / d
    for a in range(size):
        w[a] += step * u[a]
        for b in range(a + 1):
            value = P[a, b] - shrink * (u[a] * u[b])
            P[a, b] = value
            P[b, a] = value
        if P[a, a] < start:
            P[a, a] += back
