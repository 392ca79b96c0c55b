"""The supervisor behind `headrace up`: starts what the registry asks for and restarts what dies.

For each stream one intake, for each version that should run one learner. It decides nothing: versions appear in the
registry and go again, and this loop follows. A process that dies is started again after a pause that grows while it
keeps dying; the lease keeps a second copy from ever writing.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
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
        self._dsn, self._streams = dsn, tuple(streams)
        self._logs = settings.home / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._tree = ProcessTree(grace=10.0)
        self._children: dict[str, _Child] = {}
        self._environment = environment(settings, dsn)

    def run(self, stop: Callable[[], bool]) -> None:
        """Follow the registry until `stop` says so, then stop everything."""
        try:
            away = False
            while not stop():
                try:
                    self.step()
                    if away:
                        logger.info("the platform's database is back")
                    away = False
                except (ServerError, psycopg2.OperationalError) as error:  # it restarts: the processes wait for it too
                    if not away:
                        logger.warning("the platform's database is away: %s", " ".join(str(error).split()))
                    away = True
                time.sleep(1.0 if away else 0.2)
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

    def wanted(self) -> dict[str, tuple[str, ...]]:
        """Command lines of the processes that should run, by name."""
        found: dict[str, tuple[str, ...]] = {}
        with closing(db.connect(self._dsn, role="headrace_reader", autocommit=True)) as conn:
            for stream in self._streams:
                found[f"intake-{stream}"] = command("intake", stream)
                for version in registry.versions(conn, stream):
                    if version.status in registry.RUNNING:
                        found[f"learn-{version.version}"] = command("learn", stream, version.version)
        return found

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
