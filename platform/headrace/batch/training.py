"""Training a candidate on a window of the log: trees, a stack of several models, or passes of batch training.

What was trained comes with what it says of the window's held-out end, where it had not seen the labels, and with its curve.
The same window and recipe give the same bits, but for searches with a budget of seconds. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.batch import passes
from headrace.batch.passes import Labels, Point
from headrace.batch.walk_forward import Walk, walk_forward
from headrace.definition.loss import LOG_LOSS, Loss
from headrace.definition.recipes import Recipe
from headrace.flow.negatives import Negatives
from headrace.models.boosting import Trained, split
from headrace.models.build import fresh, train
from headrace.models.contract import Floats, Model, take
from headrace.models.ftrl import Ftrl
from headrace.models.search import Searched
from headrace.models.target_mean import TargetMeans

Judged = NDArray[np.bool_]
"""bool[labels of the window]: those of the held-out end whose losses tell what a candidate is worth."""


@dataclass(frozen=True)
class Window:
    """A range of the log as training data: events in log order, and their labels."""

    X: dict[str, NDArray[Any]]
    event_seq: NDArray[np.int64]
    event_clock: NDArray[np.int64]
    label_row: NDArray[np.int64]  # row of the event that each label answers, in log order of the labels
    label_seq: NDArray[np.int64]
    label_clock: NDArray[np.int64]
    y: Floats
    negatives: Negatives  # which of those labels teach
    means: TargetMeans | None  # as they stand at the window's end
    open_seq: NDArray[np.int64]  # events that wait for their label at the window's end
    open_means: Floats | None

    @property
    def weight(self) -> Floats:
        """float64[labels], what each one weighs for a model; 0 for one that does not teach."""
        return self.negatives.weight(self.negatives.importance(self.event_seq[self.label_row], self.y))

    def held_out(self, loss: Loss) -> int:
        """Seq of the first event of the held-out end.

        Raises
        ------
        ModelError
            Labels before or after it are all the same.
        """
        order, rows = self.by_event(int(self.label_seq[-1]))
        first = split(self.y[order], self.event_clock[rows], self.label_clock[order], loss, self.weight[order])
        return int(self.event_seq[rows[first]])

    def by_event(self, upto: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The labels up to a seq in the order of their events, and those events' rows."""
        known = np.flatnonzero(self.label_seq <= upto)
        order = known[np.argsort(self.label_row[known], kind="stable")]
        return order, self.label_row[order]

    def walk(self) -> Walk:
        """For models to go through it as they would online."""
        waits = np.isin(self.event_seq, self.open_seq)
        waits[self.label_row] = True
        labels = (self.label_row, self.label_seq, self.label_clock, self.y, self.weight)
        return Walk(self.X, self.event_seq, waits, *labels)


@dataclass(frozen=True)
class Fitted:
    """A model at a window's end.

    Attributes
    ----------
    artifact
        Its trees, if it has some.
    curve
        A point for each tree, or pass; `best` of them were used.
    p
        float64[labels that judge].
    found
        What is to be kept with the held-out loss.
    """

    model: Model
    artifact: NDArray[np.uint8] | None
    curve: Sequence[Point]
    best: int
    p: Floats
    found: Mapping[str, Any]


def fit(
    recipe: Recipe, key: bytes, window: Window, first: int, cut: int, judged: Judged, threads: int, loss: Loss
) -> Fitted:
    """Train on a window.

    Parameters
    ----------
    key
        Signs states; see `headrace.models.build.fresh`.
    first, cut
        Seqs: the held-out end begins at `first`, the window ends at `cut`.
    threads
        For LightGBM.
    loss
        The stream's.
    """
    asked = window.label_row[judged]
    if recipe.kind == "stack":
        return _stack(recipe, window, cut, asked, threads)
    if recipe.has_trees:
        return _trees(recipe, key, window, cut, asked, threads, loss)
    return _passes(recipe, key, window, first, cut, judged, loss)


def _trees(
    recipe: Recipe, key: bytes, window: Window, cut: int, asked: NDArray[np.intp], threads: int, loss: Loss
) -> Fitted:
    trained = _train(recipe, window, cut, threads, loss)
    first_part = fresh(recipe, key=key, artifact=trained.held_out.dump(), loss=loss)
    p = first_part.predict(first_part.prepare(take(window.X, asked)))
    model = fresh(recipe, key=key, artifact=trained.ensemble.dump(), loss=loss)
    return _with_trees(model, trained, p, trained.searched, {})


def _stack(recipe: Recipe, window: Window, cut: int, asked: NDArray[np.intp], threads: int) -> Fitted:
    """A stack's walk-forward start.

    A search sees the first half alone, so that no label of the second one chooses parameters of the trees that predict it.
    """
    half = int(window.label_seq[len(window.label_seq) // 2])
    first_trees = _train(recipe, window, half, threads)
    searched = first_trees.searched
    params = {name: value for name, value in recipe.params.items() if name != "search"}
    settled = replace(recipe, params=params | ({} if searched is None else dict(searched.params)))
    trained, walk = _train(settled, window, cut, threads), window.walk()
    model = walk_forward(recipe, walk, half, cut, first_trees, trained)
    return _with_trees(model, trained, walk.p[asked], searched, {"stack_seq": half + 1, "refit_seq": cut})


def _train(recipe: Recipe, window: Window, upto: int, threads: int, loss: Loss = LOG_LOSS) -> Trained:
    """Trees of the labels up to a seq."""
    order, rows = window.by_event(upto)
    clocks = window.event_clock[rows], window.label_clock[order]
    weight = window.weight[order] if window.negatives.rate < 1.0 else None
    return train(recipe, take(window.X, rows), window.y[order], *clocks, loss=loss, weight=weight, threads=threads)


def _with_trees(
    model: Model, trained: Trained, p: Floats, searched: Searched | None, found: Mapping[str, Any]
) -> Fitted:
    losses = zip(trained.curve_train, trained.curve_valid, strict=True)
    curve = [Point(n, trained.learning_rate, float(a), float(b)) for n, (a, b) in enumerate(losses, start=1)]
    artifact = np.frombuffer(trained.ensemble.dump(), dtype=np.uint8)
    kept = found if searched is None else {"search": vars(searched), **found}
    return Fitted(model, artifact, curve, trained.best_trees, p, kept)


def _passes(recipe: Recipe, key: bytes, window: Window, first: int, cut: int, judged: Judged, loss: Loss) -> Fitted:
    def make() -> Ftrl:
        model = fresh(recipe, key=key, loss=loss)
        assert isinstance(model, Ftrl)  # no other kind takes `batch`
        return model

    labels = Labels(window.X, window.label_row, window.label_seq, window.label_clock, window.y, window.weight)
    alpha, batch = recipe.params["alpha"], recipe.params["batch"]
    # An event that waited when the held-out end began is predicted there, later than it came: it must not choose.
    chooses = judged & (window.event_seq[window.label_row] >= first)
    done = passes.fit(make, alpha, batch, labels, window.walk(), first, cut, chooses, loss, window.negatives.corrected)
    p = done.p[window.label_row[judged]]
    return Fitted(done.model, None, done.curve, done.best, p, {"passes": done.best})
