"""The first champion of the demo, alone: is it an honest one?

Runs the flights stream's river pipeline over all of October to December through the learner's own code, with honest label
delay, once beginning on 1 October and once after learning January to September. Reports log loss and CPU per label.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.definition.load import load_file
from headrace.demo import flights
from headrace.events import EpochRange, LabelKind, LogBatch, micros
from headrace.flow.features import Encoder
from headrace.flow.progressive import Progressive
from headrace.flow.scores import GENESIS, ScoreSums
from headrace.models.build import fresh

_FLIGHTS = Path(__file__).parents[2] / "dags" / "streams" / "flights.py"
AUTUMN = micros(datetime(2013, 10, 1, 4, tzinfo=UTC))
_EPOCH_LABELS = 500


def log_of(data: flights.Flights, since: int, *, minutes: bool = False) -> LogBatch:
    """The flights from a moment on as one batch of the log: events at departure, labels at landing.

    A label says whether the flight is more than 15 minutes late, or how many `minutes`.
    """
    departures, arrivals = data.departures, data.arrivals
    scheduled = departures["scheduled_at"].cast("int64").to_numpy()
    first = int(np.searchsorted(scheduled, since))
    kept = departures.slice(first)
    ids = kept["flight_id"].to_numpy()
    landed = arrivals["landed_at"].cast("int64").to_numpy()
    flown = arrivals["flight_id"].to_numpy()
    mine = flown >= ids[0]
    times = np.concatenate([scheduled[first:], landed[mine]])
    order = np.argsort(times, kind="stable")  # events before labels at equal times
    seq = np.empty(len(times), dtype=np.int64)
    seq[order] = np.arange(1, len(times) + 1)
    event_seq, label_seq = seq[: len(ids)], seq[len(ids) :]
    by_seq = np.argsort(label_seq)
    ends = np.sort(label_seq)[_EPOCH_LABELS - 1 :: _EPOCH_LABELS].tolist()
    epochs = tuple(
        EpochRange(n, before + 1, end, _EPOCH_LABELS, 0, 0)
        for n, (before, end) in enumerate(zip([0, *ends], ends, strict=False), start=1)
    )
    event_of = event_seq[np.searchsorted(ids, flown[mine])]
    columns: dict[str, NDArray[Any]] = {"event_time": scheduled[first:]}
    for name in kept.column_names:
        if name != "scheduled_at":
            columns[name] = np.array(kept[name].to_pylist(), dtype=object)
    delay = arrivals["arr_delay"].to_numpy()[mine]
    late = delay if minutes else delay > 15
    return LogBatch(
        seq_first=1,
        seq_last=len(times),
        event_seq=event_seq,
        event_time=scheduled[first:],
        events=columns,
        clock_events=scheduled[first:],
        label_seq=label_seq[by_seq],
        label_event=event_of[by_seq],
        label_kind=np.full(len(by_seq), LabelKind.OBSERVED, dtype=np.int64),
        y=late[by_seq].astype(np.float64),
        y_before=np.full(len(by_seq), np.nan),
        clock_labels=landed[mine][by_seq],
        clock_corrected=np.zeros(len(by_seq), dtype=np.int64),
        corrects_timeout=np.zeros(len(by_seq), dtype=np.bool_),
        epochs=epochs,
        received_through=None,
    )


def champion_alone(data: flights.Flights, since: int) -> dict[str, float]:
    """Log loss over October to December of the first champion's pipeline that began to learn at `since`."""
    stream = load_file(_FLIGHTS)
    batch = log_of(data, since)
    champion = Progressive(fresh(stream.champion, key=bytes(16)), Encoder(stream), None, (), 1, GENESIS)
    began, sums = time.process_time(), ScoreSums()
    for score in champion.apply(batch):
        if score.event_time_first is not None and score.event_time_first >= AUTUMN:
            sums = sums.merge(score.sums)
    cpu = time.process_time() - began
    return {
        "log_loss": round(sums.mean_loss, 5),
        "labels": sums.n,
        "auc": round(sums.auc, 4),
        "us_per_label": round(1e6 * cpu / len(batch.label_seq), 1),
    }


def run() -> dict[str, Any]:
    """Run the benchmark and print its table."""
    data = flights.load()
    year = int(data.departures["scheduled_at"].cast("int64").to_numpy()[0])
    result = {
        "fresh on 1 October": champion_alone(data, AUTUMN),
        "after January to September": champion_alone(data, year),
    }
    print(f"{'river pipeline over October to December':42} {'log loss':>9} {'AUC':>7} {'labels':>8} {'us/label':>9}")
    for name, row in result.items():
        print(f"{name:42} {row['log_loss']:9.5f} {row['auc']:7.4f} {row['labels']:8,} {row['us_per_label']:9.1f}")
    return result
