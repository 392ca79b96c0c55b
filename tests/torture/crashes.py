"""Ends of workers that nobody can explain: not our signal, not a clean exit, no clear last line, or a traceback."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from tests.torture.stage import PLATFORM, Stage

_ENDED = re.compile(r"WARNING (\S+) ended with (-?\d+); .*?last words: (.*)")
_TRACEBACK = "Traceback (most recent call last)"
_SHOWN = 30  # lines of a traceback


def unnamed(up_log: Path, logs: Path, sent: Counter[int]) -> list[str]:
    """One text for each end without a name.

    Parameters
    ----------
    up_log, logs
        The supervisor's log, and the folder with those of its workers.
    sent
        Signals that the rig sent and that end a worker, as exit codes.
    """
    found: list[str] = []
    said = up_log.read_text(errors="replace")
    signals = Counter[int]()
    for name, code, words in _ENDED.findall(said):
        signals[int(code)] += int(code) < 0
        if int(code) > 0 and "headrace: " not in words:
            found.append(f"{name} ended with {code} and said: {words}")
    for number, count in signals.items():
        if number < 0 and count > sent[number]:
            found.append(f"{count} workers ended by signal {-number}, the rig sent it {sent[number]} times")
    for file in (up_log, *sorted(logs.glob("*.log*"))):
        found += [f"{file.name}: {text}" for text in _tracebacks(file.read_text(errors="replace"))]
    return found


def states(stage: Stage) -> dict[str, int]:
    """How often each named state was there, as SQL shows it."""
    query = "SELECT state, count(*)::int FROM metrics.incidents GROUP BY 1 ORDER BY 1"
    return dict(stage.platform.query(PLATFORM, query))


def lasting(stage: Stage) -> list[str]:
    """States that are still there when everybody works: whoever reads them is misled."""
    query = "SELECT stream, role, state, message FROM metrics.incidents WHERE closed_at IS NULL"
    rows = stage.platform.query(PLATFORM, query)
    return [f"{role} of {stream} is still {state}: {message}" for stream, role, state, message in rows]


def _tracebacks(text: str) -> list[str]:
    """Tracebacks that a process ended with; those of one end, chained by `raise ... from`, are one."""
    found = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        if lines[at].startswith(_TRACEBACK):
            found.append("\n".join(lines[at : at + _SHOWN]))
            while at < len(lines) and (not lines[at] or lines[at][0] in " \t" or _chained(lines[at])):
                at += 1
        at += 1
    return found


def _chained(line: str) -> bool:
    return (
        line.startswith((_TRACEBACK, "The above exception", "During handling"))
        or re.match(r"[\w.]+(:|$)", line) is not None
    )
