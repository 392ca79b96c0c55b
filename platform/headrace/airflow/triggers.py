"""A trigger that waits, in Airflow's triggerer, until learners have caught up with the log.

It only reads: the registry says what a version should be, and the learner itself moves it from catching_up to shadow.
Its arguments hold no password; the triggerer finds the platform's database by HEADRACE_DSN or by an Airflow connection.
A database that cannot be reached for a while is waited for, within the same patience as a learner that does not move.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from headrace.airflow import connections
from headrace.errors import HeadraceError, ServerError

POLL = 2.0  # seconds
TELL = 10.0  # seconds between lines in the task's log
_CAUGHT_UP = ("shadow", "champion", "probation")
_GONE = ("rejected", "retired")


@dataclass(frozen=True)
class Seen:
    """A version as the tables have it now."""

    version: str
    status: str
    done: int  # last entry learned
    goal: int  # the log's end when the learner said so
    per_second: float  # entries

    def sentence(self) -> str:
        """Where it is, with the time that is left.

        >>> Seen("ads-2", "catching_up", 10_000, 100_000, 3_000.0).sentence()
        'ads-2 is 90,000 entries behind, caught up in about 30 s'
        >>> Seen("ads-2", "catching_up", 0, 0, 0.0).sentence()
        'ads-2 waits for its learner to start'
        >>> Seen("ads-2", "shadow", 100_000, 100_000, 3_000.0).sentence()
        'ads-2 has caught up'
        """
        if self.status in _CAUGHT_UP:
            return f"{self.version} has caught up"
        if self.goal == 0:
            return f"{self.version} waits for its learner to start"
        behind = max(self.goal - self.done, 0)
        eta = f", caught up in about {behind / self.per_second:.0f} s" if self.per_second > 0 else ""
        return f"{self.version} is {behind:,} entries behind{eta}"


class CaughtUpTrigger(BaseTrigger):
    """Fires once: when every version has caught up, when one of them is gone, or when nothing moves any more.

    The event is `{"caught_up": bool, "sentence": str}`.

    Parameters
    ----------
    stream
        Name of the stream.
    versions
        Names of the versions.
    patience
        Seconds without any progress after which waiting is over.
    """

    def __init__(self, *, stream: str, versions: Sequence[str], patience: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stream = stream
        self.versions = list(versions)
        self.patience = patience

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and constructor arguments."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {"stream": self.stream, "versions": self.versions, "patience": self.patience},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look every two seconds until there is something to say."""
        try:
            dsn = await connections.async_platform_dsn()
        except HeadraceError as error:
            yield _event(False, str(error))
            return
        last: object = None
        moved, told = time.monotonic(), 0.0
        while True:
            try:
                seen = await asyncio.to_thread(look, dsn, self.stream, self.versions)
                problem, state = None, " · ".join(one.sentence() for one in seen)
            except ServerError as error:
                seen, problem, state = [], str(error), str(error)
            if problem is None and (event := verdict(seen)) is not None:
                yield _event(*event)
                return
            now = time.monotonic()
            progress = [(one.status, one.done) for one in seen]
            if problem is None and progress != last:
                last, moved = progress, now
            if now - moved > self.patience:
                sentence = (
                    f"no progress for {self.patience / 60:.0f} minutes: {state}; does `headrace up` run, and what do the logs "
                    "of the learners say?"
                )
                yield _event(False, sentence)
                return
            if now - told > TELL or told == 0:
                self.log.info("%s", state)
                told = now
            await asyncio.sleep(POLL)


def _event(caught_up: bool, sentence: str) -> TriggerEvent:
    return TriggerEvent({"caught_up": caught_up, "sentence": sentence})  # type: ignore[no-untyped-call]


def verdict(seen: Sequence[Seen]) -> tuple[bool, str] | None:
    """Whether all have caught up, with a sentence, or None while there is something to wait for.

    >>> verdict([Seen("ads-2", "shadow", 9, 9, 0.0), Seen("ads-3", "catching_up", 5, 9, 0.0)])
    >>> verdict([Seen("ads-2", "shadow", 9, 9, 0.0), Seen("ads-3", "retired", 5, 9, 0.0)])
    (False, 'ads-3 was retired while it caught up')
    >>> verdict([Seen("ads-2", "shadow", 9, 9, 0.0)])
    (True, 'ads-2 has caught up')
    """
    for one in seen:
        if one.status in _GONE:
            return False, f"{one.version} was {one.status} while it caught up"
        if one.status == "unknown":
            return False, f"there is no version {one.version}: was it deleted?"
    if all(one.status in _CAUGHT_UP for one in seen):
        return True, " · ".join(one.sentence() for one in seen)
    return None


def look(dsn: str, stream: str, versions: Sequence[str]) -> list[Seen]:
    """Status and progress of some versions; of one that does not exist the status is `unknown`.

    Raises
    ------
    ServerError
        When the database cannot be reached.
    """
    import psycopg2

    from headrace.store import db

    try:
        with closing(db.connect(dsn, role="headrace_reader", application="headrace trigger", autocommit=True)) as conn:
            return [_seen(db.row(conn, "catching_up", {"stream": stream, "version": one}), one) for one in versions]
    except psycopg2.OperationalError as error:
        raise ServerError(f"the platform's database failed: {' '.join(str(error).split())}") from error


def _seen(row: tuple[Any, ...] | None, version: str) -> Seen:
    return Seen(version, "unknown", 0, 0, 0.0) if row is None else Seen(version, *row)
