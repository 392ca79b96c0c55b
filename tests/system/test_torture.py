"""A short run of the torture rig, and the proof that it would see a lost row, a label learned twice, and a flipped bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def torture(result: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    """Run the rig; gives its exit code, what it wrote, and what it said."""
    argv = [sys.executable, "-m", "tests.torture", "--json", str(result), *words]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    said = done.stdout + done.stderr
    assert result.exists(), said
    return done.returncode, json.loads(result.read_text()), said


@pytest.mark.timeout(300)
def test_hurt_at_random_it_loses_nothing(tmp_path: Path) -> None:
    code, found, said = torture(tmp_path / "torture.json", "-n", "14", "--seed", "3", "--changes", "500")
    assert code == 0, said
    assert sum(found["kinds"].values()) == 14
    assert found["changes"] >= 14 * 500
    names = ("lost", "learned_twice", "digest_mismatches", "unnamed_crashes")
    assert [found[name] for name in names] == [0, 0, 0, 0]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("sabotage", "field"), [("lost", "lost"), ("twice", "learned_twice"), ("flip", "digest_mismatches")]
)
def test_sabotage_is_seen(tmp_path: Path, sabotage: str, field: str) -> None:
    words = ("-n", "1", "--kinds", "slow", "--changes", "100", "--sabotage", sabotage)
    code, found, said = torture(tmp_path / "torture.json", *words)
    assert code == 1, said
    assert found[field] > 0, said
