"""What a learner waits for when it reads the log's newest entries: of a log of 100 thousand, and of one of 50 million.

The log is written by SQL, one partition after the other, in commits of 20 entries, and gets the statistics that autovacuum
would give it: those of its partitions, none of the whole. The long one takes ten minutes and 10 GB of disk.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import psycopg2
from tests.bench.stream.stage import Stage

from headrace.events import PARTITION_ENTRIES
from headrace.models.engine import engine
from headrace.store import db, log, registry
from headrace.store.script import Script
from headrace.store.state import assemble, read_on, recipe_of

_SHORT, _LONG = 100_000, 50_100_000  # entries; the newest partition has as many of both
_COMMIT = 20  # entries: 10 events, and the labels of those of 50 commits before
_BACK = 50 * _COMMIT + _COMMIT // 2
_EPOCH = 1_000  # entries
_READS = 1_000
_LOG = """
INSERT INTO ads.events (seq, key, event_time, {names})
    SELECT seq, k, timestamptz '2026-01-01Z' + k * interval '10 ms', {row}
    FROM (
        SELECT seq, seq AS k FROM generate_series({first}::bigint, {last}) AS seq
        WHERE (seq - 1) % {commit} < {commit} / 2
    ) AS entry;
INSERT INTO ads.labels (seq, event_seq, kind, y, label_time)
    SELECT seq, seq - {back}, 'observed', (seq % 11 = 0)::int, timestamptz '2026-01-01Z' + seq * interval '10 ms'
    FROM generate_series({first}::bigint, {last}) AS seq
    WHERE (seq - 1) % {commit} >= {commit} / 2
"""
_COMMITS = """
INSERT INTO ads.segments (seq_first, seq_last, lsn, commit_time, received_at, watermark, definition_hash, origin)
    SELECT s, s + {commit} - 1, p.lsn, now(), now(), timestamptz '2026-01-01Z' + s * interval '10 ms', '', 'stream'
    FROM headrace.intake_positions AS p, generate_series({first}::bigint, {last}, {commit}) AS s;
INSERT INTO headrace.epochs (stream, epoch, seq_first, seq_last, labels, watermark_first, watermark_last)
    SELECT 'ads', p.epoch + (s - {first}) / {epoch}, s, s + {epoch} - 1, {epoch} / 2, now(), now()
    FROM headrace.intake_positions AS p, generate_series({first}::bigint, {last}, {epoch}) AS s;
UPDATE headrace.intake_positions
    SET seq = {last}, epoch = epoch + ({last} + 1 - {first}) / {epoch}, epoch_seq_first = {last} + 1, epoch_labels = 0
"""


def edge(stage: Stage) -> dict[str, float]:
    """Milliseconds to read the newest 20 entries, medians of reads of both logs in turns."""
    stage.fresh_platform()
    _fill(stage, _SHORT)
    stage.run("postgres", "CREATE DATABASE short TEMPLATE headrace STRATEGY file_copy", on=stage.platform)
    _fill(stage, _LONG)
    took = zip(_reads(stage, "short"), _reads(stage, "headrace"), strict=True)
    short, long = (1000 * statistics.median(each) for each in zip(*took, strict=True))
    return {"100k": round(short, 3), "50m": round(long, 3), "ratio": round(long / short, 2)}


def _fill(stage: Stage, entries: int) -> None:
    """Write the log up to so many entries."""
    dsn = stage.platform.dsn("headrace")
    with closing(db.connect(dsn, role="headrace_intake")) as conn, conn.cursor() as cursor:
        columns = registry.registered(conn, stage.stream)
        _, appender = log.open_log(conn, stage.stream, columns)
        at = log.position(conn, "ads")
        assert at is not None  # the history is there
        names, row = ", ".join(stage.stream.columns()), stage.shape.row()
        for number in range(at.seq // PARTITION_ENTRIES, entries // PARTITION_ENTRIES + 1):
            first, last = number * PARTITION_ENTRIES, min(entries, (number + 1) * PARTITION_ENTRIES - 1)
            first = max(first, at.seq + 1)
            appender._make_room(Script(conn), first, last)
            cursor.execute(_LOG.format(names=names, row=row, first=first, last=last, commit=_COMMIT, back=_BACK))
            conn.commit()
        cursor.execute(_COMMITS.format(first=at.seq + 1, last=entries, commit=_COMMIT, epoch=_EPOCH))
        conn.commit()
    with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        conn.autocommit = True
        cursor.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits "
            "WHERE inhparent IN ('ads.events'::regclass, 'ads.labels'::regclass)"
        )
        partitions = [name for (name,) in cursor.fetchall()]
        cursor.execute(f"VACUUM (ANALYZE) {', '.join(partitions)}, ads.segments, headrace.epochs")
        cursor.execute("CHECKPOINT")


def _reads(stage: Stage, database: str) -> Iterator[float]:
    """Seconds for what a learner's step at the edge reads; nobody takes the iterator, so nothing is learned of it.

    Where the log ends it is told.
    """
    with closing(db.connect(stage.platform.dsn(database), role="headrace_learner")) as conn:
        columns, version = registry.registered(conn, stage.stream), registry.version(conn, "ads", "ads-1")
        at = log.position(conn, "ads")
        assert at is not None
        newest = replace(version, first_seq=at.seq - _COMMIT + 1)
        reader = assemble(stage.stream, newest, recipe_of(stage.stream, version), None, b"", engine()).progressive
        for _ in range(_READS):
            began = time.perf_counter()
            read_on(conn, "ads", columns, reader, at.seq, states=False)
            conn.commit()
            yield time.perf_counter() - began
