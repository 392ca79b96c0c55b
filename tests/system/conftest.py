"""Fixtures of the small stream's workers as processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.system.workers import LEASE, Worker

from headrace.live.supervisor import PINNED


@pytest.fixture
def environment(registered: Any, origin: Any, definitions: Path, tmp_path: Path) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return inherited | {
        "HEADRACE_DSN": registered.dsn,
        "HEADRACE_CONN_SMALL_DB": origin.dsn,
        "HEADRACE_HOME": str(tmp_path),
        "HEADRACE_STREAMS": str(definitions),
        "HEADRACE_LEASE_SECONDS": str(LEASE),
        **PINNED,
    }


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Start workers; all of them end with the test."""
    made: list[Worker] = []

    def one(*words: str, program: str | None = None) -> Worker:
        made.append(Worker(tmp_path, environment, *words, program=program))
        return made[-1]

    yield one
    for worker in made:
        worker.end()
