"""The vocabulary of data that travels: log columns, ranges of the log, epochs, checkpoints.

Frozen dataclasses only; times are `int64` microseconds since the Unix epoch (UTC) inside column arrays and
timezone-aware `datetime` elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Columns = Mapping[str, Any]
"""Columns of equal length by name: arrays, or what can be indexed like them by slices and by arrays of rows."""

PARTITION_ENTRIES = 1_000_000  # of a partition of a stream's log
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def micros(time: datetime) -> int:
    """Microseconds since the Unix epoch.

    >>> micros(datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC))
    1000000
    """
    return (time - _EPOCH) // timedelta(microseconds=1)


def moment(microseconds: int) -> datetime:
    """The time of a number of microseconds since the Unix epoch."""
    return _EPOCH + timedelta(microseconds=int(microseconds))


class LabelKind(IntEnum):
    """What a label entry is; the names are the SQL enum headrace.label_kind."""

    OBSERVED = 0
    TIMEOUT = 1
    CORRECTION = 2


@dataclass(frozen=True)
class LogColumn:
    """One column of a stream's events table."""

    name: str  # in the log
    source: str  # at the source
    type_oid: int  # Postgres type, the same on both sides
    type_name: str


@dataclass(frozen=True)
class EpochRange:
    """A range of the log, fixed by the intake."""

    epoch: int
    seq_first: int
    seq_last: int
    labels: int
    watermark_first: int
    watermark_last: int


@dataclass(frozen=True)
class LogBatch:
    """A contiguous range of the log in columns, in seq order within each part.

    `events` holds the log's columns by name. `clock_events` and `clock_labels` are the watermark after the commit that
    each entry came with. `epochs` are the epochs that end within the range.
    """

    seq_first: int
    seq_last: int
    event_seq: NDArray[np.int64]
    event_time: NDArray[np.int64]
    events: Columns
    clock_events: NDArray[np.int64]
    label_seq: NDArray[np.int64]
    label_event: NDArray[np.int64]  # seq of the event that each label answers
    label_kind: NDArray[np.int64]  # LabelKind
    y: NDArray[np.float64]  # NaN: no value (dropped time-out, deleted label)
    y_before: NDArray[np.float64]  # corrections: the value before
    clock_labels: NDArray[np.int64]
    clock_corrected: NDArray[np.int64]  # corrections: the watermark of the label that they replace
    corrects_timeout: NDArray[np.bool_]  # corrections of a label that never came, not of one that was observed
    epochs: tuple[EpochRange, ...]
    received_through: datetime | None  # receive time of the last segment


@dataclass(frozen=True)
class Recalled:
    """Events that were read back from the log: what a batch's labels answer, and nobody keeps in memory."""

    seq: NDArray[np.int64]  # in order
    events: Columns


@dataclass(frozen=True)
class Engine:
    """What equality to the bit depends on: code, library versions and CPU features."""

    id: str  # short hash of the rest
    code_sha: str
    parts: Mapping[str, str]
