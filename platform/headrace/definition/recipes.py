"""Recipes: how a version's model is made. A recipe is data; models are built from it in child processes only."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

Kind = Literal["river", "ftrl", "lightgbm", "gbdt_lr"]


_FTRL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "alpha": (lambda v: v > 0, "a positive number"),
    "beta": (lambda v: v >= 0, "0 or more"),
    "l1": (lambda v: v >= 0, "0 or more"),
    "l2": (lambda v: v >= 0, "0 or more"),
    "admit_after": (lambda v: 1 <= v <= 255, "1 to 255 sightings"),
    "expire_after": (lambda v: v is None or v > 0, "a positive time, or None"),
    "max_weights": (lambda v: v >= 1, "at least 1"),
}


@dataclass(frozen=True)
class Recipe:
    """What a model is made of.

    A recipe that `bootstraps` is trained offline on a window of the log and then goes on online; the others replay the
    log from its first entry.
    """

    kind: Kind
    name: str  # unique within a stream; versions and SQL show it
    target_means: bool  # whether the stream's streaming target means are among its inputs
    params: dict[str, Any] = field(default_factory=dict)  # JSON values
    build: Callable[[], Any] | None = None  # river: makes a new, untrained pipeline; imports river inside

    @property
    def bootstraps(self) -> bool:
        return self.kind in ("lightgbm", "gbdt_lr")

    def mistakes(self) -> list[str]:
        """What is wrong with its parameters, a part of a sentence each.

        >>> Recipe("ftrl", "ftrl", False, {"alpha": 0.0, "l1": 1.0}).mistakes()
        ['found alpha=0.0, expected a positive number']
        """
        rules = _FTRL if self.kind == "ftrl" else {}
        given = [(name, self.params[name], fine, says) for name, (fine, says) in rules.items() if name in self.params]
        return [f"found {name}={value}, expected {says}" for name, value, fine, says in given if not fine(value)]

    def config(self) -> dict[str, Any]:
        """The recipe as JSON values, the build function as a hash of its source."""
        return {
            "kind": self.kind,
            "name": self.name,
            "target_means": self.target_means,
            "params": self.params,
            "build": None if self.build is None else _source_hash(self.build),
        }


def _source_hash(function: Callable[[], Any]) -> str:
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]


def river(build: Callable[[], Any], *, name: str = "river", target_means: bool = False) -> Recipe:
    """Any river classifier: `build` takes no argument and returns a new pipeline, with river imported inside.

    The pipeline receives a dict per event: `str` for categories and crosses, `float` for numbers, nothing for a missing
    value. `target_means=True` adds the stream's target means as numbers.
    """
    return Recipe("river", name, target_means, {}, build)


def ftrl(
    *,
    name: str = "ftrl",
    target_means: bool = False,
    alpha: float = 0.1,
    beta: float = 1.0,
    l1: float = 0.0,
    l2: float = 0.0,
    bins: bool = True,
    pairs: bool = False,
    admit_after: int = 1,
    expire_after: timedelta | None = None,
    max_weights: int = 1 << 22,
) -> Recipe:
    """FTRL-Proximal logistic regression (McMahan et al. 2013), learning from the first event on, a hundredth of river's cost.

    Parameters
    ----------
    alpha, beta, l1, l2
        Learning rate alpha / (beta + sqrt(n)) of a weight with n squared gradients, and its penalties.
    bins
        Numbers also have a weight for each quarter of a standard deviation.
    pairs
        Every pair of categories is a category as well.
    admit_after
        Sightings before a value gets a weight.
    expire_after
        Stream time without a label after which a weight is forgotten; None for never.
    max_weights
        Weights of categories at most, 80 bytes each, up to twice that when it is no power of two; then those without a label
        for longest go.
    """
    expires = None if expire_after is None else expire_after // timedelta(microseconds=1)
    own = {"alpha": alpha, "beta": beta, "l1": l1, "l2": l2, "bins": bins, "pairs": pairs, "admit_after": admit_after}
    return Recipe("ftrl", name, target_means, {**own, "expire_after": expires, "max_weights": max_weights})


def lightgbm(*, name: str = "lightgbm", target_means: bool = True, **params: Any) -> Recipe:
    """Boosted trees, trained by bootstrap and then frozen; their logit is recalibrated online. `params` go to LightGBM."""
    return Recipe("lightgbm", name, target_means, params)


def gbdt_lr(*, name: str = "gbdt_lr", target_means: bool = True, **params: Any) -> Recipe:
    """Leaves of boosted trees as features of a logistic regression that learns online (He et al. 2014)."""
    return Recipe("gbdt_lr", name, target_means, params)
