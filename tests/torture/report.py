"""What a run tells: a line for each fault, a table at the end, and build/torture.json."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.torture.audit import Findings
from tests.torture.faults import Done
from tests.torture.plan import Fault
from tests.torture.stage import LEASE_SECONDS

_WHOLE = 300  # faults of a run that is to show everything
_LEAST = {"kill": 50, "kind": 20, "changes": 500_000}
_SLOWEST = {"kill": 1000.0, "stop": 1000 * LEASE_SECONDS + 1000}  # ms, p99


@dataclass
class Report:
    """Collects what a run measured."""

    seed: int
    count: int
    asked: Collection[str]  # kinds of faults
    kinds: Counter[str] = field(default_factory=Counter)
    takeovers: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # by kill or stop, ms
    recoveries: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # by kind, seconds

    def fault(self, fault: Fault, done: Done, recovered: float, changes: int) -> None:
        """A fault is over."""
        self.kinds[fault.kind] += 1
        self.recoveries[fault.kind].append(recovered)
        taken = ""
        if done.takeover_ms is not None:
            self.takeovers[done.by].append(done.takeover_ms)
            taken = f"; taken over in {done.takeover_ms:.0f} ms"
        what = f": {done.what}" if done.what else ""
        print(
            f"{fault.number:>4}/{self.count}  {changes:>9,} changes  {fault.kind}{what}{taken}; all work after {recovered:.1f} s",
            flush=True,
        )

    def finish(
        self, file: Path, found: Findings, crashes: list[str], states: dict[str, int], changes: int, seconds: float
    ) -> bool:
        """Print the table and write the file; tells whether nothing is wrong."""
        print(f"\n{'kind':<16}{'times':>6}{'all work after, s: p50':>24}{'max':>8}")
        for kind, times in sorted(self.recoveries.items()):
            print(f"{kind:<16}{len(times):>6}{_quantile(times, 0.5):>24.1f}{max(times):>8.1f}")
        print("states that were named: " + ", ".join(f"{state} {count}" for state, count in states.items()))
        for note in found.notes:
            print(f"FOUND  {note}")
        for crash in crashes:
            print(f"CRASH  {crash}")
        document: dict[str, Any] = {
            "seed": self.seed,
            "kinds": dict(sorted(self.kinds.items())),
            "changes": changes,
            "lost": found.lost,
            "learned_twice": found.learned_twice,
            "digest_mismatches": found.digest_mismatches,
            "takeover_ms": _summary(self.takeovers["kill"]),
            "takeover_ms_stopped": _summary(self.takeovers["stop"]),
            "unnamed_crashes": len(crashes),
            "states": states,
            "seconds": round(seconds),
        }
        document["shortcomings"] = short = shortcomings(document, self.asked) if self.count >= _WHOLE else []
        for line in short:
            print(f"SHORT  {line}")
        print()
        for name in ("kill", "stop"):
            print(f"takeovers after SIG{name.upper()}: {_summary(self.takeovers[name])} (ms)")
        names = ("lost", "learned_twice", "digest_mismatches", "unnamed_crashes")
        print(
            f"{self.kinds.total()} faults, {changes:,} changes, {seconds:.0f} s: "
            + ", ".join(f"{n} {document[n]}" for n in names)
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document, indent=2) + "\n")
        print(f"written to {file}")
        return not short and not any(document[name] for name in names)


def shortcomings(document: Mapping[str, Any], asked: Collection[str]) -> list[str]:
    """What a whole run did not show.

    Parameters
    ----------
    document
        As it is written to build/torture.json.
    asked
        Kinds of faults that were to be done.

    Examples
    --------
    >>> done = {"kinds": {"slow": 19}, "changes": 510_000, "takeover_ms": {"n": 0}, "takeover_ms_stopped": {"n": 0}}
    >>> shortcomings(done, ["slow"])
    ['found 19 faults of kind slow, expected at least 20']
    """
    kinds, taken = document["kinds"], {"kill": document["takeover_ms"], "stop": document["takeover_ms_stopped"]}
    found = [
        f"found {kinds.get(kind, 0)} faults of kind {kind}, expected at least {_LEAST['kind']}"
        for kind in sorted(asked)
        if kinds.get(kind, 0) < _LEAST["kind"]
    ]
    if document["changes"] < _LEAST["changes"]:
        found.append(f"found {document['changes']:,} changes, expected at least {_LEAST['changes']:,}")
    if {"kill_intake", "kill_champion"} <= set(asked) and taken["kill"]["n"] < _LEAST["kill"]:
        found.append(f"found {taken['kill']['n']} takeovers after SIGKILL, expected at least {_LEAST['kill']}")
    for name, slowest in _SLOWEST.items():
        if taken[name]["n"] and taken[name]["p99"] > slowest:
            found.append(
                f"found takeovers after SIG{name.upper()} with p99 {taken[name]['p99']} ms, expected at most {slowest:.0f}"
            )
    return found


def _summary(values: list[float]) -> dict[str, float]:
    if not values:
        return {"n": 0}
    return {
        "n": len(values),
        "p50": round(_quantile(values, 0.5)),
        "p99": round(_quantile(values, 0.99)),
        "max": round(max(values)),
    }


def _quantile(values: list[float], share: float) -> float:
    """The smallest value that so many do not exceed.

    >>> _quantile([3.0, 1.0, 2.0], 0.5)
    2.0
    """
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]
