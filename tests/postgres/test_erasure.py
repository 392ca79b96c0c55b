"""One key's content goes, from the log, the quarantine and what is held; everything else still adds up."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
from tests.conftest import ENGINE, START, Registered, SmallSource

from headrace.batch.audit import audit
from headrace.batch.bootstrap import collect
from headrace.batch.erasure import Erased, erase
from headrace.batch.rebuild import rebuild
from headrace.errors import BatchError, LeaseError
from headrace.live import intake
from headrace.live.learner import Learner
from headrace.store import db, leases, log, registry
from headrace.store.state import open_version

KEY = b"k" * 32
PERSON = 7
VIEWS = (
    "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'metrics'::regnamespace AND relname <> 'erasures'"
)
TABLES = (
    "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace IN ('headrace'::regnamespace, "
    "'small'::regnamespace)"
)


def learn(registered: Registered, version: str = "small-1") -> None:
    """Let a version's learner go to the log's end, an epoch at a time, and end."""
    with closing(db.connect(registered.dsn, role="headrace_learner")) as conn:
        lease = leases.take(conn, "small", version, timedelta(seconds=5))

        def opened() -> Any:
            known = registry.version(conn, "small", version)
            return open_version(conn, registered.stream, known, registered.columns, KEY, ENGINE)

        learner = Learner(conn, conn, registered.stream, registered.columns, opened)
        learner.begin(lease)
        while learner.step():
            pass


@pytest.fixture
def running(registered: Registered, origin: SmallSource) -> Registered:
    """A platform whose champion is far beyond the person's entries."""
    events, labels = origin.rows(0, 600, labelled=1.0)
    events[PERSON] = (PERSON, START + timedelta(minutes=7, seconds=42), "b", "a very telling place", 77.77)
    origin.add(events, labels)
    registered.import_history(origin)
    learn(registered)
    registered.query("DELETE FROM headrace.checkpoints WHERE seq < (SELECT max(seq) FROM headrace.checkpoints)")
    return registered


@pytest.fixture
def conn(running: Registered) -> Iterator[Any]:
    with closing(db.connect(running.dsn, role="headrace_steer")) as made:
        yield made


def erased(conn: Any, running: Registered, key: object = PERSON) -> Erased:
    return erase(conn, running.stream, running.columns, str(key), reason="a letter of 3 March", by="ada")


def sound(registered: Registered) -> None:
    with closing(db.connect(registered.dsn, role="headrace_reader", autocommit=True)) as conn:
        found = audit(conn, registered.stream, None)
    assert [breach for invariant in found for breach in invariant.breaches] == []


def holds(registered: Registered, text: str) -> list[str]:
    """Tables and views that have a text somewhere."""
    names = [name for (name,) in registered.query(TABLES) + registered.query(VIEWS)]
    return [
        name
        for name in names
        if registered.query(f"SELECT 1 FROM {name} AS t WHERE t::text LIKE %s LIMIT 1", f"%{text}%")
    ]


def test_content_goes_and_the_shape_stays(running: Registered, conn: Any) -> None:
    assert "small.events_000000" in holds(running, "a very telling place")
    before = {entry[0]: entry for entry in running.entries()}
    epochs, accounting = running.epochs(), running.accounting()
    done = erased(conn, running)
    assert (done.events, done.labels, done.quarantined, done.held) == (1, 1, 0, 0)
    assert done.sentence.startswith(
        "Erasure 1 of small: 1 events, 1 labels, 0 refused rows and 0 held labels. small-1 cannot "
    )
    after = {entry[0]: entry for entry in running.entries()}
    changed = [seq for seq in before if before[seq] != after[seq]]
    assert len(before) == len(after)
    assert len(changed) == 2
    event, label = (after[seq] for seq in changed)
    assert event[1:6] == (None, START, None, None, None)
    assert label[6:] == (event[0], "observed", None, None, None)
    assert (running.epochs(), running.accounting()) == (epochs, accounting)
    assert holds(running, "a very telling place") == []
    assert holds(running, "77.77") == []
    record = running.query("SELECT key_sha256, events, reason, erased_by FROM metrics.erasures")
    assert record == [(hashlib.sha256(b"7").hexdigest(), 1, "a letter of 3 March", "ada")]
    assert running.query("SELECT count(*) FROM small.examples WHERE key = 7 OR key IS NULL") == [(0,)]
    assert running.query("SELECT * FROM metrics.learned_from WHERE key = '7'") == []
    sound(running)


def test_what_models_learned_stays(running: Registered, conn: Any) -> None:
    """As docs/erasure.md says: a category that only one event had is a name in the states of river models."""
    remains = "SELECT count(*) FROM headrace.checkpoints WHERE position('a very telling place'::bytea IN state) > 0"
    assert running.query(remains) == [(1,)]
    erased(conn, running)
    assert running.query(remains) == [(1,)]


def test_rebuilds_that_would_read_it_say_so(running: Registered, conn: Any) -> None:
    done = erased(conn, running)
    assert done.not_rebuildable == ("small-1",)
    ((why,),) = running.query("SELECT why_not_rebuildable FROM metrics.versions WHERE NOT rebuildable")
    ((read,),) = running.query("SELECT read_seq FROM headrace.erasures")
    assert why == f"erasure 1 blanked what it read up to seq {read:,}"
    with pytest.raises(BatchError, match="small-1 cannot be rebuilt from its base: erasure 1 blanked"):
        rebuild(conn, running.stream, running.columns, "small-1", ENGINE, KEY)


def test_everybody_goes_on(running: Registered, conn: Any, origin: SmallSource) -> None:
    """Versions at work, intake, a bootstrap, and a version that reads over the blanked entries."""
    erased(conn, running)
    origin.add(*origin.rows(600, 100))
    running.follow(origin)
    learn(running)
    sound(running)
    slow = running.stream.recipe("slow")
    assert slow is not None
    with db.transaction(conn):
        name = registry.add_version(
            conn, running.stream, slow, ENGINE, first_seq=1, evidence_seq=10_000, status="catching_up"
        )
    learn(running, name)
    losses = running.query("SELECT loss_sum, learned, labels FROM headrace.epoch_metrics WHERE version = %s", name)
    assert len(losses) > 10
    assert all(loss == loss and loss < 1e6 for loss, _, _ in losses), "no NaN got into its weights"
    ((at,),) = running.query("SELECT max(seq_last) FROM headrace.epochs")
    window = collect(conn, running.stream, running.columns, slow, at)
    ((blanked,),) = running.query("SELECT seq FROM small.events WHERE key IS NULL")
    assert blanked not in window.event_seq[window.label_row]


def test_the_intake_finds_nothing_under_it_any_more(running: Registered, conn: Any, origin: SmallSource) -> None:
    erased(conn, running)
    origin.execute("UPDATE outcomes SET score = 50 - score WHERE visit_id = 7")
    running.follow(origin)
    assert running.query("SELECT key FROM small.held") == [(7,)]
    again = erased(conn, running)
    assert (again.events, again.held) == (0, 1)
    assert running.query("SELECT key FROM small.held") == []
    sound(running)
    origin.add(*origin.rows(1_200, 60))  # the label's window is over
    running.follow(origin)
    assert running.query("SELECT count(*) FROM small.quarantine") == [(0,)]
    sound(running)


def test_an_intake_that_holds_a_label_takes_up_what_is_left(
    running: Registered, conn: Any, origin: SmallSource
) -> None:
    """It knows the label from its own memory: it loses its role, and whoever has it next does not know."""
    origin.execute("INSERT INTO outcomes VALUES (5000, 20, %s)", START + timedelta(minutes=100))
    running.follow(origin)
    with closing(db.connect(running.dsn, role="headrace_intake")) as holding:
        lease = leases.take(holding, "small", "intake", timedelta(seconds=5))
        known = intake.standing(holding, running.stream, running.columns)
        at = log.position(holding, "small")
        assert at is not None
        known.appender.resume(holding, known.join, at)
        holding.commit()
        assert len(known.join.held) == 1
        assert erased(conn, running, 5000).held == 1
        with pytest.raises(LeaseError, match="lost the role 'intake'"):
            lease.check(holding)
    origin.add(*origin.rows(1_200, 10))
    running.follow(origin)
    assert running.query("SELECT count(*) FROM small.quarantine") == [(0,)]
    sound(running)


def test_refused_rows_are_emptied(running: Registered, conn: Any, origin: SmallSource) -> None:
    origin.execute("INSERT INTO visits VALUES (6000, '2020-03-01 09:00+00', 'unheard-of', 'a very telling place', 1)")
    running.follow(origin)
    assert erased(conn, running, 6000).quarantined == 1
    rows = running.query("SELECT relation, key, expectation, found, reason, content FROM small.quarantine")
    assert rows == [("public.visits", None, "in_set(colour, {a, b, c, d})", None, "erased", {})]
    assert holds(running, "unheard-of") == []
    sound(running)


def test_what_is_still_needed_is_not_erased(running: Registered, conn: Any, origin: SmallSource) -> None:
    origin.execute("INSERT INTO visits VALUES (700, %s, 'a', 'p', 1)", START + timedelta(minutes=600))
    running.follow(origin)
    with pytest.raises(
        BatchError, match=r"event \d+ of this key waits for its label, .* or its window of 6:00:00 is over"
    ):
        erased(conn, running, 700)
    origin.execute("INSERT INTO outcomes VALUES (700, 20, %s)", START + timedelta(minutes=601))
    running.follow(origin)
    with pytest.raises(
        BatchError, match=r"small-1 \(champion\) would read seq \d+ again when it starts again after seq"
    ):
        erased(conn, running, 700)
    assert running.query("SELECT count(*) FROM small.events WHERE key IS NULL") == [(0,)]


def test_a_resync_does_not_bring_it_back(running: Registered, conn: Any, origin: SmallSource) -> None:
    erased(conn, running)
    origin.execute("SELECT pg_drop_replication_slot('headrace_small')")
    origin.add(*origin.rows(600, 10))
    done = running.resync(origin)
    assert done.erased == 2
    assert ", 2 whose key was erased. Rows that were inserted" in done.sentence
    assert running.query("SELECT erased FROM metrics.gaps") == [(2,)]
    assert running.query("SELECT count(*) FROM small.events WHERE key >= 600") == [(10,)]
    assert running.query("SELECT count(*) FROM small.events WHERE key = 7") == [(0,)]
    assert running.query("SELECT count(*) FROM small.held") == [(0,)]
    sound(running)


def test_what_cannot_be_found(running: Registered, conn: Any) -> None:
    with pytest.raises(BatchError, match="found nothing under this key of 'small'"):
        erased(conn, running, 999_999)
    with pytest.raises(BatchError, match="expected a bigint as visit_id has it"):
        erased(conn, running, "seven")
    assert erased(conn, running, " 007").key_sha256 == hashlib.sha256(b"7").hexdigest()
    with pytest.raises(BatchError, match=r"this key was erased on 20\d\d-.* UTC, and nothing came under it since"):
        erased(conn, running)


def test_readers_of_the_past_come_first(running: Registered, conn: Any) -> None:
    busy = pytest.raises(BatchError, match="a bootstrap, rebuild, check or housekeeping reads the log; try again")
    with closing(db.connect(running.dsn, role="headrace_reader")) as reader, log.kept_whole(reader, "small"), busy:
        erased(conn, running)


def test_a_restarted_intake_tells_erased_keys_apart(
    running: Registered, conn: Any, origin: SmallSource, database: Callable[..., str]
) -> None:
    """Several erased events in the partition that the join remembers."""
    for key in (7, 8, 9):
        erased(conn, running, key)
    origin.execute("UPDATE outcomes SET score = 50 - score WHERE visit_id IN (10, 11)")
    running.follow(origin)
    corrected = running.query(
        "SELECT e.key FROM small.labels AS l JOIN small.events AS e ON e.seq = l.event_seq WHERE kind = 'correction' ORDER BY 1"
    )
    assert corrected == [(10,), (11,)]
    sound(running)
