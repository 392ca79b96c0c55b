"""The application: a thread that commits the workload, one transaction after the other, whatever happens to its server.

It goes straight to the source, no proxy between. A transaction whose commit is in doubt, since the server died meanwhile,
is looked up in the table `committed` and done again if it is not there: each is committed exactly once. How far it may go
is granted by the rig, in changes, so that a fault falls on the same transaction in every run of a seed.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg2
from psycopg2.extras import execute_values
from tests.torture.workload import Transaction, Workload

_PAGE = 400  # rows of one statement


class Application(threading.Thread):
    """Commits what it may.

    Parameters
    ----------
    dsn
        The source, directly.
    workload
        What to commit.
    rate
        Changes per second at most, on average.
    """

    def __init__(self, dsn: str, workload: Workload, rate: float) -> None:
        super().__init__(name="application", daemon=True)
        self._dsn, self._rate = dsn, rate
        self._transactions = workload.transactions()
        self._news = threading.Condition()
        self._granted = 0
        self._conn: Any = None
        self.changes = 0  # committed
        self.retries = 0  # transactions whose commit was in doubt, or that a dying server refused
        self.error: BaseException | None = None
        self._ended = False

    def grant(self, changes: int) -> None:
        """Let it go on until so many changes are committed, in all."""
        with self._news:
            self._granted = changes
            self._news.notify_all()

    def wait(self, changes: int, seconds: float) -> None:
        """Wait until so many changes are committed.

        Raises
        ------
        RuntimeError
            The application failed, or did not come so far in time.
        """
        with self._news:
            enough = self._news.wait_for(lambda: self.changes >= changes or self.error is not None, seconds)
        if self.error is not None:
            raise RuntimeError(f"the application failed after {self.changes} changes") from self.error
        if not enough:
            raise RuntimeError(f"the application committed {self.changes} changes, expected {changes} by now")

    def end(self) -> None:
        """Stop after the transaction that is under way."""
        with self._news:
            self._ended = True
            self._news.notify_all()
        if self.is_alive():
            self.join(60)

    def run(self) -> None:
        """Commit until told to end."""
        try:
            while True:
                with self._news:
                    self._news.wait_for(lambda: self._ended or self.changes < self._granted)
                    if self._ended:
                        return
                began = time.monotonic()
                transaction = next(self._transactions)  # only now: what is planned is also committed
                self._commit(transaction)
                with self._news:
                    self.changes += transaction.changes
                    self._news.notify_all()
                pause = transaction.changes / self._rate - (time.monotonic() - began)
                time.sleep(max(pause, 0.0))
        except BaseException as error:
            with self._news:
                self.error = error
                self._news.notify_all()
        finally:
            if self._conn is not None:
                self._conn.close()

    def _commit(self, transaction: Transaction) -> None:
        doubt = False
        while True:
            try:
                if self._conn is None or self._conn.closed:
                    self._conn = psycopg2.connect(self._dsn)
                if not (doubt and self._is_committed(transaction.number)):
                    self._execute(transaction)
                return
            except (psycopg2.OperationalError, psycopg2.InterfaceError):  # the server is away
                doubt = True
                self.retries += 1
                if self._conn is not None:
                    self._conn.close()
                time.sleep(0.05)

    def _is_committed(self, number: int) -> bool:
        with self._conn, self._conn.cursor() as cursor:
            cursor.execute("SELECT 1 FROM committed WHERE number = %s", (number,))
            return cursor.fetchone() is not None

    def _execute(self, transaction: Transaction) -> None:
        with self._conn, self._conn.cursor() as cursor:
            touched = 0
            for statement in transaction.statements:
                if not statement.rows:
                    cursor.execute(statement.text)
                    continue
                for first in range(0, len(statement.rows), _PAGE):
                    execute_values(cursor, statement.text, statement.rows[first : first + _PAGE], page_size=_PAGE)
                    touched += cursor.rowcount
            if touched != transaction.changes:
                raise AssertionError(
                    f"transaction {transaction.number} changed {touched} rows, planned {transaction.changes}"
                )
            cursor.execute("INSERT INTO committed VALUES (%s)", (transaction.number,))
