"""The demo's application: its source database, the history in it, and a replayer that lives on from there.

`prepare` makes the tables, loads what happened before a day, and runs the statements that `headrace source-sql` prints,
as a DBA would. `Replayer` then commits what happened next, one transaction per minute of 2013 that had departures or
arrivals, at so many times real time. Like any application it makes mistakes: now and then a flight is entered a second
time with a distance of 0, which the contract refuses. It knows nothing of the platform.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING, Any

from psycopg2.extensions import connection as Connection

from headrace.definition.stream import Stream
from headrace.events import micros
from headrace.store import db, source
from headrace.store.queries import SQL

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.demo.flights import Flights

_MINUTE = 60_000_000
BROKEN_EVERY = 2_000  # live departures, of which one is entered a second time with a typing error
_BROKEN_ID = 10_000_000  # added to the flight_id of the second entry
_TABLES = (("departures", "scheduled_at"), ("arrivals", "landed_at"))


def prepare(dsn: str, stream: Stream, flights: Flights, until: datetime) -> tuple[int, int]:
    """Make the source database; gives the rows of departures and arrivals before `until`."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    loaded = []
    with (
        closing(db.connect(dsn, application="flights application")) as conn,
        db.transaction(conn),
        conn.cursor() as cursor,
    ):
        cursor.execute((SQL / "demo" / "flights.sql").read_text())
        for name, time_column in _TABLES:
            table: pa.Table = getattr(flights, name)
            before = table.filter(pc.less(table[time_column], pa.scalar(until, table.schema.field(time_column).type)))
            sink = io.BytesIO()
            csv.write_csv(before, sink, csv.WriteOptions(include_header=False))
            sink.seek(0)
            cursor.copy_expert(f"COPY public.{name} ({', '.join(table.column_names)}) FROM STDIN (FORMAT csv)", sink)
            loaded.append(len(before))
        cursor.execute(source.statements(stream, role="postgres"))
    return loaded[0], loaded[1]


class Replayer:
    """Commits what happened from a moment on, as if live.

    Parameters
    ----------
    dsn
        The source database.
    flights
        All flights.
    start
        Where the history ends.
    speed
        Seconds of 2013 per second.
    """

    def __init__(self, dsn: str, flights: Flights, start: datetime, speed: float) -> None:
        self._dsn, self._speed = dsn, speed
        self._start = micros(start)
        self._minutes = _by_minute(flights, self._start)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="replayer", daemon=True)
        self.sent = {"events": 0, "labels": 0}
        self.error: Exception | None = None
        self.done = False

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the transaction at hand."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            with closing(db.connect(self._dsn, application="flights application")) as conn:
                self._replay(conn)
        except Exception as error:
            self.error = error

    def _replay(self, conn: Connection) -> None:
        began = time.monotonic()
        with conn.cursor() as cursor:
            for minute, departures, arrivals in self._minutes:
                due = began + (minute - self._start) / 1e6 / self._speed
                while (left := due - time.monotonic()) > 0:
                    if self._stop.wait(min(left, 0.2)):
                        return
                if self._stop.is_set():
                    return
                for name, rows in (("departures", departures), ("arrivals", arrivals)):
                    if rows:
                        marks = ", ".join(["(" + ", ".join(["%s"] * len(rows[0])) + ")"] * len(rows))
                        cursor.execute(f"INSERT INTO public.{name} VALUES {marks}", [v for row in rows for v in row])  # noqa: S608
                conn.commit()
                self.sent["events"] += len(departures)
                self.sent["labels"] += len(arrivals)
        self.done = True


_Row = Sequence[Any]


def _by_minute(flights: Flights, start: int) -> list[tuple[int, list[_Row], list[_Row]]]:
    """(minute, departures, arrivals) from `start` on, in order."""
    minutes: dict[int, tuple[list[_Row], list[_Row]]] = {}
    for place, (name, time_column) in enumerate(_TABLES):
        table: pa.Table = getattr(flights, name)
        times = table[time_column].cast("int64").to_numpy()
        first = int((times < start).sum())  # both tables are in order of time
        columns = [column.to_pylist() for column in table.slice(first).columns]
        for number, (at, row) in enumerate(
            zip(times[first:].tolist(), zip(*columns, strict=True), strict=True), start=1
        ):
            rows = minutes.setdefault(at // _MINUTE * _MINUTE, ([], []))[place]
            rows.append(row)
            if name == "departures" and number % BROKEN_EVERY == 0:
                typo = dict(zip(table.column_names, row, strict=True)) | {
                    "flight_id": row[0] + _BROKEN_ID,
                    "distance": 0,
                }
                rows.append(tuple(typo.values()))
    return [(minute, *minutes[minute]) for minute in sorted(minutes)]
