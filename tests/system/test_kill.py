"""kill -9 of intake and learners at random moments, then the same WAL read by a platform that nobody disturbs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg2
from psycopg2.extensions import parse_dsn

from headrace.events import Engine
from headrace.store import db, log, registry, source

START = datetime(2020, 3, 1, tzinfo=UTC)
KILLS = {
    "intake small": 6,
    "small small-1": 5,
    "small small-2": 5,
    "small small-3": 5,
}  # by the end of the command line
CHANGES = 21_000


class Application(threading.Thread):
    """Commits visits and outcomes: most in time, some before their visit, late, changed, deleted, odd or never."""

    def __init__(self, dsn: str, first: int) -> None:
        super().__init__()
        self._dsn, self._first = dsn, first
        self.sent = Counter[str]()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with closing(psycopg2.connect(self._dsn)) as conn, conn.cursor() as cursor:
                self._commit_all(conn, cursor)
        except BaseException as error:
            self.error = error

    def _commit_all(self, conn: Any, cursor: Any) -> None:
        dice, number = random.Random(11), self._first
        due: list[tuple[int, int]] = []  # key, number of the visit after which its outcome is known
        while self.sent.total() < CHANGES:
            for _ in range(dice.randrange(1, 8)):
                number += 1
                seen, fate = START + timedelta(minutes=number), dice.random()
                colour = dice.choice("abcd") if fate > 0.02 else "none such"
                if 0.02 < fate < 0.06:  # the outcome comes first
                    self._send(cursor, "INSERT INTO outcomes VALUES (%s, %s, %s)", number, dice.randrange(30), seen)
                self._send(
                    cursor,
                    "INSERT INTO visits VALUES (%s, %s, %s, %s, %s)",
                    number,
                    seen,
                    colour,
                    f"p{number % 17}",
                    dice.random(),
                )
                if fate > 0.08:
                    due.append((number, number + (dice.randrange(1, 120) if fate < 0.97 else 500)))
            for key, _ in [d for d in due if d[1] <= number]:
                known = START + timedelta(minutes=number)
                self._send(cursor, "INSERT INTO outcomes VALUES (%s, %s, %s)", key, dice.randrange(30), known)
                if dice.random() < 0.02:
                    self._send(cursor, "UPDATE outcomes SET score = 40 - score WHERE visit_id = %s", key)
                elif dice.random() < 0.01:
                    self._send(cursor, "DELETE FROM outcomes WHERE visit_id = %s", key)
            due = [d for d in due if d[1] > number]
            conn.commit()
            time.sleep(0.006)

    def _send(self, cursor: Any, statement: str, *values: Any) -> None:
        cursor.execute(statement, values)
        self.sent[statement.split()[0]] += 1


def wait_until(true: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def arrived(dsn: str, lsn: str) -> bool:
    with closing(db.connect(dsn)) as conn:
        at = log.position(conn, "small")
    return at is not None and source.lsn_number(at.lsn) > source.lsn_number(lsn)


def started(up: subprocess.Popen[bytes], dsn: str) -> bool:
    assert up.poll() is None, f"`headrace up` ended with {up.poll()}"
    return len(query(dsn, "SELECT 1 FROM headrace.leases WHERE expires_at > now()")) == 4


def query(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    with closing(db.connect(dsn)) as conn, conn.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


DONE = """SELECT count(*) FROM headrace.versions AS v CROSS JOIN headrace.epochs AS e
LEFT JOIN headrace.epoch_metrics AS m ON m.version = v.version AND m.epoch = e.epoch WHERE m.epoch IS NULL"""

SAME = {
    "events": "SELECT * FROM small.events ORDER BY seq",
    "labels": "SELECT * FROM small.labels ORDER BY seq",
    "epochs": "SELECT * FROM headrace.epochs ORDER BY epoch",
    "held": "SELECT key, y, label_time FROM small.held ORDER BY key",
    "quarantine": "SELECT relation, key, expectation, found, content, lsn FROM small.quarantine ORDER BY lsn, key",
    "accounting": "SELECT * FROM headrace.accounting ORDER BY origin",
    "segments": "SELECT seq_first, seq_last, lsn, commit_time, watermark, origin FROM small.segments ORDER BY seq_first",
    "digests": """SELECT version, epoch, seq_first, seq_last, labels, positives, loss_sum, loss_sq_sum, brier_sum, p_sum, clips,
        histogram, learned, unscored, event_time_first, digest, engine FROM headrace.epoch_metrics ORDER BY version, epoch""",
    "slices": "SELECT * FROM headrace.slice_metrics ORDER BY version, epoch, slice, value",
    "checkpoints": """SELECT DISTINCT ON (version) version, seq, epoch, digest, state_digest, learned, engine
        FROM headrace.checkpoints ORDER BY version, seq DESC""",
}


def headrace(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "headrace", *words]


def test_killed_at_random_it_learns_the_same(
    registered: Any, origin: Any, database: Callable[..., str], definitions: Path, tmp_path: Path
) -> None:
    slow = registered.stream.recipe("slow")
    with closing(db.connect(registered.dsn)) as conn, db.transaction(conn):
        for _ in range(2):  # two versions of one recipe: killed at different moments, they must agree
            engine = Engine("any", "", {})
            registry.add_version(
                conn, registered.stream, slow, engine, first_seq=1, evidence_seq=1, status="catching_up"
            )
    origin.add(*origin.rows(0, 1_000))
    registered.import_history(origin)

    # A second platform at the same position, on a slot of its own that nobody reads yet.
    reference = database("reference", parse_dsn(registered.dsn)["dbname"])
    origin.execute("SELECT pg_copy_logical_replication_slot('headrace_small', 'headrace_reference')")
    origin.execute("SELECT pg_copy_logical_replication_slot('headrace_small', 'headrace_ledger')")
    with closing(db.connect(reference)) as conn, conn, conn.cursor() as cursor:
        cursor.execute("UPDATE headrace.intake_positions SET slot = 'headrace_reference'")

    environment = os.environ | {
        "HEADRACE_DSN": registered.dsn,
        "HEADRACE_CONN_SMALL_DB": origin.dsn,
        "HEADRACE_HOME": str(tmp_path),
        "HEADRACE_STREAMS": str(definitions),
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    application = Application(origin.dsn, 1_000)
    up = subprocess.Popen(headrace("up", "small"), env=environment, cwd=tmp_path)
    try:
        wait_until(lambda: started(up, registered.dsn), 60, "all processes run")
        application.start()
        killed = kill_at_random(up, registered.dsn, application)
        application.join()
        assert application.error is None
        last = origin.execute("SELECT pg_logical_emit_message(true, 'headrace.test', '')::text")[0][0]
        wait_until(lambda: arrived(registered.dsn, last), 60, "the intake has everything")
        wait_until(lambda: query(registered.dsn, DONE) == [(0,)], 60, "every version scored every epoch")
    finally:
        up.send_signal(signal.SIGTERM)
        assert up.wait(40) == 0
    assert killed == Counter(KILLS)
    assert killed.total() >= 20
    assert application.sent.total() >= 20_000

    undisturbed(environment | {"HEADRACE_DSN": reference}, reference, last, tmp_path)
    for name, statement in SAME.items():
        ours, theirs = query(registered.dsn, statement), query(reference, statement)
        assert ours == theirs, name
        assert ours or name == "held", name
    digests = query(registered.dsn, "SELECT version, epoch, digest FROM headrace.epoch_metrics ORDER BY version, epoch")
    by_version = {v: [(e, bytes(d)) for w, e, d in digests if w == v] for v, _, _ in digests}
    assert by_version["small-2"] == by_version["small-3"] != by_version["small-1"]

    counts = registered.accounting()["stream"]
    assert counts["received"] == application.sent.total()
    assert counts["received"] == sum(
        counts[n] for n in ("events", "labels", "corrections", "held", "quarantined", "ignored")
    )
    assert min(counts[n] for n in ("corrections", "quarantined", "ignored", "timeouts")) > 10
    seqs = "SELECT seq FROM small.events UNION ALL SELECT seq FROM small.labels"
    entries = f"SELECT count(*), min(seq), max(seq) FROM ({seqs}) AS e"
    ((count, first, end),) = query(registered.dsn, entries)
    assert (first, end) == (1, count)
    audited(environment, tmp_path, application.sent.total())


def audited(environment: dict[str, str], folder: Path, changes: int) -> None:
    """`headrace check` is clean, also against what a third reader of the same WAL counted."""
    ledger = folder / "ledger.json"
    with ledger.open("w") as output:
        subprocess.run(
            headrace("ledger", "small", "--slot", "headrace_ledger"),
            env=environment,
            cwd=folder,
            stdout=output,
            check=True,
        )
    assert sum(sum(kinds.values()) for kinds in json.loads(ledger.read_text())["changes"].values()) == changes
    words = headrace("check", "small", "--json", "--ledger", str(ledger))
    done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["small"]["ledger"]["ok"]
    short = json.loads(ledger.read_text())
    short["changes"]["public.visits"]["insert"] -= 1
    ledger.write_text(json.dumps(short))
    broken = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert broken.returncode == 5
    assert "small: ledger: " in broken.stderr


def kill_at_random(up: subprocess.Popen[bytes], dsn: str, application: Application) -> Counter[str]:
    """SIGKILL what `headrace up` runs while the application commits; what it restarts is killed again."""
    dice, left, killed = random.Random(23), Counter(KILLS), Counter[str]()
    pace = CHANGES / (left.total() + 1)
    while left.total() and application.error is None:
        time.sleep(dice.uniform(0.05, 0.4))
        if application.is_alive() and application.sent.total() < pace * (killed.total() + dice.random()):
            continue
        holders = {int(holder.rpartition(":")[2]) for (holder,) in query(dsn, "SELECT holder FROM headrace.leases")}
        running: dict[str, psutil.Process] = {}
        for process in psutil.Process(up.pid).children(recursive=True):
            if process.pid in holders or dice.random() < 0.02:  # mostly at work, now and then while it starts
                with contextlib.suppress(psutil.NoSuchProcess):
                    words = " ".join(process.cmdline())
                    running |= {role: process for role in left if words.endswith(role) and left[role]}
        if running:
            role = dice.choice(sorted(running))
            running[role].kill()
            killed[role] += 1
            left[role] -= 1
    return killed


def undisturbed(environment: dict[str, str], dsn: str, last: str, folder: Path) -> None:
    """Read the second slot and learn, each in one go and in batches of its own size."""
    intake = subprocess.Popen(headrace("intake", "small"), env=environment, cwd=folder)
    try:
        wait_until(lambda: arrived(dsn, last), 60, "the undisturbed intake has everything")
    finally:
        intake.send_signal(signal.SIGTERM)
        assert intake.wait(20) == 0
    learners = []
    for number, batch in ((1, 20_000), (2, 777), (3, 100_000)):
        words = ("learn", "small", f"small-{number}", "--until-caught-up", "--batch", str(batch))
        learners.append(subprocess.Popen(headrace(*words), env=environment, cwd=folder))
    assert [learner.wait(90) for learner in learners] == [0, 0, 0]
