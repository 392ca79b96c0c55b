"""From a recipe to a model, new or trained.

The one place that knows which class a recipe's kind means. It runs in child processes only, since it imports the model
libraries that the kind needs. It does not read states: the caller loads a checkpoint into what `fresh` returns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.definition.loss import LOG_LOSS, Loss
from headrace.definition.recipes import ONLINE, TREES, Recipe
from headrace.errors import ModelError
from headrace.events import Columns
from headrace.models.contract import Floats, Model

if TYPE_CHECKING:
    from headrace.models.boosting import Ensemble, Trained
    from headrace.models.gbdt_lr import GbdtLr
    from headrace.models.lightgbm import LightGbmModel
    from headrace.models.lightgbm_regression import LightGbmRegression
    from headrace.models.stack import Stack


def fresh(recipe: Recipe, *, key: bytes, artifact: bytes | None = None, loss: Loss = LOG_LOSS) -> Model:
    """Return a model that has learned nothing online.

    Parameters
    ----------
    recipe
        What to build.
    key
        Signs the states of river models; others ignore it.
    artifact
        `Ensemble.dump()` of the version's bootstrap, for recipes with trees.
    loss
        The stream's: it says whether labels are numbers.

    Raises
    ------
    ModelError
        The recipe has trees and there is no artifact, or one of the other task.
    """
    if recipe.kind == "river":
        from headrace.models.river_pipeline import RiverModel, RiverRegressor

        if recipe.build is None:
            raise ModelError(f"found recipe {recipe.name!r} without a build function, expected recipes.river(build)")
        return (RiverRegressor if loss.regression else RiverModel)(recipe.build, key)
    if recipe.kind == "ftrl":
        from headrace.models.ftrl import Ftrl

        return Ftrl(**{name: value for name, value in recipe.params.items() if name != "batch"}, loss=loss)
    if recipe.kind == "label_mean":
        from headrace.models.label_mean import LabelMean

        return LabelMean(**recipe.params, loss=loss)
    if recipe.kind == "stack":
        return stack(recipe, None if artifact is None else _ensemble(artifact))
    if artifact is None:
        raise ModelError(
            f"found no trained trees for recipe {recipe.name!r} ({recipe.kind}), expected a bootstrap's artifact"
        )
    return _with_trees(recipe, _ensemble(artifact), loss)


def _ensemble(artifact: bytes) -> Ensemble:
    from headrace.models.boosting import Ensemble

    return Ensemble.parse(artifact)


def _with_trees(
    recipe: Recipe, ensemble: Ensemble, loss: Loss = LOG_LOSS
) -> LightGbmModel | LightGbmRegression | GbdtLr:
    if loss.regression != (ensemble.target is not None):
        raise ModelError(f"found trees of the other task for recipe {recipe.name!r}, whose stream has {loss.name}")
    if recipe.kind == "lightgbm":
        from headrace.models.lightgbm import LightGbmModel
        from headrace.models.lightgbm_regression import LightGbmRegression

        if loss.regression:
            return LightGbmRegression(ensemble, **_own(recipe), loss=loss)

        return LightGbmModel(ensemble, **_own(recipe))
    from headrace.models.gbdt_lr import GbdtLr

    return GbdtLr(ensemble, **_own(recipe), loss=loss)


def stack(recipe: Recipe, ensemble: Ensemble | None) -> Stack:
    """Return a stack that has learned nothing; its members with trees are absent as long as there are none."""
    from headrace.models.stack import Member, Stack

    # Who prepares the leaves prepares the trees' score as well, so it is a gbdt_lr that prepares for all with trees.
    preparers: dict[tuple[str, bool], str] = {}
    for member in sorted(recipe.members, key=lambda member: member.kind == "lightgbm"):
        preparers.setdefault(_reads(member), member.name)
    members = [Member(m.name, _member(m, ensemble), preparers[_reads(m)]) for m in recipe.members]
    if all(member.model is None for member in members):
        raise ModelError(f"found no trained trees for {recipe.name!r}, whose members all have some")
    return Stack(members, 0.0 if ensemble is None else ensemble.outstanding, **_own(recipe))


def _member(recipe: Recipe, ensemble: Ensemble | None) -> Model | None:
    if recipe.kind not in TREES:
        return fresh(recipe, key=b"")
    return None if ensemble is None else _with_trees(recipe, ensemble)


def _reads(member: Recipe) -> tuple[str, bool]:
    """What the prepared columns of a member depend on: members with equal ones share them."""
    return "trees" if member.kind in TREES else member.kind, member.params.get("pairs", False)


def train(
    recipe: Recipe,
    X: Columns,
    y: Floats,
    event_time: NDArray[np.int64],
    label_time: NDArray[np.int64],
    *,
    loss: Loss = LOG_LOSS,
    weight: Floats | None = None,
    threads: int = 1,
) -> Trained:
    """Train the trees of a recipe; see `headrace.models.boosting.train`."""
    from headrace.models import boosting

    own = _own(recipe)
    params = {name: value for name, value in recipe.params.items() if name not in own}
    return boosting.train(X, y, event_time, label_time, params, loss=loss, weight=weight, threads=threads)


def _own(recipe: Recipe) -> dict[str, Any]:
    return {name: recipe.params[name] for name in ONLINE.get(recipe.kind, ()) if name in recipe.params}
