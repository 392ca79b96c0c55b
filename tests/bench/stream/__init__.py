"""What learning from a change stream costs beside reading it.

On the same slot content, two servers with everything durable: pg_recvlogical drains it to /dev/null, which is the limit; the
intake and a learner take it until the last label is learned and its checkpoint written; a loop by hand takes its first
changes into a river pipeline, in memory. In turns, medians of some runs. The same for transactions of one row, for 100
columns, and for the history, whose limit is COPY of both tables; and, while an application works, how long until a label is
learned.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from tests.bench.stream import flame
from tests.bench.stream.contenders import Took, handwritten, headrace, limit
from tests.bench.stream.debezium import debezium, install, listen
from tests.bench.stream.edge import edge
from tests.bench.stream.history import copied, imported
from tests.bench.stream.live import challengers, latency
from tests.bench.stream.shop import WIDE
from tests.bench.stream.stage import Stage, stage

CHANGES = 400_000
RUNS = 5
_SIZE = 50  # half of the changes of a transaction
_LIVE_SECONDS = 20
_PEERS = {"limit": "the limit", "handwritten": "by hand", "debezium": "Debezium"}


def run(*more: str, changes: int = CHANGES, runs: int = RUNS) -> dict[str, Any]:
    """Run the benchmark and print its tables, on demand also with a `log` of 50 million entries, with `debezium`, and with a
    `flame` graph."""
    result: dict[str, Any] = {"changes": changes, "runs": runs}
    with stage() as on:
        on.fill(changes, size=_SIZE)
        result["settings"] = on.settings()
        contenders = {"limit": limit, "headrace": headrace, "handwritten": handwritten}
        if "debezium" in more:
            if missing := install():
                print(f"without Debezium: {missing}")
            else:
                listen(on)
                contenders["debezium"] = debezium
        result |= _contest(on, runs, contenders)
        if "flame" in more:
            print(f"without a picture: {missing}" if (missing := flame.install()) else f"drawn: {flame.flame(on).name}")
        result["latency_ms"] = latency(on, _LIVE_SECONDS)
        behind = challengers(on, _LIVE_SECONDS)
        imports = _contest(on, runs, {"limit": copied, "headrace": imported})
    with stage() as on:
        on.fill(changes, size=0)
        singly = _contest(on, runs, {"limit": limit, "headrace": headrace})
    with stage(WIDE) as on:
        on.fill(changes // 4, size=_SIZE)
        wide = _contest(on, runs, {"limit": limit, "headrace": headrace})
    result["shapes"] = {"one_row_tx": singly, "wide": wide, "challengers4": behind, "import": imports}
    if "log" in more:
        with stage() as on:
            result["edge_read_ms"] = edge(on)
    _show(result)
    return result


def _contest(on: Stage, runs: int, contenders: Mapping[str, Callable[[Stage], Took]]) -> dict[str, Any]:
    """Changes a second, medians, how headrace compares with the others, and CPU seconds."""
    took: dict[str, list[Took]] = {name: [] for name in contenders}
    for _ in range(runs):
        for name, contender in contenders.items():
            took[name].append(contender(on))
    speed = {name: statistics.median(t.per_second for t in each) for name, each in took.items()}
    found: dict[str, Any] = {f"{name}_changes_s": round(value) for name, value in speed.items()}
    found |= {f"ratio_to_{name}": round(speed["headrace"] / speed[name], 3) for name in took if name != "headrace"}
    found["cpu_s_per_million"] = {name: _middle(each).per_million() for name, each in took.items()}
    return found | {"audit": took["headrace"][-1].audit}


def _middle(took: list[Took]) -> Took:
    return sorted(took, key=lambda t: t.per_second)[len(took) // 2]


def _show(result: dict[str, Any]) -> None:
    """Print the tables."""
    contests = {"transactions of 100": result} | {
        name: found for name, found in result["shapes"].items() if "ratio_to_limit" in found
    }
    print(f"\n{'changes a second':22} {'headrace':>10}" + "".join(f" {name:>18}" for name in _PEERS.values()))
    for shape, found in contests.items():
        peers = [
            f"{found[f'{p}_changes_s']:>10,} {found[f'ratio_to_{p}']:6.3f}x" for p in _PEERS if f"ratio_to_{p}" in found
        ]
        print(f"{shape:22} {found['headrace_changes_s']:10,}" + "".join(f" {peer:>18}" for peer in peers))
    print("\nCPU seconds for a million changes")
    for shape, found in contests.items():
        for name, cpu in found["cpu_s_per_million"].items():
            print(f"{shape:22} {name:12} " + ", ".join(f"{process} {seconds}" for process, seconds in cpu.items()))
    waited, behind = result["latency_ms"], result["shapes"]["challengers4"]
    print(
        f"\nms from a label's commit to its being learned: p50 {waited['p50']}, p99 {waited['p99']}, max {waited['max']}, at "
        f"{waited['changes_s']:,.0f} changes a second\nentries that the champion is behind, beside 4 challengers at "
        f"{behind['changes_s']:,} changes a second: {behind['lag_first_third']:,.0f} in the first third, "
        f"{behind['lag_last_third']:,.0f} in the last"
    )
    if "edge_read_ms" in result:
        print(
            "ms to read the newest 20 entries: 100k entries {100k}, 50m {50m}, ratio {ratio}".format(
                **result["edge_read_ms"]
            )
        )
