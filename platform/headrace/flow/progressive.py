"""Progressive validation: predict at an event, score that prediction at its label, and only then learn.

`Progressive` is a version at work: a deterministic function of the log's entries from its first one on. Live training,
catch-up, rebuild and serving run this same code. Guarantees: a label is learned at its own seq and never earlier; how
the log is cut into batches changes nothing, to the bit; state is asked for at epoch ends only, where no partial sums are
left. It does no I/O and reads no clock but the log's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.definition.loss import LARGEST, LOG_LOSS, Loss
from headrace.errors import ModelError
from headrace.events import Columns, EpochRange, LabelKind, LogBatch, Recalled
from headrace.flow.features import Encoder
from headrace.flow.losses import Sums, digest_after, sums_for
from headrace.flow.negatives import ALL, Negatives
from headrace.flow.openevents import RECENT, OpenEvents, Recent
from headrace.flow.scores import SliceSums
from headrace.models.contract import (
    Combining,
    Following,
    MemberScore,
    Model,
    Sequential,
    Turns,
    Uncertain,
    follow,
    merged,
    take,
)
from headrace.models.target_mean import TargetMeans
from headrace.models.text import as_names

Arrays = dict[str, NDArray[Any]]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


_MEANS = "\0means"  # column of `Progressive._kept` that no slice is named like
_LEAST = 1e-6  # of a weight: a label always teaches something


@dataclass(frozen=True)
class SliceScore:
    """Sums of one value of one slice over an epoch."""

    slice: str
    value: str
    labels: int
    positives: int | None  # None where labels are numbers
    y_sum: float | None  # of labels that are numbers
    loss_sum: float
    p_sum: float


@dataclass(frozen=True)
class EpochScore:
    """What a version did in one epoch."""

    epoch: EpochRange
    sums: Sums
    slices: tuple[SliceScore, ...]
    digest: bytes
    learned: int  # labels learned
    left_out: int  # negative ones that did not teach, see `headrace.flow.negatives`
    unscored: int  # of both without a prediction of this version: their events came before its first seq
    event_time_first: int | None
    event_time_last: int | None
    members: tuple[MemberScore, ...]  # of a model of several


@dataclass
class _Answers:
    """The labels of one part of a batch that the version takes in, in order."""

    seq: Ints
    event: Ints
    y: Floats
    clock: Ints
    timed_out: Mask
    late: Mask  # corrections that teach
    before: Floats  # of those: the value that is replaced, NaN when there was none
    since: Ints  # of those: the watermark of the label that is replaced
    fake: Mask  # of those: whether that one was a time-out
    importance: Floats  # how many labels each one stands for; 0 teaches nothing
    importance_before: Floats  # of corrections: that of the label which is replaced; else 0

    def teaching(self) -> _Answers:
        """Those that teach models or means something."""
        some = (self.importance > 0.0) | (self.importance_before > 0.0)
        return self if some.all() else _Answers(**{name: values[some] for name, values in vars(self).items()})


@dataclass
class _Answered:
    """Labels of a part of a batch that count, and what was predicted at their events, NaN for nothing."""

    seq: Ints
    y: Floats
    p: Floats
    event_time: Ints
    taught: Mask  # whether each of them taught
    slices: Columns  # by name, values of the slices
    closing: Ints  # labels that close an event, whether they count or not
    closes: Ints  # their events

    def split(self, seq: int) -> tuple[_Answered, _Answered]:
        """Labels up to a seq, and later ones."""
        end = int(np.searchsorted(self.seq, seq, side="right"))
        close = int(np.searchsorted(self.closing, seq, side="right"))
        return self._part(slice(None, end), slice(None, close)), self._part(slice(end, None), slice(close, None))

    def _part(self, rows: slice, close: slice) -> _Answered:
        slices = take(self.slices, rows)
        labels = (self.seq[rows], self.y[rows], self.p[rows], self.event_time[rows], self.taught[rows], slices)
        return _Answered(*labels, self.closing[close], self.closes[close])


class Progressive:
    """A version at work.

    Parameters
    ----------
    model
        The model, new or loaded.
    encoder
        Log columns to model columns.
    means
        Streaming target means, or None when the recipe takes none.
    slices
        Categories whose values get sums of their own.
    first_seq
        First entry that the version learns from; labels of earlier events are learned unscored.
    digest
        Where its chain of digests starts.
    on_late
        What a correction teaches: nothing (`ignore`), its new value (`learn`), or that with importance weights
        (`reweight`): 1 - p^2 for a time-out taken as negative, p the prediction at its event, and 1 + p for a positive
        label that replaces it, p the prediction then (Ktena et al. 2019, "Addressing delayed feedback for continuous
        training with neural networks in CTR prediction", fake negative weighted loss). Target means take the difference,
        decayed since the label that is replaced. A correction without a value, of a deleted label, teaches nothing.
    loss
        What a prediction costs; it says whether labels are numbers.
    negatives
        Which negative labels teach. All labels close their events and are scored; corrections are drawn by their event like
        others, and a target mean ends up as if the last value had been there from the start.
    """

    def __init__(
        self,
        model: Model,
        encoder: Encoder,
        means: TargetMeans | None,
        slices: Sequence[str],
        first_seq: int,
        digest: bytes,
        on_late: str = "ignore",
        loss: Loss = LOG_LOSS,
        negatives: Negatives = ALL,
    ) -> None:
        self.model, self.means, self._negatives = model, means, negatives
        self.seq = first_seq - 1
        self.digest = digest
        self._encoder, self._slices, self._on_late = encoder, tuple(slices), on_late
        self._first_seq, self._loss = first_seq, loss
        self._forget_events()
        self._times: tuple[int, int]
        self._begin_epoch()

    def _forget_events(self) -> None:
        self._open = OpenEvents(self.model.memo_width, 0 if self.means is None else len(self.means.columns))
        self._keys, self._features = Recent(), Recent()
        self._old: Columns = {}  # encoded columns of the events that were read back for a batch
        self._old_seq = np.empty(0, dtype=np.int64)

    @property
    def log_columns(self) -> set[str]:
        """Names of the log's columns that `LogBatch.events` must have."""
        return {"event_time", *self._encoder.log_columns}

    @property
    def outstanding(self) -> int:
        """Events that wait for their label."""
        return self._open.count

    def waiting(self) -> tuple[Ints, Floats]:
        """Seqs of the events that wait for their label, and the target means that each read."""
        seqs = self._open.seqs()
        return seqs, self._open.take(seqs).means

    def wants(self, batch: LogBatch) -> Ints:
        """Events whose columns must be read back from the log for a batch: its labels need them, and they are not kept.

        Returns
        -------
        int64[n]
            Seqs in order, for `Recalled`.
        """
        self._keys.trim(RECENT)
        self._features.trim(RECENT)
        closing = (batch.label_kind != LabelKind.CORRECTION) & (batch.label_event < self._features.first)
        closing &= ~np.isnan(batch.y) if self._slices else self._negatives.importance(batch.label_event, batch.y) > 0.0
        closing[closing] = self._open.waits(batch.label_event[closing])
        wanted: Ints = np.unique(batch.label_event[closing | self._teaches(batch)])
        return wanted

    def _teaches(self, batch: LogBatch) -> Mask:
        """Corrections that say something new, when the policy wants to hear it."""
        if self._on_late == "ignore":
            return np.zeros(len(batch.label_seq), dtype=np.bool_)
        corrects: Mask = batch.label_kind == LabelKind.CORRECTION
        corrects &= ~np.isnan(batch.y) & (batch.y != batch.y_before)
        return corrects

    def apply(self, batch: LogBatch, recalled: Recalled | None = None, *, states: bool = True) -> Iterator[EpochScore]:
        """Go through the next entries; yields at each epoch's end, when `state` may be asked for.

        Parameters
        ----------
        recalled
            What `wants` asked for. A correction whose event the log has no more teaches nothing.
        states
            False when `state` will be asked for at the end of the batch's last epoch only: its epochs are then learned in
            one go, and told apart when they are scored. It gives the same bits. A model of several members reports at each
            epoch's end, so it goes from one to the next.

        Raises
        ------
        ModelError
            When the batch does not follow the last one, or a label's event was never seen.
        """
        if batch.seq_first != self.seq + 1:
            raise ModelError(
                f"found a batch that starts at seq {batch.seq_first}, expected {self.seq + 1}: read on from there"
            )
        self._old, self._old_seq = {}, np.empty(0, dtype=np.int64)
        if recalled is not None and len(recalled.seq):
            self._old, self._old_seq = self._encoder(recalled.events), recalled.seq
        singly = states or not batch.epochs or isinstance(self.model, Combining)
        event, label = 0, 0
        for epochs in [[epoch] for epoch in batch.epochs] if singly else [batch.epochs]:
            last = epochs[-1].seq_last
            event_end = int(np.searchsorted(batch.event_seq, last, side="right"))
            label_end = int(np.searchsorted(batch.label_seq, last, side="right"))
            answered = self._pass(batch, slice(event, event_end), slice(label, label_end))
            event, label = event_end, label_end
            for epoch in epochs:
                answered = self._score(answered, epoch.seq_last)
                self.seq = epoch.seq_last
                self._open.seal(self.seq)
                yield self._end_epoch(epoch)
        self._score(self._pass(batch, slice(event, None), slice(label, None)), batch.seq_last)
        self.seq = batch.seq_last
        self._open.turn(self.seq)

    def predict(self, log: Columns, clock: Ints) -> tuple[Floats, Floats | None]:
        """Say of n rows of log columns what `apply` would predict next; nothing changes.

        Returns
        -------
        (p, uncertainty)
            float64[n] probabilities, or numbers in regression; float64[n] as `headrace.models.contract.Uncertain` has it, None
            for models without.
        """
        X = self._encoder(log)
        if self.means is not None:
            X |= self.means.peek(self.means.keys_of(X), clock)
        prepared = self.model.prepare(X)
        p = self._negatives.corrected(self.model.predict(prepared))
        return p, self.model.uncertainty(prepared) if isinstance(self.model, Uncertain) else None

    def restart_chain(self, digest: bytes) -> None:
        """Start a new chain of digests; at an epoch's end."""
        self.digest = digest
        self._begin_epoch()

    def _pass(self, batch: LogBatch, events: slice, labels: slice) -> _Answered:
        """Entries of one part of a batch, in order; gives what is to be scored."""
        seqs, clock = batch.event_seq[events], batch.clock_events[events]
        X = self._encoder({name: values[events] for name, values in batch.events.items()})
        kept = self._kept(X)
        self._keys.add(seqs, kept)
        answers = self._answers(batch, labels, seqs)
        taught, closing = answers.teaching(), ~answers.late
        counts = closing & ~np.isnan(answers.y)
        keys, values = self._keys_for(answers, taught, counts)
        stood = late_means = None
        if self.means is not None:
            stood, late_means = self._read_means(kept[_MEANS], keys[_MEANS], seqs, clock, taught)
            X |= _named(self.means, stood)
        prepared = self.model.prepare(X)
        self._features.add(seqs, prepared)
        closed: Ints = np.searchsorted(answers.seq[closing], seqs)
        outstanding = self._open.count + np.arange(len(seqs)) - closed
        self._open.add(seqs, batch.event_time[events], stood)
        rows, row = self._rows_of(taught, late_means)

        order = np.argsort(np.concatenate([seqs, taught.seq]), kind="stable")
        if isinstance(self.model, Sequential | Following) and self._on_late != "reweight":
            self._run(self.model, order, seqs, prepared, rows, row, taught, outstanding)
        else:
            self._take_turns(order, seqs, clock, prepared, take(rows, row), taught, outstanding, closed)
        said = self._open.take(answers.event[counts])
        return _Answered(
            *(
                answers.seq[counts],
                answers.y[counts],
                said.p,
                said.event_time,
                answers.importance[counts] > 0.0,
                values,
            ),
            *(answers.seq[closing], answers.event[closing]),
        )

    def _run(
        self,
        model: Sequential | Following,
        order: Ints,
        seqs: Ints,
        prepared: Columns,
        rows: Columns,
        row: NDArray[np.intp],
        answers: _Answers,
        outstanding: Ints,
    ) -> None:
        """Entries in order, in one call."""
        n = len(seqs)
        coded = np.where(order < n, order, n - 1 - order)
        teaches = np.concatenate([np.ones(n, dtype=np.bool_), answers.importance > 0.0])
        here = ~answers.late & (answers.event >= (seqs[0] if n else answers.seq))
        kept = np.full((len(answers.y), self.model.memo_width), np.nan)
        if self.model.memo_width:
            earlier = ~answers.late & ~here
            kept[earlier] = self._open.take(answers.event[earlier]).memo
        turns = Turns(
            order=coded[teaches[order]],
            outstanding=outstanding,
            y=answers.y,
            weight=self._negatives.weight(answers.importance),
            clock=answers.clock,
            asked=np.where(here, np.searchsorted(seqs, answers.event), -1),
            memo=kept,
            row=row,
        )
        p, memo = follow(model, turns, prepared, rows)
        if n:
            self._predicted(seqs, p, memo)

    def _predicted(self, seqs: Ints, p: Floats, memo: Floats) -> None:
        """Keep what the model said of events. NaN would count as no prediction, and nobody would hear of it."""
        if (strange := ~(np.abs(p) <= LARGEST)).any():
            at, expected = int(strange.argmax()), "a number" if self._loss.regression else "a probability"
            raise ModelError(
                f"the model predicted {p[at]} for event {seqs[at]}, expected {expected}: one of its numbers has overflowed "
                "and it will not recover; roll back to another version, and bound the number in the contract"
            )
        self._open.answer(int(seqs[0]), self._negatives.corrected(p), memo)

    def _take_turns(
        self,
        order: Ints,
        seqs: Ints,
        clock: Ints,
        prepared: Columns,
        rows: Columns,
        answers: _Answers,
        outstanding: Ints,
        closed: Ints,
    ) -> None:
        """Runs of events and runs of labels, one after the other; a label that does not teach parts events, too."""
        turns = np.full(len(order), -1)
        turns[order < len(seqs)] = closed
        for start, end in pairwise(_bounds(turns)):
            part = slice(int(order[start]), int(order[end - 1]) + 1)
            if turns[start] < 0:
                part = slice(part.start - len(seqs), part.stop - len(seqs))
                self._learn(take(rows, part), answers, part)
            else:
                p, memo = self.model.ask(take(prepared, part), clock[part], int(outstanding[part.start]))
                self._predicted(seqs[part], p, memo)

    def _answers(self, batch: LogBatch, labels: slice, event_seq: Ints) -> _Answers:
        """Which labels are learned or release an event here."""
        events, late = batch.label_event[labels], self._teaches(batch)[labels]
        late &= _among(events, self._old_seq)
        closing = batch.label_kind[labels] != LabelKind.CORRECTION
        known = _among(events, event_seq)
        known[~known] = self._open.waits(events[~known])
        if (strange := closing & ~known & (events >= self._first_seq)).any():
            raise ModelError(
                f"found a label of event {events[strange][0]}, which was never seen, expected its event before it: run "
                "`headrace check`"
            )
        mine = (closing & known) | late
        y, before = batch.y[labels][mine], batch.y_before[labels][mine]
        return _Answers(
            seq=batch.label_seq[labels][mine],
            event=events[mine],
            y=y,
            clock=batch.clock_labels[labels][mine],
            timed_out=batch.label_kind[labels][mine] == LabelKind.TIMEOUT,
            late=late[mine],
            before=before,
            since=batch.clock_corrected[labels][mine],
            fake=batch.corrects_timeout[labels][mine],
            importance=self._negatives.importance(events[mine], y),
            importance_before=self._negatives.importance(events[mine], before),
        )

    def _kept(self, X: Columns) -> Columns:
        """What scores and means want to know of an event again at its label: names of slices, keys of means."""
        kept: Arrays = {name: as_names(X[name]) for name in self._slices}
        if self.means is not None:
            kept[_MEANS] = self.means.keys_of(X)
        return kept

    def _keys_for(self, answers: _Answers, taught: _Answers, counts: Mask) -> tuple[Columns, Columns]:
        """Keys of target means of the events whose labels teach, and slices of those whose labels count."""
        means = () if self.means is None else (_MEANS,)
        if taught is answers:  # looked up once for both
            keys = self._keys_of(answers.event, answers.late, [*means, *self._slices])
            return keys, {name: keys[name][counts] for name in self._slices}
        slices = self._keys_of(answers.event[counts], answers.late[counts], self._slices)
        return self._keys_of(taught.event, taught.late, means), slices

    def _keys_of(self, events: Ints, late: Mask, names: Sequence[str]) -> Columns:
        """Some columns of `_kept` of the events that labels answer."""
        if not names:
            return {}
        kept = ~late & (events >= self._keys.first)
        keys = self._keys.take(events[kept], names)
        if kept.all():
            return keys
        others = self._kept(take(self._old, self._old_rows(events[~kept])))
        return merged(keys, kept, others)

    def _rows_of(self, answers: _Answers, late_means: Floats | None) -> tuple[Columns, NDArray[np.intp]]:
        """Prepared rows, and which of them are those of the events that labels answer."""
        kept = ~answers.late & (answers.event >= self._features.first)
        if kept.all():
            return self._features.columns(), self._features.where(answers.event)
        rows = self._features.take(answers.event[kept])
        X = take(self._old, self._old_rows(answers.event[~kept]))
        if self.means is not None:
            assert late_means is not None  # read together
            means, late = np.empty((len(kept), len(self.means.columns))), answers.late
            means[late] = late_means
            means[~late & ~kept] = self._open.take(answers.event[~late & ~kept]).means
            X |= _named(self.means, means[~kept])
        return merged(rows, kept, self.model.prepare(X)), np.arange(len(kept))

    def _old_rows(self, events: Ints) -> NDArray[np.intp]:
        rows = np.searchsorted(self._old_seq, events)
        if len(events) and (rows.max() >= len(self._old_seq) or (self._old_seq[rows] != events).any()):
            missing = np.setdiff1d(events, self._old_seq)
            raise ModelError(f"event {missing[0]} was not read back from the log, expected what `wants` asks for")
        return rows

    def _read_means(
        self, values: NDArray[np.uint64], answered: NDArray[np.uint64], seqs: Ints, clock: Ints, answers: _Answers
    ) -> tuple[Floats, Floats]:
        """Values of the means for the events of this part, and for the events of late labels; its labels update them."""
        assert self.means is not None
        late = answers.late
        values = np.concatenate([values, answered, answered[late]])
        # An event, or one that is looked at again since its label is late, reads before that label updates.
        place = np.concatenate([2 * seqs, 2 * answers.seq + 1, 2 * answers.seq[late]])
        is_label = np.repeat([False, True, False], [len(seqs), len(late), int(late.sum())])
        y, before, since = np.zeros(len(place)), np.full(len(place), np.nan), np.zeros(len(place), dtype=np.int64)
        weight, weight_before = np.zeros(len(place)), np.zeros(len(place))
        y[is_label], before[is_label], since[is_label] = answers.y, answers.before, answers.since
        weight[is_label], weight_before[is_label] = answers.importance, answers.importance_before
        order = np.argsort(place, kind="stable")
        clocks = np.concatenate([clock, answers.clock, answers.clock[late]])[order]
        read = self.means.run(
            values[order],
            is_label[order],
            y[order],
            weight[order],
            clocks,
            before[order],
            since[order],
            weight_before[order],
        )
        table = np.column_stack([read[name] for name in self.means.columns])
        again = order[~is_label[order]] >= len(seqs)
        return table[~again], table[again]

    def _learn(self, rows: Columns, answers: _Answers, part: slice) -> None:
        """A run of labels, one after the other."""
        y, clock, events, late = answers.y[part], answers.clock[part], answers.event[part], answers.late[part]
        memo, weight = (
            np.full((len(y), self.model.memo_width), np.nan),
            self._negatives.weight(answers.importance[part]).copy(),
        )
        if self.model.memo_width or self._on_late == "reweight":
            kept = self._open.take(events[~late])
            memo[~late] = kept.memo
            if self._on_late == "reweight":
                fake = np.where(answers.timed_out[part][~late], np.nan_to_num(kept.p), 0.0)
                weight[~late] *= np.maximum(1.0 - fake**2, _LEAST)
        doubted = (
            late & answers.fake[part] & (y == 1.0) if self._on_late == "reweight" else np.zeros(len(y), dtype=np.bool_)
        )
        learns = np.flatnonzero(answers.importance[part])
        for run in np.split(learns, np.flatnonzero(doubted[learns])):
            if len(run) and doubted[run[0]]:  # its weight is what the model says when its turn has come
                weight[run[0]] += self._negatives.corrected(self.model.predict(take(rows, run[:1])))[0]
            if len(run):
                self.model.learn(take(rows, run), y[run], memo[run], weight[run], clock[run])

    def _score(self, answered: _Answered, upto: int) -> _Answered:
        """Score labels up to a seq, and let go of the events that they close; gives the others.

        Observed labels, and time-outs that mean negative, against what was predicted at their events.
        """
        now, later = answered.split(upto)
        self._open.close(now.closes)
        scored = ~np.isnan(now.p)
        taught = int(np.count_nonzero(now.taught))
        self._learned += taught
        self._left_out += len(scored) - taught
        self._unscored += int(np.count_nonzero(~scored))
        if scored.any():
            y, p = now.y[scored], now.p[scored]
            losses = self._sums.add(y, p)
            self._epoch_digest.update(now.seq[scored], y, p)
            times = now.event_time[scored]
            self._times = (min(int(times.min()), self._times[0]), max(int(times.max()), self._times[1]))
            for name, sums in self._slice_sums.items():
                sums.add(now.slices[name][scored].tolist(), y, losses, p)
        return later

    def _begin_epoch(self) -> None:
        self._sums, self._epoch_digest = sums_for(self._loss), digest_after(self.digest, self._loss)
        self._slice_sums = {name: SliceSums() for name in self._slices}
        self._learned = self._left_out = self._unscored = 0
        self._times = (2**63 - 1, -(2**63))

    def _end_epoch(self, epoch: EpochRange) -> EpochScore:
        self.digest = self._epoch_digest.finish()
        first, last = self._times
        number = self._loss.regression
        score = EpochScore(
            epoch=epoch,
            sums=self._sums,
            slices=tuple(
                SliceScore(name, value, int(n), None if number else int(y), y if number else None, loss, p)
                for name, sums in sorted(self._slice_sums.items())
                for value, (n, y, loss, p) in sums.rows()
            ),
            digest=self.digest,
            learned=self._learned,
            left_out=self._left_out,
            unscored=self._unscored,
            event_time_first=first if self._sums.n else None,
            event_time_last=last if self._sums.n else None,
            members=self.model.report() if isinstance(self.model, Combining) else (),
        )
        self._begin_epoch()
        return score

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Everything that the next entries depend on, as arrays and JSON; ask at an epoch's end.

        Features of open events are left out: `newest` says which ones to read from the log after `restore`.
        """
        arrays, meta = self.model.save()
        state: Arrays = {f"model/{name}": values for name, values in arrays.items()}
        document: dict[str, Any] = {"model": meta, "seq": self.seq, "digest": self.digest.hex()}
        if self.means is not None:
            mean_arrays, document["means"] = self.means.save()
            state |= {f"means/{name}": values for name, values in mean_arrays.items()}
        return state | {f"open/{name}": values for name, values in self._open.save().items()}, document

    def restore(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Take over a state; then `remember` what `newest` names."""
        self.model.load(_under("model/", arrays), meta["model"])
        if self.means is not None:
            self.means.load(_under("means/", arrays), meta["means"])
        self.seq, self.digest = int(meta["seq"]), bytes.fromhex(meta["digest"])
        self._forget_events()
        self._open.load(_under("open/", arrays))
        self._begin_epoch()

    def newest(self) -> Ints:
        """The newest events that wait: as many as are kept in memory with their features."""
        return self._open.seqs()[-RECENT:]

    def remember(self, events: Recalled) -> None:
        """Keep the features of `newest`, as the log has them."""
        X = self._encoder(events.events)
        self._keys.start(events.seq, self._kept(X))
        if self.means is not None:
            X |= _named(self.means, self._open.take(events.seq).means)
        self._features.start(events.seq, self.model.prepare(X))

    def adopt(self, seqs: Ints, means: Floats | None, log: Columns, clock: Ints) -> None:
        """Enter events that came before the version's first seq: their labels are learned, but not scored.

        Parameters
        ----------
        seqs
            int64[n], in order.
        means
            float64[n, columns of the means] as they stood at each event; None without target means.
        log
            Log columns (with `event_time`) of the events.
        clock
            int64[n], the watermark when each entered.
        """
        self._forget_events()
        X = self._encoder(log)
        self._keys.add(seqs, self._kept(X))
        if self.means is not None and means is not None:
            X |= _named(self.means, means)
        prepared = self.model.prepare(X)
        self._features.add(seqs, prepared)
        self._open.add(seqs, log["event_time"], means)
        if len(seqs):
            _, memo = self.model.ask(prepared, clock, 0)
            self._open.answer(int(seqs[0]), np.full(len(seqs), np.nan), memo)


def _bounds(turns: Ints) -> list[int]:
    """Where runs of equal ones begin and end."""
    if not len(turns):
        return []
    return [0, *(np.flatnonzero(np.diff(turns)) + 1).tolist(), len(turns)]


def _among(seqs: Ints, known: Ints) -> Mask:
    """Which seqs are among those, which are in order."""
    if not len(known):
        return np.zeros(len(seqs), dtype=np.bool_)
    found: Mask = known[np.minimum(np.searchsorted(known, seqs), len(known) - 1)] == seqs
    return found


def _named(means: TargetMeans, values: Floats) -> Columns:
    return dict(zip(means.columns, np.ascontiguousarray(values.T), strict=True))


def _under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
