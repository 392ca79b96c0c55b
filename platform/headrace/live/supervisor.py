"""The supervisor behind `headrace up`: starts what the registry asks for and restarts what dies.

For each stream one intake, for each version that should run one learner, and with HEADRACE_STANDBY a second process for
the intake and for the champion, whichever of the two holds the role. It decides nothing: versions appear in the
registry and go again, and this loop follows. A process that dies is started again after a pause that grows while it
keeps dying, one that hangs is ended first; the lease keeps a second copy from ever writing.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg2
from psycopg2.extensions import connection as Connection

from headrace.errors import SeamError, ServerError
from headrace.live.process import ProcessTree
from headrace.settings import Settings
from headrace.store import db, registry

logger = logging.getLogger(__name__)

#: What models need to be the same to the bit in every process: string hashes, and no parallel reductions.
PINNED = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_LOG_BYTES = 1_000_000  # of a worker's log, before the next process starts a new one
_STEADY = 10.0  # seconds of life after which a process counts as well again
_SEAM = 30.0  # the pause of one that found a seam; once somebody closed it there is none
_LOOK = 0.2  # seconds between two looks at the leases
_SILENT_LEASES = 2  # lengths of a lease after which its silent holder is ended; a standby takes over after one
_AWAY = 2.0  # the longest pause of one whose database is away: that is not its fault, and it should be back soon after


@dataclass
class _Child:
    argv: tuple[str, ...]
    started: float = 0.0
    deaths: int = 0
    restart_at: float | None = None  # None while it runs
    seam: bool = False  # whether it waits for somebody to close a seam
    state: str | None = None  # that we said it is in
    told: float | None = None  # when we told it to end
    renewed: object = None  # what its lease had at the last look: token and time
    lease: timedelta = timedelta(0)
    silent: int = 0  # looks that found nothing new


class Supervisor:
    """Keeps the processes of some streams running.

    Parameters
    ----------
    settings
        Passed on to the processes through the environment.
    dsn
        The platform's database.
    streams
        Names of the streams.
    """

    def __init__(self, settings: Settings, dsn: str, streams: Sequence[str]) -> None:
        self._dsn, self._streams, self._standby = dsn, tuple(streams), settings.standby
        self._logs = settings.home / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._tree = ProcessTree(grace=10.0)
        self._children: dict[str, _Child] = {}
        self._looked = 0.0
        self._environment = environment(settings, dsn)

    def run(self, stop: Callable[[], bool]) -> None:
        """Follow the registry until `stop` says so, then stop everything."""
        try:
            away: tuple[datetime, str, str] | None = None  # since when, in which state, and what was said
            while not stop():
                try:
                    self.step()
                    if away is not None:
                        logger.info("the platform's database is back")
                        self._was_away(*away)
                    away = None
                except (ServerError, psycopg2.OperationalError) as error:  # it restarts: the processes wait for it too
                    if away is None:
                        known = db.AWAY if isinstance(error, ServerError) else db.state_of(error)
                        state = "platform_away" if known in (None, db.AWAY) else str(known)
                        away = (datetime.now(UTC), state, " ".join(str(error).split()))
                        logger.warning("the platform's database cannot be worked with (%s): %s", *away[1:])
                time.sleep(0.2 if away is None else 1.0)
        finally:
            self.stop()

    def step(self) -> None:
        """Start what is missing, stop what should not run, end what hangs, restart what died."""
        with closing(db.connect(self._dsn, role="headrace_reader", autocommit=True)) as conn:
            wanted = self.wanted(conn)
            ended = self._tree.ended()
            for name, code in ended.items():
                if (child := self._children.get(name)) is not None and child.restart_at is None:
                    self._bury(name, child, code)
            for name in [name for name in self._children if name not in wanted]:
                self._let_go(name, gone=name in ended)
            self._end_hung(conn)
            self._resume(conn)
        for name, argv in wanted.items():
            child = self._children.get(name)
            if child is None:
                self._children[name] = child = _Child(argv, restart_at=0.0)
            if child.restart_at is not None and time.monotonic() >= child.restart_at:
                self._tree.spawn(name, argv, env=self._environment, log=self._log(name), cwd=Path.cwd())
                self._close_state(child)
                self._children[name] = _Child(argv, started=time.monotonic(), deaths=child.deaths)

    def wanted(self, conn: Connection) -> dict[str, tuple[str, ...]]:
        """Command lines of the processes that should run, by name."""
        found: dict[str, tuple[str, ...]] = {}
        for stream in self._streams:
            found[f"intake-{stream}"] = command("intake", stream)
            if self._standby:
                found[f"intake-{stream}-standby"] = command("intake", stream)
            for version in registry.versions(conn, stream):
                if version.status in registry.RUNNING:
                    found[f"learn-{version.version}"] = command("learn", stream, version.version)
                if version.status == "champion" and self._standby:
                    found[f"learn-{version.version}-standby"] = command("learn", stream, version.version)
        return found

    def _bury(self, name: str, child: _Child, code: int) -> None:
        """A child ended: when it starts again, and what is to be said."""
        child.deaths = 1 if time.monotonic() - child.started > _STEADY else child.deaths + 1
        pause = _PAUSES[min(child.deaths - 1, len(_PAUSES) - 1)]
        if code == ServerError.exit_code:
            pause = min(pause, _AWAY)
        child.seam = code == SeamError.exit_code
        child.restart_at = time.monotonic() + (_SEAM if child.seam else pause)
        if child.told is not None:  # by us: that it ended is no news
            return
        if code < 0:
            child.state = "killed"
            by = signal.Signals(-code).name
            why = ": was it out of memory?" if -code == signal.SIGKILL else ""
            self._note("open_incident", child.argv, state="killed", message=f"{name} was ended by {by}{why}")
        again = "once that is repaired" if child.seam else f"in {pause:g} s"
        logger.warning(
            "%s ended with %d; it starts again %s; its last words: %s", name, code, again, self._last_line(name)
        )

    def _let_go(self, name: str, *, gone: bool) -> None:
        """Stop what should not run any more; most such processes end by themselves."""
        child = self._children[name]
        if gone or child.restart_at is not None:
            self._close_state(child)
            del self._children[name]
        elif child.told is None:
            logger.info("%s is not needed any more", name)
            child.told = time.monotonic()
            self._signal(name, signal.SIGTERM)
        elif time.monotonic() - child.told > self._tree.grace:
            self._signal(name, signal.SIGKILL)

    def _end_hung(self, conn: Connection) -> None:
        """End children that had a role and have not said for twice its lease's length that they live.

        Where another process stands by it takes the role over after one length. Looks are counted, no clock is: a clock
        that steps, a supervisor that was stopped, and a platform that was away end nobody.
        """
        if time.monotonic() - self._looked < _LOOK:
            return
        self._looked = time.monotonic()
        found: dict[str, tuple[object, timedelta]] = {}
        for holder, token, renewed_at, length in db.rows(conn, "renewals", {"streams": list(self._streams)}):
            found[holder] = (token, renewed_at), length
        for name, child in self._children.items():
            if child.restart_at is not None or child.told is not None:
                continue
            renewed, length = found.get(f"{socket.gethostname()}:{self._tree.pids[name]}", (child.renewed, child.lease))
            if renewed != child.renewed:
                child.renewed, child.lease, child.silent = renewed, length, 0
            elif child.renewed is not None:  # it has, or had, a role
                child.silent += 1
                if child.silent * _LOOK > _SILENT_LEASES * child.lease.total_seconds():
                    self._end(name, child)

    def _end(self, name: str, child: _Child) -> None:
        message = (
            f"{name} (pid {self._tree.pids[name]}) has not renewed its lease for {_SILENT_LEASES} times its length of "
            f"{child.lease.total_seconds():g} s: it hangs; it was ended and starts again"
        )
        logger.warning("%s", message)
        child.state, child.told = "hung", time.monotonic()
        self._note("open_incident", child.argv, state="hung", message=message)
        self._signal(name, signal.SIGKILL)

    def _resume(self, conn: Connection) -> None:
        """Start those before a seam again once somebody closed it."""
        for child in self._children.values():
            if child.seam and child.restart_at is not None:
                stream, role = _role(child.argv)
                open_now = db.rows(conn, "status_incidents", {"stream": stream})
                if not any(of == role for of, *_ in open_now):
                    child.restart_at = time.monotonic()

    def _signal(self, name: str, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._tree.pids[name], number)

    def _close_state(self, child: _Child) -> None:
        """What we said of a process that could not say it itself is over."""
        if child.state is not None:
            self._note("close_state", child.argv, state=child.state)

    def _note(self, query: str, argv: Sequence[str], **params: str) -> None:
        stream, role = _role(argv)
        with closing(db.connect(self._dsn, role="headrace_learner", autocommit=True)) as conn:
            db.run(conn, query, {"stream": stream, "role": role, **params})

    def _was_away(self, since: datetime, state: str, message: str) -> None:
        """Nobody could say so while it lasted."""
        with closing(db.connect(self._dsn, role="headrace_learner", autocommit=True)) as conn:
            for stream in self._streams:
                params = {"stream": stream, "role": "platform", "state": state, "message": message}
                db.run(conn, "add_past_incident", {**params, "opened_at": since})

    def stop(self) -> None:
        """End everything that was started."""
        self._tree.stop()

    def _log(self, name: str) -> Path:
        """Where the next process of this name writes on; a log that has grown large becomes the previous one."""
        log = self._logs / f"{name}.log"
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        return log

    def _last_line(self, name: str) -> str:
        lines = (self._logs / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "(nothing)"


def _role(argv: Sequence[str]) -> tuple[str, str]:
    """The stream and the role that a command line is for."""
    return (argv[-2], argv[-1]) if argv[-3] == "learn" else (argv[-1], "intake")


def command(*words: str) -> tuple[str, ...]:
    """The command line of a headrace command in this very Python."""
    return (sys.executable, "-P", "-m", "headrace", *words)


def environment(settings: Settings, dsn: str) -> dict[str, str]:
    """The environment of headrace's child processes: hash seed fixed, one BLAS thread, bytecode written."""
    inherited = {k: v for k, v in settings.environment.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return inherited | {
        "HEADRACE_DSN": dsn,
        "HEADRACE_HOME": str(settings.home),
        "HEADRACE_STREAMS": str(settings.streams),
        "PYTHONUNBUFFERED": "1",
        **PINNED,
    }
