"""The guard of the source's disk: gives a stream's slot up before it keeps more WAL than the policy allows.

A slot keeps WAL above all when nobody reads it: the intake died, or the platform's database is away. So the guard is no
part of the intake; it runs in `headrace up`, looks at the source alone, and tells the platform when that can be told.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import closing

import psycopg2

from headrace.definition.stream import Stream
from headrace.errors import HeadraceError
from headrace.store import db, source

logger = logging.getLogger(__name__)

_LOOK = 2.0  # seconds between two looks
_GIVE_UP = 0.9  # of the bound: what is written until the next look must fit into the rest
_WARN = 0.5


class Guard(threading.Thread):
    """Watches the slots of some streams.

    Parameters
    ----------
    dsn
        The platform's database.
    origins
        Each stream with the DSN of its source.
    """

    def __init__(self, dsn: str, origins: Sequence[tuple[Stream, str]]) -> None:
        super().__init__(name="guard", daemon=True)
        self._dsn, self._origins = dsn, tuple(origins)
        self._over = threading.Event()
        self._warned: set[str] = set()
        self._untold: list[dict[str, str]] = []

    def run(self) -> None:
        """Look until `end` is called."""
        while not self._over.wait(_LOOK):
            for stream, origin in self._origins:
                try:
                    self.look(stream, origin)
                except (psycopg2.Error, HeadraceError) as error:  # the source is away: its intake says so
                    logger.debug("the slot of %s could not be looked at: %s", stream.name, error)
            self._tell()

    def end(self) -> None:
        """Stop looking."""
        self._over.set()
        self.join()

    def look(self, stream: Stream, origin: str) -> None:
        """Look at one slot; give it up when it keeps too much."""
        bound = stream.policy.max_slot_bytes
        with closing(db.connect(origin, application="headrace guard", autocommit=True)) as conn:
            slot = db.row(conn, "source_slot", {"slot": stream.slot})
            kept = 0 if slot is None or slot[4] is None else int(slot[4])
            if kept < _WARN * bound:
                self._warned.discard(stream.name)
            elif kept < _GIVE_UP * bound:
                if stream.name not in self._warned:
                    self._warned.add(stream.name)
                    logger.warning(
                        "slot %s keeps %.1f MB of WAL at the source; it is given up before %.1f MB: is the intake well?",
                        *(stream.slot, kept / 1e6, bound / 1e6),
                    )
            else:
                source.give_up_slot(conn, stream.slot)
                message = (
                    f"slot {stream.slot!r} kept {kept / 1e6:,.1f} MB of WAL at the source, its bound is {bound / 1e6:,.1f} MB "
                    f"(policy.max_slot_bytes): it was dropped to save the source's disk; `headrace resync {stream.name}` "
                    "closes the gap"
                )
                logger.error("%s", message)
                told = {"stream": stream.name, "role": "intake", "state": "slot_given_up", "message": message}
                self._untold.append(told)

    def _tell(self) -> None:
        try:
            while self._untold:
                with closing(db.connect(self._dsn, role="headrace_learner", autocommit=True)) as conn:
                    db.run(conn, "open_incident", self._untold[0])
                self._untold.pop(0)
        except (psycopg2.Error, HeadraceError) as error:
            logger.debug("the platform cannot be told: %s", error)
