"""The model contract as code: what a model promises, tried on it.

`check_model` runs a model over a short log with delayed labels, cut in several ways, saved and restored on the way,
with missing and unknown values in it, and raises at the first promise that does not hold. `headrace.models.trial` runs
it on every recipe before a version of it may follow a log. It says nothing about how well the model predicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.definition.loss import LARGEST
from headrace.errors import ModelError
from headrace.events import Columns
from headrace.models.contract import Floats, Model, joined, row_count, take
from headrace.models.snapshot import dump, parse
from headrace.models.tokens import Tokens

Run = tuple[bool, NDArray[np.intp], int]
"""Neighbouring log entries of one kind: whether they are labels, their events' rows, and the clock in microseconds."""


def check_model(
    factory: Callable[[], Model],
    X: Columns,
    y: Floats,
    *,
    seed: int = 0,
    weighted: bool = False,
    beyond: bool = True,
    numbers: bool = False,
) -> None:
    """Raise unless models from `factory` keep the contract on these rows.

    Parameters
    ----------
    factory
        Returns equal, new models.
    X
        At least 50 rows of raw features, as the learner would hand them to `prepare`.
    y
        float64[n], 0 or 1, or numbers; two values must occur.
    seed
        Draws the order of events and labels.
    weighted
        Whether labels get weights other than 1.
    beyond
        Whether rows are added in which everything is missing, or unknown, or large.
    numbers
        Whether labels are numbers, so that predictions may be any.

    Raises
    ------
    ModelError
        A promise of `headrace.models.contract.Model` is broken; the message says which.
    """
    kinds = len(np.unique(y))
    if len(y) < 50 or kinds < 2 or (kinds > 2 and not numbers):
        raise ModelError(f"found {len(y)} rows of {kinds} class(es) to check a model on, expected 50 of both")
    if beyond:
        X, y = _harder(X, y)
    weight = np.where(np.arange(len(y)) % 2 == 0, 0.75, 1.5) if weighted else np.ones(len(y))
    model = factory()
    name = type(model).__name__
    _check_prepare(name, model, X)

    log = list(_log(len(y), np.random.default_rng(seed)))
    whole = _follow(name, model, X, y, weight, log, _memos(model, y), numbers=numbers)
    for size in (1, 7):
        again = factory()
        pieces = _follow(name, again, X, y, weight, list(_cut(log, size)), _memos(again, y), numbers=numbers)
        _expect(_same(pieces, whole), name, f"batches of {size} predict differently")
        _expect(_same(_probe(again, X), _probe(model, X)), name, f"batches of {size} end in another state")

    half = len(log) // 2
    first, second = factory(), factory()
    memos = _memos(first, y)
    _follow(name, first, X, y, weight, log[:half], memos, numbers=numbers)
    saved = first.save()
    state = dump(*saved)
    memos_second = memos.copy()
    tail = _follow(name, first, X, y, weight, log[half:], memos, numbers=numbers)
    _expect(dump(*saved) == state, name, "learning changed a state that was saved before")
    second.load(*parse(state))
    _expect(
        _same(_follow(name, second, X, y, weight, log[half:], memos_second, numbers=numbers), tail),
        name,
        "a restored state goes on differently",
    )
    _expect(_same(_probe(second, X), _probe(first, X)), name, "a restored state ends in another state")


def _harder(X: Columns, y: Floats) -> tuple[dict[str, Any], Floats]:
    """Add rows in which everything is missing, or unknown, or large."""
    hard: dict[str, Any] = {}
    for name, values in X.items():
        if isinstance(values, Tokens):
            lists, many = values.lists(), [f"never seen before {number}" for number in range(40)]
            hard[name] = Tokens.of([*lists[:20], None, many, [], *lists[20:]])
            continue
        new = [None, "never seen before", ""] if values.dtype == object else [np.nan, 1e6, -1e6]
        hard[name] = np.concatenate([values[:20], np.array(new, dtype=values.dtype), values[20:]])
    return hard, np.concatenate([y[:20], [1.0, 0.0, 1.0], y[20:]])


def _log(n: int, random: np.random.Generator) -> Iterator[Run]:
    """Yield runs of events and of labels; labels come in another order than events, some never."""
    asked, waiting, clock = 0, np.empty(0, dtype=np.intp), 0
    while asked < n:
        clock += 2_000_000
        size = int(random.integers(1, 25))
        rows = np.arange(asked, min(n, asked + size), dtype=np.intp)
        asked += len(rows)
        yield False, rows, clock
        waiting = random.permutation(np.concatenate([waiting, rows]))
        ready = int(random.integers(0, len(waiting)))
        if ready:
            yield True, waiting[:ready], clock + 1_000_000
        waiting = waiting[ready:]


def _cut(log: list[Run], size: int) -> Iterator[Run]:
    for is_label, rows, clock in log:
        for start, stop in pairwise([*range(0, len(rows), size), len(rows)]):
            yield is_label, rows[start:stop], clock


def _memos(model: Model, y: Floats) -> Floats:
    """Return room for the memo of every event, and for whether it was asked."""
    return np.full((len(y), model.memo_width + 1), np.nan)


def _follow(
    name: str, model: Model, X: Columns, y: Floats, weight: Floats, log: list[Run], memos: Floats, *, numbers: bool
) -> Floats:
    """Run a model over a log and return its predictions in order; `memos` keeps what open events wait with."""
    outstanding = int(np.count_nonzero(memos[:, -1] == 1.0))
    predictions: list[Floats] = []
    for is_label, rows, time in log:
        raw = take(X, rows)
        prepared = model.prepare(raw)
        clock = np.full(len(rows), time, dtype=np.int64)
        if is_label:
            model.learn(prepared, y[rows], memos[rows, :-1], weight[rows], clock)
            memos[rows, -1] = 0.0
            outstanding -= len(rows)
            continue
        before = model.predict(prepared)
        p, memo = model.ask(prepared, clock, outstanding)
        outstanding += len(rows)
        _expect(p.shape == (len(rows),) and p.dtype == np.float64, name, f"ask returned {p.dtype}{p.shape} as p")
        _expect(memo.shape == (len(rows), model.memo_width), name, f"ask returned a memo of shape {memo.shape}")
        _expect(numbers or bool((p >= 0).all() and (p <= 1).all()), name, "p is not within [0, 1]")
        _expect(bool((np.abs(p) <= LARGEST).all()), name, "p is no finite number")
        _expect(_same(before, p), name, "predict and ask differ")
        _expect(_same(model.predict(prepared), p), name, "ask changed the weights, or predict did")
        _expect(all(map(_same, raw.values(), take(X, rows).values())), name, "the rows handed over were changed")
        memos[rows, :-1], memos[rows, -1] = memo, 1.0
        predictions.append(p)
    return np.concatenate([np.empty(0), *predictions])


def _check_prepare(name: str, model: Model, X: Columns) -> None:
    n = row_count(X)
    whole = model.prepare(X)
    nothing = model.prepare(take(X, slice(0, 0)))
    for column, values in whole.items():
        _expect(_same(nothing[column], values[:0]), name, f"prepare without rows gives another {column!r}")
    for size in (1, 7):
        pieces = [model.prepare(take(X, slice(at, at + size))) for at in range(0, n, size)]
        together = joined(pieces)
        for column, values in whole.items():
            _expect(_same(together[column], values), name, f"prepare in batches of {size} gives another {column!r}")


def _probe(model: Model, X: Columns) -> Floats:
    return model.predict(model.prepare(X))


def _same(a: Any, b: Any) -> bool:
    """Return whether two arrays, or columns of lists, are equal to the bit."""
    if isinstance(a, Tokens):
        return bool(a.lists() == b.lists())
    if a.dtype == object or b.dtype == object:
        return bool(a.tolist() == b.tolist())
    return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


def _expect(kept: bool, name: str, broken: str) -> None:
    if not kept:
        raise ModelError(f"found that {name} breaks the model contract: {broken}")
