"""Leases: one writer per role, with a fencing token that every transaction of the writer checks.

The holder's writing connection keeps an advisory lock, so a role is free the moment that connection ends; the token in
`headrace.leases` fences out whoever lost the role without noticing. A holder renews its row from a thread of its own, so
a long transaction does not look like silence and a stopped process does; so does one whose work is stuck, once it has
begun to give signs of it. Whoever waits and sees no renewal for the length of the lease ends the holder's connection and
takes the role. No clock is compared with another one.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import psycopg2
from psycopg2.extensions import connection as Connection

from headrace.errors import LeaseError, ServerError
from headrace.store import db
from headrace.store.script import Script

logger = logging.getLogger(__name__)

_RENEWALS = 4  # within the length of a lease
_LOOK_SECONDS = 0.02  # between two tries to take a role that is held for moments
_STUCK = 60.0  # seconds without a sign of work: no step of it takes as long while a connection is well


class Pulse:
    """Signs that the work of a role goes on: a thread can renew a lease for ever while the work waits for a lost answer."""

    def __init__(self) -> None:
        self._last: float | None = None

    def beat(self) -> None:
        """The work goes on; from the first sign on more are expected."""
        self._last = time.monotonic()

    @property
    def stuck(self) -> bool:
        """Whether the last sign was too long ago."""
        return self._last is not None and time.monotonic() - self._last > _STUCK


@dataclass(frozen=True)
class Lease:
    """A role that this process holds on one connection."""

    stream: str
    role: str  # "intake", or a version's name
    token: int
    length: timedelta
    former_walsender: int | None = None  # of who held it before: it may still hold the slot
    pulse: Pulse = field(default_factory=Pulse, compare=False)

    def keep(self, script: Script) -> None:
        """The same as `check`, of a script: its `run` raises the error."""
        script.add("keep_lease", {"stream": self.stream, "role": self.role, "token": self.token})

    def check(self, conn: Connection) -> None:
        """Whether the role is still ours, for the rest of the caller's transaction; call it in every one that writes.

        Raises
        ------
        LeaseError
            When another process took the role: roll back, and end.
        """
        script = Script(conn)
        script.begin()
        self.keep(script)
        script.run()

    def ready(self, conn: Connection, walsender: int | None = None) -> None:
        """Note that the work goes on; `walsender` is the backend at the source that holds the slot."""
        params = {"stream": self.stream, "role": self.role, "token": self.token, "walsender_pid": walsender}
        with db.transaction(conn):
            db.run(conn, "lease_ready", params)
            db.run(conn, "failover_ready", params)


def holder() -> str:
    """This process, for people."""
    return f"{socket.gethostname()}:{os.getpid()}"


def take(conn: Connection, stream: str, role: str, length: timedelta, *, patience: timedelta = timedelta(0)) -> Lease:
    """Take a role, on the connection that will write for it.

    Parameters
    ----------
    patience
        How long to try: a worker that cannot work takes its role and gives it back, again and again.

    Raises
    ------
    LeaseError
        When another connection holds it; the message names the holder.
    """
    until = time.monotonic() + patience.total_seconds()
    while (lease := try_take(conn, stream, role, length)) is None and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
    if lease is None:
        held = db.row(conn, "who_holds", {"stream": stream, "role": role})
        conn.rollback()
        known = f"{held[0]} (backend {held[1]}), which renewed it {held[2]:%H:%M:%S} UTC" if held else "another process"
        raise LeaseError(f"the role {role!r} of stream {stream!r} is held by {known}; stop that one first")
    return lease


def try_take(conn: Connection, stream: str, role: str, length: timedelta, *, silent: bool = False) -> Lease | None:
    """Take a role that nobody's connection holds; None when somebody's does.

    Parameters
    ----------
    silent
        Whether its holder was ended for its silence, for the record.
    """
    free = db.row(conn, "lock_role", {"stream": stream, "role": role})
    if free is None or not free[0]:
        conn.rollback()
        return None
    params = {"stream": stream, "role": role, "holder": holder(), "lease": length}
    with db.transaction(conn):
        before = db.row(conn, "former_holder", params)
        taken = db.row(conn, "take_lease", params)
        assert taken is not None  # the statement always returns its row
        if before is not None and not before[1]:
            why = "silent" if silent else "ended"
            db.run(conn, "add_failover", {**params, "token": taken[0], "from_holder": before[0], "why": why})
    return Lease(stream, role, taken[0], length, None if before is None else before[2])


class Silence:
    """Whether the holder of a role is silent, judged by looks and not by clocks, which step.

    Parameters
    ----------
    conn
        The platform's database.
    dsn
        The same, for a connection of one's own that may end another one.
    pause
        Seconds from look to look, at least.
    """

    def __init__(self, conn: Connection, dsn: str, stream: str, role: str, pause: float) -> None:
        self._conn, self._dsn, self._role, self._pause = conn, dsn, {"stream": stream, "role": role}, pause
        self._seen: tuple[int, datetime] | None = None
        self._same = 0  # looks that found nothing new

    def look(self) -> bool:
        """Look again; when the holder was silent for the length of its lease, end its connection, and say so.

        Raises
        ------
        LeaseError
            When this user may not end that connection.
        """
        row = db.row(self._conn, "last_renewal", self._role)
        self._conn.commit()
        if row is None or (row[0], row[1]) != self._seen:
            self._seen, self._same = None if row is None else (row[0], row[1]), 0
            return False
        self._same += 1
        if self._same * self._pause < row[2].total_seconds():
            return False
        return self._end({**self._role, "token": row[0], "renewed_at": row[1]})

    def _end(self, known: dict[str, object]) -> bool:
        with closing(db.connect(self._dsn, application="headrace takeover", autocommit=True)) as conn:
            try:
                ended = db.row(conn, "end_silent_holder", known)
            except psycopg2.errors.InsufficientPrivilege as error:
                raise LeaseError(
                    f"the holder of {known['role']!r} of stream {known['stream']!r} is silent, and its connection may not be "
                    f"ended by {db.describe(self._dsn)}: run both as one user, or GRANT pg_signal_backend"
                ) from error
        return ended is not None and bool(ended[0])


@contextmanager
def kept(dsn: str, lease: Lease, role: db.Role) -> Iterator[None]:
    """Renew a lease from a thread while the block runs; afterwards the role is released, not lost.

    A block that ends with an exception does not release it: whoever takes it then has taken over.
    """
    over = threading.Event()
    thread = threading.Thread(target=_renew, args=(dsn, lease, role, over), name=f"lease {lease.role}", daemon=True)
    thread.start()
    try:
        yield
        with closing(db.connect(dsn, role=role, autocommit=True)) as conn:
            db.run(conn, "release_lease", {"stream": lease.stream, "role": lease.role, "token": lease.token})
    finally:
        over.set()
        thread.join()


def _renew(dsn: str, lease: Lease, role: db.Role, over: threading.Event) -> None:
    params = {"stream": lease.stream, "role": lease.role, "token": lease.token, "lease": lease.length}
    pause = lease.length.total_seconds() / _RENEWALS
    while not over.is_set():
        try:
            with closing(
                db.connect(dsn, role=role, application=f"headrace lease {lease.role}", autocommit=True)
            ) as conn:
                while not over.is_set() and (lease.pulse.stuck or db.run(conn, "renew_lease", params)):
                    over.wait(pause)
                return  # over, or lost: the writer's next transaction finds out
        except (psycopg2.Error, ServerError) as error:
            logger.debug("the lease of %s could not be renewed: %s", lease.role, error)
            over.wait(pause)
