"""A seam that cannot be read over is closed: the log gets what the source has, nothing twice, and the gap is recorded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from typing import Any

import pytest
from tests.conftest import Registered, database_of

from headrace.batch.audit import audit
from headrace.errors import BatchError, SlotError
from headrace.store import db, log, source
from headrace.store.changes import tally


@pytest.fixture
def running(registered: Any, origin: Any) -> Any:
    """A platform with history and a stretch of the stream."""
    origin.add(*origin.rows(0, 100, labelled=0.7))
    registered.import_history(origin)
    origin.add(*origin.rows(100, 50, labelled=0.7))
    origin.execute("INSERT INTO visits VALUES (900, '2020-03-01 02:00+00', 'zz', 'p', 1)")  # refused
    registered.follow(origin)
    return registered


def live_on(origin: Any) -> None:
    """What the application does while nobody reads: it inserts, labels, changes and deletes."""
    origin.add(*origin.rows(150, 50, labelled=0.7))
    origin.execute("UPDATE outcomes SET score = 40 - score WHERE visit_id % 9 = 0")
    origin.execute("DELETE FROM outcomes WHERE visit_id % 11 = 0")
    origin.execute("INSERT INTO outcomes VALUES (5000, 20, '2020-03-01 03:00+00')")  # its event comes later
    origin.execute("INSERT INTO visits VALUES (901, '2020-03-01 02:00+00', 'zz', 'p', 1)")


def agrees(registered: Registered, origin: Any) -> None:
    """The log's events and last labels are the source's rows."""
    theirs = origin.execute(
        "SELECT v.visit_id, o.score > 15 FROM visits AS v LEFT JOIN outcomes AS o USING (visit_id) "
        "WHERE colour IN ('a', 'b', 'c', 'd') ORDER BY 1"
    )
    ours = registered.query(
        "SELECT e.key, (SELECT l.y = 1 FROM small.labels AS l WHERE l.event_seq = e.seq ORDER BY l.seq DESC LIMIT 1) "
        "FROM small.events AS e ORDER BY 1"
    )
    assert ours == theirs
    held = registered.query("SELECT key FROM small.held ORDER BY 1")
    assert held == origin.execute(
        "SELECT visit_id FROM outcomes WHERE visit_id NOT IN (SELECT visit_id FROM visits) ORDER BY 1"
    )
    for counts in registered.accounting().values():
        outcomes = ("events", "labels", "corrections", "held", "quarantined", "ignored")
        assert counts["received"] == sum(counts[n] for n in outcomes)


def goes_on(registered: Registered, origin: Any) -> None:
    """The stream is well again."""
    origin.add(*origin.rows(200, 20, labelled=0.7))
    origin.execute("INSERT INTO visits VALUES (5000, '2020-03-01 04:00+00', 'a', 'p', 1)")
    registered.follow(origin)
    agrees(registered, origin)


def test_a_slot_that_somebody_dropped(running: Any, origin: Any) -> None:
    origin.execute("SELECT pg_drop_replication_slot('headrace_small')")
    live_on(origin)
    with pytest.raises(SlotError, match=r"slot_missing: .* `headrace resync small` closes the gap"):
        running.follow(origin)
    done = running.resync(origin)
    assert done.events == 50
    assert done.corrections > 10
    assert done.quarantined == 1, "the row that was refused before is not refused again"
    agrees(running, origin)
    goes_on(running, origin)
    ((why, events, first, last),) = running.query("SELECT why, events, seq_first, seq_last FROM metrics.gaps")
    assert why.startswith("slot_missing: ")
    assert (events, first, last) == (50, done.seq_first, done.seq_last)
    with pytest.raises(BatchError, match="there is nothing to resync; run `headrace up`"):
        running.resync(origin)


def test_a_platform_that_was_restored_from_a_backup(running: Any, origin: Any, database: Callable[..., str]) -> None:
    backup = database("backup", database_of(running.dsn))
    live_on(origin)
    running.follow(origin)
    restored = Registered(backup, running.stream, running.columns)
    with pytest.raises(SlotError, match=r"platform_behind: .* Postgres would skip what lies between"):
        restored.follow(origin)
    restored.resync(origin)
    agrees(restored, origin)
    goes_on(restored, origin)


def test_every_row_that_was_looked_at_is_accounted_for(running: Any, origin: Any) -> None:
    origin.execute("SELECT pg_drop_replication_slot('headrace_small')")
    origin.execute("INSERT INTO outcomes VALUES (900, 20, '2020-03-01 03:00+00')")  # of the visit that was refused
    live_on(origin)
    ((there,),) = origin.execute("SELECT (SELECT count(*) FROM visits) + (SELECT count(*) FROM outcomes)")
    done = running.resync(origin)
    counts = running.accounting()["resync"]
    ((taken_back,),) = running.query("SELECT count(*) FROM small.labels WHERE kind = 'correction' AND y IS NULL")
    assert taken_back > 5
    assert counts["received"] == there + taken_back
    assert counts["ignored"] == done.known + done.refused
    assert (done.refused, done.forgotten, done.erased) == (2, 0, 0)
    assert (
        f"Events and labels left out: {done.known:,} that the log has already, 2 whose key the quarantine has."
        in done.sentence
    )


def test_what_a_second_reader_counts_agrees_outside_of_the_gap(registered: Any, origin: Any) -> None:
    origin.add(*origin.rows(0, 100, labelled=0.7))
    origin.execute("SELECT pg_create_logical_replication_slot('headrace_audit', 'pgoutput')")
    registered.import_history(origin)
    origin.add(*origin.rows(100, 50, labelled=0.7))
    registered.follow(origin)
    origin.execute("SELECT pg_drop_replication_slot('headrace_small')")
    live_on(origin)
    registered.resync(origin)
    goes_on(registered, origin)
    with closing(db.connect(registered.dsn, role="headrace_reader", autocommit=True)) as conn:
        at = log.position(conn, "small")
        gaps = [(first, last) for first, last, _ in db.rows(conn, "gaps", {"stream": "small"})]
        counted = [
            vars(tally(origin.dsn, registered.stream, "headrace_audit", at.consistent_lsn, at.lsn, but))
            for but in (gaps, ())
        ]
        breaches = [[b for i in audit(conn, registered.stream, None, ledger) for b in i.breaches] for ledger in counted]
        registered.query("UPDATE headrace.gaps SET why = 'another_source: a failover'")
        *_, moved = audit(conn, registered.stream, None, counted[1])
    assert counted[0]["within_gaps"]["public.visits"] == {"insert": 51}
    assert breaches[0] == []
    (found,) = breaches[1]
    assert found.startswith("the ledger has ") and ", outside of gaps, the intake received " in found
    assert moved.ok and moved.counts["compared"].startswith("not the changes: the source became another cluster")


def test_another_cluster_after_a_failover(running: Any, origin: Any) -> None:
    """The promoted server has the rows and no slot; here it is the same server under another timeline."""
    running.query("UPDATE headrace.intake_positions SET timeline = timeline + 1")
    live_on(origin)
    with pytest.raises(SlotError, match="another_source: "):
        running.follow(origin)
    running.resync(origin)
    goes_on(running, origin)


def test_the_log_is_read_on_by_its_learners(running: Any, origin: Any) -> None:
    """Dense, in epochs, with watermarks that never fall."""
    origin.execute("SELECT pg_drop_replication_slot('headrace_small')")
    live_on(origin)
    running.resync(origin)
    entries = running.entries()
    assert [e[0] for e in entries] == list(range(1, len(entries) + 1))
    segments = running.query("SELECT seq_first, seq_last, watermark, origin FROM small.segments ORDER BY seq_first")
    assert all(b[0] == a[1] + 1 and b[2] >= a[2] for a, b in pairwise(segments))
    assert {s[3] for s in segments} == {"history", "stream", "resync"}


def test_a_slot_that_somebody_reads_is_not_dropped(running: Any, origin: Any) -> None:
    running.query("UPDATE headrace.intake_positions SET lsn = '0/1'")
    with source.replication(origin.dsn) as cursor:
        source.start(cursor, "headrace_small", "headrace_small", "0/0")
        with pytest.raises(SlotError, match="is in use by another reader"):
            running.resync(origin)


def test_a_label_that_waits_is_taken_back_when_the_source_has_it_no_more(running: Any, origin: Any) -> None:
    origin.execute("INSERT INTO outcomes VALUES (7777, 20, '2020-03-01 03:10+00'), (7778, 20, '2020-03-01 03:10+00')")
    running.follow(origin)
    origin.execute("SELECT pg_drop_replication_slot('headrace_small')")
    origin.execute("DELETE FROM outcomes WHERE visit_id = 7777")
    running.resync(origin)
    assert running.query("SELECT key FROM small.held WHERE key >= 7777") == [(7778,)]
