"""Progress of a history import, for the terminal and for SQL."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from headrace.store import db


class Reporter:
    """Shows a bar where there is a terminal, and writes the same to headrace.worker_progress four times a second.

    Uses a connection of its own: the import's transaction is not visible before its end.
    """

    def __init__(self, dsn: str, stream: str) -> None:
        self._stream = stream
        self._conn = db.connect(dsn, role="headrace_intake", application="headrace progress", autocommit=True)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
        self._task = self._bar.add_task("history")
        self._told, self._began, self._phase = 0.0, time.monotonic(), ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()
        with closing(self._conn):
            pass

    def __call__(self, phase: str, done: int, total: int) -> None:
        self._bar.update(self._task, description=phase, completed=done, total=total)
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._began = phase, now
        elif now - self._told < 0.25 and done < total:
            return
        self._told = now
        params = {
            "stream": self._stream,
            "role": "intake",
            "phase": "importing history",
            "done": done,
            "goal": total,
            "per_second": done / max(now - self._began, 1e-3),
            "message": phase,
            "received_through": None,
        }
        db.run(self._conn, "report_progress", params)
