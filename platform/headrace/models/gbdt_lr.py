"""Leaves of frozen boosted trees, and hashed categories and tokens, as features of a regression that learns online.

He et al. (2014): the leaf that each tree puts a row in is a categorical feature. The trees' score is the fixed part of
the logit and every weight starts at zero, so the model starts as good as its trees, owes nothing to labels they were
trained on, and moves as labels come. Without the fixed part it starts there, too, and moves away from it. Weights follow
FTRL-Proximal. Where labels are numbers there is no logit: the link is linear, in units of the trees' held-out error. The
trees come as an artifact and are no part of the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.definition.loss import LOG_LOSS, Loss
from headrace.errors import ModelError
from headrace.events import Columns
from headrace.models.arithmetic import sigmoid
from headrace.models.boosting import Ensemble
from headrace.models.contract import Arrays, Clock, Floats, row_count, take
from headrace.models.influence import LOGISTIC, pull, reach_of
from headrace.models.text import kernel, keys_of, seed_of
from headrace.models.tokens import Tokens, beside, item, readable, width

LEAF_ALPHA = 0.001
"""FTRL's alpha of the leaves: they repeat what the score says, so they move slowly."""

CATEGORY_ALPHA = 0.03
"""FTRL's alpha of the hashed categories and tokens."""

TABLE_BITS = 16
"""The table of hashed categories and tokens has two to this many slots."""

_Z, _N, _ROOT, _W = (
    0,
    1,
    2,
    3,
)  # of `GbdtLr._weights`: z, n, the square root of n, and the weight that follows from them
_NONE, _NO_CLOCK = np.empty(0), np.empty(0, dtype=np.int64)


class GbdtLr:
    """Regression on leaves, categories and tokens, on top of the trees' score or without it.

    FTRL-Proximal (McMahan et al. 2013, section 3.1) without L1 and L2, beta = 1, features of value 1:
    w_i = -z_i alpha / (1 + sqrt(n_i)); at a label g = weight (p - y) with p of then,
    z_i += g - (sqrt(n_i + g^2) - sqrt(n_i)) / alpha w_i, n_i += g^2. Where labels are numbers, p = score + noise sum w_i and
    g = -weight pull(y - p), see `headrace.models.influence`.

    Parameters
    ----------
    ensemble
        The frozen trees.
    leaf_alpha, category_alpha
        Learning rates.
    table_bits
        Size of the hash table.
    offset
        Whether the trees' score is a fixed part of the logit. If not, the leaves' weights start at the trees' own values,
        which fade as labels come; not where labels are numbers.
    loss
        What is learned.
    """

    memo_width = 0

    def __init__(
        self,
        ensemble: Ensemble,
        leaf_alpha: float = LEAF_ALPHA,
        category_alpha: float = CATEGORY_ALPHA,
        table_bits: int = TABLE_BITS,
        offset: bool = True,
        loss: Loss = LOG_LOSS,
    ) -> None:
        self._ensemble = ensemble
        self._link = np.array([reach_of(loss), 1.0 if ensemble.target is None else ensemble.target.noise])
        categories = ensemble.encoding.category_names  # a missing value adds nothing to the logit
        self._mask = np.uint64((1 << table_bits) - 1)
        self._leaves = ensemble.trees.leaves
        tokens = ensemble.encoding.token_names
        named = len(categories) + min(len(tokens), 1)  # what comes after the last one has its alpha
        self._alphas = np.concatenate([np.full(ensemble.trees.count, leaf_alpha), np.full(named, category_alpha)])
        self._categories = tuple((name, seed_of(f"gbdt_lr {name}")) for name in categories)
        self._tokens = tuple((name, seed_of(f"gbdt_lr {name}")) for name in tokens)
        self._offset = float(offset)
        self._table_bits = table_bits
        self._weights = self._begin()
        self._work_out()

    def _begin(self) -> Floats:
        """The rows before any label: of leaves, the trees' own values when the score is no term of its own."""
        weights = np.zeros((self._leaves + (1 << self._table_bits), 4))
        if not self._offset:
            weights[: self._leaves, _Z] = -self._ensemble.trees.leaf_value / self._alphas[0]
        return weights

    def _work_out(self) -> None:
        """Root and weight of every row, from its z and n."""
        alphas = np.full(len(self._weights), self._alphas[-1])
        alphas[: self._leaves] = self._alphas[0]
        _work_out(self._weights, alphas)

    def prepare(self, X: Columns) -> Columns:
        """Return the trees' score, and int32[n, trees + categories] rows of the weights, -1 for a missing value.

        With tokens the rows of the weights are `Tokens`: of each row those, and then its tokens'.
        """
        leaves, score = self._ensemble.trees.walk(self._ensemble.encoding.matrix(X))
        slots = np.empty((row_count(X), leaves.shape[1] + len(self._categories)), dtype=np.int32)
        slots[:, : leaves.shape[1]] = leaves
        for column, (name, seed) in enumerate(self._categories, start=leaves.shape[1]):
            keys = keys_of(X[name], seed)
            slots[:, column] = np.where(keys == 0, -1, self._slot(keys))
        if not self._tokens:
            return {"score": score, "slots": slots}
        lists = [X[name].keys(seed) for name, seed in self._tokens]
        return {"score": score, "slots": beside(slots, [Tokens(self._slot(v.values), v.start, v.count) for v in lists])}

    def _slot(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        return self._leaves + (keys & self._mask).astype(np.int64)

    def run(
        self,
        order: NDArray[np.int64],
        events: Columns,
        labels: Columns,
        y: Floats,
        weight: Floats,
        clock: Clock,
        row: NDArray[np.intp] | None = None,
    ) -> Floats:
        """Predict events and learn labels, in their order; see `headrace.models.contract.Sequential`."""
        p = np.empty(len(events["score"]))
        _run(
            order, events["score"], readable(events["slots"]), labels["score"], readable(labels["slots"]),
            np.arange(len(y)) if row is None else row, y, weight, self._offset, self._link, self._alphas,
            self._weights, p,
        )  # fmt: skip
        return p

    def ask(self, X: Columns, clock: Clock, outstanding: int) -> tuple[Floats, Floats]:
        """Predict n events; see `headrace.models.contract.Model`."""
        p = self.predict(X)
        return p, np.empty((len(p), 0))

    def learn(self, X: Columns, y: Floats, memo: Floats, weight: Floats, clock: Clock) -> None:
        """Learn n labels one after the other."""
        self.run(~np.arange(len(y)), take(X, slice(0, 0)), X, y, weight, clock)

    def predict(self, X: Columns) -> Floats:
        """Return float64[n] and change nothing."""
        return self.run(np.arange(len(X["score"])), X, take(X, slice(0, 0)), _NONE, _NONE, _NO_CLOCK)

    def take_over(self, former: GbdtLr) -> None:
        """Go on with the categories' weights of a model with other trees; weights of leaves begin anew.

        On top of the trees' score all do: they correct what the former trees said.
        """
        if not self._offset:
            self._weights[self._leaves :] = former._weights[former._leaves :]

    def save(self) -> tuple[Arrays, dict[str, Any]]:
        """Return the weights' sums; rows that no label has touched are left out."""
        used = np.flatnonzero(self._weights[:, _N])
        return {"row": used, "z": self._weights[used, _Z], "n": self._weights[used, _N]}, {"rows": len(self._weights)}

    def load(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Take over saved weights.

        Raises
        ------
        ModelError
            They belong to other trees or another table size.
        """
        if meta["rows"] != len(self._weights):
            raise ModelError(
                f"found weights for {meta['rows']} features, expected {len(self._weights)}: load them with their own trees"
            )
        self._weights = self._begin()
        self._weights[arrays["row"], _Z], self._weights[arrays["row"], _N] = arrays["z"], arrays["n"]
        self._work_out()


@kernel
def _logit(slots: Any, i: Any, weights: Any) -> Any:
    total = 0.0
    for k in range(width(slots, i)):
        row = item(slots, i, k)
        if row >= 0:
            total += weights[row, _W]
    return total


@kernel
def _predicted(score: Any, total: Any, link: Any) -> Any:
    return sigmoid(score + total) if link[0] == LOGISTIC else score + link[1] * total


@kernel
def _work_out(weights: Any, alphas: Any) -> None:
    """Root and weight of every row, as `_run` leaves them."""
    for row in range(weights.shape[0]):
        weights[row, _ROOT] = np.sqrt(weights[row, _N])
        weights[row, _W] = -weights[row, _Z] * alphas[row] / (1.0 + weights[row, _ROOT])


@kernel
def _run(
    order: Any, e_score: Any, e_slots: Any, l_score: Any, l_slots: Any, rows: Any, y: Any, weight: Any, offset: Any,
    link: Any, alphas: Any, weights: Any, p: Any,
) -> None:  # fmt: skip
    last = alphas.shape[0] - 1
    for i in order:
        if i >= 0:
            p[i] = _predicted(offset * e_score[i], _logit(e_slots, i, weights), link)
            continue
        i = -1 - i
        at = rows[i]
        q = _predicted(offset * l_score[at], _logit(l_slots, at, weights), link)
        g = weight[i] * (q - y[i] if link[0] == LOGISTIC else -pull(y[i] - q, link[1], link[0]))
        for k in range(width(l_slots, at)):
            row, alpha = item(l_slots, at, k), alphas[min(k, last)]
            if row >= 0:
                weights[row, _N] += g * g
                root = np.sqrt(weights[row, _N])
                weights[row, _Z] += g - (root - weights[row, _ROOT]) / alpha * weights[row, _W]
                weights[row, _ROOT] = root
                weights[row, _W] = -weights[row, _Z] * alpha / (1.0 + root)
