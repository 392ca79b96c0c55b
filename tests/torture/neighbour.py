"""The neighbour: another application of the source's server, whose busy table no stream reads.

Its WAL passes every slot and holds nothing for anybody: an intake that is idle must move on past it. What it commits is
counted by nobody, and lost when the server dies.
"""

from __future__ import annotations

import threading
from contextlib import closing

import psycopg2

_PAUSE = 0.05
_ROWS = 50


class Neighbour(threading.Thread):
    """Inserts into a table of its own, twenty times a second.

    Parameters
    ----------
    dsn
        The source, directly.
    """

    def __init__(self, dsn: str) -> None:
        super().__init__(name="neighbour", daemon=True)
        self._dsn = dsn
        self._ended, self._busy = threading.Event(), threading.Event()
        self._busy.set()

    def pause(self) -> None:
        """Rest until `go_on`."""
        self._busy.clear()

    def go_on(self) -> None:
        """Be busy."""
        self._busy.set()

    def end(self) -> None:
        """Stop."""
        self._ended.set()
        self.go_on()
        if self.is_alive():
            self.join(60)

    def run(self) -> None:
        """Insert until told to end."""
        while not self._ended.is_set():
            try:
                with closing(psycopg2.connect(self._dsn)) as conn:
                    while not self._ended.wait(_PAUSE):
                        self._busy.wait()
                        with conn, conn.cursor() as cursor:
                            cursor.execute(
                                "INSERT INTO clicks (page) SELECT repeat('page ', 20) FROM generate_series(1, %s)",
                                (_ROWS,),
                            )
            except (psycopg2.OperationalError, psycopg2.InterfaceError):  # the server is away
                self._ended.wait(_PAUSE)
