"""What a learner asks of a model, and nothing more.

A model sees the training log as alternating runs of events (`ask`) and labels (`learn`), in log order. What it computes
depends on that order alone, never on how the log was cut into batches: this is what makes live training, catch-up and
rebuild give the same bits. This module defines the types; `headrace.models.checks` runs a model against them. It
imports no model library and does no arithmetic.

`Columns` holds features by name, each with one row an event. A category is a `headrace.models.text.Text`, or an object
array of `str` with None where it is missing; a number is a float64 array, NaN where it is missing; a list of tokens is a
`headrace.models.tokens.Tokens`. What `Model.prepare` returns may hold any arrays of n rows, and `Tokens` of numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from headrace.events import Columns
from headrace.models.tokens import Tokens

Floats: TypeAlias = NDArray[np.float64]
Clock: TypeAlias = NDArray[np.int64]
"""Stream time (the watermark) in microseconds since the Unix epoch; never falls from one log entry to the next."""

Arrays: TypeAlias = dict[str, NDArray[Any]]
"""The arrays of a state by name; numbers, booleans or bytes, never objects."""


class Model(Protocol):
    """One binary classifier, or regression, that follows a training log.

    Attributes
    ----------
    memo_width
        How many float64 the model wants back, with its label, for each open event.
    """

    memo_width: int

    def prepare(self, X: Columns) -> Columns:
        """Turn raw features into what `ask`, `learn` and `predict` take.

        Pure, and row i depends on row i alone: equal to the bit in batches of any size. The learner calls it once for
        a whole range of the log, so work that gains from batches belongs here.
        """
        ...

    def ask(self, X: Columns, clock: Clock, outstanding: int) -> tuple[Floats, Floats]:
        """Predict n events in log order, with the weights as they are.

        Parameters
        ----------
        X
            n prepared rows.
        clock
            int64[n], microseconds.
        outstanding
            Events that had no label yet when the first row entered; row i sees `outstanding + i`.

        Returns
        -------
        (p, memo)
            float64[n] probabilities of a positive label, in [0, 1], or finite numbers where labels are numbers;
            float64[n, memo_width]. The model may keep counts of its own here, never weights.
        """
        ...

    def learn(self, X: Columns, y: Floats, memo: Floats, weight: Floats, clock: Clock) -> None:
        """Learn n labels one after the other, in log order.

        Parameters
        ----------
        X
            n prepared rows: those of the labels' events.
        y
            float64[n], 0 or 1, or numbers.
        memo
            float64[n, memo_width], as `ask` returned it for each event.
        weight
            float64[n], positive.
        clock
            int64[n], microseconds, at the label.
        """
        ...

    def predict(self, X: Columns) -> Floats:
        """Return float64[n] for n prepared rows as `ask` would, and change nothing."""
        ...

    def save(self) -> tuple[Arrays, dict[str, Any]]:
        """Return the whole state as arrays and JSON; the caller may keep them, they never change afterwards."""
        ...

    def load(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Take over a state that `save` returned; the model then goes on to the bit as the saved one would have."""
        ...


@runtime_checkable
class Sequential(Protocol):
    """A model without a memo that can follow a whole range of the log in one call, to the bits that turns would give."""

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
        """Predict events and learn labels in their order, as `ask` and `learn` would one after the other.

        Parameters
        ----------
        order
            int64[entries]: i for row i of `events`, -1 - i for label i.
        events, labels
            Prepared rows.
        y, weight, clock
            Of the labels.
        row
            intp[labels], each label's row of `labels`; None for the i-th one of label i. It spares their copies.

        Returns
        -------
        float64[events]
            Predictions, each with the weights of its turn.
        """
        ...


@runtime_checkable
class Uncertain(Protocol):
    """A model that says how little it knows of a row."""

    def uncertainty(self, X: Columns) -> Floats:
        """Return float64[n] for n prepared rows: how far one more label may move the prediction; changes nothing.

        In logits, or in the label's unit where labels are numbers.
        """
        ...


@dataclass(frozen=True)
class Rates:
    """Effective learning rates of one feature's weights: how far a gradient of one moves them. They fall as labels come."""

    feature: str
    weights: int
    nonzero: int
    p50: float
    p90: float


@runtime_checkable
class Rated(Protocol):
    """A model whose learning rates depend on what it has seen."""

    def rates(self) -> list[Rates]:
        """Return those of each feature that has weights, in time that does not grow with the model; changes nothing."""
        ...


@dataclass(frozen=True)
class Turns:
    """A range of the log for a model that follows it in one call.

    Attributes
    ----------
    order
        int64[entries]: r for row r of the events, -1 - r for row r of the labels.
    outstanding
        int64[events]: events without a label when each entered.
    y, weight, clock
        Of the labels.
    asked
        int64[labels]: the row of the label's event when it is one of these, else -1.
    memo
        float64[labels, memo_width]: what was kept of events that came before these; NaN where nothing was.
    row
        intp[labels]: the row of each label's event among the labels' prepared rows.
    """

    order: NDArray[np.int64]
    outstanding: NDArray[np.int64]
    y: Floats
    weight: Floats
    clock: Clock
    asked: NDArray[np.int64]
    memo: Floats
    row: NDArray[np.intp]


@runtime_checkable
class Following(Protocol):
    """A model that can follow a whole range of the log in one call, memo and all, to the bits that turns would give."""

    memo_width: int

    def follow(self, turns: Turns, events: Columns, labels: Columns) -> tuple[Floats, Floats]:
        """Predict events and learn labels in their order, as `ask` and `learn` would one after the other.

        Parameters
        ----------
        events, labels
            Prepared rows.

        Returns
        -------
        (p, memo)
            float64[events], float64[events, memo_width], each with the weights of its turn.
        """
        ...


def follow(model: Sequential | Following, turns: Turns, events: Columns, labels: Columns) -> tuple[Floats, Floats]:
    """Follow a range of the log in one call, whichever way the model does it; see `Following.follow`."""
    if isinstance(model, Sequential):
        p = model.run(turns.order, events, labels, turns.y, turns.weight, turns.clock, turns.row)
        return p, np.empty((len(p), 0))
    return model.follow(turns, events, labels)


@dataclass(frozen=True)
class MemberScore:
    """What one member did, and counted, within a model of several."""

    member: str
    labels: int  # that it had predicted
    loss_sum: float  # their log losses, of its predictions as the model took them
    weight: float  # of its logit now
    top_weights: tuple[float, ...]  # of the model's own combinations now: the same for all members


@runtime_checkable
class Combining(Protocol):
    """A model of several members."""

    def report(self) -> tuple[MemberScore, ...]:
        """What each member did since the last report; the next one begins at nothing."""
        ...


def row_count(X: Columns) -> int:
    """Return the number of rows.

    >>> row_count({"a": np.zeros(3)})
    3
    """
    return len(next(iter(X.values())))


def take(X: Columns, index: slice | NDArray[np.intp]) -> dict[str, Any]:
    """Return the rows that `index` selects.

    >>> take({"a": np.array([1.0, 2.0, 3.0])}, slice(1, 3))
    {'a': array([2., 3.])}
    """
    return {name: values[index] for name, values in X.items()}


def joined(parts: Sequence[Columns]) -> dict[str, Any]:
    """Return the rows of several, one after the other; lists of tokens are of numbers.

    >>> joined([{"a": np.array([1.0])}, {"a": np.array([2.0])}])
    {'a': array([1., 2.])}
    """
    columns = {name: [part[name] for part in parts] for name in parts[0]}
    return {
        name: Tokens.concat(values) if isinstance(values[0], Tokens) else np.concatenate(values)
        for name, values in columns.items()
    }


def merged(some: Columns, where: NDArray[np.bool_], others: Columns) -> dict[str, Any]:
    """Return rows put together: those where `where` holds, and the others.

    >>> merged({"a": np.array([1.0])}, np.array([False, True]), {"a": np.array([2.0])})
    {'a': array([2., 1.])}
    """
    out: dict[str, Any] = {}
    for name, values in some.items():
        if isinstance(values, Tokens):
            out[name] = Tokens.concat([values, others[name]])[np.argsort(np.argsort(~where, kind="stable"))]
        else:
            out[name] = np.empty((len(where), *values.shape[1:]), dtype=values.dtype)
            out[name][where], out[name][~where] = values, others[name]
    return out
