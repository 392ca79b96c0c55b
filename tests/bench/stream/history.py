"""The history: both tables copied out in the import's order into nothing, which is the limit, and the import of the same rows."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path

import psycopg2
from tests.bench.stream.contenders import BACKEND, Took
from tests.bench.stream.stage import Stage, cpu_of


def copied(stage: Stage) -> Took:
    """psycopg2 copies both tables to /dev/null."""
    rows = stage.rows()
    with (
        closing(psycopg2.connect(stage.dsn("shop"))) as conn,
        conn.cursor() as cursor,
        Path(os.devnull).open("wb") as nowhere,
    ):
        began, before = time.monotonic(), time.process_time()
        for table, at in (("impressions", "shown_at"), ("outcomes", "told_at")):
            ordered = f"SELECT * FROM {table} ORDER BY {at}, impression_id"
            cursor.copy_expert(f"COPY ({ordered}) TO STDOUT (FORMAT binary)", nowhere)
        seconds, mine = time.monotonic() - began, time.process_time() - before
        return Took(seconds, rows, {"source's backend": cpu_of(conn.info.backend_pid), "psycopg2": mine})


def imported(stage: Stage) -> Took:
    """The intake of a platform that knows nothing imports both, until all of it is durable in the log.

    Raises
    ------
    RuntimeError
        When the log has not an entry for each row.
    """
    stage.drop_slot(stage.stream.slot)
    stage.fresh_platform("empty")
    intake = stage.start("intake", "ads")
    began = stage.wait(lambda: stage.ask("headrace", "SELECT true FROM headrace.worker_progress", on=stage.platform))
    backend = int(stage.ask("postgres", BACKEND, ("headrace intake ads",), on=stage.platform))
    before = {"intake": cpu_of(intake.pid), "intake's backend": cpu_of(backend)}
    logged = "SELECT count(*) FROM ads.events FULL JOIN ads.labels USING (seq)"
    ended = stage.wait(
        lambda: stage.ask("headrace", "SELECT true FROM headrace.intake_positions", on=stage.platform), pause=0.05
    )
    cpu = {"intake": cpu_of(intake.pid), "intake's backend": cpu_of(backend)}
    stage.end()
    rows, entries = stage.rows(), int(stage.ask("headrace", logged, on=stage.platform))
    if rows != entries:
        raise RuntimeError(f"{rows:,} rows were there, and {entries:,} entries have come of them")
    return Took(
        ended - began,
        rows,
        {name: cpu[name] - before[name] for name in cpu},
        {"changes_sent": rows, "entries_logged": entries},
    )
