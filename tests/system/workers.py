"""Real `headrace` processes, for tests that hurt them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LEASE = 1.5  # seconds


class Worker:
    """One `headrace` process with its output."""

    def __init__(self, folder: Path, environment: dict[str, str], *words: str, program: str | None = None) -> None:
        self.log = folder / f"{'-'.join(words)}-{time.monotonic_ns()}.log"
        start = ["-c", program] if program else ["-m", "headrace"]
        with self.log.open("w") as output:
            argv = [sys.executable, "-P", *start, *words]
            self.process = subprocess.Popen(argv, env=environment, cwd=folder, stdout=output, stderr=output)

    @property
    def pid(self) -> int:
        return self.process.pid

    def says(self, text: str) -> bool:
        return text in self.log.read_text()

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        return self.process.wait(20)


def wait_until(true: Callable[[], Any], seconds: float, what: str) -> float:
    """Wait for something; gives how long it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, f"waited {seconds} s in vain: {what}"
        time.sleep(0.002)
    return time.monotonic() - began
