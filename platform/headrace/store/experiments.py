"""Experiments: replays of a stream's log that ask what would have been, kept with their results. They are no versions."""

from __future__ import annotations

import json
from typing import Any

from psycopg2.extensions import connection as Connection

from headrace.definition.stream import Stream
from headrace.errors import BatchError
from headrace.events import LogBatch
from headrace.store import db, log, registry

MOST = 5_000_000
"""Entries of a log that an experiment reads, the newest: it holds them in memory."""


def past(conn: Connection, stream: Stream) -> LogBatch:
    """The newest entries of a stream's log.

    Raises
    ------
    BatchError
        When there is no log yet.
    """
    at = log.position(conn, stream.name)
    if at is None:
        raise BatchError(f"stream {stream.name!r} has no log yet: `headrace up` imports its history; or give a file")
    first = max(log.dropped_through(conn, stream.name), at.seq - MOST)
    return log.read(conn, stream.name, registry.registered(conn, stream), first, at.seq)


def add(conn: Connection, stream: str, batch: LogBatch, document: dict[str, Any]) -> None:
    """Keep what an experiment found."""
    with db.transaction(conn):
        params = {"stream": stream, "seq_first": batch.seq_first, "seq_last": batch.seq_last}
        db.run(
            conn, "add_experiment", {**params, "verdict": document["advice"]["verdict"], "found": json.dumps(document)}
        )
