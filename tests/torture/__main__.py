"""`make torture N=… SEED=… [KINDS=a,b] [SABOTAGE=lost|twice|flip]`: hurt a running headrace, then audit it.

The application commits on and on; at moments counted in its changes a fault is done to a worker, a network or a server, and
the run goes on when everybody works again. At the end nothing may be lost, nothing learned twice, and every digest must be
the one of an undisturbed reading of the same WAL.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.torture import crashes, reference
from tests.torture.audit import audit
from tests.torture.faults import Hand
from tests.torture.plan import KINDS, Fault, deal
from tests.torture.report import Report
from tests.torture.saboteur import KINDS as SABOTAGES
from tests.torture.stage import ROOT, Stage, wait_until
from tests.torture.workers import Workers

_ENOUGH = 3_000  # changes that fill an epoch of every stream


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("-n", type=int, default=300, help="faults")
    parser.add_argument("--seed", type=int, default=7, help="of faults and of the application")
    parser.add_argument("--kinds", default="", help=f"comma-separated, all by default: {', '.join(KINDS)}")
    parser.add_argument("--changes", type=int, default=1_700, help="that the application commits from fault to fault")
    parser.add_argument("--rate", type=float, default=1_200, help="changes per second at most")
    parser.add_argument("--silence", type=float, default=8.0, help="seconds of the long half-open networks, at least")
    parser.add_argument("--sabotage", choices=SABOTAGES, help="break the product on purpose, once, half-way")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "torture.json")
    parser.add_argument("--keep", action="store_true", help="leave servers' data and logs behind")
    parsed = parser.parse_args()
    parsed.kinds = [kind for kind in parsed.kinds.split(",") if kind] or list(KINDS)
    if unknown := set(parsed.kinds) - set(KINDS):
        parser.error(f"found kinds {', '.join(sorted(unknown))}, expected some of {', '.join(KINDS)}")
    return parsed


def main() -> int:
    """Run; 1 when something is wrong."""
    asked, began = arguments(), time.monotonic()
    home = Path(tempfile.mkdtemp(prefix="headrace-torture-", dir="/tmp"))
    home.chmod(0o755)
    try:
        ok = run(asked, home, began)
    except BaseException:
        print(f"what happened is in {home}", file=sys.stderr)
        raise
    if ok and not asked.keep:
        shutil.rmtree(home, ignore_errors=True)
    else:
        print(f"logs and data are in {home}")
    return 0 if ok else 1


def run(asked: argparse.Namespace, home: Path, began: float) -> bool:
    """Faults, reference, audit, report; tells whether nothing is wrong."""
    faults = deal(asked.seed, asked.n, asked.kinds, silence=asked.silence)
    report = Report(asked.seed, asked.n, asked.kinds)
    stage = Stage(home, asked.seed, asked.rate, asked.sabotage)
    try:
        stage.prepare()
        stage.start()
        workers = Workers(stage)
        hand = Hand(stage, workers)
        workers.wait_for_work(time.time())
        print(f"all work after {time.monotonic() - began:.1f} s; logs in {home}", flush=True)
        for fault in faults:
            goal = stage.history + fault.number * asked.changes
            stage.application.grant(goal)
            if asked.sabotage and fault.number == (asked.n + 1) // 2:
                strike(stage)
            rest(stage, fault, goal) if fault.rest else time.sleep(fault.into)
            at = time.time()
            done = hand.do(fault)
            stage.neighbour.go_on()
            recovered = workers.wait_for_work(at)
            stage.application.wait(goal, 120)
            report.fault(fault, done, recovered, stage.application.changes)
        stage.application.end()
        stage.neighbour.end()
        changes = stage.application.changes - stage.history
        mark = stage.mark()
        wait_until(lambda: stage.reached(mark), 300, "every intake has everything")
        workers.wait_for_work(time.time(), 300)
        code = stage.stop()
        if code:
            raise RuntimeError(f"`headrace up` ended with {code}; see {stage.up_log}")
        print("everything has arrived; the undisturbed reference reads the same WAL", flush=True)
        reference.make(stage, mark)
        found = audit(stage, changes)
        unnamed = crashes.unnamed(stage.up_log, stage.logs, workers.sent) + crashes.lasting(stage)
        return report.finish(asked.json, found, unnamed, crashes.states(stage), changes, time.monotonic() - began)
    finally:
        stage.close()


def rest(stage: Stage, fault: Fault, goal: int) -> None:
    """Let everything arrive, and then nothing happen for a while: intakes are idle."""
    stage.application.wait(goal, 120)
    mark = stage.mark()
    wait_until(lambda: stage.reached(mark), 60, "every intake has what was committed")
    if fault.alone:
        stage.neighbour.pause()
    time.sleep(fault.rest)


def strike(stage: Stage) -> None:
    """Let the saboteur strike, and wait until what it broke is durable."""
    stage.trigger.touch()
    stage.application.grant(stage.application.changes + _ENOUGH)
    wait_until(lambda: not stage.trigger.exists(), 120, "the saboteur strikes")
    print("the saboteur struck", flush=True)


if __name__ == "__main__":
    sys.exit(main())
