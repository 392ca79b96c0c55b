"""Leaves of frozen boosted trees, and hashed categories, as features of a logistic regression that learns online.

He et al. (2014): the leaf that each tree puts a row in is a categorical feature. The trees' score is the fixed part of
the logit and every weight starts at zero, so the model starts as good as its trees, owes nothing to labels they were
trained on, and moves as labels come. Weights follow FTRL-Proximal. The trees come as an artifact and are no part of the
state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from headrace.errors import ModelError
from headrace.events import Columns
from headrace.models.arithmetic import sigmoid
from headrace.models.boosting import Ensemble
from headrace.models.contract import Arrays, Clock, Floats, row_count
from headrace.models.text import keys_of, seed_of

LEAF_ALPHA = 0.001
"""FTRL's alpha of the leaves: they repeat what the score says, so they move slowly."""

CATEGORY_ALPHA = 0.03
"""FTRL's alpha of the hashed categories."""

TABLE_BITS = 16
"""The table of hashed categories has two to this many slots."""


class GbdtLr:
    """Logistic regression on leaves and categories, on top of the trees' score.

    FTRL-Proximal (McMahan et al. 2013, section 3.1) without L1 and L2, beta = 1, features of value 1:
    w_i = -z_i alpha / (1 + sqrt(n_i)); at a label g = weight (p - y) with p of then,
    z_i += g - (sqrt(n_i + g^2) - sqrt(n_i)) / alpha w_i, n_i += g^2.

    Parameters
    ----------
    ensemble
        The frozen trees.
    leaf_alpha, category_alpha
        Learning rates.
    table_bits
        Size of the hash table.
    """

    memo_width = 0

    def __init__(
        self,
        ensemble: Ensemble,
        leaf_alpha: float = LEAF_ALPHA,
        category_alpha: float = CATEGORY_ALPHA,
        table_bits: int = TABLE_BITS,
    ) -> None:
        self._ensemble = ensemble
        categories = ensemble.encoding.category_names  # a missing value adds nothing to the logit
        self._mask = np.uint64((1 << table_bits) - 1)
        self._leaves = ensemble.trees.leaves
        self._alphas = np.concatenate(
            [np.full(ensemble.trees.count, leaf_alpha), np.full(len(categories), category_alpha)]
        )
        self._categories = tuple((name, seed_of(f"gbdt_lr {name}")) for name in categories)
        self._z = np.zeros(self._leaves + (1 << table_bits))
        self._n = np.zeros_like(self._z)

    def prepare(self, X: Columns) -> Columns:
        """Return the trees' score, and int32[n, trees + categories] rows of the weights, -1 for a missing value."""
        leaves, score = self._ensemble.trees.walk(self._ensemble.encoding.matrix(X))
        slots = np.empty((row_count(X), len(self._alphas)), dtype=np.int32)
        slots[:, : leaves.shape[1]] = leaves
        for column, (name, seed) in enumerate(self._categories, start=leaves.shape[1]):
            keys = keys_of(X[name], seed)
            slots[:, column] = np.where(keys == 0, -1, self._leaves + (keys & self._mask).astype(np.int64))
        return {"score": score, "slots": slots}

    def ask(self, X: Columns, clock: Clock, outstanding: int) -> tuple[Floats, Floats]:
        """Predict n events; see `headrace.models.contract.Model`."""
        p = self.predict(X)
        return p, np.empty((len(p), 0))

    def learn(self, X: Columns, y: Floats, memo: Floats, weight: Floats, clock: Clock) -> None:
        """Learn n labels one after the other."""
        _learn(X["score"], X["slots"], y, weight, self._alphas, self._z, self._n)

    def predict(self, X: Columns) -> Floats:
        """Return float64[n] and change nothing."""
        p = np.empty(len(X["score"]))
        _predict(X["score"], X["slots"], self._alphas, self._z, self._n, p)
        return p

    def save(self) -> tuple[Arrays, dict[str, Any]]:
        """Return the weights' sums; rows that no label has touched are left out."""
        used = np.flatnonzero(self._n)
        return {"row": used, "z": self._z[used], "n": self._n[used]}, {"rows": len(self._z)}

    def load(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Take over saved weights.

        Raises
        ------
        ModelError
            They belong to other trees or another table size.
        """
        if meta["rows"] != len(self._z):
            raise ModelError(
                f"found weights for {meta['rows']} features, expected {len(self._z)}: load them with their own trees"
            )
        self._z[:], self._n[:] = 0.0, 0.0
        self._z[arrays["row"]], self._n[arrays["row"]] = arrays["z"], arrays["n"]


@njit(cache=True)
def _logit(score: float, slots: NDArray[np.int32], alphas: Floats, z: Floats, n: Floats) -> float:
    total = score
    for k in range(slots.shape[0]):
        slot = slots[k]
        if slot >= 0:
            total -= z[slot] * alphas[k] / (1.0 + np.sqrt(n[slot]))
    return total


@njit(cache=True)
def _predict(score: Floats, slots: NDArray[np.int32], alphas: Floats, z: Floats, n: Floats, p: Floats) -> None:
    for i in range(score.shape[0]):
        p[i] = sigmoid(_logit(score[i], slots[i], alphas, z, n))


@njit(cache=True)
def _learn(
    score: Floats, slots: NDArray[np.int32], y: Floats, weight: Floats, alphas: Floats, z: Floats, n: Floats
) -> None:
    for i in range(score.shape[0]):
        g = weight[i] * (sigmoid(_logit(score[i], slots[i], alphas, z, n)) - y[i])
        for k in range(slots.shape[1]):
            slot = slots[i, k]
            if slot >= 0:
                root = np.sqrt(n[slot])
                w = -z[slot] * alphas[k] / (1.0 + root)
                z[slot] += g - (np.sqrt(n[slot] + g * g) - root) / alphas[k] * w
                n[slot] += g * g
