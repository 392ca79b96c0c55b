"""`headrace learn` as it is, which notes what it has learned and when; run with `-c`, in a process of its own.

The learner's loop asks after each look at the log whether it should stop. There, the monotonic clock and the seq that it has
come to are noted in memory; they are written to `learned.json` in its folder once it was told to stop.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from headrace import cli
from headrace.live import learner as own
from headrace.live.learner import Learner

plain = own.run


def run(learner: Learner, stop: Callable[[], bool]) -> None:
    """Learn, and note."""
    noted = [(time.monotonic(), learner.live.progressive.seq)]

    def looked() -> bool:
        if (seq := learner.live.progressive.seq) > noted[-1][1]:
            noted.append((time.monotonic(), seq))
        return stop()

    plain(learner, looked)
    Path("learned.json").write_text(json.dumps(noted))


own.run = run
sys.exit(cli.main(sys.argv[1:]))
