"""A Postgres cluster to be hurt: an embedded server behind a proxy that workers go through; the rig itself goes direct."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.extensions import parse_dsn
from tests.torture.proxy import Proxy

from headrace.store.embedded import SOCKET_NAME, EmbeddedPostgres

# Only the server is ever killed, never the machine: what it wrote survives without fsync. synchronous_commit stays on.
_SETTINGS = ("fsync = off", "full_page_writes = off", "max_wal_size = '4GB'")


class Cluster:
    """One server.

    Parameters
    ----------
    name
        "source" or "platform".
    home
        Its directory, reachable for the account that runs it.
    """

    def __init__(self, name: str, home: Path) -> None:
        home.mkdir(parents=True, mode=0o755)
        self.name = name
        self._server = EmbeddedPostgres(home)
        self._server.start()
        with self.connection("postgres") as conn, conn.cursor() as cursor:
            for setting in _SETTINGS:
                cursor.execute(f"ALTER SYSTEM SET {setting}")
            cursor.execute("SELECT pg_reload_conf()")
        folder = parse_dsn(self._server.dsn("postgres"))["host"]
        self.proxy = Proxy(f"{folder}/{SOCKET_NAME}")

    def dsn(self, database: str) -> str:
        """The direct way, which no fault disturbs while the server runs."""
        return self._server.dsn(database)

    @contextmanager
    def connection(self, database: str) -> Iterator[Any]:
        """A direct connection, in autocommit."""
        with closing(psycopg2.connect(self.dsn(database))) as conn:
            conn.autocommit = True
            yield conn

    def query(self, database: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run one statement."""
        with self.connection(database) as conn, conn.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def restart(self) -> None:
        """Stop the server as an administrator does, and start it again."""
        self._server.stop()
        self._server.start()

    def crash(self) -> None:
        """Kill the postmaster; its children end when they notice. Start it again: it recovers from its WAL."""
        pid = int((self._server.data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        while self._server.running:  # the last backends may still answer
            time.sleep(0.01)
        self._server.start()

    def close(self) -> None:
        """End proxy and server."""
        self.proxy.close()
        with contextlib.suppress(psycopg2.Error):
            self._server.stop()
