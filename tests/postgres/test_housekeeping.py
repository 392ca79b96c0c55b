"""What of a log may go, what may not and why; and everybody goes on after it went."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from tests.conftest import ENGINE, START, TABLES, Registered, SmallSource, database_of, free_slots

from headrace.batch.audit import audit
from headrace.batch.bootstrap import bootstrap, collect
from headrace.batch.housekeeping import Housekept, Part, housekeep, plan
from headrace.batch.rebuild import rebuild
from headrace.definition.stream import Stream
from headrace.errors import BatchError, ForgottenError
from headrace.flow import progressive
from headrace.live import intake
from headrace.live.follower import Follower
from headrace.live.learner import Learner
from headrace.store import checkpoints, db, leases, log, registry, source
from headrace.store.migrate import migrate
from headrace.store.state import open_version, read_on

PARTITION = 64
KEY = b"k" * 32


@pytest.fixture
def greedy(small: Stream) -> Stream:
    """The small stream with a policy that keeps nothing that nobody needs."""
    return replace(small, policy=replace(small.policy, keep_bytes=1))


def learn(registered: Registered, version: str = "small-1") -> Learner:
    """Let a version's learner go to the log's end and end."""
    with closing(db.connect(registered.dsn, role="headrace_learner")) as conn:
        lease = leases.take(conn, "small", version, timedelta(seconds=5))

        def opened() -> Any:
            known = registry.version(conn, "small", version)
            return open_version(conn, registered.stream, known, registered.columns, KEY, ENGINE)

        learner = Learner(conn, conn, registered.stream, registered.columns, opened)
        learner.begin(lease)
        while learner.step():
            pass
        return learner


def live(registered: Registered, origin: SmallSource, first: int, rounds: int) -> None:
    """Events and labels arrive, are read and are learned, an hour at a time."""
    for n in range(first, first + 60 * rounds, 60):
        origin.add(*origin.rows(n, 60))
        registered.follow(origin)
        learn(registered)


@pytest.fixture(scope="module")
def past(fresh_database: Callable[..., str], migrated: str, small: Stream) -> tuple[str, str]:
    """Databases to copy: a platform of many partitions, with a champion that learned all of them, and its source."""
    origin, platform = SmallSource(fresh_database("source"), small), fresh_database("platform", migrated)
    origin.execute(TABLES)
    origin.execute(source.statements(small, role="postgres"))
    with closing(db.connect(origin.dsn)) as conn:
        columns = source.log_columns(conn, small)
    with closing(db.connect(platform)) as conn, db.transaction(conn):
        registry.register(conn, small, columns, ENGINE)
    migrate(platform)
    registered = Registered(platform, small, columns)
    registered.query("UPDATE headrace.streams SET partition_entries = %s", PARTITION)
    origin.add(*origin.rows(0, 360))
    registered.import_history(origin)
    live(registered, origin, 360, 10)
    with closing(db.connect(origin.dsn, autocommit=True)) as conn, conn.cursor() as cursor:
        free_slots(cursor)
    return platform, origin.dsn


@pytest.fixture
def origin(past: tuple[str, str], database: Callable[..., str], small: Stream) -> SmallSource:
    """The source, with a slot of its own from here on."""
    made = SmallSource(database("source", database_of(past[1])), small)
    made.execute("SELECT pg_create_logical_replication_slot('headrace_small', 'pgoutput')")
    return made


@pytest.fixture
def running(past: tuple[str, str], origin: SmallSource, database: Callable[..., str], small: Stream) -> Registered:
    """The platform, which goes on with that slot."""
    with closing(db.connect(origin.dsn)) as conn:
        columns = source.log_columns(conn, small)
    made = Registered(database("platform", database_of(past[0])), small, columns)
    ((lsn,),) = origin.execute(
        "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'headrace_small'"
    )
    made.query("UPDATE headrace.intake_positions SET lsn = %s", lsn)
    return made


@pytest.fixture
def conn(running: Any) -> Iterator[Any]:
    with closing(db.connect(running.dsn, role="headrace_steer")) as made:
        yield made


def numbers(registered: Registered) -> list[int]:
    """The partitions that the log has."""
    rows = registered.query(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'small.labels'::regclass"
    )
    return sorted(int(name.rpartition("_")[2]) for (name,) in rows)


def stays(parts: list[Part]) -> str:
    """Why the first partition that stays does so."""
    return next(part.needed for part in parts if part.needed is not None)


def sound(registered: Registered) -> dict[str, Any]:
    """The audit finds nothing; gives its counts."""
    with closing(db.connect(registered.dsn, role="headrace_reader", autocommit=True)) as conn:
        found = audit(conn, registered.stream, None)
    assert [breach for invariant in found for breach in invariant.breaches] == []
    return {invariant.name: invariant.counts for invariant in found}


def kept(running: Registered, greedy: Stream) -> Housekept:
    with closing(db.connect(running.dsn, role="headrace_steer")) as conn:
        return housekeep(conn, greedy)


def test_what_nothing_needs_goes_and_is_counted(running: Any, greedy: Stream) -> None:
    before, was = sound(running), numbers(running)
    entries = running.entries()
    done = kept(running, greedy)
    gone = [part.partition for part in done.dropped]
    assert gone == was[: len(gone)] and len(gone) > 4
    assert numbers(running) == was[len(gone) :]
    assert done.begins == len(gone) * PARTITION
    assert done.stays is not None and done.stays.needed is not None
    assert done.sentence.startswith(f"Dropped {len(gone)} partitions of the log of small (")
    assert f"Partition {gone[-1] + 1} should go and stays: {done.stays.needed}." in done.sentence
    assert running.entries() == [entry for entry in entries if entry[0] >= done.begins]
    after = sound(running)
    assert after["conservation"].pop("dropped") == done.begins - 1
    assert after["conservation"] == before["conservation"]
    assert after["epochs"] == before["epochs"]
    assert running.query("SELECT seq_first FROM small.segments ORDER BY 1 LIMIT 1") == [(done.begins,)]
    counted = running.query(
        "SELECT sum(events + observed + timeouts + corrections), max(seq_last) FROM metrics.retention"
    )
    assert counted == [(done.begins - 1, done.begins - 1)]
    again = kept(running, greedy)
    assert again.dropped == () and again.sentence.startswith(
        "Nothing of the log of small was dropped; it begins at seq "
    )
    assert running.query("SELECT count(*) FROM metrics.label_delay") > [(0,)]


def test_a_resync_leaves_out_what_may_have_been_dropped(running: Any, greedy: Stream, origin: Any) -> None:
    """It cannot tell such rows from those that the log had; each is counted all the same."""
    kept(running, greedy)
    ((there,),) = origin.execute("SELECT (SELECT count(*) FROM visits) + (SELECT count(*) FROM outcomes)")
    origin.execute("SELECT pg_drop_replication_slot('headrace_small')")
    late = (5_000, START + timedelta(minutes=3), "a", "p", 1.0)  # new, and as old as what is gone
    origin.add([late], [])
    done = running.resync(origin)
    assert (done.events, done.labels, done.corrections, done.quarantined) == (0, 0, 0, 0)
    assert done.forgotten > 1
    counts = running.accounting()["resync"]
    assert counts["held"] > 0, "labels that came after what is gone, of events that are"
    assert done.known + done.forgotten + counts["held"] == there + 1
    assert (
        f"{done.known:,} that the log has already, {done.forgotten:,} of the time that retention dropped."
        in done.sentence
    )
    assert running.query("SELECT known, forgotten FROM metrics.gaps") == [(done.known, done.forgotten)]
    assert (counts["received"], counts["ignored"]) == (there + 1, done.known + done.forgotten)
    sound(running)


def test_the_policy_asks(running: Any, small: Stream, conn: Any) -> None:
    parts = plan(conn, small)
    assert not any(part.goes for part in parts)
    assert parts[0].needed == "policy.keep and policy.keep_bytes keep everything"
    assert parts[1].needed == "partition 0 before it stays"
    assert parts[-1].needed == "the log grows in it"
    by_age = replace(small, policy=replace(small.policy, keep=timedelta(hours=14)))
    goes = [part for part in plan(conn, by_age) if part.goes]
    assert goes and all(part.asked and "policy.keep is 14.0 hours" in part.asked for part in goes)
    last = "SELECT watermark FROM small.segments WHERE seq_first <= %s ORDER BY seq_first DESC LIMIT 1"
    ages = [running.query("SELECT watermark FROM headrace.intake_positions")[0][0] - running.query(last, p.seq_last)[0][0]
            for p in plan(conn, by_age)[: len(goes) + 1]]  # fmt: skip
    assert ages[len(goes) - 1] > timedelta(hours=14) >= ages[len(goes)]
    whole = sum(part.bytes for part in parts)
    by_size = replace(small, policy=replace(small.policy, keep_bytes=whole - parts[0].bytes - 1))
    assert [part.partition for part in plan(conn, by_size) if part.goes] == [0, 1]


def test_versions_that_start_again_need_what_they_read(running: Any, greedy: Stream, conn: Any, origin: Any) -> None:
    slow = greedy.recipe("slow")
    assert slow is not None
    with db.transaction(conn):
        name = registry.add_version(conn, greedy, slow, ENGINE, first_seq=30, evidence_seq=10_000, status="catching_up")
    assert stays(plan(conn, greedy)) == f"{name} (catching_up) reads on from seq 30 when it starts again"
    registry.set_status(conn, "small", name, "candidate", was=("catching_up",))
    assert "when it is admitted; `headrace admit small small-2` decides" in stays(plan(conn, greedy))
    registry.set_status(conn, "small", name, "retired", was=("candidate",))
    assert sum(part.goes for part in plan(conn, greedy)) > 4
    conn.rollback()


def test_an_event_that_waits_for_its_label_stays(running: Any, greedy: Stream, conn: Any) -> None:
    ((waiting,),) = running.query(
        "SELECT min(seq) FROM small.events AS e WHERE NOT EXISTS (SELECT FROM small.labels WHERE event_seq = e.seq)"
    )
    running.query("DELETE FROM headrace.checkpoints WHERE seq < (SELECT max(seq) FROM headrace.checkpoints)")
    running.query("UPDATE headrace.checkpoints SET seq = (SELECT seq FROM headrace.intake_positions)")
    parts = plan(conn, greedy)
    assert stays(parts) == f"event {waiting:,} waits for its label"
    assert sum(part.goes for part in parts) == waiting // PARTITION > 10


def test_evidence_and_probation_need_their_range(running: Any, greedy: Stream, conn: Any) -> None:
    slow = greedy.recipe("slow")
    assert slow is not None
    with db.transaction(conn):
        name = registry.add_version(conn, greedy, slow, ENGINE, first_seq=3_000, evidence_seq=150, status="shadow")
    assert stays(plan(conn, greedy)) == f"{name} is compared with small-1 on what came since seq 150"
    with db.transaction(conn):
        registry.set_status(conn, "small", name, "probation", was=("shadow",))
    assert stays(plan(conn, greedy)) == f"{name}, the champion before small-1, is in probation since seq 150"


def test_labels_that_a_restart_reads_need_their_events(running: Any, greedy: Stream, conn: Any) -> None:
    """A version that stands beyond a partition, but before a label of one of its events."""
    ((last, answered),) = running.query(
        "SELECT l.event_seq / 64 * 64 + 63, max(l.seq) FROM small.labels AS l WHERE l.event_seq < 640 "
        "AND l.seq > l.event_seq / 64 * 64 + 100 AND l.kind <> 'correction' GROUP BY 1 ORDER BY 1 LIMIT 1"
    )
    slow = greedy.recipe("slow")
    assert slow is not None
    with db.transaction(conn):
        registry.add_version(conn, greedy, slow, ENGINE, first_seq=answered, evidence_seq=10_000, status="catching_up")
    expected = (
        f"small-2 (catching_up) reads label {answered:,}, of one of its events, when it starts again after seq "
        f"{answered - 1:,}"
    )
    assert stays(plan(conn, greedy)) == expected
    assert next(part.seq_last for part in plan(conn, greedy) if not part.goes) == last


def test_a_learner_goes_on_to_the_bit(running: Any, greedy: Stream, origin: Any, database: Any) -> None:
    """With its log's past dropped it learns what one learns that has all of it."""
    whole = Registered(database("whole", database_of(running.dsn)), running.stream, running.columns)
    origin.execute("SELECT pg_copy_logical_replication_slot('headrace_small', 'headrace_whole')")
    whole.query("UPDATE headrace.intake_positions SET slot = 'headrace_whole'")
    assert kept(running, greedy).dropped
    origin.add(*origin.rows(2_000, 200))
    for platform in (running, whole):
        platform.follow(origin)
        learn(platform)
    digests = "SELECT epoch, digest, learned, loss_sum FROM headrace.epoch_metrics ORDER BY epoch"
    assert running.query(digests) == whole.query(digests)
    newest = "SELECT seq, digest, state_digest FROM headrace.checkpoints ORDER BY seq DESC LIMIT 1"
    assert running.query(newest) == whole.query(newest)
    assert running.epochs() == whole.epochs()
    begins = running.query("SELECT min(seq_first) FROM small.segments")[0][0]
    assert running.entries() == [entry for entry in whole.entries() if entry[0] >= begins]
    sound(running)


def test_what_is_not_rebuildable_says_what_remains(running: Any, greedy: Stream, conn: Any) -> None:
    def again(**more: Any) -> Any:
        return rebuild(conn, greedy, running.columns, "small-1", ENGINE, KEY, **more)

    whole = again()
    assert whole.equal == whole.epochs > 10
    done = kept(running, greedy)
    assert done.not_rebuildable == ("small-1",)
    assert "small-1 cannot be rebuilt from the base any more." in done.sentence
    ((rebuildable, why),) = running.query("SELECT rebuildable, why_not_rebuildable FROM metrics.versions")
    assert not rebuildable
    assert why.startswith("retention dropped the log up to seq ")
    with pytest.raises(BatchError, match="small-1 cannot be rebuilt from its base: retention dropped") as caught:
        again()
    since = int(str(caught.value).split("--since ")[1].rstrip("`"))
    part = again(since=since)
    assert part.equal == part.epochs > 0
    assert part.digest == whole.digest
    with pytest.raises(BatchError, match=f"cannot be rebuilt since seq {since + 1}: it has no checkpoint there"):
        again(since=since + 1)
    with db.transaction(conn):
        conn.cursor().execute("DELETE FROM headrace.checkpoints")
    with pytest.raises(BatchError, match="so nothing of it can be checked"):
        again()


def test_a_bootstrap_trains_from_what_is_there(running: Any, greedy: Stream, conn: Any) -> None:
    kept(running, greedy)
    recipe = greedy.recipe("lightgbm")
    assert recipe is not None
    made = bootstrap(conn, greedy, recipe, running.columns, ENGINE, KEY)
    window = collect(conn, greedy, running.columns, greedy.recipe("gbdt_lr"), made.first_seq - 1)  # type: ignore[arg-type]
    begins = log.dropped_through(conn, "small") + 1
    assert window.event_seq[0] >= begins
    answered = running.query(
        "SELECT l.seq, l.event_seq FROM small.labels AS l JOIN small.events AS e ON e.seq = l.event_seq "
        "WHERE l.kind <> 'correction' AND l.y IS NOT NULL AND l.seq < %s ORDER BY l.seq",
        made.first_seq,
    )
    assert window.label_seq.tolist() == [seq for seq, _ in answered]
    assert window.event_seq[window.label_row].tolist() == [event for _, event in answered]
    with db.transaction(conn):
        registry.set_status(conn, "small", made.version, "catching_up", was=("candidate",))
    learn(running, made.version)
    sound(running)
    assert rebuild(conn, greedy, running.columns, made.version, ENGINE, KEY).different == ()


def test_late_labels_of_what_is_gone_are_counted(running: Any, greedy: Stream, origin: Any) -> None:
    kept(running, greedy)
    before = running.accounting()["stream"]
    origin.execute("UPDATE outcomes SET score = 50 - score WHERE visit_id < 20")
    ((changed,),) = origin.execute("SELECT count(*) FROM outcomes WHERE visit_id < 20")
    running.follow(origin)
    now = running.accounting()["stream"]
    assert now["held"] - before["held"] == changed > 10
    origin.execute("INSERT INTO visits VALUES (9000, %s, 'a', 'p', 1)", START + timedelta(days=3))  # the window passes
    running.follow(origin)
    assert running.accounting()["stream"]["held"] == before["held"]
    reasons = running.query("SELECT expectation, count(*), max(reason) FROM small.quarantine GROUP BY 1")
    assert [row[:2] for row in reasons] == [("orphan", changed)]
    assert reasons[0][2].endswith("expected one: was it refused, or dropped by retention?")
    sound(running)


def test_corrections_that_teach_keep_their_events(running: Any, greedy: Stream, conn: Any, origin: Any) -> None:
    """Where late labels are learned, a correction not yet behind every checkpoint needs its event."""
    origin.execute("UPDATE outcomes SET score = 50 - score WHERE visit_id = 3")
    running.follow(origin)
    assert plan(conn, greedy)[0].goes, "ignored here"
    conn.commit()
    learning = replace(greedy, label=replace(greedy.label, on_late="learn"))
    ((seq,),) = running.query("SELECT seq FROM small.labels WHERE kind = 'correction'")
    assert f"small-1 (champion) reads label {seq:,}, of one of its events, " in stays(plan(conn, learning))


def test_a_late_label_between_look_and_lock_stops_it(
    running: Any, greedy: Stream, conn: Any, origin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headrace.batch import housekeeping

    learning = replace(greedy, label=replace(greedy.label, on_late="learn"))

    def and_then(*arguments: Any) -> list[Part]:
        parts = plan(*arguments)
        conn.commit()
        origin.execute("UPDATE outcomes SET score = 50 - score WHERE visit_id = 3")
        running.follow(origin)
        return parts

    monkeypatch.setattr(housekeeping, "plan", and_then)
    done = housekeep(conn, learning)
    assert done.dropped == ()
    assert "a late label of an event of partition 0 came meanwhile; the next run tries again" in done.sentence
    assert 0 in numbers(running)


def test_readers_of_the_past_are_waited_for(running: Any, greedy: Stream, conn: Any) -> None:
    with closing(db.connect(running.dsn, role="headrace_reader")) as reader, log.kept_whole(reader, "small"):
        done = housekeep(conn, greedy)
    assert done.dropped == ()
    assert "a bootstrap, rebuild, check or other housekeeping reads the log; the next run tries again" in done.sentence
    assert housekeep(conn, greedy).dropped


def test_nobody_waits_long_for_it(
    running: Any, greedy: Stream, conn: Any, origin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query that reads the log for minutes: housekeeping gives up, the intake was held up for moments."""
    from headrace.batch import housekeeping

    monkeypatch.setattr(housekeeping, "_TRIES", 3)
    with closing(db.connect(running.dsn)) as reader, reader.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM small.events")
        tried = threading.Thread(target=lambda: results.append(housekeep(conn, greedy)))
        results: list[Housekept] = []
        tried.start()
        origin.add(*origin.rows(3_000, 10))
        began = time.monotonic()
        running.follow(origin)
        assert time.monotonic() - began < 3
        tried.join()
    assert results[0].dropped == ()
    assert "partition 0 is being read and could not be locked; the next run tries again" in results[0].sentence
    sound(running)


def test_who_was_away_too_long_starts_again(running: Any, greedy: Stream, origin: Any) -> None:
    with (
        closing(db.connect(running.dsn, role="headrace_intake")) as conn,
        closing(db.connect(running.dsn, role="headrace_learner")) as learning,
    ):
        standing = intake.standing(conn, running.stream, running.columns)
        standing.join.start(100)
        version = open_version(
            learning, running.stream, registry.version(learning, "small", "small-1"), running.columns, KEY, ENGINE, until=0
        )  # fmt: skip
        learning.commit()
        kept(running, greedy)
        with pytest.raises(ForgottenError, match=r"begins at seq \d+ by now, and was to be read from 101 on"):
            standing.follow(conn)
        with pytest.raises(ForgottenError, match="start again from the newest checkpoint"):
            log.read(learning, "small", running.columns, version.progressive.seq, 200)


def test_an_endpoint_that_was_stopped_for_long_begins_anew(running: Any, greedy: Stream, origin: Any) -> None:
    follower = Follower(running.dsn, lambda: running.stream, running.columns, KEY)
    with closing(db.connect(running.dsn, role="headrace_reader", autocommit=True)) as conn:
        while follower.step(conn):
            pass
        assert follower.serving is not None
        was = follower.serving.seq
        live(running, origin, 960, 24)
        assert kept(running, greedy).begins > was + 1
        while follower.step(conn):
            pass
        assert follower.serving is not None
        assert [(follower.serving.seq,)] == running.query("SELECT seq FROM headrace.intake_positions")


def test_idle_versions_keep_their_last_state_and_base(running: Any, greedy: Stream, conn: Any) -> None:
    slow = greedy.recipe("slow")
    assert slow is not None
    with db.transaction(conn):
        name = registry.add_version(conn, greedy, slow, ENGINE, first_seq=500, evidence_seq=500, status="retired")
        for seq in (499, *range(500, 1_000, 100)):
            state = checkpoints.last(conn, "small", "small-1")
            assert state is not None
            checkpoints.write(conn, "small", name, replace(state, seq=seq, epoch=seq))
        conn.cursor().execute("UPDATE headrace.versions SET status = status")
    running.query("UPDATE headrace.checkpoints SET created_at = now() - interval '40 days' WHERE version = %s", name)
    running.query("INSERT INTO headrace.artifacts VALUES ('small', %s, 'nobody', 'x')", name)
    done = kept(running, replace(greedy, policy=replace(greedy.policy, keep_bytes=None)))
    assert (done.checkpoints, done.artifacts) == (4, 1)
    seqs = running.query("SELECT seq FROM headrace.checkpoints WHERE version = %s ORDER BY 1", name)
    assert seqs == [(499,), (900,)]
    assert done.sentence.endswith("Let go of 4 checkpoints and 1 arrays of versions that nobody runs.")


def test_older_checkpoints_are_sparse(running: Any) -> None:
    """Eight dense, then the first of an hour for a day, of a day for a month."""
    with closing(db.connect(running.dsn, role="headrace_learner")) as conn, db.transaction(conn):
        state = checkpoints.last(conn, "small", "small-1")
        assert state is not None
        running.query("DELETE FROM headrace.checkpoints")
        insert = (
            "INSERT INTO headrace.checkpoints SELECT 'small', 'small-1', n, n, '', '', '', '{}', '', 0, 0, "
            "date_trunc('day', now()) - (2000 - n) * interval '20 minutes' FROM generate_series(1, 2000) AS n"
        )
        running.query(insert)
        checkpoints.write(conn, "small", "small-1", replace(state, seq=3_000, epoch=3_000))
    ((dense, hourly, daily, old),) = running.query(
        "SELECT count(*) FILTER (WHERE seq > 1992), count(*) FILTER (WHERE created_at > now() - interval '1 day' AND seq < 1993),"
        " count(*) FILTER (WHERE created_at BETWEEN now() - interval '30 days' AND now() - interval '1 day'),"
        " count(*) FILTER (WHERE created_at < now() - interval '30 days') FROM headrace.checkpoints"
    )
    assert (dense, old) == (8, 0)
    assert hourly <= 24
    assert 27 <= daily <= 30


def test_killed_in_between_it_has_done_a_part(
    running: Any, greedy: Stream, definitions: Path, tmp_path: Path, origin: Any
) -> None:
    streams = tmp_path / "streams"
    streams.mkdir()
    text = (definitions / "small.py").read_text().replace("challenger_slots=3", "challenger_slots=3, keep_bytes=1")
    (streams / "small.py").write_text(text)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"HEADRACE_DSN": running.dsn, "HEADRACE_HOME": str(tmp_path), "HEADRACE_STREAMS": str(streams)}
    argv = [sys.executable, "-P", "-m", "headrace", "housekeep", "small", "--json"]
    with closing(db.connect(running.dsn)) as reader, reader.cursor() as cursor:
        cursor.execute("LOCK TABLE small.labels_000002 IN ACCESS SHARE MODE")
        process = subprocess.Popen(argv, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while numbers(running)[0] < 2:
            assert time.monotonic() < deadline, "it drops what nobody reads"
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    assert numbers(running)[0] == 2
    assert running.query("SELECT array_agg(partition ORDER BY partition) FROM metrics.retention") == [([0, 1],)]
    sound(running)
    assert kept(running, greedy).dropped[0].partition == 2
    live(running, origin, 1_000, 2)
    sound(running)


def test_a_deployment_user_needs_the_role_that_owns_the_log(running: Any, greedy: Stream) -> None:
    running.query("CREATE ROLE deployment LOGIN IN ROLE headrace_steer")
    dsn = running.dsn.replace("postgres@", "deployment@")
    try:
        with closing(db.connect(dsn, role="headrace_steer")) as conn:
            with pytest.raises(psycopg2.errors.InsufficientPrivilege, match='set role "headrace_intake"'):
                housekeep(conn, greedy)
            running.query("GRANT headrace_intake TO deployment")
            assert housekeep(conn, greedy).dropped
    finally:
        running.query("DROP ROLE deployment")
    sound(running)


def test_a_stream_without_a_log_has_nothing_to_keep(registered: Any, greedy: Stream) -> None:
    conn = db.connect(registered.dsn, role="headrace_steer")
    with closing(conn), pytest.raises(BatchError, match="stream 'small' has no log yet"):
        housekeep(conn, greedy)


def test_a_version_that_comes_between_look_and_drop_is_seen(
    running: Any, greedy: Stream, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headrace.batch import housekeeping

    slow = greedy.recipe("slow")
    assert slow is not None

    def and_then(*arguments: Any) -> list[Part]:
        parts = plan(*arguments)
        conn.commit()
        with db.transaction(conn):
            registry.add_version(conn, greedy, slow, ENGINE, first_seq=30, evidence_seq=10_000, status="catching_up")
        return parts

    monkeypatch.setattr(housekeeping, "plan", and_then)
    done = housekeep(conn, greedy)
    assert done.dropped == ()
    assert "small-2 (catching_up) reads on from seq 30 when it starts again" in done.sentence
    assert 0 in numbers(running)


def test_events_that_a_late_reader_wants_back_may_be_gone(
    running: Any, greedy: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has read what was dropped, but keeps of an event less than its label needs: that is no broken model."""
    monkeypatch.setattr(progressive, "RECENT", 4)
    with closing(db.connect(running.dsn, role="headrace_steer")) as conn:
        end = next(part.seq_first for part in plan(conn, greedy) if not part.goes) - 1
    with closing(db.connect(running.dsn, role="headrace_learner")) as conn:
        known = registry.version(conn, "small", "small-1")
        late = open_version(conn, running.stream, known, running.columns, KEY, ENGINE, until=0).progressive
        for seq in range(20, end + 1, 20):
            list(read_on(conn, "small", running.columns, late, seq)[1])
        list(read_on(conn, "small", running.columns, late, end)[1])
        conn.commit()
        assert kept(running, greedy).begins == end + 1 == late.seq + 1
        with pytest.raises(ForgottenError, match="start again from the newest checkpoint"):
            read_on(conn, "small", running.columns, late, end + 300)
