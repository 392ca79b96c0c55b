"""The freshness curve: what one model loses when the weights that serve are older than those that learn.

A stack learns every label when it comes. Beside it, predictions are made with its weights as they stood at the last sync:
never since the first part, every 28 days, and so on down to ten minutes. What features say is fresh in all of them, so the
curve shows what stale weights cost and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from headrace.definition import recipes
from headrace.models.contract import Floats, Model, take
from headrace.worth.past import Past
from headrace.worth.race import DAY, Entrant, Prepared, Told, Training, Walker, bounds, grain

LIVE = "each label"
NEVER = "never"
INTERVALS: dict[str, int] = {
    "28 d": 28 * DAY,
    "7 d": 7 * DAY,
    "1 d": DAY,
    "6 h": DAY // 4,
    "1 h": DAY // 24,
    "10 min": DAY // 144,
}
"""Microseconds between syncs; each is a multiple of the next."""


_FOREVER = 2**62  # microseconds; no multiple of it lies in any history


@dataclass
class Served:
    """What weights of one age predicted."""

    every: int  # microseconds
    p: Floats  # float64[events]
    cpu_seconds: float = 0.0  # of predictions and of copying weights; learning is extra
    copy: Model | None = None


@dataclass(frozen=True)
class Curve:
    """From the stalest weights to the freshest.

    Attributes
    ----------
    p
        float64[events] by name of the interval.
    cpu_seconds
        Of learning, training of trees included, and of serving.
    """

    p: dict[str, Floats]
    cpu_seconds: dict[str, float]


def freshness(past: Past, trainings: Sequence[Training], told: Told) -> Curve:
    """Follow the past once, with every interval that fits into its scored part three times."""
    walker, start = (
        Walker(past, Entrant("hybrid", recipes.stack(target_means=bool(past.means))), trainings),
        trainings[1].entry,
    )
    span = int(past.event_time[-1] - past.event_time[past.first])
    wanted = {NEVER: _FOREVER} | {name: every for name, every in INTERVALS.items() if 3 * every <= span}
    served = {name: Served(every, np.full(len(past.event_time), np.nan)) for name, every in wanted.items()}
    coarse = [s for s in served.values() if s.every > grain(past)]
    fine = [s for s in served.values() if s.every <= grain(past)]
    first_seconds = 0.0
    told(f"serving with weights of {len(served) + 1} ages")
    for begin, end in bounds(past, trainings, grain(past)):
        walker.turn(begin)
        if begin == start:
            first_seconds = walker.cpu_seconds
        prepared = walker.prepared(begin, end)
        if begin < start:
            walker.go(begin, end, prepared)
            continue
        for one in coarse:
            _serve_copy(past, walker, one, begin, end, anew=begin == start or _due(past, begin, one.every))
        for a, b in _moments(past, begin, end, min((s.every for s in fine), default=grain(past))):
            for one in fine:
                if a == begin or _due(past, a, one.every):
                    _serve(past, walker, prepared, one, a, end)
            walker.go(a, b, prepared)
    seconds = {
        name: s.cpu_seconds + (first_seconds if name == NEVER else walker.cpu_seconds) for name, s in served.items()
    }
    return Curve({name: s.p for name, s in served.items()} | {LIVE: walker.p}, seconds | {LIVE: walker.cpu_seconds})


def _due(past: Past, entry: int, every: int) -> bool:
    """Whether a multiple of an interval has passed since the entry before."""
    before, now = past.entry_time[entry - 1 : entry + 1].tolist()
    return bool(now // every > before // every)


def _moments(past: Past, first: int, last: int, every: int) -> list[tuple[int, int]]:
    """Pieces of some entries between multiples of an interval."""
    turns = np.flatnonzero(np.diff(past.entry_time[first:last] // every)) + first + 1
    return list(pairwise([first, *turns.tolist(), last]))


def _serve_copy(past: Past, walker: Walker, served: Served, first: int, last: int, *, anew: bool) -> None:
    began = time.process_time()
    if anew:
        served.copy = walker.copied()
    assert served.copy is not None  # the first time is anew
    events, _ = past.slices(first, last)
    if events.start < events.stop:
        served.p[events] = served.copy.predict(served.copy.prepare(take(walker.X, events)))
    served.cpu_seconds += time.process_time() - began


def _serve(past: Past, walker: Walker, prepared: Prepared | None, served: Served, first: int, last: int) -> None:
    """Predict what comes until the next sync, or until the piece ends, with the weights of now."""
    assert prepared is not None and walker.model is not None  # there are trees
    until = past.entry_at((int(past.entry_time[first]) // served.every + 1) * served.every)
    events, _ = past.slices(first, min(until, last))
    if events.start < events.stop:
        began = time.process_time()
        served.p[events] = walker.model.predict(prepared.of(events))
        served.cpu_seconds += time.process_time() - began
