"""Walk forward: a stack's start on the bootstrap's own window, where its members predict what they were not trained on.

The stack must learn how far to trust each member from predictions that are honest, and trees are not honest about what they
were trained on. So the trees are trained on the window's first half, the stack starts there and follows the second half
entry by entry, and at the window's end trees of the whole window take the place of the first ones. What was learned goes
into the version's first checkpoint: nothing of this is done again when the version is rebuilt. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.definition.recipes import Recipe
from headrace.models import build
from headrace.models.boosting import Trained
from headrace.models.contract import Floats, Following, Model, Sequential, Turns, follow, take
from headrace.models.stack import Stack

_PIECE = 50_000  # entries at a time: prepared rows are wide

Ints = NDArray[np.int64]


class Walk:
    """A window of the log, and what models said on their way through it.

    Parameters
    ----------
    X
        Features of n events in log order.
    event_seq
        int64[n].
    waits
        bool[n]: events that get a label in the window, or may still get one after it.
    label_row, label_seq, label_clock, y, weight
        Of the labels, in log order; `label_row` is the event's, and a label that weighs 0 closes it and teaches nothing. All
        weigh 1 unless said.

    Attributes
    ----------
    p, memo
        float64[n], float64[n, memo_width] of the model: what it said of each event; NaN where it was not asked.
    """

    def __init__(
        self,
        X: Mapping[str, NDArray[Any]],
        event_seq: Ints,
        waits: NDArray[np.bool_],
        label_row: Ints,
        label_seq: Ints,
        label_clock: Ints,
        y: Floats,
        weight: Floats | None = None,
    ) -> None:
        self._X, self._event_seq = X, event_seq
        self._label_row, self._label_seq, self._label_clock, self._y = label_row, label_seq, label_clock, y
        self._weight = np.ones(len(y)) if weight is None else weight
        entered: Ints = np.cumsum(waits) - waits
        self._outstanding = entered - np.searchsorted(label_seq, event_seq)
        self._answered = np.where(waits, np.iinfo(np.int64).max, -1)  # seq of each event's label; -1: it gets none
        self._answered[label_row] = label_seq
        self.p = np.full(len(event_seq), np.nan)
        self.memo: Floats = np.empty((len(event_seq), 0))

    def adopt(self, model: Model, after: int) -> None:
        """Let a model predict the events that wait after a seq; a stack judges them, so that their labels teach it as others do.

        Where labels that mean no come later than those that mean yes, it would learn from nothing but a yes at first.
        """
        self.memo = np.full((len(self.p), model.memo_width), np.nan)
        waiting = np.flatnonzero((self._event_seq <= after) & (self._answered > after))
        for begin in range(0, len(waiting), _PIECE):
            rows = waiting[begin : begin + _PIECE]
            prepared = model.prepare(take(self._X, rows))
            if isinstance(model, Stack):
                self.p[rows], self.memo[rows] = model.judge(prepared)
            else:
                self.p[rows] = model.predict(prepared)

    def go(self, model: Model, first: int, last: int, *, started: bool = True) -> None:
        """Follow the entries with seq from `first` to `last`.

        Parameters
        ----------
        started
            Whether what it says of events counts; if not, a stack's members alone learn.
        """
        if started and self.memo.shape[1] != model.memo_width:
            self.memo = np.full((len(self.p), model.memo_width), np.nan)
        seqs = np.sort(np.concatenate([self._event_seq, self._label_seq]))
        seqs = seqs[(seqs >= first) & (seqs <= last)]
        for begin in range(0, len(seqs), _PIECE):
            self._go(model, int(seqs[begin]), int(seqs[min(begin + _PIECE, len(seqs)) - 1]), started)

    def _go(self, model: Model, first: int, last: int, started: bool) -> None:
        assert isinstance(model, Sequential | Following)  # every array model is
        events = slice(*np.searchsorted(self._event_seq, [first, last + 1]).tolist())
        labels = slice(*np.searchsorted(self._label_seq, [first, last + 1]).tolist())
        taught = labels.start + np.flatnonzero(self._weight[labels])
        rows, y = self._label_row[taught], self._y[taught]
        n = events.stop - events.start
        order = np.argsort(np.concatenate([self._event_seq[events], self._label_seq[taught]]), kind="stable")
        turns = Turns(
            order=np.where(order < n, order, n - 1 - order),
            outstanding=self._outstanding[events],
            y=y,
            weight=self._weight[taught],
            clock=self._label_clock[taught],
            asked=np.where(started & (rows >= events.start), rows - events.start, -1),
            memo=self.memo[rows] if started else np.full((len(y), model.memo_width), np.nan),
            row=np.arange(len(y)),
        )
        prepared, known = model.prepare(take(self._X, events)), model.prepare(take(self._X, rows))
        p, memo = follow(model, turns, prepared, known)
        if started:
            self.p[events], self.memo[events] = p, memo


def walk_forward(recipe: Recipe, walk: Walk, half: int, last: int, first_trees: Trained, trees: Trained) -> Stack:
    """The stack as it stands at the window's end, with the trees of the whole window.

    Parameters
    ----------
    half, last
        Seqs: the trees' first training ends, and the stack starts, after `half`; the window ends at `last`.
    """
    started, refitted = build.stack(recipe, first_trees.ensemble), build.stack(recipe, trees.ensemble)
    if not all(member.has_trees for member in recipe.members):
        waiting = build.stack(recipe, None)
        walk.go(waiting, 0, half, started=False)
        started.take_over(waiting, stackers=False)
    walk.adopt(started, half)
    walk.go(started, half + 1, last)
    refitted.take_over(started, stackers=True)
    return refitted
