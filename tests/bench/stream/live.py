"""While an application works: how long until a label is learned, and whether anybody falls behind.

An application commits at a steady rate, by the clock, on a connection of its own; intake and learners are at work, the
champion's learner notes when it has learned up to which entry (`tests.bench.stream.noting`). Latency is counted from just
before the application sends the statement that inserts a label and commits, until the label is part of the champion's model
in memory: the source's fsync, the change stream, the intake, the platform's fsync, the notification, the log read and the
learning are in it.
"""

from __future__ import annotations

import json
import statistics
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
from tests.bench.stream.stage import Stage

from headrace.models.engine import engine
from headrace.store import db, registry

_RATE, _STEADY_RATE = 1_000, 5_000  # changes a second
_WARM_UP = 2_000  # changes
_LATE = 100  # impressions that come between one and its outcome
_SIZE = 50  # half of the changes of a transaction where they are not single
_AT_ONCE = 0.1  # seconds of changes: so much more lag at the end than at the start is growth
_CHAMPION = "ads-1"

Transaction = Sequence[tuple[str, int, int]]  # statements with the first and the last impression's number
Times = list[tuple[float, float]]  # of each transaction: when commit was called, and when it had returned
Noted = list[tuple[float, int]]  # when the champion had learned up to which entry


def latency(stage: Stage, seconds: float) -> dict[str, float]:
    """Milliseconds from a label's commit to its being learned, in transactions of one row, 1,000 a second."""
    first, labels = _lead(stage), int(seconds * _RATE) // 2
    transactions: list[Transaction] = []
    for k in range(first, first + labels):
        transactions += [("impressions", k + _LATE, k + _LATE)], [("outcomes", k, k)]
    wrote, noted, _ = _live(stage, transactions, 1 / _RATE, [])
    query = """
        SELECT array_agg(l.seq ORDER BY e.key) FROM ads.labels AS l JOIN ads.events AS e ON e.seq = l.event_seq
        WHERE e.key >= %s
    """
    seqs = stage.ask("headrace", query, (first,), on=stage.platform)
    took = latencies([called for called, _ in wrote[1::2]], seqs, noted)[_WARM_UP // 2 :]
    p50, p99 = np.percentile(took, [50, 99])
    found = {"p50": p50, "p99": p99, "max": max(took), "changes_s": _per_second(wrote, 1)}
    return {name: round(float(value), 2) for name, value in found.items()} | {"labels": len(took)}


def challengers(stage: Stage, seconds: float) -> dict[str, Any]:
    """Entries that the champion is behind what is committed at the source, while it and four challengers learn 5,000 a second."""
    first, count = _lead(stage), int(seconds * _STEADY_RATE) // (2 * _SIZE)
    transactions: list[Transaction] = []
    for k in range(first, first + count * _SIZE, _SIZE):
        transactions += [[("impressions", k + _LATE, k + _LATE + _SIZE - 1), ("outcomes", k, k + _SIZE - 1)]]
    wrote, noted, before = _live(stage, transactions, 2 * _SIZE / _STEADY_RATE, _add_challengers(stage))
    lag = lags(wrote, noted, before, 2 * _SIZE)
    third = len(lag) // 3
    early, late = statistics.median(lag[:third]), statistics.median(lag[-third:])
    return {
        "changes_s": round(_per_second(wrote, 2 * _SIZE)),
        "lag_first_third": early,
        "lag_last_third": late,
        "lag_max": max(lag),
        "grows": late > early + _AT_ONCE * _STEADY_RATE,
    }


def latencies(called: list[float], seqs: list[int], noted: Noted) -> list[float]:
    """Milliseconds from each commit of a label until its entry was learned.

    >>> latencies([0.5, 0.625], [8, 10], [(0.0, 6), (0.75, 9), (1.0, 10)])
    [250.0, 375.0]
    """
    learned = [seq for _, seq in noted]
    return [1000 * (noted[bisect_left(learned, seq)][0] - at) for at, seq in zip(called, seqs, strict=True)]


def lags(wrote: Times, noted: Noted, before: int, size: int) -> list[int]:
    """Entries committed and not learned, ten times a second, while transactions of so many entries were written.

    >>> lags([(0.0, 0.01), (0.1, 0.11), (0.2, 0.22)], [(0.0, 7), (0.05, 9), (0.3, 13)], before=7, size=2)
    [2, 2, 2]
    """
    committed, learned = [returned for _, returned in wrote], [at for at, _ in noted]
    times = np.arange(committed[0], committed[-1], 0.1).tolist()
    return [size * bisect_right(committed, t) - (noted[bisect_right(learned, t) - 1][1] - before) for t in times]


def _live(
    stage: Stage, transactions: Sequence[Transaction], pause: float, others: Sequence[str]
) -> tuple[Times, Noted, int]:
    """Write while intake, champion and other versions work, until all is learned; gives also the log's end before it."""
    before = stage.rows()
    noting = Path(__file__).with_name("noting.py").read_text()
    intake = stage.start("intake", "ads")
    stage.start("learn", "ads", _CHAMPION, program=noting)
    for name in others:
        stage.start("learn", "ads", name)
    stage.wait(lambda: intake.says("streaming ads") and _learned(stage) >= before, pause=0.2)
    wrote = _write(stage, transactions, pause)
    stage.wait(lambda: _learned(stage) >= stage.rows(), pause=0.2)
    stage.end()
    return wrote, json.loads((stage.home / "learned.json").read_text()), before


def _write(stage: Stage, transactions: Sequence[Transaction], pause: float) -> Times:
    """Commit transactions one after the other, one each so many seconds by the clock, or as fast as it goes when it is late."""
    wrote: Times = []
    with closing(psycopg2.connect(stage.dsn("shop"))) as conn, conn.cursor() as cursor:
        conn.autocommit = True
        for name, statement in stage.shape.statements().items():
            cursor.execute(f"PREPARE {name} (bigint, bigint) AS {statement}")
        due = time.monotonic()
        for transaction in transactions:
            due += pause
            time.sleep(max(0.0, due - time.monotonic()))
            called = time.monotonic()
            cursor.execute("; ".join(f"EXECUTE {name} ({first}, {last})" for name, first, last in transaction))
            wrote.append((called, time.monotonic()))
    return wrote


def _lead(stage: Stage) -> int:
    """Impressions whose outcomes come later; gives the first one's number."""
    first = int(stage.ask("shop", "SELECT max(impression_id) + 1 FROM impressions"))
    stage.run("shop", stage.shape.impressions(f"{first}::bigint", f"{first + _LATE - 1}"))
    return first


def _add_challengers(stage: Stage) -> list[str]:
    """A version of each challenger's recipe, which learns the log from its start."""
    with closing(db.connect(stage.platform.dsn("headrace"))) as conn, db.transaction(conn):
        how: dict[str, Any] = {"first_seq": 1, "evidence_seq": 1, "status": "catching_up"}
        return [registry.add_version(conn, stage.stream, r, engine(), **how) for r in stage.stream.challengers]


def _learned(stage: Stage) -> int:
    """The entry up to which every version has learned the log, as learners say."""
    query = """
        SELECT min(coalesce(w.done, 0)) FROM headrace.versions AS v
        LEFT JOIN headrace.worker_progress AS w ON w.stream = v.stream AND w.role = v.version
    """
    return int(stage.ask("headrace", query, on=stage.platform))


def _per_second(wrote: Times, size: int) -> float:
    return size * (len(wrote) - 1) / (wrote[-1][0] - wrote[0][0])
