"""Recipes: how a version's model is made. A recipe is data; models are built from it in child processes only."""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal

from headrace.definition.loss import LOG_LOSS, Loss

Kind = Literal["river", "ftrl", "lightgbm", "gbdt_lr", "label_mean", "stack"]

ONLINE: dict[str, tuple[str, ...]] = {
    "lightgbm": ("scale", "restore"),
    "gbdt_lr": ("leaf_alpha", "category_alpha", "table_bits", "offset"),
    "stack": ("calibrate_by",),
}
"""Parameters of the online part of recipes that may have trees; what is left goes to the training of the trees."""

TREES = ("lightgbm", "gbdt_lr")
"""Kinds that have trees."""

_Rules = dict[str, tuple[Callable[[Any], bool], str]]
_FTRL: _Rules = {
    "alpha": (lambda v: v > 0, "a positive number"),
    "beta": (lambda v: v > 0, "a positive number"),
    "l1": (lambda v: v >= 0, "0 or more"),
    "l2": (lambda v: v >= 0, "0 or more"),
    "admit_after": (lambda v: 1 <= v <= 255, "1 to 255 sightings"),
    "expire_after": (lambda v: v is None or v > 0, "a positive time, or None"),
    "max_weights": (lambda v: v >= 1, "at least 1"),
}
_PASSES: _Rules = {
    "passes": (lambda v: v >= 1, "at least 1"),
    "decay": (lambda v: 0 < v <= 1, "above 0, at most 1"),
    "patience": (lambda v: v >= 1, "at least 1"),
    "seed": (lambda v: v >= 0, "0 or more"),
}
_GBDT_LR: _Rules = {
    "leaf_alpha": (lambda v: v > 0, "a positive number"),
    "category_alpha": (lambda v: v > 0, "a positive number"),
    "table_bits": (lambda v: 1 <= v <= 30, "1 to 30"),
}
_LIGHTGBM: _Rules = {
    "scale": (lambda v: v >= 0, "0 or more"),
    "restore": (lambda v: v >= 0, "0 or more"),
}
_LABEL_MEAN: _Rules = {"labels": (lambda v: v >= 1, "at least 1")}
_BOOSTING = ("boosting", "boosting_type", "boost")  # LightGBM's names of how trees are grown
_RULES: dict[str, _Rules] = {"ftrl": _FTRL, "lightgbm": _LIGHTGBM, "gbdt_lr": _GBDT_LR, "label_mean": _LABEL_MEAN}


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
    members: tuple[Recipe, ...] = ()  # stack: what it combines

    @property
    def has_trees(self) -> bool:
        return self.kind in TREES or any(member.has_trees for member in self.members)

    @property
    def bootstraps(self) -> bool:
        return self.has_trees or "batch" in self.params

    def mistakes(self, loss: Loss = LOG_LOSS) -> list[str]:
        """What is wrong with its parameters in a stream with this loss, a part of a sentence each.

        >>> Recipe("ftrl", "ftrl", False, {"alpha": 0.0, "l1": 1.0}).mistakes()
        ['found alpha=0.0, expected a positive number']
        """
        found = _broken(_RULES.get(self.kind, {}), self.params) + _broken(_PASSES, self.params.get("batch", {}))
        if "search" in self.params and not _is_budget(**self.params["search"]):
            found.append(f"found search={self.params['search']}, expected at least one trial, or seconds above 0")
        if other := [f"{name}={self.params[name]!r}" for name in _BOOSTING if self.params.get(name, "gbdt") != "gbdt"]:
            found.append(
                f"found {', '.join(other)}, expected 'gbdt': forests and dropped trees are not walked as LightGBM would"
            )
        if loss.regression and self.kind == "stack":
            found.append("stacks combine logits; expected ftrl, lightgbm, gbdt_lr, label_mean or river for regression")
        if loss.regression and self.params.get("offset") is False:
            found.append("found offset=False, whose leaves fade towards 0; expected offset=True for regression")
        return found + (list(_of_members(self)) if self.kind == "stack" else [])

    def config(self) -> dict[str, Any]:
        """The recipe as JSON values, the build function as a hash of its source."""
        return {
            "kind": self.kind,
            "name": self.name,
            "target_means": self.target_means,
            "params": self.params,
            "build": None if self.build is None else _source_hash(self.build),
            "members": [member.config() for member in self.members],
        }


def _broken(rules: _Rules, params: dict[str, Any]) -> list[str]:
    given = [(name, params[name], fine, says) for name, (fine, says) in rules.items() if name in params]
    return [f"found {name}={value}, expected {says}" for name, value, fine, says in given if not _holds(fine, value)]


def _holds(fine: Callable[[Any], bool], value: Any) -> bool:
    try:
        return fine(value)
    except TypeError:  # not even a number
        return False


def _is_budget(trials: int | None, seconds: float | None) -> bool:
    some = trials is not None or seconds is not None
    return some and (trials is None or trials >= 1) and (seconds is None or seconds > 0)


def _of_members(stack: Recipe) -> Iterator[str]:
    if len(stack.members) < 2 and not (stack.members and stack.params.get("calibrate_by")):
        yield f"found {len(stack.members)} member(s), expected at least two, or one with calibrate_by"
    for name, count in Counter(member.name for member in stack.members).items():
        if count > 1:
            yield f"{count} members are named {name!r}; give each a name of its own with name=..."
    if not stack.has_trees and (trees := [name for name in stack.params if name not in ONLINE["stack"]]):
        yield f"found {', '.join(trees)} for trees, expected a member that has trees: lightgbm or gbdt_lr"
    by = stack.params.get("calibrate_by", ())
    if len(set(by)) < len(by):
        yield f"found calibrate_by={', '.join(by)}, expected each category once"
    if len({member.params.get("table_bits") for member in stack.members if member.kind == "gbdt_lr"}) > 1:
        yield "members of kind gbdt_lr differ in table_bits, expected the same for all: they share their columns"
    for member in stack.members:
        if member.kind in ("river", "stack"):
            yield f"member {member.name!r} is of kind {member.kind}, expected ftrl, lightgbm, gbdt_lr or label_mean"
        if member.kind in TREES and (trees := [name for name in member.params if name not in ONLINE[member.kind]]):
            yield (
                f"member {member.name!r} sets {', '.join(trees)}, but the trees are trained once for all members; "
                "give it to stack(...)"
            )
        if "batch" in member.params:
            yield (
                f"member {member.name!r} sets batch, but a stack's members start with it, by replay: leave it out, or run the "
                "recipe as a challenger of its own"
            )
        yield from (f"member {member.name!r}: {mistake}" for mistake in member.mistakes())


def _source_hash(function: Callable[[], Any]) -> str:
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]


def river(build: Callable[[], Any], *, name: str = "river", target_means: bool = False) -> Recipe:
    """Any river classifier, or any regressor where labels are numbers.

    `build` takes no argument and returns a new pipeline, with river imported inside.

    The pipeline receives a dict per event: `str` for categories and crosses, `float` for numbers, nothing for a missing
    value. `target_means=True` adds the stream's target means as numbers.
    """
    return Recipe("river", name, target_means, {}, build)


@dataclass(frozen=True)
class Batch:
    """Batch training: passes over a window of the log (others call them epochs) before a model goes online.

    Parameters
    ----------
    passes
        At most; the last one follows the log, those before it are shuffled. One is a replay.
    decay
        The learning rate of a shuffled pass over that of the one before; the last pass has the recipe's own.
    patience
        Passes without a better loss on the window's held-out end after which there are no more.
    seed
        Of the shuffling: the same window gives the same model.
    """

    passes: int = 8
    decay: float = 0.7
    patience: int = 2
    seed: int = 0


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
    batch: Batch | None = None,
) -> Recipe:
    """FTRL-Proximal regression (McMahan et al. 2013), learning from the first event on, a hundredth of river's cost.

    Logistic for a yes or no; linear, on standardised labels, for a number.

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
    batch
        Start with batch training at a bootstrap, and learn online from where its window ends.
    """
    expires = None if expire_after is None else expire_after // timedelta(microseconds=1)
    own: dict[str, Any] = {"alpha": alpha, "beta": beta, "l1": l1, "l2": l2}
    own |= {"bins": bins, "pairs": pairs, "admit_after": admit_after}
    own |= {"expire_after": expires, "max_weights": max_weights}
    return Recipe("ftrl", name, target_means, own if batch is None else {**own, "batch": vars(batch)})


@dataclass(frozen=True)
class Search:
    """The budget of a search for LightGBM's parameters at each bootstrap: whichever ends first, one of them at least."""

    trials: int | None = None
    seconds: float | None = None


def lightgbm(
    *, name: str = "lightgbm", target_means: bool = True, search: Search | None = None, **params: Any
) -> Recipe:
    """Boosted trees, trained by bootstrap and then frozen; their score is recalibrated online. `params` go to LightGBM."""
    return Recipe("lightgbm", name, target_means, params | _budget(search))


def gbdt_lr(*, name: str = "gbdt_lr", target_means: bool = True, search: Search | None = None, **params: Any) -> Recipe:
    """Leaves of boosted trees as features of a regression that learns online (He et al. 2014)."""
    return Recipe("gbdt_lr", name, target_means, params | _budget(search))


def _budget(search: Search | None) -> dict[str, Any]:
    return {} if search is None else {"search": vars(search)}


def label_mean(*, name: str = "label_mean", labels: float = 200) -> Recipe:
    """The mean of the last `labels` labels, whatever the features say: a member for stacks."""
    return Recipe("label_mean", name, False, {"labels": labels})


def stack(
    *,
    name: str = "stack",
    target_means: bool = True,
    members: Sequence[Recipe] | None = None,
    calibrate_by: Sequence[str] = (),
    search: Search | None = None,
    **params: Any,
) -> Recipe:
    """Several models combined online, each weighed by what its predictions were worth lately.

    Parameters
    ----------
    target_means
        Whether all members read the stream's target means; what a member's own recipe says about it does not count.
    members
        Recipes of kinds ftrl, lightgbm, gbdt_lr and label_mean; `default_members` when not given.
    calibrate_by
        Categories whose values each have a calibration of their own, made of what the stack got wrong there lately.
    params
        For LightGBM: the trees are trained once for all members that have trees.
    """
    chosen = default_members(target_means=target_means) if members is None else members
    mine = tuple(replace(m, target_means=target_means) for m in chosen)
    own = {"calibrate_by": list(calibrate_by)} if calibrate_by else {}
    return Recipe("stack", name, target_means, {**own, **params, **_budget(search)}, members=mine)


def calibrated(recipe: Recipe, by: Sequence[str], *, name: str | None = None) -> Recipe:
    """One model under a calibration layer: each value of some categories is corrected by what was wrong there lately.

    A stack of one. `recipe` is of a kind that a stack may have; its target means are kept.
    """
    trees = {k: v for k, v in recipe.params.items() if recipe.kind in TREES and k not in ONLINE[recipe.kind]}
    member = replace(recipe, params={k: v for k, v in recipe.params.items() if k not in trees})
    params = {"calibrate_by": list(by), **trees}
    return Recipe("stack", name or f"{recipe.name}_calibrated", recipe.target_means, params, members=(member,))


def lean_members(*, target_means: bool = True) -> tuple[Recipe, ...]:
    """Six of `default_members`, at about half the cost: no pairs of categories, one learning rate and one mean less."""
    left_out = ("ftrl_slow", "pairs", "label_mean_8")
    return tuple(m for m in default_members(target_means=target_means) if m.name not in left_out)


def default_members(*, target_means: bool = True) -> tuple[Recipe, ...]:
    """The members of a stack unless it names its own.

    The best learning rate of a linear model differs tenfold between streams, so there are three; beside target means, which
    move on their own, smaller ones.
    """
    slower = 10 if target_means else 1
    return (
        lightgbm(),
        ftrl(name="ftrl_slow", alpha=0.01 / slower),
        ftrl(name="ftrl", alpha=0.1 / slower),
        ftrl(name="ftrl_quick", alpha=1.0 / slower),
        ftrl(name="pairs", alpha=0.01, pairs=True),
        gbdt_lr(name="leaves", leaf_alpha=0.03 / slower, category_alpha=0.03 / slower, offset=False),
        gbdt_lr(name="on_trees", leaf_alpha=0.03 / slower, category_alpha=0.03 / slower),
        label_mean(name="label_mean_8", labels=8),
        label_mean(name="label_mean_200", labels=200),
    )
