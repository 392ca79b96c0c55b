"""Boosted trees as arrays: the leaf that each tree puts a row in, and the trees' raw score.

Reads the text that LightGBM writes for a booster and walks it in one compiled pass. Leaves and scores equal those of
LightGBM's own `predict` to the bit, missing and unknown values included, at any batch size and without importing
LightGBM; parsing executes nothing. It does not train, and it refuses linear trees and multi-class models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from headrace.errors import ModelError
from headrace.models.contract import Floats

Ints = NDArray[np.int64]

# LightGBM's decision_type: one bit each for "categorical" and "missing goes left", then two for the kind of missing.
_CATEGORICAL, _DEFAULT_LEFT = 1, 2
_MISSING_ZERO, _MISSING_NAN = 1, 2
_REGRESSIONS = ("huber", "regression_l1")
_ZERO = 1e-35  # LightGBM's kZeroThreshold: smaller values count as zero


@dataclass(frozen=True)
class Trees:
    """All trees, node after node and leaf after leaf; children below zero are leaves (-1 - leaf)."""

    root: Ints  # first node of each tree, or -1 for a tree of a single leaf
    first_leaf: Ints  # of each tree, in `leaf_value`; one entry more than trees
    feature: Ints
    threshold: Floats  # numbers: go left when <= ; categories: which bit set of its tree
    decision: Ints
    left: Ints
    right: Ints
    leaf_value: Floats
    first_set: Ints  # of each tree, in `set_bounds`
    set_bounds: Ints  # of each bit set, in `bits`
    bits: NDArray[np.uint32]

    @property
    def count(self) -> int:
        """Number of trees."""
        return len(self.root)

    @property
    def leaves(self) -> int:
        """Number of leaves of all trees."""
        return len(self.leaf_value)

    def walk(self, matrix: Floats) -> tuple[NDArray[np.int32], Floats]:
        """Put rows through every tree.

        Parameters
        ----------
        matrix
            float64[n, features], categories as codes, NaN where missing.

        Returns
        -------
        (leaves, scores)
            int32[n, trees], numbered through all trees (tree k's own number plus `first_leaf[k]`); float64[n], the sum
            of the leaves' values: the logit, or the number predicted.
        """
        leaves = np.empty((len(matrix), self.count), dtype=np.int32)
        scores = np.zeros(len(matrix))
        _walk(
            np.ascontiguousarray(matrix), self.root, self.first_leaf, self.feature, self.threshold, self.decision,
            self.left, self.right, self.leaf_value, self.first_set, self.set_bounds, self.bits, leaves, scores,
        )  # fmt: skip
        return leaves, scores


def parse(text: str) -> Trees:
    """Read the text of `Booster.model_to_string`.

    Raises
    ------
    ModelError
        It is not the text of a binary classifier, or of a regression, with constant leaves.
    """
    header, *blocks = text.partition("\nend of trees")[0].split("\nTree=")
    head = _fields(header)
    objective = head.get("objective", "")
    known = objective.startswith("binary sigmoid:1") or objective in _REGRESSIONS
    if not known or head.get("num_tree_per_iteration") != "1":
        raise ModelError(
            f"found boosted trees of objective {objective!r}, expected 'binary sigmoid:1', {' or '.join(_REGRESSIONS)}"
        )
    if "average_output" in header.split():
        raise ModelError(
            "found a forest, whose trees are averaged, expected boosted trees: train without boosting='rf'"
        )
    roots, first_leaf, first_set, set_bounds, nodes, leaf = [], [0], [0], [0], 0, 0
    parts: dict[str, list[NDArray[np.float64]]] = {
        name: [] for name in ("split_feature", "threshold", "decision_type", "left_child", "right_child", "leaf_value")
    }
    bits: list[NDArray[np.uint32]] = []
    for block in blocks:
        tree = _fields(block)
        if tree.get("is_linear", "0") != "0":
            raise ModelError("found linear trees, expected constant leaves: train without linear_tree")
        size = int(tree["num_leaves"]) - 1
        roots.append(nodes if size else -1)
        for name, values in parts.items():
            values.append(_numbers(tree.get(name, "") if size or name == "leaf_value" else ""))
        for name in ("left_child", "right_child"):
            child = parts[name][-1]
            parts[name][-1] = np.where(child >= 0, child + nodes, child)
        if int(tree["num_cat"]):
            base = sum(map(len, bits))
            set_bounds += [base + int(bound) for bound in tree["cat_boundaries"].split()[1:]]
            bits.append(np.array(tree["cat_threshold"].split(), dtype=np.uint32))
        nodes, leaf = nodes + size, leaf + size + 1
        first_leaf.append(leaf)
        first_set.append(len(set_bounds) - 1)
    joined = {name: np.concatenate([np.empty(0), *values]) for name, values in parts.items()}
    return Trees(
        root=np.array(roots, dtype=np.int64),
        first_leaf=np.array(first_leaf, dtype=np.int64),
        feature=joined["split_feature"].astype(np.int64),
        threshold=joined["threshold"],
        decision=joined["decision_type"].astype(np.int64),
        left=joined["left_child"].astype(np.int64),
        right=joined["right_child"].astype(np.int64),
        leaf_value=joined["leaf_value"],
        first_set=np.array(first_set, dtype=np.int64),
        set_bounds=np.array(set_bounds, dtype=np.int64),
        bits=np.concatenate([np.empty(0, dtype=np.uint32), *bits]),
    )


def _fields(block: str) -> dict[str, str]:
    return {name: value for name, found, value in (line.partition("=") for line in block.splitlines()) if found}


def _numbers(text: str) -> Floats:
    return np.array(text.split(), dtype=np.float64)


@njit(cache=True)
def _walk(
    matrix: Floats,
    root: Ints,
    first_leaf: Ints,
    feature: Ints,
    threshold: Floats,
    decision: Ints,
    left: Ints,
    right: Ints,
    leaf_value: Floats,
    first_set: Ints,
    set_bounds: Ints,
    bits: NDArray[np.uint32],
    leaves: NDArray[np.int32],
    scores: Floats,
) -> None:
    for i in range(matrix.shape[0]):
        for tree in range(root.shape[0]):
            node = root[tree]
            leaf = 0
            while node >= 0:
                value = matrix[i, feature[node]]
                kind = decision[node]
                if kind & _CATEGORICAL:
                    goes_left = False
                    # Truncated to int before it is looked up, as LightGBM does; a missing category is in no set.
                    if value > -1.0 and value < 2147483648.0:
                        code = int(value)
                        which = first_set[tree] + int(threshold[node])
                        word = set_bounds[which] + code // 32
                        if word < set_bounds[which + 1]:
                            goes_left = (bits[word] >> np.uint32(code % 32)) & np.uint32(1) != 0
                else:
                    missing = (kind >> 2) & 3
                    if np.isnan(value) and missing != _MISSING_NAN:
                        value = 0.0
                    if (missing == _MISSING_ZERO and abs(value) <= _ZERO) or (
                        missing == _MISSING_NAN and np.isnan(value)
                    ):
                        goes_left = kind & _DEFAULT_LEFT != 0
                    else:
                        goes_left = value <= threshold[node]
                node = left[node] if goes_left else right[node]
                leaf = -1 - node
            leaves[i, tree] = first_leaf[tree] + leaf
            scores[i] += leaf_value[first_leaf[tree] + leaf]
