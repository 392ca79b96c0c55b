"""Recipes: how a version's model is made. A recipe is data; models are built from it in child processes only."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["river", "lightgbm", "gbdt_lr"]


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
        return self.kind != "river"

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


def lightgbm(*, name: str = "lightgbm", target_means: bool = True, **params: Any) -> Recipe:
    """Boosted trees, trained by bootstrap and then frozen; their logit is recalibrated online. `params` go to LightGBM."""
    return Recipe("lightgbm", name, target_means, params)


def gbdt_lr(*, name: str = "gbdt_lr", target_means: bool = True, **params: Any) -> Recipe:
    """Leaves of boosted trees as features of a logistic regression that learns online (He et al. 2014)."""
    return Recipe("gbdt_lr", name, target_means, params)
