"""Standing by: a process that keeps up with the log, and takes a role over when its holder dies, hangs or is cut off.

A holder's death frees the role's lock at once; a holder that is silent for longer than its lease is ended. What keeping
up means is the worker's business (`headrace.live.intake`, `headrace.live.learner`); this module only waits.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Callable
from datetime import timedelta

from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from headrace.store import db, leases
from headrace.store.leases import Lease

logger = logging.getLogger(__name__)

_REST = 0.02  # seconds in which entries come together
_LOOK = 0.05  # seconds between two tries to take the role
_SILENCE = 0.2  # seconds between two looks at the holder's lease
_REPORT = 1.0


def stand_by(
    conn: Connection,
    dsn: str,
    stream: str,
    role: str,
    length: timedelta,
    follow: Callable[[], int],
    stop: Callable[[], bool],
) -> Lease | None:
    """Keep up until the role is ours; None when `stop` says to end, or `follow` does not want it any more.

    Parameters
    ----------
    conn
        The connection that will write for the role.
    dsn
        The same database, to end a silent holder's connection.
    follow
        Reads what is new in the log and gives the seq that it has come to; -1 when the role has gone for good.
    """
    with conn.cursor() as cursor:
        cursor.execute(sql.SQL("LISTEN {}").format(sql.Identifier(f"headrace_{stream}")))
    conn.commit()
    logger.info("standing by for %s of stream %s", role, stream)
    me = {"stream": stream, "role": role, "holder": leases.holder()}
    silence = leases.Silence(conn, dsn, stream, role, _SILENCE)
    reported, looked, silent, seq = 0.0, 0.0, False, 0
    try:
        while not stop() and seq >= 0:
            lease = leases.try_take(conn, stream, role, length, silent=silent)
            if lease is not None:
                logger.info("took over %s of stream %s", role, stream)
                return lease
            conn.notifies.clear()  # before the look at the log: what is notified during it must wake us again
            before, seq = seq, follow()
            now = time.monotonic()
            if now - looked > _SILENCE:
                silent, looked = silence.look() or silent, now
            if now - reported > _REPORT and seq >= 0:
                with db.transaction(conn):
                    db.run(conn, "report_standby", {**me, "seq": seq})
                reported = now
            conn.poll()  # what came while the log was read is with libpq already
            if seq > before:
                time.sleep(_REST)
            elif not conn.notifies:
                select.select([conn], [], [], _LOOK)
                conn.poll()
    finally:
        if not conn.closed:
            conn.rollback()
            with db.transaction(conn), conn.cursor() as cursor:
                db.run(conn, "forget_standby", me)
                cursor.execute("UNLISTEN *")  # who writes now would keep all that it tells others
            conn.notifies.clear()
    return None
