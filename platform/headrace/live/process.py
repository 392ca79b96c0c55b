"""Child processes that end when we end, whatever ends us.

`ProcessTree` starts them through a small guard process. The guard leads a session of its own, so Ctrl-C reaches it only
through its parent's decision to stop, and it holds one end of a pipe: when the parent closes it, or dies by any signal,
the guard sends SIGTERM to what it started, then, after a grace, SIGTERM and at last SIGKILL to everything that descends
from it. On Linux that includes daemons which left their session, since orphans become children of the guard; and should
the guard itself be killed, its children get SIGTERM from the kernel. Every child leads a session and has its own log.

What to run, when to restart it and what an end means is the caller's business. No I/O but processes and their logs.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from headrace.errors import ServerError

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LAST_WORDS = 3.0  # seconds between SIGTERM to every descendant and SIGKILL
KILL_SECONDS = 10.0  # how long the kernel may take to remove what was SIGKILLed
TICK = 0.1


class ProcessTree:
    """Named child processes under one guard.

    Parameters
    ----------
    grace : float
        Seconds the children get to end by themselves after SIGTERM.
    """

    def __init__(self, *, grace: float) -> None:
        self.grace = grace
        self.pids: dict[str, int] = {}  # also the ids of their sessions
        self._ended: dict[str, int] = {}
        self._refused: dict[str, str] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._lock = threading.RLock()

    def spawn(self, name: str, argv: Sequence[str], *, env: Mapping[str, str], log: Path, cwd: Path) -> int:
        """Start a child, its output going to the end of `log`, and return its pid.

        Raises
        ------
        ServerError
            The program cannot be run.
        """
        with self._lock:
            guard = self._guard = self._guard or self._start_guard()
            for old in (self.pids, self._ended):
                old.pop(name, None)
            order = {"name": name, "argv": list(argv), "env": dict(env), "log": str(log), "cwd": str(cwd)}
            assert guard.stdin is not None
            guard.stdin.write(json.dumps(order).encode() + b"\n")
            guard.stdin.flush()
            deadline = time.monotonic() + 30
            while name not in self.pids:
                self._hear(TICK)
                if name in self._refused:
                    raise ServerError(f"cannot run {argv[0]}: {self._refused.pop(name)}")
                if guard.poll() is not None or time.monotonic() > deadline:
                    raise ServerError(f"the process that guards {name} ended or hangs; was it killed?")
            return self.pids[name]

    def ended(self) -> dict[str, int]:
        """Children that ended, with their exit codes; a negative one is the signal that killed it."""
        with self._lock:
            self._hear(0)
            if self._guard is not None and self._guard.poll() is not None:
                # Killed, so the kernel sent its children SIGTERM; what became of them nobody can tell.
                return {name: self._ended.get(name, -signal.SIGTERM) for name in self.pids}
            return dict(self._ended)

    def wait(self, name: str, seconds: float) -> int | None:
        """The exit code of a child that is expected to end, or None when it did not within `seconds`."""
        deadline = time.monotonic() + seconds
        while (ended := self.ended()).get(name) is None and time.monotonic() < deadline:
            time.sleep(TICK)
        return ended.get(name)

    def stop(self) -> None:
        """End everything that was started; returns when nothing is left. May be called again.

        Raises
        ------
        ServerError
            Something is left even after SIGKILL.
        """
        guard, self._guard = self._guard, None
        if guard is None:
            return
        assert guard.stdin is not None
        assert guard.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the guard is gone already
            guard.stdin.write(json.dumps({"grace": self.grace}).encode() + b"\n")
            guard.stdin.close()
        bound = self.grace + LAST_WORDS + KILL_SECONDS + 5
        try:
            code = guard.wait(bound)
        except subprocess.TimeoutExpired as error:
            guard.kill()
            raise ServerError(f"processes {self.pids} did not end within {bound:.0f} s; end them by hand") from error
        finally:
            guard.stdout.close()
            with self._lock:
                self.pids.clear()
                self._ended.clear()
        if code != 0:
            raise ServerError(f"the process that guards others ended with {code}; see what is left with `ps -ef`")

    def _start_guard(self) -> subprocess.Popen[bytes]:
        guard = subprocess.Popen(
            [sys.executable, "-P", "-m", "headrace.live.process", str(self.grace)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert guard.stdout is not None
        os.set_blocking(guard.stdout.fileno(), False)
        return guard

    def _hear(self, seconds: float) -> None:
        if self._guard is None or self._guard.stdout is None:
            return
        ready, _, _ = select.select([self._guard.stdout], [], [], seconds)
        if not ready:
            return
        *lines, self._unread = (self._unread + (self._guard.stdout.read() or b"")).split(b"\n")
        for line in lines:
            news = json.loads(line)
            if "pid" in news:
                self.pids[news["name"]] = news["pid"]
            elif "code" in news:
                self._ended[news["name"]] = news["code"]
            else:
                self._refused[news["name"]] = news["error"]


class _Guard:
    """The guard's side: orders come line by line on stdin, news go out on stdout."""

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.parent = os.getppid()
        self.children: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}
        self.told_to_stop = False

    def run(self) -> int:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        unread = b""
        # A fork of the parent may hold the pipe open longer than the parent lives, hence the look at getppid.
        while not self.told_to_stop and os.getppid() == self.parent:
            ready, _, _ = select.select([0], [], [], TICK)
            if ready:
                received = os.read(0, 1 << 16)
                if not received:
                    break
                *lines, unread = (unread + received).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))
            self._reap()
        return self._end_all()

    def _on_sigterm(self, *_: object) -> None:
        self.told_to_stop = True

    def _obey(self, order: dict[str, Any]) -> None:
        if "grace" in order:
            self.grace = order["grace"]
            return
        try:
            with open(order["log"], "ab") as log:
                child = subprocess.Popen(
                    order["argv"],
                    env=order["env"],
                    cwd=order["cwd"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_die_with_parent,  # safe: the guard has one thread
                )
        except OSError as error:
            self._tell(name=order["name"], error=str(error))
            return
        self.children[child.pid] = (order["name"], child)
        self._tell(name=order["name"], pid=child.pid)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                if pid in self.children:  # else an orphan that came to us
                    name, child = self.children.pop(pid)
                    child.returncode = os.waitstatus_to_exitcode(status)
                    self._tell(name=name, code=child.returncode)

    def _end_all(self) -> int:
        own = psutil.Process()
        if self._wait_for_none(own, self.children, signal.SIGTERM, self.grace):
            return 0
        for number, seconds in ((signal.SIGTERM, LAST_WORDS), (signal.SIGKILL, KILL_SECONDS)):
            if self._wait_for_none(own, None, number, seconds):
                return 0
        return 1

    def _wait_for_none(
        self, own: psutil.Process, first: Iterable[int] | None, number: signal.Signals, seconds: float
    ) -> bool:
        """Signal the groups that `first` lead, or each descendant that appears, until no descendant is left."""
        for pid in list(first or ()):
            _signal(-pid, number)
        signalled: set[int] = set()
        deadline = time.monotonic() + seconds
        while True:
            self._reap()
            left = [process.pid for process in own.children(recursive=True)]
            if not left:
                return True
            if time.monotonic() > deadline:
                return False
            if first is None:
                for pid in set(left) - signalled:
                    _signal(pid, number)
                    signalled.add(pid)
            time.sleep(TICK / 2)

    @staticmethod
    def _tell(**news: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # the parent is gone
            os.write(1, json.dumps(news).encode() + b"\n")


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _die_with_parent() -> None:
    guard = os.getppid()
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != guard:  # it died in between
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(_Guard(float(sys.argv[1])).run())
