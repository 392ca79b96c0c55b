"""Several models' logits combined online: delay-scaled Kalman stackers under a tempered Bayes top.

No member is best everywhere or for ever. Four logistic stackers, quick and slow, rigid and forgetting, each weigh the
members' logits; a Bayesian top weighs the stackers. All of them learn from what was predicted at the event, when its label
comes, and the more labels are outstanding the smaller are their steps: without that, mixtures overreact to delayed labels.
On top may stand a calibration layer per value of some categories (`headrace.models.residuals`).
Members learn on their own and share prepared columns where they can. Exactly sequential: one call over a range of the log
and turns give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ModelError
from headrace.events import Columns
from headrace.models.arithmetic import exp, log, logit, sigmoid
from headrace.models.contract import (
    Arrays,
    Clock,
    Floats,
    Following,
    MemberScore,
    Model,
    Sequential,
    Turns,
    follow,
    take,
)
from headrace.models.gbdt_lr import GbdtLr
from headrace.models.kalman import dot, learn
from headrace.models.lightgbm import LightGbmModel
from headrace.models.residuals import ResidualMeans
from headrace.models.text import kernel
from headrace.models.tokens import keyed

STACKERS = ((0.1, 0.0), (0.1, 3e-3), (1.0, 0.0), (1.0, 3e-3))
"""(s, r) of each stacker: variance of its start, times K sqrt(1 + D); share of it given back per label, times 1 + D."""

_COUNT = len(STACKERS)
_RESTORE = np.array([r for _, r in STACKERS])
_CLIP = 6.9  # of a member's logit, about logit(1 - _LEAST)
_LEAST = 1e-3  # of a probability, and of a label's likelihood under the top
_SWITCH = 1e-3  # share of the top's weights that is dealt out evenly at a label, times sqrt(1 + D)
_HORIZON = 1000.0  # predictions over which the number of outstanding labels is averaged
_NONE, _NO_EVENTS = np.empty(0), np.empty(0, dtype=np.int64)
_LAYER = " keys"  # prepared column of the calibration layer; no member's begins with a space


@dataclass(frozen=True)
class Member:
    """One model of a stack."""

    name: str
    model: Model | None  # None: absent, since its trees are not there yet
    prepared_by: str  # the member whose prepared columns it reads


class Stack:
    """A stack over K members.

    x = (logits of the members, clipped to ±6.9, and 1); an absent member's logit is the mean of the others'. D is the mean
    number of outstanding labels, D += (outstanding - D) / 1000 at each event. Stacker m starts with w = (1/K, ..., 1/K, 0)
    and P = v I, v = s / (K sqrt(1 + D)); the prediction is the sum of pi_m q_m, q_m = sigmoid(w x), pi_m = 1/4 at first.
    At a label, with x and q_m as they were at its event:

    1. pi_m *= clip(P(y | q_m), 1e-3, 1 - 1e-3)^eta, eta = 1 / sqrt(1 + D); made to sum to 1; pi = (1 - phi) pi + phi / 4,
       phi = 1e-3 / sqrt(1 + D).
    2. With the present w: q' = sigmoid(w x), h = max(q' (1 - q'), 1e-3), u = P x, d = 1 + h x'u, w += u (y - q') / d,
       P -= (h / d) u u'; each P_aa below v gets r v / (1 + D) back.

    A label's weight multiplies eta, h and y - q'. A label whose event the stack did not see teaches the members alone.

    Parameters
    ----------
    members
        At least one of them present.
    outstanding
        D of the start: the bootstrap's mean.
    calibrate_by
        Categories of the calibration layer; none without one.
    """

    def __init__(self, members: Sequence[Member], outstanding: float, calibrate_by: Sequence[str] = ()) -> None:
        self._members = tuple(members)
        count = len(members)
        self._layer = ResidualMeans(calibrate_by, outstanding) if calibrate_by else None
        self.memo_width = count + _COUNT + (0 if self._layer is None else self._layer.width)
        self._present = np.array([member.model is not None for member in members])
        self._fitted = False
        self._delay = np.array([outstanding])
        self._start = np.array([s for s, _ in STACKERS]) / (count * np.sqrt(1.0 + outstanding))
        self._w = np.zeros((_COUNT, count + 1))
        self._w[:, :count] = 1.0 / count
        self._P = self._start[:, None, None] * np.eye(count + 1)
        self._top = np.full(_COUNT, 1.0 / _COUNT)
        self._sums = np.zeros((count, 2))  # labels and losses of each member since the last report

    def prepare(self, X: Columns) -> Columns:
        """Return the members' prepared columns, each under the name of who prepares it; text is hashed once for all."""
        X = keyed(X)
        if not self._fitted:  # a model's first columns decide which ones it reads, also when another prepares them
            nothing = take(X, slice(0, 0))
            for member in self._members:
                if member.model is not None:
                    member.model.prepare(nothing)
            self._fitted = True
        prepared = {
            f"{member.name} {name}": values
            for member in self._members
            if member.model is not None and member.prepared_by == member.name
            for name, values in member.model.prepare(X).items()
        }
        return prepared if self._layer is None else prepared | {_LAYER: self._layer.keys_of(X)}

    def follow(self, turns: Turns, events: Columns, labels: Columns) -> tuple[Floats, Floats]:
        """Predict events and learn labels, in their order; see `headrace.models.contract.Following`.

        No member sees another, so that each may go over the whole range before the stackers do.
        """
        predicted = np.empty((len(turns.outstanding), len(self._members)))
        for column, member in enumerate(self._members):
            if member.model is None:
                continue
            assert isinstance(member.model, Sequential | Following)  # `build` makes no others
            p, _ = follow(member.model, turns, _read_by(member, events), _read_by(member, labels))
            predicted[:, column] = p
        return self._combine(turns, predicted, self._delay, events, labels)

    def ask(self, X: Columns, clock: Clock, outstanding: int) -> tuple[Floats, Floats]:
        """Predict n events; see `headrace.models.contract.Model`."""
        turns = _only_events(len(clock), outstanding, self.memo_width)
        return self.follow(turns, X, take(X, slice(0, 0)))

    def learn(self, X: Columns, y: Floats, memo: Floats, weight: Floats, clock: Clock) -> None:
        """Learn n labels one after the other; one whose memo is NaN teaches the members alone."""
        rows = np.arange(len(y))
        turns = Turns(~rows, _NO_EVENTS, y, weight, clock, np.full(len(y), -1), memo, rows)
        self.follow(turns, take(X, slice(0, 0)), X)

    def predict(self, X: Columns) -> Floats:
        """Return float64[n] and change nothing."""
        return self.judge(X)[0]

    def judge(self, X: Columns) -> tuple[Floats, Floats]:
        """Return what `ask` would give for n prepared rows, and change nothing."""
        n = len(next(iter(X.values())))
        predicted = np.empty((n, len(self._members)))
        for column, member in enumerate(self._members):
            if member.model is not None:
                predicted[:, column] = member.model.predict(_read_by(member, X))
        return self._combine(
            _only_events(n, 0, self.memo_width), predicted, self._delay.copy(), X, take(X, slice(0, 0))
        )

    def _combine(
        self, turns: Turns, predicted: Floats, delay: Floats, events: Columns, labels: Columns
    ) -> tuple[Floats, Floats]:
        p, memo = np.empty(len(predicted)), np.empty((len(predicted), self.memo_width))
        _run(
            turns.order, predicted, self._present, turns.outstanding, turns.asked, turns.memo, turns.y, turns.weight,
            self._w, self._P, self._top, delay, self._start, _RESTORE, self._sums, p, memo,
        )  # fmt: skip
        if self._layer is not None:
            p = self._layer.follow(turns, p, memo, len(self._members) + _COUNT, events[_LAYER], labels[_LAYER])
        return p, memo

    def take_over(self, former: Stack, *, stackers: bool) -> None:
        """Go on where a stack of the same members with other trees, or without any, stands.

        Parameters
        ----------
        stackers
            Whether their weights, too, are those of the other one; otherwise they are new.

        Raises
        ------
        ModelError
            The members are others.
        """
        names, found = ([member.name for member in stack._members] for stack in (self, former))
        if names != found:
            raise ModelError(f"found a stack of {', '.join(found)}, expected {', '.join(names)}")
        for mine, other in zip(self._members, former._members, strict=True):
            if isinstance(mine.model, GbdtLr) and isinstance(other.model, GbdtLr):
                mine.model.take_over(other.model)
            elif mine.model is not None and other.model is not None and not isinstance(mine.model, LightGbmModel):
                mine.model.load(*other.model.save())
        if stackers:
            self._load(*former._save())

    def report(self) -> tuple[MemberScore, ...]:
        """What each member did since the last report, and its logit's mean weight over the stackers, by the top's weights."""
        weights = (self._top @ self._w)[:-1].tolist()
        top = tuple(self._top.tolist())
        scores = tuple(
            MemberScore(member.name, int(labels), loss_sum, weight, top)
            for member, (labels, loss_sum), weight in zip(self._members, self._sums.tolist(), weights, strict=True)
        )
        self._sums[:] = 0.0
        return scores

    def save(self) -> tuple[Arrays, dict[str, Any]]:
        """Return the stackers and the members' states."""
        (arrays, meta), metas = self._save(), {}
        for number, member in enumerate(self._members):
            if member.model is not None:
                saved, metas[member.name] = member.model.save()
                arrays |= {f"{number}/{name}": values for name, values in saved.items()}
        return arrays, meta | {"members": metas}

    def load(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Take over a saved state.

        Raises
        ------
        ModelError
            It is one of other members.
        """
        names = [member.name for member in self._members if member.model is not None]
        if list(meta["members"]) != names and sorted(meta["members"]) != sorted(names):
            raise ModelError(f"found a stack of {', '.join(meta['members'])}, expected {', '.join(names)}")
        self._load(arrays, meta)
        for number, member in enumerate(self._members):
            if member.model is not None:
                prefix = f"{number}/"
                own = {name.removeprefix(prefix): v for name, v in arrays.items() if name.startswith(prefix)}
                member.model.load(own, meta["members"][member.name])
        self._sums[:] = 0.0

    def _save(self) -> tuple[Arrays, dict[str, Any]]:
        """What is not its members'."""
        own = {"w": self._w, "P": self._P, "top": self._top, "delay": self._delay, "start": self._start}
        arrays: Arrays = {name: values.copy() for name, values in own.items()}
        if self._layer is None:
            return arrays, {}
        saved, table = self._layer.save()
        return arrays | {f"layer/{name}": values for name, values in saved.items()}, {"layer": table}

    def _load(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        self._w, self._P, self._top = arrays["w"].copy(), arrays["P"].copy(), arrays["top"].copy()
        self._delay, self._start = arrays["delay"].copy(), arrays["start"].copy()
        if self._layer is not None:
            prefix = "layer/"
            own = {name.removeprefix(prefix): v for name, v in arrays.items() if name.startswith(prefix)}
            self._layer.load(own, meta["layer"])


def _read_by(member: Member, X: Columns) -> Columns:
    prefix = f"{member.prepared_by} "
    return {name.removeprefix(prefix): values for name, values in X.items() if name.startswith(prefix)}


def _only_events(n: int, outstanding: int, width: int) -> Turns:
    rows = np.arange(n)
    return Turns(rows, outstanding + rows, _NONE, _NONE, _NO_EVENTS, _NO_EVENTS, np.empty((0, width)), _NO_EVENTS)


@kernel
def _inputs(memo: Any, i: Any, x: Any) -> None:
    """x of a memo: an absent member's logit, NaN there, is the mean of the others'."""
    count = x.shape[0] - 1
    total, present = 0.0, 0
    for k in range(count):
        if memo[i, k] == memo[i, k]:
            total += memo[i, k]
            present += 1
    for k in range(count):
        x[k] = memo[i, k] if memo[i, k] == memo[i, k] else total / max(present, 1)
    x[count] = 1.0


@kernel
def _predict(i: Any, predicted: Any, present: Any, w: Any, top: Any, x: Any, memo: Any) -> Any:
    """The stack's probability of event i; fills its memo."""
    count = predicted.shape[1]
    for k in range(memo.shape[1]):  # a label of an event that a broken member was asked for teaches the members alone
        memo[i, k] = np.nan
    for k in range(count):
        if present[k]:
            q = predicted[i, k]
            if q != q:  # a member that is broken must not pass for one that is absent
                return np.nan
            memo[i, k] = min(max(logit(min(max(q, _LEAST), 1.0 - _LEAST)), -_CLIP), _CLIP)
    _inputs(memo, i, x)
    p = 0.0
    for m in range(_COUNT):
        q = sigmoid(dot(w[m], x))
        memo[i, count + m] = q
        p += top[m] * q
    return min(p, 1.0)


@kernel
def _learn_top(memo: Any, i: Any, first: Any, y: Any, weight: Any, delay: Any, top: Any) -> None:
    slow = np.sqrt(1.0 + delay)
    total = 0.0
    for m in range(_COUNT):
        q = memo[i, first + m]
        likely = min(max(q if y == 1.0 else 1.0 - q, _LEAST), 1.0 - _LEAST)
        top[m] *= exp(weight / slow * log(likely))
        total += top[m]
    switch = _SWITCH / slow
    for m in range(_COUNT):
        top[m] = (1.0 - switch) * (top[m] / total) + switch / _COUNT


@kernel
def _run(
    order: Any, predicted: Any, present: Any, outstanding: Any, asked: Any, waited: Any, y: Any, weight: Any, w: Any,
    P: Any, top: Any, delay: Any, start: Any, restore: Any, sums: Any, p: Any, memo: Any,
) -> None:  # fmt: skip
    """Events and labels in order; a label's memo is in `memo` when its event is among these, else in `waited`."""
    count = predicted.shape[1]
    x, u = np.empty(count + 1), np.empty(count + 1)
    for i in order:
        if i >= 0:
            p[i] = _predict(i, predicted, present, w, top, x, memo)
            delay[0] += (outstanding[i] - delay[0]) / _HORIZON
            continue
        i = -1 - i
        kept, row = (memo, asked[i]) if asked[i] >= 0 else (waited, i)
        if kept[row, count] != kept[row, count]:
            continue
        for k in range(count):
            if kept[row, k] == kept[row, k]:
                q = sigmoid(kept[row, k])
                sums[k, 0] += 1.0
                sums[k, 1] -= log(q if y[i] == 1.0 else 1.0 - q)
        _learn_top(kept, row, count, y[i], weight[i], delay[0], top)
        _inputs(kept, row, x)
        for m in range(_COUNT):
            back = restore[m] * start[m] / (1.0 + delay[0])
            learn(x, y[i], weight[i], w[m], P[m], start[m], back, u)
