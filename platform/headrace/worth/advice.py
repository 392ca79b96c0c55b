"""Advice: does online training pay on this past? Yes, no or not yet, and the numbers behind it.

Three questions of whoever hesitates. Does freshness pay: is the same model better with live weights than with weights that
are as old as a schedule makes them, and are online or hybrid models better than what is trained in batches? Is there enough
data and compute? Does the world change at all? A history is looked at once, so its evidence is a test of fixed length, made
for series whose neighbours are alike; the decision rule, which may look for ever, would need more of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import t as student

from headrace.flow.scores import ScoreSums, log_loss
from headrace.models.contract import Floats
from headrace.worth.freshness import INTERVALS, LIVE, NEVER, Curve
from headrace.worth.race import Race

Verdict = Literal["yes", "no", "not_yet"]

MIN_GAIN = 0.005
"""Of the log loss: less is not worth a process that is always on."""

ALPHA = 0.02
"""Of each one-sided bound."""

_EPOCH, _EPOCHS = 500, 100  # labels of an epoch at most, epochs at least
_ENTRY_OVERHEAD = (
    60  # bytes of WAL for each row of the log beside its values: tuple header, WAL record, its share of pages
)
_LABEL_BYTES = 48
_SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class Gain:
    """How much less one series of losses is than another, relative, with one-sided bounds at `ALPHA`."""

    gain: float
    low: float
    high: float

    @property
    def proven(self) -> bool:
        """It is `MIN_GAIN` at least."""
        return self.low >= MIN_GAIN

    @property
    def refuted(self) -> bool:
        """It is less."""
        return self.high < MIN_GAIN

    def __str__(self) -> str:
        return f"{self.gain:.2%} ({self.low:.2%} to {self.high:.2%})"


def gain(before: Floats, after: Floats) -> Gain:
    """The relative gain of one series of losses over another, in order of time.

    Of T epochs with sums A and B: g = 1 - mean(B) / mean(A), u = (1 - g) A - B, and the long-run variance of u by equally
    weighted cosines, the mean of L_j^2 over j = 1..v with L_j = sqrt(2/T) sum_t u_t cos(pi j (t - 1/2) / T), which Student's t
    with v = 0.41 T^(2/3) degrees of freedom goes with (Lazarus, Lewis, Stock and Watson 2018, "HAR inference:
    recommendations for practice").
    """
    count = max(_EPOCHS, len(before) // _EPOCH)
    starts = np.linspace(0, len(before), count, endpoint=False).astype(np.int64)
    A, B = (np.add.reduceat(values, starts) for values in (before, after))
    share = 1.0 - float(B.sum() / A.sum())
    u, freedom = (1.0 - share) * A - B, int(0.41 * count ** (2 / 3))
    waves = np.cos(np.pi * np.outer(np.arange(1, freedom + 1), (np.arange(count) + 0.5) / count))
    variance = float(np.mean((np.sqrt(2.0 / count) * (waves @ u)) ** 2))
    radius = float(student.ppf(1.0 - ALPHA, freedom)) * np.sqrt(variance / count) / A.mean()
    return Gain(share, share - radius, share + radius)


@dataclass(frozen=True)
class Advice:
    """A verdict and its reasons, each a sentence with its numbers."""

    verdict: Verdict
    reasons: tuple[str, ...]
    numbers: Mapping[str, float | str]


def advise(race: Race, curve: Curve) -> Advice:
    """Weigh a race and a freshness curve."""
    schedule = _as_old_as_a_schedule(race, curve)
    fresh = _gain(race, curve.p[schedule], curve.p[LIVE])
    over_batch = _gain(race, race.families["batch"], race.families["hybrid"])
    over_never = _gain(race, curve.p[NEVER], curve.p[LIVE])
    rates = _rates(race)
    verdict: Verdict = "not_yet"
    if fresh.proven and over_batch.proven:
        verdict = "yes"
    elif fresh.refuted or over_batch.refuted:
        verdict = "no"
    reasons = (
        _fresh_reason(schedule, fresh),
        _batch_reason(race, over_batch),
        _staleness_reason(race, curve),
        _drift_reason(race, curve, over_never),
        _enough_reason(rates),
    )
    numbers: dict[str, float | str] = {"schedule": schedule, **rates}
    for name, found in (("live_weights", fresh), ("over_batch", over_batch), ("over_never", over_never)):
        numbers |= {f"gain_{name}": found.gain, f"gain_{name}_low": found.low, f"gain_{name}_high": found.high}
    return Advice(verdict, reasons, numbers)


def _gain(race: Race, before: Floats, after: Floats) -> Gain:
    losses = [log_loss(race.y, p[race.scored])[0] for p in (before, after)]
    return gain(*losses)


def _as_old_as_a_schedule(race: Race, curve: Curve) -> str:
    """The oldest weights that are no older than the schedule of the trees makes them; else the freshest that were tried."""
    times = [t.time for t in race.trainings[1:]]
    every = float(np.mean(np.diff(times))) if len(times) > 1 else 0.0
    tried = [name for name in INTERVALS if name in curve.p]
    return next((name for name in tried if INTERVALS[name] <= 1.01 * every), tried[-1] if tried else NEVER)


def _fresh_reason(schedule: str, fresh: Gain) -> str:
    how = (
        "never synced again"
        if schedule == NEVER
        else f"synced every {schedule}, as often as trees are trained at least"
    )
    return f"Freshness: live weights lower the log loss of the same model by {fresh} against weights {how}; {_says(fresh)}."


def _batch_reason(race: Race, over_batch: Gain) -> str:
    batch, hybrid = (race.sums(race.families[family]).mean_loss for family in ("batch", "hybrid"))
    return (
        f"Against batch: everything together has a log loss of {hybrid:.4f}, batch models on a schedule with online "
        f"recalibration {batch:.4f}: {over_batch} lower; {_says(over_batch)}."
    )


def _says(found: Gain) -> str:
    if found.proven:
        return f"at least {MIN_GAIN:.1%} is proven"
    return f"{MIN_GAIN:.1%} is refuted" if found.refuted else f"the data cannot tell whether it is {MIN_GAIN:.1%}"


def _staleness_reason(race: Race, curve: Curve) -> str:
    """How old weights may be."""
    live = race.sums(curve.p[LIVE]).mean_loss
    costs = {name: race.sums(p).mean_loss / live - 1.0 for name, p in curve.p.items() if name != LIVE}
    fine = [name for name in (NEVER, *INTERVALS) if name in costs and costs[name] <= MIN_GAIN]
    shown = ", ".join(f"{name} {cost:+.2%}" for name, cost in costs.items())
    if fine:
        until = (
            "never syncing them costs less than"
            if fine[0] == NEVER
            else f"weights may be {fine[0]} old before they cost"
        )
        return f"How stale: {until} {MIN_GAIN:.1%} ({shown})."
    return f"How stale: even the freshest sync that was tried costs more than {MIN_GAIN:.1%} ({shown})."


def _drift_reason(race: Race, curve: Curve, over_never: Gain) -> str:
    """Slowly: trees trained once lose more with time. Within days: so do weights that are a day old."""
    frozen = next(ran.p for ran in race.ran if ran.entrant.name == "batch_frozen")
    thirds = np.array_split(np.arange(len(race.y)), 3)
    (early, early_error), (late, late_error) = (
        _entropy(race.y[r], frozen[race.scored[r]]) for r in (thirds[0], thirds[2])
    )
    margin = student.ppf(1.0 - ALPHA, len(thirds[0])) * np.hypot(early_error, late_error)
    how = ["slowly"] if late - early > max(margin, MIN_GAIN * early) else []
    said = ""
    if "1 d" in curve.p:
        cost = race.sums(curve.p["1 d"]).mean_loss / race.sums(curve.p[LIVE]).mean_loss - 1.0
        how += ["within days"] if cost > MIN_GAIN else []
        said = f" Weights that are synced once a day cost {cost:+.2%}."
    return (
        f"Does the world change: {' and '.join(how) or 'hardly'}. Trees trained once have a normalised entropy of {early:.4f} in "
        f"the first third after their training and {late:.4f} in the last.{said} Learning after the first fifth lowers the log "
        f"loss by {over_never}; part of it is more data."
    )


def _entropy(y: Floats, p: Floats) -> tuple[float, float]:
    """The normalised entropy, and its standard error if the label rate is known."""
    sums = ScoreSums()
    losses = sums.add(y, p)
    return sums.normalised_entropy, float(losses.std() / np.sqrt(len(y)) * sums.normalised_entropy / losses.mean())


def _rates(race: Race) -> dict[str, float]:
    """Labels, CPU and WAL of a day."""
    past = race.past
    days = max(past.days, 1e-9)
    events, labels = len(past.event_time) / days, len(past.y) / days
    online = [ran for ran in race.ran if ran.labels and ran.entrant.family != "batch"]
    us = sum(1e6 * ran.cpu_seconds / ran.labels for ran in online)
    wal = events * (past.row_bytes + _ENTRY_OVERHEAD) + labels * (_LABEL_BYTES + _ENTRY_OVERHEAD)
    return {
        "events_a_day": events,
        "labels_a_day": labels,
        "cpu_seconds_a_day": us * labels / 1e6,
        "wal_bytes_a_day": wal,
    }


def _enough_reason(rates: Mapping[str, float]) -> str:
    return (
        f"Data and compute: {rates['labels_a_day']:,.0f} labels a day; all online models together take "
        f"{rates['cpu_seconds_a_day']:,.1f} CPU seconds a day ({rates['cpu_seconds_a_day'] / _SECONDS_A_DAY:.2%} of a core); the "
        f"log writes about {rates['wal_bytes_a_day'] / 1e6:,.1f} MB of WAL a day."
    )
