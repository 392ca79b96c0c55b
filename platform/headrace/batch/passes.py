"""Batch training of an online model: passes over the labels of a window, until its held-out end is predicted no better.

Of n passes the first n - 1 are shuffled, each at a lower learning rate than the one before; the last one follows the log, at
the rate with which the model then goes online. So what it goes online with is what the log's own order left: recent labels
count most, and clocks, sightings and ages of weights are those of a replay. One pass is a replay, to the bit. What n is
worth is told by the window's end: there the model goes on as it would online, and predicts each event before its label
comes. The same window and seed give the same bits. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.batch.walk_forward import Walk
from headrace.definition.loss import LOG_LOSS, Loss
from headrace.events import Columns
from headrace.flow.losses import losses_of
from headrace.models.contract import Clock, Floats, take
from headrace.models.ftrl import Ftrl

_PIECE = 50_000  # labels prepared at a time: prepared rows are wide

Rows = NDArray[np.intp]
Corrected = Callable[[Floats], Floats]


def _as_it_is(p: Floats) -> Floats:
    return p


@dataclass(frozen=True)
class Labels:
    """Labels in log order.

    Attributes
    ----------
    X
        Features of events.
    row
        intp[n]: each label's event.
    seq, clock, y, weight
        Of each label; one that weighs 0 teaches nothing.
    """

    X: Columns
    row: Rows
    seq: NDArray[np.int64]
    clock: Clock
    y: Floats
    weight: Floats

    def before(self, seq: int) -> Labels:
        """Those that came before a seq."""
        early = slice(int(np.searchsorted(self.seq, seq)))
        return Labels(self.X, self.row[early], self.seq[early], self.clock[early], self.y[early], self.weight[early])


@dataclass(frozen=True)
class Point:
    """Losses after some passes, or trees; `learning_rate` is that of the newest shuffled pass, or of the trees."""

    iteration: int
    learning_rate: float
    loss_train: float
    loss_heldout: float


@dataclass(frozen=True)
class Fitted:
    """What `fit` returns.

    Attributes
    ----------
    model
        After as many passes over the whole window as were best.
    p
        float64[events]: what the model of the first part, after as many passes, said of those of the held-out end.
    curve
        A point for each pass; the best one has the least held-out loss.
    """

    model: Ftrl
    p: Floats
    curve: tuple[Point, ...]
    best: int


class Training:
    """A model that goes over the same labels again and again.

    Parameters
    ----------
    make
        Makes the model, new.
    batch
        As `headrace.definition.recipes.Batch`.
    """

    def __init__(self, make: Callable[[], Ftrl], labels: Labels, batch: Mapping[str, Any]) -> None:
        self._make, self._labels, self._decay = make, labels, float(batch["decay"])
        self._random = np.random.default_rng(batch["seed"])
        self._shuffled = 0
        self._model: Ftrl | None = None  # after the shuffled passes

    @property
    def rate(self) -> float:
        """Of the newest shuffled pass, as a share of the recipe's."""
        return float(self._decay ** max(0, self._shuffled - 1))

    def shuffle(self) -> None:
        """One more pass in another order. Its weights keep the clock of the last label: none expires until that has come."""
        n = len(self._labels.y)
        if self._model is None:
            self._model = self._make()
            for rows in _pieces(np.flatnonzero(self._labels.weight)):
                self._model.scale_by(self._prepared(self._model, rows), self._labels.y[rows])
        self._shuffled += 1
        with self._model.again(self.rate, ordered=False):
            self._learn(self._model, self._random.permutation(n), np.full(n, self._labels.clock[-1]))

    def finished(self) -> Ftrl:
        """The model after one last pass, as the log went; the training may go on without that pass."""
        n, clock = len(self._labels.y), self._labels.clock
        if self._model is None:
            model = self._make()
            self._learn(model, np.arange(n), clock)
            return model
        model = deepcopy(self._model)
        with model.again(1.0, ordered=True):
            self._learn(model, np.arange(n), clock)
        return model

    def loss(self, model: Ftrl, loss: Loss, corrected: Corrected) -> float:
        """A model's mean loss on the labels, as it is."""
        sums = [
            losses_of(loss, self._labels.y[rows], corrected(model.predict(self._prepared(model, rows)))).sum()
            for rows in _pieces(np.arange(len(self._labels.y)))
        ]
        return float(sum(sums) / len(self._labels.y))

    def _learn(self, model: Ftrl, order: Rows, clock: Clock) -> None:
        y, weight = self._labels.y, self._labels.weight
        for rows in _pieces(order[weight[order] > 0.0]):
            model.learn(self._prepared(model, rows), y[rows], np.empty((len(rows), 0)), weight[rows], clock[rows])

    def _prepared(self, model: Ftrl, rows: Rows) -> Columns:
        return model.prepare(take(self._labels.X, self._labels.row[rows]))


def _pieces(order: Rows) -> Iterator[Rows]:
    for begin in range(0, len(order), _PIECE):
        yield order[begin : begin + _PIECE]


def fit(
    make: Callable[[], Ftrl],
    alpha: float,
    batch: Mapping[str, Any],
    labels: Labels,
    walk: Walk,
    first: int,
    last: int,
    judged: NDArray[np.bool_],
    loss: Loss = LOG_LOSS,
    corrected: Corrected = _as_it_is,
) -> Fitted:
    """Find the number of passes on the window's first part, then pass as often over all of it.

    Parameters
    ----------
    make, batch
        As in `Training`.
    alpha
        The model's learning rate.
    labels
        Of the whole window.
    walk
        The window.
    first, last
        Seqs: the held-out end begins at `first`, the window ends at `last`. Labels before `first` teach the first part.
    judged
        bool[labels]: those whose losses tell, of events of the held-out end: what waits when it begins, nobody predicted.
    loss
        The stream's: what is compared.
    corrected
        What a model's predictions stand for, see `headrace.flow.negatives`.
    """
    training = Training(make, labels.before(first), batch)
    curve: list[Point] = []
    best, p = 0, walk.p
    while len(curve) < batch["passes"] and len(curve) - best < batch["patience"]:
        if curve:
            training.shuffle()
        model = training.finished()
        loss_train = training.loss(model, loss, corrected)
        walk.adopt(model, first - 1)
        walk.go(model, first, last)
        loss_heldout = float(losses_of(loss, labels.y[judged], corrected(walk.p[labels.row[judged]])).mean())
        if not curve or loss_heldout < curve[best - 1].loss_heldout:
            best, p = len(curve) + 1, walk.p.copy()
        curve.append(Point(len(curve) + 1, alpha * training.rate, loss_train, loss_heldout))
    whole = Training(make, labels, batch)
    for _ in range(best - 1):
        whole.shuffle()
    return Fitted(whole.finished(), p, tuple(curve), best)
