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

from headrace.errors import ModelError
from headrace.events import Columns, EpochRange, LabelKind, LogBatch
from headrace.flow.features import Encoder
from headrace.flow.scores import EpochDigest, ScoreSums
from headrace.models.contract import Model, take
from headrace.models.target_mean import TargetMeans

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class SliceScore:
    """Sums of one value of one slice over an epoch."""

    slice: str
    value: str
    labels: int
    positives: int
    loss_sum: float
    p_sum: float


@dataclass(frozen=True)
class EpochScore:
    """What a version did in one epoch."""

    epoch: EpochRange
    sums: ScoreSums
    slices: tuple[SliceScore, ...]
    digest: bytes
    learned: int  # labels learned
    unscored: int  # of them without a prediction of this version: their events came before its first seq
    event_time_first: int | None
    event_time_last: int | None


class OpenEvents:
    """Events that wait for their label: what is needed at the label, in growable columns.

    `columns` are the prepared features and the keys of target means and slices; `p` and `memo` are the model's answer.
    """

    def __init__(self, memo_width: int) -> None:
        self.slots: dict[int, int] = {}  # seq -> slot
        self._free: list[int] = []
        self.columns: Arrays = {}
        self.p = np.empty(0)
        self.memo = np.empty((0, memo_width))
        self.time = np.empty(0, dtype=np.int64)

    def add(self, seqs: NDArray[np.int64], times: NDArray[np.int64], columns: Columns) -> NDArray[np.int64]:
        """Enter events; gives their slots."""
        missing = len(seqs) - len(self._free)
        if missing > 0 or not self.columns:  # the columns are made even when there is no event yet
            self._grow(max(missing, 0), columns)
        slots = np.array([self._free.pop() for _ in range(len(seqs))], dtype=np.int64)
        self.slots.update(zip(seqs.tolist(), slots.tolist(), strict=True))
        for name, values in columns.items():
            self.columns[name][slots] = values
        self.time[slots] = times
        return slots

    def close(self, seqs: list[int]) -> None:
        """Forget events."""
        self._free.extend(self.slots.pop(seq) for seq in seqs)

    def _grow(self, missing: int, columns: Columns) -> None:
        size = len(self.p)
        wanted = max(1024, 2 * size, size + missing)
        for name, values in columns.items():
            grown = np.empty((wanted, *values.shape[1:]), dtype=values.dtype)
            if size:
                grown[:size] = self.columns[name]
            self.columns[name] = grown
        self.p = np.concatenate([self.p, np.empty(wanted - size)])
        self.memo = np.concatenate([self.memo, np.empty((wanted - size, self.memo.shape[1]))])
        self.time = np.concatenate([self.time, np.empty(wanted - size, dtype=np.int64)])
        self._free.extend(range(wanted - 1, size - 1, -1))


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
    """

    def __init__(
        self,
        model: Model,
        encoder: Encoder,
        means: TargetMeans | None,
        slices: Sequence[str],
        first_seq: int,
        digest: bytes,
    ) -> None:
        self.model, self.means = model, means
        self.seq = first_seq - 1
        self.digest = digest
        self._encoder, self._slices = encoder, tuple(slices)
        self._keep = tuple(dict.fromkeys((*(means.keys if means else ()), *slices)))
        self._first_seq = first_seq
        self._open = OpenEvents(model.memo_width)
        self._times: tuple[int, int]
        self._begin_epoch()

    @property
    def outstanding(self) -> int:
        """Events that wait for their label."""
        return len(self._open.slots)

    def apply(self, batch: LogBatch) -> Iterator[EpochScore]:
        """Go through the next entries; yields at each epoch's end, when `state` may be asked for.

        Raises
        ------
        ModelError
            When the batch does not follow the last one, or a label's event was never seen.
        """
        if batch.seq_first != self.seq + 1:
            raise ModelError(
                f"found a batch that starts at seq {batch.seq_first}, expected {self.seq + 1}: read on from there"
            )
        event, label = 0, 0
        for epoch in batch.epochs:
            event_end = int(np.searchsorted(batch.event_seq, epoch.seq_last, side="right"))
            label_end = int(np.searchsorted(batch.label_seq, epoch.seq_last, side="right"))
            self._pass(batch, slice(event, event_end), slice(label, label_end))
            event, label, self.seq = event_end, label_end, epoch.seq_last
            yield self._end_epoch(epoch)
        self._pass(batch, slice(event, None), slice(label, None))
        self.seq = batch.seq_last

    def predict(self, log: Columns, clock: NDArray[np.int64]) -> NDArray[np.float64]:
        """Probabilities for n rows of log columns as `apply` would give them next; nothing changes."""
        X = self._encoder(log)
        if self.means is not None:
            X |= self.means.peek(X, clock)
        return self.model.predict(self.model.prepare(X))

    def restart_chain(self, digest: bytes) -> None:
        """Start a new chain of digests; at an epoch's end."""
        self.digest = digest
        self._begin_epoch()

    def _pass(self, batch: LogBatch, events: slice, labels: slice) -> None:
        """Entries of one part of a batch, in order."""
        event_seq, clock_events = batch.event_seq[events], batch.clock_events[events]
        X = self._encoder({name: values[events] for name, values in batch.events.items()})
        kept = {f"key:{name}": X[name] for name in self._keep}
        known, slots_of = self._known_labels(batch, labels, event_seq)
        label_seq, y = batch.label_seq[labels][known], batch.y[labels][known]
        clock_labels = batch.clock_labels[labels][known]
        answered = batch.label_event[labels][known]
        order = np.argsort(np.concatenate([event_seq, label_seq]), kind="stable")
        is_label = order >= len(event_seq)

        if self.means is not None:
            X |= self._target_means(kept, event_seq, answered, slots_of, order, is_label, y, clock_events, clock_labels)
            kept["means"] = np.column_stack([X[name] for name in self.means.columns])
        prepared = self.model.prepare(X)
        slots = self._open.add(event_seq, batch.event_time[events], {**prepared, **kept})
        self._prepared = tuple(prepared)
        label_slots = np.array([self._open.slots[seq] for seq in answered.tolist()], dtype=np.int64)
        learns = ~np.isnan(y)

        bounds = (
            np.flatnonzero(np.diff(is_label, prepend=~is_label[:1], append=~is_label[-1:])).tolist()
            if len(order)
            else []
        )
        outstanding = self.outstanding - len(event_seq)
        for start, end in pairwise(bounds):
            run = order[start:end]
            if not is_label[start]:
                part = slice(int(run[0]), int(run[-1]) + 1)
                p, memo = self.model.ask(take(prepared, part), clock_events[part], outstanding)
                self._open.p[slots[part]], self._open.memo[slots[part]] = p, memo
                outstanding += len(run)
            else:
                part = slice(int(run[0]) - len(event_seq), int(run[-1]) + 1 - len(event_seq))
                self._learn(label_slots[part][learns[part]], y[part][learns[part]], clock_labels[part][learns[part]])
                outstanding -= len(run)
        self._score(label_seq[learns], label_slots[learns], y[learns])
        self._open.close(answered.tolist())

    def _known_labels(
        self, batch: LogBatch, labels: slice, event_seq: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], dict[int, int]]:
        """Which labels are learned or release an event here, and the events of this part by seq."""
        here = {seq: i for i, seq in enumerate(event_seq.tolist())}
        known = np.zeros(len(batch.label_seq[labels]), dtype=np.bool_)
        kinds, events = batch.label_kind[labels].tolist(), batch.label_event[labels].tolist()
        for i, (kind, event) in enumerate(zip(kinds, events, strict=True)):
            if kind == LabelKind.CORRECTION:
                continue
            known[i] = event in here or event in self._open.slots
            if not known[i] and event >= self._first_seq:
                raise ModelError(
                    f"found a label of event {event}, which was never seen, expected its event before it: run `headrace check`"
                )
        return known, here

    def _target_means(
        self,
        kept: Arrays,
        event_seq: NDArray[np.int64],
        answered: NDArray[np.int64],
        here: dict[int, int],
        order: NDArray[np.int64],
        is_label: NDArray[np.bool_],
        y: NDArray[np.float64],
        clock_events: NDArray[np.int64],
        clock_labels: NDArray[np.int64],
    ) -> Columns:
        """Values of the means for the events of this part; its labels update them."""
        assert self.means is not None
        values: Arrays = {}
        for key in self.means.keys:
            column, stored = kept[f"key:{key}"], self._open.columns.get(f"key:{key}")
            of_labels = np.empty(len(answered), dtype=object)
            for i, seq in enumerate(answered.tolist()):
                if seq in here:
                    of_labels[i] = column[here[seq]]
                else:
                    assert stored is not None
                    of_labels[i] = stored[self._open.slots[seq]]
            values[key] = np.concatenate([column, of_labels])[order]
        y_all = np.concatenate([np.zeros(len(event_seq)), y])[order]
        counts = ~np.isnan(y_all)  # a dropped time-out teaches nothing
        clock = np.concatenate([clock_events, clock_labels])[order]
        values = {key: column[counts] for key, column in values.items()}
        return self.means.run(values, is_label[counts], y_all[counts], np.ones(int(counts.sum())), clock[counts])

    def _learn(self, slots: NDArray[np.int64], y: NDArray[np.float64], clock: NDArray[np.int64]) -> None:
        if len(slots):
            X = {name: self._open.columns[name][slots] for name in self._prepared}
            self.model.learn(X, y, self._open.memo[slots], np.ones(len(slots)), clock)

    def _score(self, seqs: NDArray[np.int64], slots: NDArray[np.int64], y: NDArray[np.float64]) -> None:
        p = self._open.p[slots]
        scored = ~np.isnan(p)
        self._learned += len(slots)
        self._unscored += int(np.count_nonzero(~scored))
        seqs, slots, y, p = seqs[scored], slots[scored], y[scored], p[scored]
        if not len(slots):
            return
        losses = self._sums.add(y, p)
        self._epoch_digest.update(seqs, y, p)
        times = self._open.time[slots]
        self._times = (min(int(times.min()), self._times[0]), max(int(times.max()), self._times[1]))
        for name in self._slices:
            for value, *row in zip(
                self._open.columns[f"key:{name}"][slots], y.tolist(), losses.tolist(), p.tolist(), strict=True
            ):
                sums = self._slice_sums.setdefault((name, value if value is not None else ""), [0, 0.0, 0.0, 0.0])
                sums[0] += 1
                for i in range(3):
                    sums[i + 1] += row[i]

    def _begin_epoch(self) -> None:
        self._sums, self._epoch_digest = ScoreSums(), EpochDigest(self.digest)
        self._slice_sums: dict[tuple[str, str], list[float]] = {}
        self._learned = self._unscored = 0
        self._times = (2**63 - 1, -(2**63))

    def _end_epoch(self, epoch: EpochRange) -> EpochScore:
        self.digest = self._epoch_digest.finish()
        first, last = self._times
        score = EpochScore(
            epoch=epoch,
            sums=self._sums,
            slices=tuple(
                SliceScore(name, value, int(n), int(positives), loss, p)
                for (name, value), (n, positives, loss, p) in sorted(self._slice_sums.items())
            ),
            digest=self.digest,
            learned=self._learned,
            unscored=self._unscored,
            event_time_first=first if self._sums.n else None,
            event_time_last=last if self._sums.n else None,
        )
        self._begin_epoch()
        return score

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Everything that the next entries depend on, as arrays and JSON; ask at an epoch's end.

        Raw features of open events are left out: `restore` gets them from the log.
        """
        arrays, meta = self.model.save()
        state: Arrays = {f"model/{name}": values for name, values in arrays.items()}
        document: dict[str, Any] = {"model": meta, "seq": self.seq, "digest": self.digest.hex()}
        if self.means is not None:
            mean_arrays, document["means"] = self.means.save()
            state |= {f"means/{name}": values for name, values in mean_arrays.items()}
        seqs = np.array(sorted(self._open.slots), dtype=np.int64)
        slots = np.array([self._open.slots[seq] for seq in seqs.tolist()], dtype=np.int64)
        state |= {"open/seq": seqs, "open/p": self._open.p[slots], "open/memo": self._open.memo[slots]}
        if self.means is not None:
            state["open/means"] = (
                self._open.columns["means"][slots] if len(slots) else np.empty((0, len(self.means.columns)))
            )
        return state, document

    def restore(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any], log: Columns) -> None:
        """Take over a state; `log` holds the log columns (with `event_time`) of its open events, by `open/seq`."""
        self.model.load(_under("model/", arrays), meta["model"])
        if self.means is not None:
            self.means.load(_under("means/", arrays), meta["means"])
        self.seq, self.digest = int(meta["seq"]), bytes.fromhex(meta["digest"])
        slots, _ = self._enter(arrays["open/seq"], arrays.get("open/means"), log)
        self._open.p[slots], self._open.memo[slots] = arrays["open/p"], arrays["open/memo"]
        self._begin_epoch()

    def adopt(
        self, seqs: NDArray[np.int64], means: NDArray[np.float64] | None, log: Columns, clock: NDArray[np.int64]
    ) -> None:
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
        slots, prepared = self._enter(seqs, means, log)
        if len(seqs):
            _, self._open.memo[slots] = self.model.ask(prepared, clock, 0)
        self._open.p[slots] = np.nan

    def _enter(
        self, seqs: NDArray[np.int64], means: NDArray[np.float64] | None, log: Columns
    ) -> tuple[NDArray[np.int64], Columns]:
        self._open = OpenEvents(self.model.memo_width)
        X = self._encoder(log)
        kept = {f"key:{name}": X[name] for name in self._keep}
        if self.means is not None and means is not None:
            X |= dict(zip(self.means.columns, np.ascontiguousarray(means.T), strict=True))
            kept["means"] = means
        prepared = self.model.prepare(X)
        self._prepared = tuple(prepared)
        return self._open.add(seqs, log["event_time"], {**prepared, **kept}), prepared


def _under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
