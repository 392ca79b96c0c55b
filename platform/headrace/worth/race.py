"""The race: every recipe goes over the past in order, and is scored on what it had not seen.

The first fifth of the events is scored for nobody: on its first half the first trees are trained, on the second half stacks
learn how far to trust whom, and at its end trees are trained again, on all of it. From there on they are trained again at
equal intervals, on all labels that were known by then; models that learn online learn each label when it came, and go on
when their trees change. What a family is worth is what a stack of all its members loses: one rule for all, no hindsight.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headrace.definition import recipes
from headrace.definition.recipes import Recipe
from headrace.errors import BatchError
from headrace.events import Columns
from headrace.flow.scores import ScoreSums
from headrace.models import contract
from headrace.models.boosting import Ensemble
from headrace.models.build import fresh, train
from headrace.models.contract import Arrays, Floats, Following, Model, Sequential, Turns, row_count, take
from headrace.models.gbdt_lr import GbdtLr
from headrace.models.stack import Member, Stack
from headrace.worth.past import Ints, Past

Family = Literal["batch", "online", "hybrid"]
FAMILIES: tuple[Family, ...] = ("batch", "online", "hybrid")

LEAST = 500
"""Labels that must be left to score."""

TRAININGS = 10  # of the trees from the end of the first part on
DAY = 86_400_000_000
MOMENT = 600_000_000  # ten minutes: the grain of the freshness curve
_PIECE = 50_000  # entries at a time: prepared rows are wide
_KEY = bytes(16)  # signs nothing: no state leaves this process

Told = Callable[[str], None]


@dataclass(frozen=True)
class Entrant:
    """A recipe in the race."""

    family: Family
    recipe: Recipe
    retrains: bool = True  # whether its trees are trained again

    @property
    def name(self) -> str:
        """Its recipe's."""
        return self.recipe.name

    @property
    def combines(self) -> bool:
        """Whether it is a stack of others: those are in no family's stack."""
        return len(self.recipe.members) > 1


def entrants(own: Sequence[Recipe] = (), keys: Sequence[str] = (), *, target_means: bool = True) -> list[Entrant]:
    """Who races: trees by themselves, what a stack is made of, a stream's own recipes; what has trees gets the race's.

    Parameters
    ----------
    keys
        Categories with target means, which a calibration layer goes by; without any there is none.
    target_means
        Whether models that learn online find such means: their learning rates are smaller then.
    """
    raw = 0.0  # the scale of a recalibration that never moves
    usual = [
        Entrant("batch", recipes.lightgbm(name="batch_frozen", scale=raw), retrains=False),
        Entrant("batch", recipes.lightgbm(name="batch_scheduled", scale=raw)),
        Entrant("batch", recipes.lightgbm(name="batch_frozen_recalibrated"), retrains=False),
    ]
    for member in recipes.default_members(target_means=target_means):
        name = "batch_recalibrated" if member.kind == "lightgbm" else member.name
        usual.append(Entrant(_family(member), replace(member, name=name, target_means=True)))
    if keys:
        usual.append(Entrant("hybrid", recipes.calibrated(recipes.lightgbm(), keys)))
    taken = {recipe.name for recipe in own}
    mine = [Entrant(_family(recipe), recipe) for recipe in own]
    return mine + [entrant for entrant in usual if entrant.name not in taken]


def _family(recipe: Recipe) -> Family:
    if recipe.kind == "lightgbm":
        return "batch"
    return "hybrid" if recipe.has_trees else "online"


@dataclass(frozen=True)
class Training:
    """Trees, and when they came."""

    time: int  # microseconds: labels known before it taught them
    entry: int  # first entry that they see
    ensemble: Ensemble
    cpu_seconds: float


@dataclass
class Ran:
    """What one entrant did."""

    entrant: Entrant
    p: Floats  # float64[events], NaN where it did not predict
    cpu_seconds: float = 0.0
    labels: int = 0  # learned


@dataclass(frozen=True)
class Race:
    """All of it.

    Attributes
    ----------
    scored
        Rows of the events that everybody is scored on, in the order of their labels; `y` are those.
    families
        Float64[events] of each family's stack.
    """

    past: Past
    scored: Ints
    y: Floats
    trainings: Sequence[Training]
    ran: Sequence[Ran]
    families: Mapping[Family, Floats]

    @property
    def label_time(self) -> Ints:
        """When each scored label came, microseconds."""
        return self.past.label_time[self.past.label_row >= self.past.first]

    def sums(self, p: Floats) -> ScoreSums:
        """The scores of predictions of all events."""
        sums = ScoreSums()
        sums.add(self.y, p[self.scored])
        return sums

    @property
    def regret(self) -> float:
        """The hybrid stack's loss over that of its best member in hindsight, less 1."""
        best = min(self.sums(ran.p).mean_loss for ran in self.ran if not ran.entrant.combines)
        return self.sums(self.families["hybrid"]).mean_loss / best - 1.0


def grain(past: Past) -> int:
    """Trees change, and coarse copies are made, at multiples of this."""
    return DAY if past.days >= 20 else MOMENT


def race(past: Past, own: Sequence[Recipe], told: Told, every: int | None = None) -> Race:
    """Run it.

    Parameters
    ----------
    own
        Recipes that race beside the usual ones, or instead of those that they share a name with.
    every
        Microseconds between trainings of the trees; a tenth of what is scored unless given.

    Raises
    ------
    ModelError
        The first part, or a later one, has labels of one class only.
    """
    trainings = train_all(past, told, every)
    ran = []
    for entrant in entrants(own, past.keys, target_means=bool(past.means)):
        told(f"{entrant.name} goes over {len(past.event_time):,} events")
        ran.append(_run(past, entrant, trainings))
    late = past.label_row >= past.first
    scored, y = past.label_row[late], past.y[late]
    if len(y) < LEAST:
        raise BatchError(
            f"{past.name}: found {len(y):,} labels after the first fifth of the events, expected at least {LEAST}: wait for "
            "more"
        )
    told("stacking each family")
    single = [r for r in ran if not r.entrant.combines]
    families: dict[Family, Floats] = {
        family: stacked(past, [r for r in single if family in ("hybrid", r.entrant.family)], trainings[0])
        for family in FAMILIES
    }
    return Race(past, scored, y, trainings, ran, families)


def train_all(past: Past, told: Told, every: int | None = None) -> list[Training]:
    """Trees on what was known amid the first part, at its end, and at equal intervals after it; see `race`."""
    half, start, end = (int(past.event_time[row]) for row in (past.first // 2, past.first, -1))
    step = grain(past)
    if every is None:
        every = max(step, -(-(end - start) // TRAININGS // step) * step)
    times = [half, start, *range(start // step * step + every, end, every)]
    made = []
    for number, at in enumerate(times, start=1):
        told(f"training trees, {number} of {len(times)}: on {timedelta(microseconds=at - int(past.event_time[0]))}")
        known = past.known_by(at)
        rows = np.sort(past.label_row[known])
        y, arrived = np.empty(len(past.event_time)), np.empty(len(past.event_time), dtype=np.int64)
        y[past.label_row[known]], arrived[past.label_row[known]] = past.y[known], past.label_time[known]
        began = time.process_time()
        trained = train(recipes.lightgbm(), take(past.X, rows), y[rows], past.event_time[rows], arrived[rows])
        made.append(Training(at, past.entry_at(at), trained.ensemble, time.process_time() - began))
    return made


def follow(model: Model, turns: Turns, events: Columns, labels: Columns) -> tuple[Floats, Floats]:
    """Events and labels in their order, in one call where the model can do that."""
    if isinstance(model, Sequential | Following):
        return contract.follow(model, turns, events, labels)
    p, nothing = np.empty(len(turns.outstanding)), np.empty((1, 0))
    for entry in turns.order.tolist():
        if entry >= 0:
            p[entry] = model.predict(take(events, slice(entry, entry + 1)))[0]
        else:
            one = slice(~entry, ~entry + 1)
            model.learn(take(labels, one), turns.y[one], nothing, turns.weight[one], turns.clock[one])
    return p, np.empty((len(p), 0))


class Walker:
    """A model on its way over the past, whose trees may change under it.

    Attributes
    ----------
    model
        None as long as it waits for its first trees.
    p
        float64[events], NaN before it began to predict.
    """

    def __init__(self, past: Past, entrant: Entrant, trainings: Sequence[Training]) -> None:
        self._past, self._recipe = past, entrant.recipe
        self._trees = {t.entry: t for t in (trainings if entrant.retrains else trainings[:2])}
        self._starts = trainings[0].entry
        self.X = past.features(entrant.recipe.target_means or entrant.recipe.has_trees)  # all share the trees
        self.model: Model | None = None
        if not all(part.has_trees for part in entrant.recipe.members or (entrant.recipe,)):
            self.model = fresh(entrant.recipe, key=_KEY)
        self.p = np.full(len(past.event_time), np.nan)
        self._memo: Floats | None = None
        self.artifact: bytes | None = None  # of its trees now
        self.cpu_seconds = 0.0
        self.labels = 0

    def turn(self, entry: int) -> None:
        """Take the trees that come at an entry, if some do."""
        if self._recipe.has_trees and entry in self._trees:
            training = self._trees[entry]
            self.cpu_seconds += training.cpu_seconds
            self.artifact = training.ensemble.dump()
            former, self.model = self.model, fresh(self._recipe, key=_KEY, artifact=self.artifact)
            if isinstance(self.model, Stack) and isinstance(former, Stack):
                self.model.take_over(former, stackers=entry > self._starts)
            elif isinstance(self.model, GbdtLr) and isinstance(former, GbdtLr):
                self.model.take_over(former)
            if entry == self._starts:
                self._adopt(self.model, self._past.open_at(entry))

    def _adopt(self, model: Model, rows: Ints) -> None:
        """Judge the events that are open when it begins: their labels teach stacks as others do (docs/decisions/0010)."""
        prepared = model.prepare(take(self.X, rows))
        if isinstance(model, Stack):
            self._memo = np.full((len(self.p), model.memo_width), np.nan)
            self.p[rows], self._memo[rows] = model.judge(prepared)
        else:
            self.p[rows] = model.predict(prepared)

    def prepared(self, first: int, last: int) -> Prepared | None:
        """Prepared columns of the events of some entries, and of the events that their labels answer."""
        if self.model is None:
            return None
        events, labels = self._past.slices(first, last)
        rows = np.unique(np.concatenate([np.arange(events.start, events.stop), self._past.label_row[labels]]))
        began = time.process_time()
        X = self.model.prepare(take(self.X, rows))
        self.cpu_seconds += time.process_time() - began
        return Prepared(rows, X)

    def go(self, first: int, last: int, prepared: Prepared | None) -> None:
        """Follow the entries from `first` up to, not including, `last`."""
        if prepared is None or self.model is None:
            return
        past = self._past
        events, labels = past.slices(first, last)
        begun = not isinstance(self.model, Stack) or not self._recipe.has_trees or first >= self._starts
        if isinstance(self.model, Stack) and self._memo is None:
            self._memo = np.full((len(past.event_time), self.model.memo_width), np.nan)
        turns = past.turns(first, last, self._memo, asked=begun)
        began = time.process_time()
        p, memo = follow(
            self.model, turns, prepared.of(slice(events.start, events.stop)), prepared.of(past.label_row[labels])
        )
        self.cpu_seconds += time.process_time() - began
        self.labels += labels.stop - labels.start
        if begun:
            self.p[events] = p
            if self._memo is not None:
                self._memo[events] = memo

    def copied(self) -> Model:
        """The model as it stands, in an object of its own."""
        assert self.model is not None  # the caller has looked
        copy = fresh(self._recipe, key=_KEY, artifact=self.artifact)
        copy.load(*self.model.save())
        return copy


@dataclass(frozen=True)
class Prepared:
    """Prepared columns of some events."""

    rows: Ints  # in order
    X: Columns

    def of(self, events: slice | Ints) -> Columns:
        """Those of a run of events, or of any."""
        if isinstance(events, slice):
            first = int(np.searchsorted(self.rows, events.start))
            return take(self.X, slice(first, first + events.stop - events.start))
        return take(self.X, np.searchsorted(self.rows, events))


def bounds(past: Past, trainings: Sequence[Training], every: int | None = None) -> Iterator[tuple[int, int]]:
    """Pieces of the entries: no trees change within one, nor does a multiple of `every` lie within one, if given."""
    total = len(past.order)
    cuts = {0, total, *(t.entry for t in trainings)}
    if every is None:
        cuts |= set(range(0, total, _PIECE))
    else:
        start, end = int(past.event_time[0]) // every, int(past.entry_time[-1]) // every
        cuts |= set(np.searchsorted(past.entry_time, np.arange(start, end + 2) * every).tolist())
    yield from ((a, b) for a, b in pairwise(sorted(cuts)) if a < b)


def _run(past: Past, entrant: Entrant, trainings: Sequence[Training]) -> Ran:
    walker = Walker(past, entrant, trainings)
    for first, last in bounds(past, trainings):
        walker.turn(first)
        walker.go(first, last, walker.prepared(first, last))
    return Ran(entrant, walker.p, walker.cpu_seconds, walker.labels)


class _Given:
    """A member whose predictions are known."""

    memo_width = 0

    def prepare(self, X: Columns) -> Columns:
        return X

    def follow(self, turns: Turns, events: Columns, labels: Columns) -> tuple[Floats, Floats]:
        return events["p"], np.empty((len(events["p"]), 0))

    def ask(self, X: Columns, clock: NDArray[np.int64], outstanding: int) -> tuple[Floats, Floats]:
        return X["p"], np.empty((row_count(X), 0))

    def learn(self, X: Columns, y: Floats, memo: Floats, weight: Floats, clock: NDArray[np.int64]) -> None:
        """It knows all."""

    def predict(self, X: Columns) -> Floats:
        p: Floats = X["p"]
        return p

    def save(self) -> tuple[Arrays, dict[str, Any]]:
        return {}, {}

    def load(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """It has no state."""


def stacked(past: Past, members: Sequence[Ran], start: Training) -> Floats:
    """A stack of what some entrants predicted, from the first trees on."""
    stack = Stack([Member(r.entrant.name, _Given(), r.entrant.name) for r in members], start.ensemble.outstanding)
    p, memo = np.full(len(past.event_time), np.nan), np.full((len(past.event_time), stack.memo_width), np.nan)
    rows = past.open_at(start.entry)
    p[rows], memo[rows] = stack.judge({f"{r.entrant.name} p": r.p[rows] for r in members})
    for first in range(start.entry, len(past.order), _PIECE):
        last = min(first + _PIECE, len(past.order))
        events, _ = past.slices(first, last)
        turns = past.turns(first, last, memo)
        given = {f"{r.entrant.name} p": r.p[events] for r in members}
        p[events], memo[events] = stack.follow(turns, given, {})
    return p
