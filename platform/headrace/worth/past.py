"""History in order: events with their features, labels at the time when each became known.

A file needs no definition: texts and booleans are categories, numbers are numbers, lists of texts are tokens, and everything
gets the event's hour and weekday and streaming target means of its categories. A registered stream comes with the features
of its definition. Rows that cannot be used are counted and named, never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.definition import recipes
from headrace.definition.columns import col
from headrace.definition.features import Feature, category, day_of_week, hour_of_day, number, target_mean, tokens
from headrace.definition.stream import Label, Source, Stream
from headrace.errors import SourceError
from headrace.events import LabelKind, LogBatch
from headrace.flow.features import Encoder
from headrace.models.contract import Clock, Floats, Turns
from headrace.models.target_mean import TargetMeans
from headrace.models.text import NULL, Text
from headrace.models.tokens import Tokens

FIRST = 0.2
"""Share of the events before anything is scored."""

MEANS = 4  # categories at most whose target means are features, unless a definition says which
_LEAST_LABELS = 1_000
_SECOND = 1_000_000
_NO_TIME = -(2**63)
_NO_COLUMN = "\0"  # stands for a file's key: no column of a file is called that

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Past:
    """n events in the order of their times, and m labels in the order in which they became known.

    Attributes
    ----------
    X
        Model columns of the events, target means included: what each read at its event.
    event_time
        int64[n], microseconds.
    label_row
        int64[m]: the row of each label's event.
    label_time, y
        int64[m], microseconds; float64[m], 0 or 1.
    order
        int64[n + m]: entries in order of time, events before labels; r for event r, -1 - r for label r.
    means
        Names of the target means among the columns.
    keys
        The categories that those are means for.
    row_bytes
        Mean size of an event's features, uncompressed.
    remarks
        What was left out or taken to mean something, in sentences.
    """

    name: str
    X: dict[str, Any]
    event_time: Clock
    label_row: Ints
    label_time: Clock
    y: Floats
    order: Ints
    means: tuple[str, ...]
    keys: tuple[str, ...]
    row_bytes: float
    remarks: tuple[str, ...]

    @property
    def first(self) -> int:
        """The first event that is scored."""
        return int(FIRST * len(self.event_time))

    @property
    def days(self) -> float:
        """Length in days."""
        return float(self.event_time[-1] - self.event_time[0]) / (86_400 * _SECOND)

    @cached_property
    def entry_time(self) -> Clock:
        """int64[n + m]: when each entry came."""
        label = self.order < 0
        times = np.empty(len(self.order), dtype=np.int64)
        times[~label], times[label] = self.event_time, self.label_time
        return times

    @cached_property
    def _events_before(self) -> Ints:
        return np.concatenate([[0], np.cumsum(self.order >= 0)])

    @cached_property
    def _outstanding(self) -> Ints:
        """Events that wait for their label when each enters; those that never get one do not count."""
        waits = np.zeros(len(self.event_time), dtype=np.int64)
        waits[self.label_row] = 1
        entries = np.flatnonzero(self.order >= 0)
        return np.cumsum(waits) - waits - (entries - np.arange(len(entries)))

    def features(self, target_means: bool) -> dict[str, Any]:
        """Columns with or without the target means."""
        return self.X if target_means else {name: v for name, v in self.X.items() if name not in self.means}

    def known_by(self, time: int) -> Ints:
        """Labels that were known before a time."""
        return np.arange(int(np.searchsorted(self.label_time, time)))

    def entry_at(self, time: int) -> int:
        """The first entry that is not before a time."""
        return int(np.searchsorted(self.entry_time, time))

    def open_at(self, entry: int) -> Ints:
        """Events before an entry whose labels come with it or later."""
        events, labels = self.slices(0, entry)
        rows = self.label_row[labels.stop :]
        return np.sort(rows[rows < events.stop])

    def slices(self, first: int, last: int) -> tuple[slice, slice]:
        """The events and the labels among some entries."""
        events = slice(int(self._events_before[first]), int(self._events_before[last]))
        return events, slice(first - events.start, last - events.stop)

    def turns(self, first: int, last: int, memo: Floats | None = None, *, asked: bool = True) -> Turns:
        """Some entries as a model follows them.

        Parameters
        ----------
        memo
            float64[n, width]: what was kept of all events.
        asked
            Whether their labels are those of events that were asked for; else they teach as if nobody had predicted.
        """
        events, labels = self.slices(first, last)
        order, rows = self.order[first:last], self.label_row[labels]
        return Turns(
            order=np.where(order >= 0, order - events.start, order + labels.start),
            outstanding=self._outstanding[events],
            y=self.y[labels],
            weight=np.ones(len(rows)),
            clock=self.label_time[labels],
            asked=np.where((rows >= events.start) & asked, rows - events.start, -1),
            memo=np.empty((len(rows), 0)) if memo is None else memo[rows],
            row=np.arange(len(rows)),
        )


def from_file(
    path: Path,
    label: str,
    event_time: str,
    label_time: str | None,
    features: Sequence[str] | None = None,
) -> Past:
    """A Parquet or CSV file, one row for each event.

    Parameters
    ----------
    label
        A column of booleans, or of 0 and 1; NULL where no label ever came.
    event_time, label_time
        Columns of times; numbers are seconds since 1970. Without a label time, labels are known at once.
    features
        The other columns by default.

    Raises
    ------
    SourceError
        A column is missing or cannot be used, or there is too little in the file; the message says which and why.
    """
    table = _table(path)
    times = [event_time] if label_time is None else [event_time, label_time]
    chosen = list(features) if features else [c for c in table.column_names if c not in (label, *times)]
    if missing := [c for c in dict.fromkeys([label, *times, *chosen]) if c not in table.column_names]:
        raise SourceError(
            f"{path}: found no column {', '.join(missing)}, expected one of {', '.join(table.column_names)}"
        )
    if leaks := [c for c in chosen if c in (label, label_time)]:
        raise SourceError(
            f"{path}: {', '.join(leaks)} is what the label says: as a feature it would leak; leave it out"
        )
    remarks: list[str] = []
    y, at = _labels(path, table[label], label), _times(path, table[event_time], event_time)
    told = at.copy() if label_time is None else _times(path, table[label_time], label_time)
    if label_time is None:
        remarks.append("Labels were taken to be known at once, which flatters online training: give --label-time.")
    if timeless := int((~np.isnan(y) & (told == _NO_TIME)).sum()):
        remarks.append(f"{timeless:,} rows have a label but no {label_time}: they count as never labelled.")
    y[told == _NO_TIME] = np.nan
    early = ~np.isnan(y) & (told < at)
    used = (at != _NO_TIME) & ~early
    for count, why in (
        (int((at == _NO_TIME).sum()), f"have no {event_time}"),
        (int(early.sum()), "have a label from before their event"),
    ):
        if count:
            remarks.append(f"{count:,} of {len(y):,} rows were left out: they {why}.")
    rows = np.flatnonzero(used)
    if np.any(np.diff(at[rows]) < 0):
        remarks.append(f"The rows were not in order of {event_time}: they were sorted.")
        rows = rows[np.argsort(at[rows], kind="stable")]
    columns, kinds = _columns(path, table, chosen, rows, remarks)
    stream = _definition(path, event_time, columns, kinds)
    return _past(str(path), stream, {**columns, "event_time": at[rows]}, at[rows], y[rows], told[rows], remarks)


def _table(path: Path) -> pa.Table:
    try:
        if path.suffix in (".parquet", ".pq"):
            import pyarrow.parquet as pq

            return pq.read_table(path)
        if path.suffix in (".csv", ".tsv"):
            from pyarrow import csv

            return csv.read_csv(path, parse_options=csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ","))
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    raise SourceError(f"found {path.name!r}, expected a name that ends in .parquet, .csv or .tsv")


def _labels(path: Path, column: pa.ChunkedArray, name: str) -> Floats:
    """float64[rows], NaN where there is none."""
    if not (pa.types.is_boolean(column.type) or pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise SourceError(
            f"{path}: the label {name} is {column.type}, expected booleans, or 0 and 1: write it as such a column"
        )
    values: Floats = pc.cast(column, pa.float64()).to_numpy().copy()
    found = np.unique(values[~np.isnan(values)])
    if strange := [v for v in found.tolist() if v not in (0.0, 1.0)][:5]:
        raise SourceError(
            f"{path}: the label {name} has values such as {', '.join(f'{v:g}' for v in strange)}, expected 0 and 1: a column "
            "such as (delay > 15)"
        )
    if len(found) < 2:
        shown = f"is always {found[0]:g}" if len(found) else "is always NULL"
        raise SourceError(f"{path}: the label {name} {shown}, expected 0 and 1: there is nothing to learn")
    return values


def _times(path: Path, column: pa.ChunkedArray, name: str) -> Ints:
    """int64[rows] microseconds, the smallest int64 where there is none."""
    try:
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            seconds = pc.cast(column, pa.float64()).to_numpy()
            return np.where(np.isfinite(seconds), np.round(np.nan_to_num(seconds) * _SECOND), _NO_TIME).astype(np.int64)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            column = pc.cast(
                column,
                pa.timestamp(
                    "us", "UTC" if pc.any(pc.match_substring_regex(column, r"(Z|[+-]\d\d:?\d\d)$")).as_py() else None
                ),
            )
        stamps = pc.cast(pc.cast(column, pa.timestamp("us", getattr(column.type, "tz", None)), safe=False), pa.int64())
    except pa.ArrowInvalid as error:
        raise SourceError(
            f"{path}: {name} is no column of times ({' '.join(str(error).split())}), expected timestamps, or seconds since 1970"
        ) from error
    return np.array(pc.fill_null(stamps, _NO_TIME).to_numpy(), dtype=np.int64)


def _columns(
    path: Path, table: pa.Table, chosen: Sequence[str], rows: Ints, remarks: list[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Log columns by name, and what each is."""
    columns: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for name in chosen:
        column = table[name].combine_chunks()
        if pa.types.is_dictionary(column.type):
            column = pc.cast(column, column.type.value_type)
        kind = column.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind):
            columns[name], kinds[name] = _text(column)[rows], "category"
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            values = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)[rows]
            columns[name], kinds[name] = np.where(np.isfinite(values), values, np.nan), "number"
        elif _lists_texts(kind):
            columns[name], kinds[name] = _tokens(column)[rows], "tokens"
        else:
            remarks.append(f"{name} ({kind}) was left out: neither a text, a number nor a list of texts.")
    if not columns:
        raise SourceError(
            f"{path}: found no column that can be a feature, expected texts, booleans, numbers or lists of texts"
        )
    return columns, kinds


def _lists_texts(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(lists and (pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)))


def _tokens(column: pa.Array) -> Tokens:
    """A column of lists, where the bytes of their texts lie."""
    ends = column.offsets.to_numpy().astype(np.int64)
    count = np.diff(ends).astype(np.int32)
    count[pc.is_null(column).to_numpy(zero_copy_only=False)] = NULL
    return Tokens.distinct(_text(column.values), ends[:-1], count)


def _text(column: pa.Array) -> Text:
    """A column of texts where its bytes lie, nothing copied."""
    column = pc.cast(column, pa.large_string())
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[column.offset : column.offset + len(column) + 1]
    length = np.diff(ends).astype(np.int32)
    if column.null_count:
        length[pc.is_null(column).to_numpy(zero_copy_only=False)] = NULL
    buffer = np.frombuffer(data, dtype=np.uint8) if data is not None and data.size else np.zeros(1, dtype=np.uint8)
    return Text(buffer, ends[:-1].copy(), length)


def _definition(path: Path, event_time: str, columns: dict[str, Any], kinds: dict[str, str]) -> Stream:
    """The stream that the file would be."""
    names = [name for name, kind in kinds.items() if kind == "category"]
    few = sorted(names, key=lambda name: len(np.unique(columns[name].keys())))[:MEANS]
    features: list[Feature] = [hour_of_day(event_time), day_of_week(event_time), target_mean(*few)]
    own = {"event_time"} - {event_time} | {name for feature in features for name in feature.names()}
    if clash := sorted(own & kinds.keys()):
        raise SourceError(
            f"{path}: found a column called {', '.join(clash)}, as headrace calls something of its own: rename it"
        )
    numbers = [name for name, kind in kinds.items() if kind == "number"]
    features += [category(*names)] if names else []
    features += [number(*numbers)] if numbers else []
    lists = [name for name, kind in kinds.items() if kind == "tokens"]
    features += [tokens(*lists)] if lists else []
    return Stream(
        name="file",
        source=Source(conn_id="file", table="file.rows", key=_NO_COLUMN, event_time=event_time),
        label=Label(value=col("label"), label_time="label_time", window=timedelta(days=365), if_missing="drop"),
        features=features,
        champion=recipes.ftrl(),
    )


def from_log(stream: Stream, batch: LogBatch) -> Past:
    """A stretch of a stream's log: labels as they came, time-outs that mean negative among them; corrections are left out."""
    first = batch.label_kind != LabelKind.CORRECTION
    known = first & ~np.isnan(batch.y) & (batch.label_event >= batch.seq_first)
    row = np.searchsorted(batch.event_seq, batch.label_event[known])
    y, told = np.full(len(batch.event_seq), np.nan), np.full(len(batch.event_seq), _NO_TIME)
    y[row], told[row] = batch.y[known], batch.clock_labels[known]
    remarks = []
    if corrections := int((~first).sum()):
        remarks.append(f"{corrections:,} corrections were left out: labels are as they first came.")
    return _past(stream.name, stream, batch.events, batch.clock_events, y, told, remarks)


def _past(name: str, stream: Stream, log: Any, event_time: Clock, y: Floats, told: Clock, remarks: list[str]) -> Past:
    labelled = np.flatnonzero(~np.isnan(y))
    if len(labelled) < _LEAST_LABELS:
        raise SourceError(
            f"{name}: found {len(labelled):,} labelled events, expected at least {_LEAST_LABELS:,}: wait for more"
        )
    if len(labelled) < len(y):
        remarks.append(
            f"{len(y) - len(labelled):,} of {len(y):,} events have no label: they are predicted, and not scored."
        )
    label_row = labelled[np.argsort(told[labelled], kind="stable")]
    label_time = told[label_row]
    n = len(event_time)
    merged = np.argsort(np.concatenate([event_time, label_time]), kind="stable")  # events before labels at equal times
    order = np.where(merged < n, merged, n - 1 - merged)
    encoder = Encoder(stream)
    X, means = encoder(log), dict[str, Floats]()
    if any(f.kind == "target_mean" for f in stream.features):
        means = _means(encoder, X, order, y, label_row, event_time, label_time)
    size = sum(map(_mean_bytes, X.values()))
    times = (event_time, label_row, label_time)
    keys = stream.feature_columns("target_mean")
    return Past(name, X | means, *times, y[label_row], order, tuple(means), keys, size, tuple(remarks))


def _mean_bytes(values: Any) -> float:
    if isinstance(values, Tokens):
        values = values.compact()
        return float((np.maximum(values.values.length, 0) + 1).sum() / max(len(values), 1)) + 1
    return float(np.maximum(values.length, 0).mean()) + 1 if isinstance(values, Text) else 8.0


def _means(
    encoder: Encoder, X: dict[str, Any], order: Ints, y: Floats, label_row: Ints, event_time: Clock, label_time: Clock
) -> dict[str, Floats]:
    """What each event read of the target means; the prior is what was known when the part began that is scored."""
    known = label_row[: int(np.searchsorted(label_time, event_time[int(FIRST * len(event_time))]))]
    prior = float(np.clip(y[known].mean(), 0.001, 0.999)) if len(known) else 0.5
    means = TargetMeans(encoder.mean_keys, prior)
    is_label = order < 0
    row = np.where(is_label, label_row[np.where(is_label, -1 - order, 0)], order)
    clock = np.where(is_label, label_time[np.where(is_label, -1 - order, 0)], event_time[np.where(is_label, 0, order)])
    entries = means.keys_of(X)[row]
    return means.run(entries, is_label, y[row], np.ones(len(order)), clock)
