"""What learning from a change stream costs beside reading it.

On the same slot content, two servers with everything durable: pg_recvlogical drains it to /dev/null, which is the limit; the
intake and a learner take it until the last label is learned and its checkpoint written. Medians of some runs.
"""

from __future__ import annotations

import statistics
from typing import Any

from tests.bench.stream.contenders import Took, headrace, limit
from tests.bench.stream.stage import Stage, stage

CHANGES = 400_000
RUNS = 5
_SHAPES = {"": 50, "one_row_tx": 0}  # half of the changes of a transaction; 0 for a transaction each


def run(changes: int = CHANGES, runs: int = RUNS) -> dict[str, Any]:
    """Run the benchmark and print its table."""
    result: dict[str, Any] = {"changes": changes, "runs": runs, "shapes": {}}
    print(f"{'shape':12} {'limit/s':>10} {'headrace/s':>11} {'of the limit':>13}   CPU seconds for a million changes")
    for shape, size in _SHAPES.items():
        with stage() as on:
            on.fill(changes, size=size)
            result["settings"] = on.settings()
            drained = [limit(on) for _ in range(runs)]
            took = []
            for _ in range(runs):
                took.append(headrace(on))
                audit = _audit(on)
        speed, fastest = (statistics.median(t.per_second for t in each) for each in (took, drained))
        found = {
            "limit_changes_s": round(fastest),
            "headrace_changes_s": round(speed),
            "ratio_to_limit": round(speed / fastest, 3),
            "cpu_s_per_million": _middle(took),
            "audit": audit,
        }
        spent = ", ".join(f"{name} {seconds}" for name, seconds in found["cpu_s_per_million"].items())
        print(f"{shape or 'of 100':12} {fastest:10,.0f} {speed:11,.0f} {speed / fastest:13.3f}   {spent}", flush=True)
        if shape:
            result["shapes"][shape] = found
        else:
            result |= found
    return result


def _middle(took: list[Took]) -> dict[str, float]:
    """CPU seconds for a million changes of the run in the middle."""
    return sorted(took, key=lambda t: t.seconds)[len(took) // 2].per_million()


def _audit(on: Stage) -> dict[str, int]:
    """What was sent, and what has come of it.

    Raises
    ------
    RuntimeError
        Something was lost, or came twice.
    """
    asked = {
        "entries_logged": "SELECT count(*) FROM ads.events e FULL JOIN ads.labels l USING (seq)",
        "labels_learned": "SELECT sum(learned) FROM headrace.epoch_metrics WHERE version = 'ads-1'",
    }
    found = {name: int(on.ask("headrace", query, on=on.platform)) for name, query in asked.items()}
    before = int(on.ask("base", "SELECT seq FROM headrace.intake_positions", on=on.platform))
    found["entries_logged"] -= before
    found["labels_learned"] -= before // 2
    audit = {"changes_sent": on.changes, "labels_sent": on.changes // 2, **found}
    if (audit["changes_sent"], audit["labels_sent"]) != (audit["entries_logged"], audit["labels_learned"]):
        raise RuntimeError(f"not all that was sent has come, or not once: {audit}")
    return audit
