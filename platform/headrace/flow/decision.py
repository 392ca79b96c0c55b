"""The decision rule: from two models' losses on the same labels to a verdict, its reason in a sentence, its numbers.

It may be looked at on any schedule, for ever: over all slots and looks, a challenger that is not better by the declared
margin is promoted with probability at most about alpha. `eprocess` has the evidence, exact for independent normal
blocks; the gates here keep real ones close to that: enough blocks, hardly correlated, over two full seasons. The
verdict is a function of the stored epochs and the rule alone, so it can be recomputed at any time. This module does not
choose the epochs (only those in which both models scored every label belong here), does not store the verdict and
promotes nobody.

A positive gain is always the challenger's: 1 - challenger's loss / champion's loss. In probation the former champion
stands as the challenger.

References
----------
Choe, Ramdas: Comparing sequential forecasters (arXiv 2110.00115). Pérez-Ortiz et al.: E-statistics, group invariance
and anytime-valid testing (2208.07610).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headrace.errors import BatchError
from headrace.flow import eprocess

FloatArray = NDArray[np.float64]
Name = Literal["promote", "keep", "retire", "rollback"]


@dataclass(frozen=True)
class Rule:
    """The constants of a comparison, fixed before its first label."""

    alpha: float = 0.02  # probability of ever promoting a challenger that is not better by min_gain
    slots: int = 1  # challengers that share alpha
    min_gain: float = 0.005  # relative margin m of the champion's loss
    season: timedelta = timedelta(days=1)  # the stream's cycle
    min_seasons: float = 2.0  # full cycles of stream time before any verdict on evidence
    min_blocks: int = 10
    max_lag1: float = 0.15  # autocorrelation of neighbouring blocks that still passes
    merges: tuple[int, ...] = (1, 2, 4, 8, 16)  # epochs per block, tried in this order
    prior_variance: float = eprocess.PRIOR_VARIANCE
    futility_alpha: float = 0.05  # probability of ever retiring a challenger that is better by min_gain
    max_labels: int | None = None  # a comparison without a winner ends here
    max_time: timedelta | None = None  # or here, in stream time
    tolerance: float = 0.01  # how much worse than the former champion a promoted model may be
    rollback_alpha: float = 0.1
    rollback_blocks: int = 5
    rollback_prior_variance: float = 0.5
    guards: tuple[str, ...] = ()  # what else a challenger must not be worse in: "calibration"
    calibration_tolerance: float = 0.02  # how much further off, on the logarithm of sum p / positives

    def __post_init__(self) -> None:
        levels = (self.alpha, self.futility_alpha, self.rollback_alpha)
        if not all(0 < level < 0.5 for level in levels) or self.slots < 1:
            raise BatchError(
                f"error levels {levels} for {self.slots} slots; expected levels in (0, 0.5), at least 1 slot"
            )
        if not 0 <= self.min_gain < 1 or self.tolerance < 0 or self.season <= timedelta(0) or not self.merges:
            raise BatchError(
                f"min_gain {self.min_gain}, tolerance {self.tolerance}, season {self.season}, merges {self.merges}; "
                "expected a margin in [0, 1), a tolerance of at least 0, a positive season and at least one block size"
            )


@dataclass(frozen=True, eq=False)
class PairedEpochs:
    """Epochs in log order in which both models scored every label; all arrays of shape (epochs,).

    Raises
    ------
    BatchError
        Lengths differ, a count is negative, a loss is not finite, or a time has no time zone.
    """

    labels: NDArray[np.int64]
    champion: FloatArray  # sum of the champion's losses over the epoch's labels
    challenger: FloatArray  # sum of the challenger's losses over the same labels
    first_watermark: Sequence[datetime]  # stream time at which the epoch begins
    last_watermark: Sequence[datetime]  # and ends
    positives: FloatArray | None = None  # of the labels; this and the next two for the guard of calibration only
    champion_p: FloatArray | None = None  # sum of the champion's predictions
    challenger_p: FloatArray | None = None  # sum of the challenger's

    def __post_init__(self) -> None:
        columns = (self.labels, self.champion, self.challenger, self.first_watermark, self.last_watermark)
        if len({len(column) for column in columns}) != 1:
            raise BatchError(
                f"epochs of a comparison have columns of {[len(column) for column in columns]} rows; expected equal "
                "lengths: compare only epochs that both models finished"
            )
        bad = (self.labels < 0) | ~np.isfinite(self.champion) | ~np.isfinite(self.challenger)
        if bad.any():
            i = int(bad.argmax())
            raise BatchError(
                f"epoch {i} of {len(bad)} has {self.labels[i]} labels with loss sums {self.champion[i]} (champion) and "
                f"{self.challenger[i]} (challenger); expected finite sums: pause the model whose loss is not finite"
            )
        if any(time.tzinfo is None for time in (*self.first_watermark, *self.last_watermark)):
            raise BatchError("an epoch's watermark has no time zone; expected timezone-aware stream time")


@dataclass(frozen=True)
class Evidence:
    """Every number behind a verdict. Losses and gains are means over blocks; None: not known or not bounded yet."""

    blocks: int  # whole blocks; a shorter tail waits
    block_size_epochs: int
    labels: int  # in those blocks
    seasons: float  # full cycles of stream time that they span
    kappa: float  # inflation of the variance for the correlation that is left
    lag1: float  # autocorrelation of neighbouring blocks
    loss_champion: float | None
    loss_challenger: float | None
    gain: float | None  # relative to the champion's loss
    gain_low: float | None  # confidence sequence: at or above min_gain when promoted
    gain_high: float | None
    log_e: float  # ln E+ that the gain exceeds min_gain
    log_e_needed: float  # ln(slots / alpha)
    log_e_retire: float  # ln E+ that it does not
    log_e_retire_needed: float | None  # ln(1 / futility_alpha); None where nobody retires
    missing: str  # what a verdict on evidence lacks, in numbers; empty once it lacks nothing
    calibration_champion: float | None = (
        None  # sum p / positives over all epochs; None: no positive label, or not asked for
    )
    calibration_challenger: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What to do about a challenger, why in one sentence, and the numbers."""

    champion: str
    challenger: str
    verdict: Name
    reason: str
    evidence: Evidence


def compare(epochs: PairedEpochs, rule: Rule, *, champion: str, challenger: str) -> Verdict:
    """Promote, retire or keep a challenger, on everything both models have scored since the comparison began.

    Parameters
    ----------
    epochs
        From the comparison's first epoch on; a new comparison starts when a model's configuration or lineage changes.
    champion, challenger
        Names of the versions, for the reason.

    Examples
    --------
    >>> from datetime import UTC
    >>> hours = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=h) for h in range(61)]
    >>> noise = np.tile([3.0, -2.0, 1.0, -3.0, 0.0, 1.0], 10)
    >>> epochs = PairedEpochs(np.full(60, 500), 250 + noise, 240 - noise, hours[:-1], hours[1:])
    >>> compare(epochs, Rule(), champion="ads-1", challenger="ads-2").reason
    'ads-2 beats ads-1 by 4.0% (at least 3.3%) over 30,000 labels in 60 blocks: ln E 44.44 ≥ 3.91.'
    """
    evidence = _weigh(epochs, rule)
    if epochs.positives is not None:
        champion_is, challenger_is = _calibrations(epochs)
        evidence = replace(evidence, calibration_champion=champion_is, calibration_challenger=challenger_is)
    verdict: Name = "keep"
    reason = f"{challenger} stays in shadow: {evidence.missing}."
    if not evidence.missing and evidence.log_e >= evidence.log_e_needed:
        verdict = "promote"
        reason = (
            f"{challenger} beats {champion} by {_percent(evidence.gain)} (at least {_percent(evidence.gain_low)}) over "
            f"{_volume(evidence)}: ln E {evidence.log_e:.2f} ≥ {evidence.log_e_needed:.2f}."
        )
        if "calibration" in rule.guards and (worse := _miscalibrated(epochs, evidence, rule)):
            verdict, reason = "keep", f"{reason[:-1]}, but stays in shadow: {worse}."
    elif not evidence.missing:
        verdict = "retire"
        reason = (
            f"{challenger} is not {_percent(rule.min_gain)} better than {champion}, its loss is {_change(evidence.gain)} "
            f"over {_volume(evidence)}: ln E {evidence.log_e_retire:.2f} ≥ {-math.log(rule.futility_alpha):.2f} against it."
        )
    elif cap := _cap(epochs, rule):
        verdict = "retire"
        reason = f"{challenger} did not beat {champion} within {cap}: {evidence.missing}."
    return Verdict(champion, challenger, verdict, reason, evidence)


def choose(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts of one look with at most one promotion left: the highest lower bound of the gain wins.

    The others that passed are kept, with the reason; their comparison with the new champion starts afresh.
    """
    passed = [verdict for verdict in verdicts if verdict.verdict == "promote"]
    if len(passed) < 2:
        return list(verdicts)
    best = max(passed, key=_lower_bound)
    why = f"{best.challenger} gains more: at least {_percent(best.evidence.gain_low)}"
    return [
        verdict
        if verdict is best or verdict.verdict != "promote"
        else replace(
            verdict,
            verdict="keep",
            reason=f"{verdict.challenger} passed too (at least {_percent(verdict.evidence.gain_low)}), but {why}.",
        )
        for verdict in verdicts
    ]


def probation(epochs: PairedEpochs, rule: Rule, *, champion: str, former: str) -> Verdict:
    """Roll back or keep a promoted champion, on what it and the former champion scored since the promotion.

    The test is on D = (champion - (1 + tolerance) former)/n, which is the comparison of the former champion with the
    margin tolerance/(1 + tolerance): D is scaled by a constant, and the evidence does not depend on the unit. It has
    few blocks and no season gate: serving a worse model for two seasons costs more than one needless step back.

    Parameters
    ----------
    epochs
        From the promotion on, the former champion in the challenger's column.
    """
    probing = replace(
        rule,
        alpha=rule.rollback_alpha,
        slots=1,
        min_gain=rule.tolerance / (1.0 + rule.tolerance),
        min_seasons=0.0,
        min_blocks=rule.rollback_blocks,
        prior_variance=rule.rollback_prior_variance,
    )
    evidence = _weigh(epochs, probing, retires=False)
    if evidence.missing:
        return Verdict(
            champion, former, "keep", f"{champion} stays champion in probation: {evidence.missing}.", evidence
        )
    reason = (
        f"{champion} is worse than the former champion {former}: its loss is {_excess(evidence.gain)} higher (at least "
        f"{_excess(evidence.gain_low)}) over {_volume(evidence)}: ln E {evidence.log_e:.2f} ≥ {evidence.log_e_needed:.2f}."
    )
    return Verdict(champion, former, "rollback", reason, evidence)


@dataclass(frozen=True, eq=False)
class _Blocks:
    """Whole blocks of `size` epochs: labels, mean losses of both models, and D, the margin's paired differences."""

    size: int
    labels: int
    seasons: float
    champion: FloatArray
    challenger: FloatArray
    difference: FloatArray
    lag1: float


def _merge(epochs: PairedEpochs, rule: Rule, size: int) -> _Blocks:
    """Blocks of `size` neighbouring epochs; epochs without labels are skipped, an incomplete tail is left out."""
    scored = np.flatnonzero(epochs.labels)
    scored = scored[: len(scored) // size * size]
    labels, champion, challenger = (
        column[scored].reshape(-1, size).sum(axis=1) for column in (epochs.labels, epochs.champion, epochs.challenger)
    )
    time = timedelta(0)
    if len(scored):
        time = epochs.last_watermark[scored[-1]] - epochs.first_watermark[scored[0]]
    difference = ((1.0 - rule.min_gain) * champion - challenger) / labels
    return _Blocks(
        size=size,
        labels=int(labels.sum()),
        seasons=time / rule.season,
        champion=champion / labels,
        challenger=challenger / labels,
        difference=difference,
        lag1=eprocess.autocorrelation(difference, 1),
    )


def _gate(epochs: PairedEpochs, rule: Rule) -> tuple[_Blocks, str]:
    """The smallest blocks that pass the gates, or the last that are numerous enough and what they lack."""
    best = _merge(epochs, rule, rule.merges[0])
    if len(best.difference) < rule.min_blocks:
        return best, f"needs {rule.min_blocks} blocks, has {len(best.difference)} after {best.labels:,} labels"
    for size in rule.merges:
        blocks = _merge(epochs, rule, size)
        if len(blocks.difference) < rule.min_blocks:
            return best, (
                f"neighbouring blocks of {best.size} epochs correlate by {best.lag1:.2f}, at most {rule.max_lag1:.2f} "
                f"passes; needs {rule.min_blocks} blocks of {size} epochs, has {len(blocks.difference)}"
            )
        best = blocks
        if best.lag1 <= rule.max_lag1:
            break
    else:
        return best, (
            f"neighbouring blocks correlate by {best.lag1:.2f} even in blocks of {best.size} epochs, at most "
            f"{rule.max_lag1:.2f} passes"
        )
    if best.seasons < rule.min_seasons:
        return best, f"needs {rule.min_seasons:g} full seasons, has {_down(best.seasons)} after {best.labels:,} labels"
    return best, ""


def _weigh(epochs: PairedEpochs, rule: Rule, *, retires: bool = True) -> Evidence:
    """The evidence of the smallest blocks that pass the gates, for and against a gain of more than `min_gain`."""
    blocks, gate = _gate(epochs, rule)
    d, g = blocks.difference, rule.prior_variance
    k = len(d)
    mean = float(d.mean()) if k else 0.0
    ss = float(((d - mean) ** 2).sum())
    kappa = eprocess.long_run_inflation(d)
    log_e, log_e_retire = eprocess.log_e_plus(k, [mean, -mean], ss, g=g, kappa=kappa).tolist()
    needed, needed_retire = math.log(rule.slots / rule.alpha), -math.log(rule.futility_alpha)

    missing = [gate] if gate else []
    decided = log_e >= needed or (retires and log_e_retire >= needed_retire)
    if not decided and k >= rule.min_blocks:
        missing.append(f"needs ln E {needed:.2f}, has {_down(log_e)} after {blocks.labels:,} labels")
        missing.append(_outlook(blocks, mean, ss, kappa, rule, needed))

    champion = float(blocks.champion.mean()) if k else None
    low = gain = high = None
    if champion:
        # Two-sided at twice the level: each end is a bound at alpha / slots, as E+ is, so both say the same.
        radius = float(eprocess.confidence_radius(k, ss, alpha=2 * rule.alpha / rule.slots, g=g, kappa=kappa))
        gain = rule.min_gain + mean / champion
        if math.isfinite(radius):
            low, high = gain - radius / champion, gain + radius / champion
    return Evidence(
        blocks=k,
        block_size_epochs=blocks.size,
        labels=blocks.labels,
        seasons=blocks.seasons,
        kappa=kappa,
        lag1=blocks.lag1,
        loss_champion=champion,
        loss_challenger=float(blocks.challenger.mean()) if k else None,
        gain=gain,
        gain_low=low,
        gain_high=high,
        log_e=log_e,
        log_e_needed=needed,
        log_e_retire=log_e_retire,
        log_e_retire_needed=needed_retire if retires else None,
        missing="; ".join(missing),
    )


def _outlook(blocks: _Blocks, mean: float, ss: float, kappa: float, rule: Rule, needed: float) -> str:
    """How many more labels the evidence needs if the blocks to come look like those seen so far."""
    if mean <= 0:
        return f"its mean gain is not above {_percent(rule.min_gain)}"
    growth = np.geomspace(1.0, 100.0, 400)
    count = len(blocks.difference) * growth
    reached = eprocess.log_e_plus(count, mean, ss * growth, g=rule.prior_variance, kappa=kappa) >= needed
    if not reached.any():
        return f"at this rate more than {99 * blocks.labels:,} more labels"
    more = (growth[reached.argmax()] - 1.0) * blocks.labels
    return f"at this rate about {float(f'{more:.2g}'):,.0f} more labels"


def _calibrations(epochs: PairedEpochs) -> tuple[float | None, float | None]:
    """Both models' sum p / positives; None without a positive label."""
    assert epochs.positives is not None and epochs.champion_p is not None and epochs.challenger_p is not None
    if not epochs.positives.any():
        return None, None
    positives = float(epochs.positives.sum())
    return float(epochs.champion_p.sum()) / positives, float(epochs.challenger_p.sum()) / positives


def _miscalibrated(epochs: PairedEpochs, evidence: Evidence, rule: Rule) -> str:
    """What the guard of calibration has against a challenger, or nothing.

    Off is the absolute logarithm of sum p / positives. Both models share the positives' number: one standard error of it,
    1 / sqrt(positives), may change the difference of what they are off by twice as much, which is allowed on top.
    """
    champion, challenger = evidence.calibration_champion, evidence.calibration_challenger
    if epochs.positives is None or not champion or not challenger:
        return "the guard of calibration found no positive labels, or no predictions, to judge it by"
    allowed = rule.calibration_tolerance + 2.0 / math.sqrt(epochs.positives.sum())
    more = abs(math.log(challenger)) - abs(math.log(champion))
    if more <= allowed:
        return ""
    return (
        f"it predicts {challenger:.3f} times the positive labels that came, the champion {champion:.3f} times, which is "
        f"{_percent(more)} further off; at most {_percent(allowed)} passes"
    )


def _cap(epochs: PairedEpochs, rule: Rule) -> str:
    """The cap that the comparison has reached, or nothing."""
    if rule.max_labels is not None and epochs.labels.sum() >= rule.max_labels:
        return f"its cap of {rule.max_labels:,} labels"
    time = epochs.last_watermark[-1] - epochs.first_watermark[0] if len(epochs.labels) else timedelta(0)
    if rule.max_time is not None and time >= rule.max_time:
        return f"its cap of {rule.max_time / timedelta(days=1):g} days"
    return ""


def _lower_bound(verdict: Verdict) -> float:
    low = verdict.evidence.gain_low
    return -math.inf if low is None else low


def _percent(gain: float | None) -> str:
    return "an unknown share" if gain is None else f"{100 * gain:.1f}%"


def _change(gain: float | None) -> str:
    """The challenger's loss against the champion's, which cannot be undercut when it is zero."""
    if gain is None:
        return "higher"
    return f"{_percent(abs(gain))} {'lower' if gain > 0 else 'higher'}"


def _excess(gain: float | None) -> str:
    """By how much the loss of the worse model exceeds that of the better one."""
    return _percent(None if gain is None else gain / (1.0 - gain))


def _volume(evidence: Evidence) -> str:
    return f"{evidence.labels:,} labels in {evidence.blocks} blocks"


def _down(number: float) -> str:
    """Two decimals, rounded down: a number below its threshold must not read as if it had reached it."""
    return f"{math.floor(100 * number) / 100:.2f}"
