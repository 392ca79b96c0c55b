"""A short run of the torture rig, and the proof that it would see a lost row, a label learned twice, and a flipped bit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.torture.plan import KINDS, deal
from tests.torture.report import shortcomings

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


def test_a_whole_run_says_what_it_did_not_show() -> None:
    kinds = dict.fromkeys(KINDS, 20)
    good = {
        "kinds": kinds,
        "changes": 510_000,
        "takeover_ms": {"n": 60, "p99": 900},
        "takeover_ms_stopped": {"n": 40, "p99": 3900},
    }
    assert shortcomings(good, KINDS) == []
    bad = {
        "kinds": kinds | {"slow": 19},
        "changes": 499_999,
        "takeover_ms": {"n": 0},
        "takeover_ms_stopped": {"n": 40, "p99": 4001},
    }
    assert shortcomings(bad, KINDS) == [
        "found 19 faults of kind slow, expected at least 20",
        "found 499,999 changes, expected at least 500,000",
        "found 0 takeovers after SIGKILL, expected at least 50",
        "found takeovers after SIGSTOP with p99 4001 ms, expected at most 4000",
    ]


def test_faults_are_reproducible_and_some_find_idle_intakes_or_a_long_silence() -> None:
    faults = deal(7, 300, silence=10.0)
    assert faults == deal(7, 300, silence=10.0)
    assert min(Counter(f.kind for f in faults).values()) == 20
    resting = [f for f in faults if f.rest]
    assert {f.alone for f in resting} == {True, False}
    assert 30 < len(resting) < 90
    assert [f.seconds > 10 for f in faults if f.kind == "half_open"].count(True) >= 6
