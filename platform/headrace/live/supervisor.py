"""The supervisor behind `headrace up`: starts what the registry asks for and restarts what dies.

For each stream one intake, for each version that should run one learner, and with HEADRACE_STANDBY a second process for
the intake and for the champion, whichever of the two holds the role. It decides nothing: versions appear in the
registry and go again, and this loop follows. A process that dies is started again after a pause that grows while it
keeps dying; the lease keeps a second copy from ever writing.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg2

from headrace.errors import ServerError
from headrace.live.process import ProcessTree
from headrace.settings import Settings
from headrace.store import db, registry

logger = logging.getLogger(__name__)

#: What models need to be the same to the bit in every process: string hashes, and no parallel reductions.
PINNED = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_LOG_BYTES = 1_000_000  # of a worker's log, before the next process starts a new one
_STEADY = 10.0  # seconds of life after which a process counts as well again
_AWAY = 2.0  # the longest pause of one whose database is away: that is not its fault, and it should be back soon after


@dataclass
class _Child:
    argv: tuple[str, ...]
    started: float
    deaths: int = 0
    restart_at: float | None = None
    killed: bool = False


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
        """Start what is missing, stop what should not run, restart what died."""
        wanted = self.wanted()
        for name, code in self._tree.ended().items():
            child = self._children.get(name)
            if child is None or child.restart_at is not None:
                continue
            if name not in wanted:
                del self._children[name]
                continue
            child.deaths = 1 if time.monotonic() - child.started > _STEADY else child.deaths + 1
            pause = _PAUSES[min(child.deaths - 1, len(_PAUSES) - 1)]
            if code == ServerError.exit_code:
                pause = min(pause, _AWAY)
            child.restart_at = time.monotonic() + pause
            if code < 0:
                child.killed = True
                self._note_kill(name, child.argv, -code)
            logger.warning(
                "%s ended with %d; it starts again in %g s; its last words: %s",
                name,
                code,
                pause,
                self._last_line(name),
            )
        for name, argv in wanted.items():
            child = self._children.get(name)
            if child is None:
                self._children[name] = child = _Child(argv, 0.0, 0, 0.0)
            if child.restart_at is not None and time.monotonic() >= child.restart_at:
                self._tree.spawn(name, argv, env=self._environment, log=self._log(name), cwd=Path.cwd())
                child.started, child.restart_at = time.monotonic(), None
                if child.killed:
                    child.killed = False
                    self._note("close_state", child.argv, state="killed")

    def wanted(self) -> dict[str, tuple[str, ...]]:
        """Command lines of the processes that should run, by name."""
        found: dict[str, tuple[str, ...]] = {}
        with closing(db.connect(self._dsn, role="headrace_reader", autocommit=True)) as conn:
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

    def _note_kill(self, name: str, argv: Sequence[str], number: int) -> None:
        """A process that was killed could not say so itself."""
        by = signal.Signals(number).name
        why = ": was it out of memory?" if number == signal.SIGKILL else ""
        self._note("open_incident", argv, state="killed", message=f"{name} was ended by {by}{why}")

    def _note(self, query: str, argv: Sequence[str], **params: str) -> None:
        stream, role = argv[-2:] if argv[-3] == "learn" else (argv[-1], "intake")
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
