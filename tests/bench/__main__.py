"""`make bench NAME=...`: runs one benchmark, prints its table, writes build/bench/NAME.json.

What takes long or needs more is done on demand: `make bench NAME='stream log debezium'`.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

NAMES = ("accuracy", "categories", "delays", "flights", "models", "passes", "rebuild", "stream", "window")
ON_DEMAND = {"stream": ("log", "debezium", "flame")}


def main() -> int:
    name, *more = sys.argv[1:] or [""]
    if name not in NAMES:
        print(f"found NAME={name!r}, expected one of: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    if unknown := set(more) - set(ON_DEMAND.get(name, ())):
        known = ", ".join(ON_DEMAND.get(name, ())) or "nothing"
        print(f"found {', '.join(sorted(unknown))} on demand, expected {known} for {name}", file=sys.stderr)
        return 2
    result = importlib.import_module(f"tests.bench.{name}").run(*more)
    file = Path("build") / "bench" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
