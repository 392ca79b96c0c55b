"""Leases: one writer per role, with a fencing token that every transaction of the writer checks.

The holder's connection keeps an advisory lock, so a role is free the moment its holder's connection ends; the token in
`headrace.leases` fences out whoever lost the role without noticing. A holder whose row says another token has lost it.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta

from psycopg2.extensions import connection as Connection

from headrace.errors import LeaseError
from headrace.store import db


@dataclass(frozen=True)
class Lease:
    """A role that this process holds on one connection."""

    stream: str
    role: str  # "intake", or a version's name
    token: int
    length: timedelta

    def check(self, conn: Connection) -> None:
        """Renew within the caller's transaction; call it in every transaction that writes for the role.

        Raises
        ------
        LeaseError
            When another process took the role: roll back, and end.
        """
        params = {"stream": self.stream, "role": self.role, "token": self.token, "lease": self.length}
        if db.row(conn, "check_lease", params) is None:
            raise LeaseError(
                f"lost the role {self.role!r} of stream {self.stream!r} to another process; nothing was written"
            )


def take(conn: Connection, stream: str, role: str, length: timedelta) -> Lease:
    """Take a role, on the connection that will write for it.

    Raises
    ------
    LeaseError
        When another connection holds it; the message names the holder.
    """
    free = db.row(conn, "lock_role", {"stream": stream, "role": role})
    if free is None or not free[0]:
        held = db.row(conn, "who_holds", {"stream": stream, "role": role})
        conn.rollback()
        holder = (
            f"{held[0]} (backend {held[1]}), which renewed it {held[2]:%H:%M:%S} UTC" if held else "another process"
        )
        raise LeaseError(f"the role {role!r} of stream {stream!r} is held by {holder}; stop that one first")
    params = {"stream": stream, "role": role, "holder": f"{socket.gethostname()}:{os.getpid()}", "lease": length}
    taken = db.row(conn, "take_lease", params)
    conn.commit()
    assert taken is not None  # the statement always returns its row
    return Lease(stream, role, taken[0], length)
