"""The undisturbed reference: another platform reads the same WAL from the same position, in peace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.torture.stage import REFERENCE, Stage, wait_until

_READ_SECONDS = 900.0
_BATCHES = (20_000, 777, 100_000)


def headrace(*words: str) -> list[str]:
    """A headrace command line."""
    return [sys.executable, "-P", "-m", "headrace", *words]


def make(stage: Stage, mark: int) -> None:
    """Read and learn everything up to a mark, each version in batches of its own size.

    Raises
    ------
    RuntimeError
        Something ended or did not arrive, even in peace.
    """
    environment = stage.environment(database=REFERENCE, disturbed=False)
    intakes = [_spawn(environment, stage.home, "intake", stream) for stream in stage.streams]

    def arrived() -> bool:
        ended = [p.args for p in intakes if p.poll() is not None]
        if ended:
            raise RuntimeError(f"the undisturbed intake ended; see {stage.home / 'reference.log'}")
        return stage.reached(mark, REFERENCE)

    try:
        wait_until(arrived, _READ_SECONDS, "the undisturbed intakes have everything")
    finally:
        for intake in intakes:
            intake.terminate()
        codes = [intake.wait(60) for intake in intakes]
    if any(codes):
        raise RuntimeError(f"the undisturbed intakes ended with {codes}; see {stage.home / 'reference.log'}")
    rows = stage.platform.query(REFERENCE, "SELECT stream, version FROM headrace.versions ORDER BY 1, 2")
    learners = []
    for number, (stream, version) in enumerate(rows):
        batch = str(_BATCHES[number % len(_BATCHES)])
        learners.append(
            _spawn(environment, stage.home, "learn", stream, version, "--until-caught-up", "--batch", batch)
        )
    codes = [learner.wait(_READ_SECONDS) for learner in learners]
    if any(codes):
        raise RuntimeError(f"the undisturbed learners ended with {codes}; see {stage.home / 'reference.log'}")


def _spawn(environment: dict[str, str], folder: Path, *words: str) -> subprocess.Popen[bytes]:
    with (folder / "reference.log").open("ab") as output:
        return subprocess.Popen(headrace(*words), env=environment, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
