"""From a recipe to a model, new or trained.

The one place that knows which class a recipe's kind means. It runs in child processes only, since it imports the model
libraries that the kind needs. It does not read states: the caller loads a checkpoint into what `fresh` returns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.definition.recipes import Recipe
from headrace.errors import ModelError
from headrace.events import Columns
from headrace.models.contract import Floats, Model

if TYPE_CHECKING:
    from headrace.models.boosting import Trained

_OWN = {"gbdt_lr": ("leaf_alpha", "category_alpha", "table_bits"), "lightgbm": ("scale", "restore")}
"""Parameters of the online part; what is left goes to the training of the trees."""


def fresh(recipe: Recipe, *, key: bytes, artifact: bytes | None = None) -> Model:
    """Return a model that has learned nothing online.

    Parameters
    ----------
    recipe
        What to build.
    key
        Signs the states of river models; others ignore it.
    artifact
        `Ensemble.dump()` of the version's bootstrap, for recipes that bootstrap.

    Raises
    ------
    ModelError
        The recipe bootstraps and there is no artifact.
    """
    if recipe.kind == "river":
        from headrace.models.river_pipeline import RiverModel

        if recipe.build is None:
            raise ModelError(f"found recipe {recipe.name!r} without a build function, expected recipes.river(build)")
        return RiverModel(recipe.build, key)
    if recipe.kind == "ftrl":
        from headrace.models.ftrl import Ftrl

        return Ftrl(**recipe.params)
    if artifact is None:
        raise ModelError(
            f"found no trained trees for recipe {recipe.name!r} ({recipe.kind}), expected a bootstrap's artifact"
        )
    from headrace.models.boosting import Ensemble

    ensemble = Ensemble.parse(artifact)
    if recipe.kind == "lightgbm":
        from headrace.models.lightgbm import LightGbmModel

        return LightGbmModel(ensemble, **_own(recipe))
    from headrace.models.gbdt_lr import GbdtLr

    return GbdtLr(ensemble, **_own(recipe))


def train(
    recipe: Recipe,
    X: Columns,
    y: Floats,
    event_time: NDArray[np.int64],
    label_time: NDArray[np.int64],
    *,
    valid_fraction: float = 0.2,
    threads: int = 1,
) -> Trained:
    """Train the trees of a recipe that bootstraps; see `headrace.models.boosting.train`."""
    from headrace.models import boosting

    own = _own(recipe)
    params = {name: value for name, value in recipe.params.items() if name not in own}
    return boosting.train(X, y, event_time, label_time, params, valid_fraction=valid_fraction, threads=threads)


def _own(recipe: Recipe) -> dict[str, Any]:
    return {name: recipe.params[name] for name in _OWN.get(recipe.kind, ()) if name in recipe.params}
