"""What the machine does to a running stream: each fault ends in a named state that SQL shows, and the stream goes on."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
from psycopg2 import sql
from tests.conftest import TABLES, SmallSource, database_of
from tests.system.workers import Worker, wait_until
from tests.torture.cluster import Cluster

from headrace.store import source
from headrace.store.embedded import EmbeddedPostgres

_DISK = 48  # megabytes


def administer(server: EmbeddedPostgres, statement: str, *names: str) -> None:
    with closing(psycopg2.connect(server.dsn("postgres"))) as conn:
        conn.autocommit = True
        with conn.cursor() as cursor:
            cursor.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@pytest.fixture
def small_disk(server: EmbeddedPostgres) -> Iterator[Path]:
    """A tablespace on a disk of its own."""
    with tempfile.TemporaryDirectory(prefix="headrace-disk-", dir="/tmp") as home:
        Path(home).chmod(0o755)
        mount = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={_DISK}m,mode=0755", "tmpfs", home], capture_output=True, check=False
        )
        if mount.returncode:
            pytest.skip(f"this account may not mount a disk: {mount.stderr.decode().strip()}")
        try:
            disk = Path(home) / "postgres"
            disk.mkdir()
            owner = server.data.stat()
            os.chown(disk, owner.st_uid, owner.st_gid)
            administer(server, f"CREATE TABLESPACE small_disk LOCATION '{disk}'")
            yield Path(home)
            administer(server, "DROP TABLESPACE small_disk")
        finally:
            subprocess.run(["umount", "--lazy", home], check=False)


@contextmanager
def events_on(registered: Any, tablespace: str) -> Iterator[None]:
    """The log's events lie in a tablespace for a while."""
    ((partition,),) = registered.query(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'small.events'::regclass"
    )
    registered.query(f"ALTER TABLE {partition} SET TABLESPACE {tablespace}")
    yield
    registered.query(f"ALTER TABLE {partition} SET TABLESPACE pg_default")


def fill(disk: Path) -> Path:
    """Leave nothing of a disk; gives the file that does."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return filler


def states(registered: Any, *, now: bool = True) -> list[tuple[str, str]]:
    still = "WHERE closed_at IS NULL" if now else ""
    rows = registered.query(f"SELECT role, state FROM metrics.incidents {still} ORDER BY opened_at")
    return [(role, state) for role, state in rows]


def events(registered: Any) -> int:
    ((count,),) = registered.query("SELECT count(*) FROM small.events")
    return int(count)


def is_sound(registered: Any) -> None:
    for counts in registered.accounting().values():
        outcomes = ("events", "labels", "corrections", "held", "quarantined", "ignored")
        assert counts["received"] == sum(counts[n] for n in outcomes)
    assert registered.query("SELECT count(*) = count(DISTINCT key) FROM small.events") == [(True,)]


def test_a_kill_while_a_large_transaction_is_written_after_a_rest(
    registered: Any, origin: Any, start: Callable[..., Worker], database: Callable[..., str]
) -> None:
    """Keepalives named positions that nobody has stored: the slot must not get ahead of the log by them."""
    origin.add(*origin.rows(0, 50))
    registered.import_history(origin)
    other = database("other")
    with closing(psycopg2.connect(other)) as conn, conn, conn.cursor() as cursor:
        cursor.execute("CREATE TABLE noise (a text)")
    intake = start("intake", "small")
    slot = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'headrace_small'"
    began = origin.execute("SELECT pg_current_wal_lsn()")[0][0]
    make_noise(other)
    resting = "SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots WHERE slot_name = 'headrace_small'"
    wait_until(lambda: origin.execute(resting, began) == [(True,)], 30, "the slot rests where the other database wrote")
    with closing(psycopg2.connect(registered.dsn)) as blocker, blocker.cursor() as cursor:
        cursor.execute("LOCK TABLE small.quarantine IN ACCESS EXCLUSIVE MODE")  # what the write comes to in its middle
        make_noise(other)
        with closing(psycopg2.connect(origin.dsn)) as conn, conn, conn.cursor() as work:
            work.execute(
                "INSERT INTO visits SELECT i, '2020-03-02'::timestamptz + i * interval '1 s', 'a', 'p', 1 "
                "FROM generate_series(1000, 60000) AS i"
            )
            work.execute("INSERT INTO visits VALUES (60001, '2020-03-03', 'zz', 'p', 1)")
        blocked = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation = 'small.quarantine'::regclass"
        wait_until(lambda: registered.query(blocked) == [(True,)], 60, "the write is held up")
        ((confirmed,),) = origin.execute(slot)
        intake.process.kill()
        intake.process.wait(20)
        blocker.rollback()
    ((stored,),) = registered.query("SELECT lsn FROM headrace.intake_positions")
    assert source.lsn_number(confirmed) <= source.lsn_number(stored)
    start("intake", "small")
    wait_until(lambda: events(registered) == 50 + 59_001, 60, "it goes on by itself")
    assert states(registered) == []
    is_sound(registered)


def make_noise(dsn: str) -> None:
    """WAL that is none of the stream's, in many small commits."""
    with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        for _ in range(30):
            cursor.execute("INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 100)")
            conn.commit()


def test_a_full_disk(registered: Any, origin: Any, start: Callable[..., Worker], small_disk: Path) -> None:
    origin.add(*origin.rows(0, 50))
    registered.import_history(origin)
    with events_on(registered, "small_disk"):
        up = start("up", "small")
        wait_until(lambda: up.says("running small"), 30, "it runs")
        filler = fill(small_disk)
        origin.add(*origin.rows(50, 3_000))
        wait_until(lambda: ("intake", "disk_full") in states(registered), 60, "the state has a name")
        wait_until(lambda: up.says("a disk is full: could not extend file"), 30, "the log says it")
        assert events(registered) == 50
        filler.unlink()
        wait_until(lambda: events(registered) == 3_050, 60, "it goes on by itself")
        wait_until(lambda: not states(registered), 30, "all is well again")
        is_sound(registered)
        assert up.end() == 0
    assert not up.says("Traceback")


def test_a_full_disk_for_temporary_files(
    registered: Any, origin: Any, environment: dict[str, str], start: Callable[..., Worker], small_disk: Path
) -> None:
    origin.add(*origin.rows(0, 50))
    registered.import_history(origin)
    environment["TMPDIR"] = str(small_disk)
    up = start("up", "small")
    live = "SELECT 1 FROM headrace.worker_progress WHERE role = 'intake' AND phase = 'streaming'"
    wait_until(lambda: registered.query(live), 60, "it streams")
    filler = fill(small_disk)
    os.truncate(filler, filler.stat().st_size - 1_000_000)  # else Python would take another folder by itself
    origin.execute(
        "INSERT INTO visits SELECT g, '2020-03-01 02:00+00', 'a', repeat('x', 100000), 1 FROM generate_series(50, 149) AS g"
    )
    wait_until(lambda: ("intake", "disk_full") in states(registered, now=False), 60, "the state has a name")
    ((message,),) = registered.query("SELECT DISTINCT message FROM metrics.incidents WHERE state = 'disk_full'")
    assert message.startswith(
        "the disk for temporary files is full: [Errno 28] No space left on device; free some space"
    )
    filler.unlink()
    wait_until(lambda: events(registered) == 150, 60, "it goes on by itself")
    wait_until(lambda: not states(registered), 30, "all is well again")
    is_sound(registered)
    assert up.end() == 0
    assert not up.says("Traceback")


def test_a_lock_is_no_database_that_is_away(registered: Any, origin: Any, start: Callable[..., Worker]) -> None:
    origin.add(*origin.rows(0, 50))
    registered.import_history(origin)
    registered.query(f"ALTER DATABASE {database_of(registered.dsn)} SET lock_timeout = '300ms'")
    intake = start("intake", "small")
    live = "SELECT 1 FROM headrace.worker_progress WHERE role = 'intake' AND phase = 'streaming'"
    wait_until(lambda: registered.query(live), 60, "it streams")
    with closing(psycopg2.connect(registered.dsn)) as conn, conn.cursor() as cursor:
        cursor.execute("LOCK TABLE small.events IN ACCESS EXCLUSIVE MODE")
        origin.add(*origin.rows(50, 10))
        wait_until(lambda: states(registered), 30, "the state has a name")
    assert states(registered) == [("intake", "lock_not_available")]
    assert intake.process.wait(20) == 3
    assert intake.says("headrace: a database could not do what it was told: canceling statement due to lock timeout")


def learner(up: Worker, version: str) -> psutil.Process | None:
    for process in psutil.Process(up.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if version in process.cmdline():
                return process
    return None


def test_too_little_memory_for_a_learner(registered: Any, origin: Any, start: Callable[..., Worker]) -> None:
    origin.add(*origin.rows(0, 50))
    registered.import_history(origin)
    up = start("up", "small")
    live = "SELECT 1 FROM headrace.worker_progress WHERE role = 'small-1' AND phase = 'live'"
    wait_until(lambda: registered.query(live), 60, "it learns")
    process = learner(up, "small-1")
    assert process is not None
    process.rlimit(resource.RLIMIT_AS, (process.memory_info().vms + 4_000_000, resource.RLIM_INFINITY))
    origin.add(*origin.rows(50, 30_000))
    wait_until(lambda: ("small-1", "out_of_memory") in states(registered, now=False), 60, "the state has a name")
    through = (
        "SELECT done = (SELECT seq FROM headrace.intake_positions) FROM headrace.worker_progress WHERE role = 'small-1'"
    )
    wait_until(lambda: events(registered) == 30_050, 60, "the intake does not care")
    wait_until(lambda: registered.query(through) == [(True,)], 60, "the next process goes on")
    wait_until(lambda: not states(registered), 30, "all is well again")
    assert up.end() == 0
    assert not up.says("Traceback")


def test_a_learner_that_the_kernel_kills(registered: Any, origin: Any, start: Callable[..., Worker]) -> None:
    origin.add(*origin.rows(0, 50))
    registered.import_history(origin)
    up = start("up", "small")
    live = "SELECT 1 FROM headrace.worker_progress WHERE role = 'small-1' AND phase = 'live'"
    wait_until(lambda: registered.query(live), 60, "it learns")
    process = learner(up, "small-1")
    assert process is not None
    process.send_signal(signal.SIGKILL)
    wait_until(lambda: ("small-1", "killed") in states(registered, now=False), 30, "the state has a name")
    wait_until(lambda: not states(registered), 30, "all is well again")
    assert up.says("learn-small-1 ended with -9; it starts again in 0.2 s")


@pytest.fixture
def apart() -> Iterator[Cluster]:
    """A server for a source alone, behind a proxy."""
    with tempfile.TemporaryDirectory(prefix="headrace-apart-", dir="/tmp") as home:
        Path(home).chmod(0o755)
        cluster = Cluster("source", Path(home) / "source")
        try:
            yield cluster
        finally:
            cluster.close()


@pytest.fixture
def distant(registered: Any, apart: Cluster, environment: dict[str, str]) -> SmallSource:
    """A source on that server, with some history on the platform; workers reach it through the proxy."""
    made = SmallSource(apart.dsn("postgres"), registered.stream)
    made.execute(TABLES)
    made.execute("CREATE TABLE noise (a text)")
    made.execute(source.statements(registered.stream, role="postgres"))
    made.add(*made.rows(0, 50))
    registered.import_history(made)
    environment["HEADRACE_CONN_SMALL_DB"] = apart.proxy.dsn("postgres")
    return made


def test_a_source_that_restarts_while_others_write(
    registered: Any, apart: Cluster, distant: SmallSource, start: Callable[..., Worker]
) -> None:
    """It hears of its reader while others' WAL goes by that is not stored; what it was told is on disk when it starts again."""
    distant.execute("ALTER DATABASE postgres SET wal_sender_timeout = '8s'")
    intake = start("intake", "small")
    live = "SELECT 1 FROM headrace.worker_progress WHERE role = 'intake' AND phase = 'streaming'"
    wait_until(lambda: registered.query(live), 60, "it streams")
    with closing(psycopg2.connect(registered.dsn)) as first, closing(psycopg2.connect(registered.dsn)) as then:
        hold = "SELECT FROM headrace.intake_positions FOR UPDATE"
        first.cursor().execute(hold)
        wait_until(lambda: waiting(registered) == 1, 20, "the intake cannot store where it is")
        make_noise(apart.dsn("postgres"))
        second = threading.Thread(target=then.cursor().execute, args=[hold])
        second.start()
        wait_until(lambda: waiting(registered) == 2, 20, "a second one is in line")
        ((now,),) = distant.execute("SELECT clock_timestamp()")
        told = "SELECT 1 FROM pg_stat_replication WHERE reply_time > %s + interval '2.5 s'"
        wait_until(lambda: distant.execute(told, now), 20, "the source hears again and again that somebody reads")
        first.rollback()
        second.join()
        wait_until(lambda: waiting(registered) == 1, 20, "the intake has stored, read on, and cannot store the rest")
        not_ahead(registered, distant)
        apart.restart()
        not_ahead(registered, distant)
        then.rollback()
    assert intake.process.wait(30) == 3
    not_ahead(registered, distant)
    up = start("up", "small")
    distant.add(*distant.rows(50, 10))
    wait_until(lambda: events(registered) == 60, 60, "it goes on")
    assert {state for _, state in states(registered, now=False)} <= {"source_away"}
    wait_until(lambda: not states(registered), 30, "all is well again")
    is_sound(registered)
    assert up.end() == 0


def waiting(registered: Any) -> int:
    """Backends of the platform that wait for a lock."""
    ((count,),) = registered.query(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return int(count)


def not_ahead(registered: Any, origin: SmallSource) -> None:
    """The slot has confirmed nothing that is not stored."""
    slot = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'headrace_small'"
    ((confirmed,),), ((stored,),) = (
        origin.execute(slot),
        registered.query("SELECT lsn FROM headrace.intake_positions"),
    )
    assert source.lsn_number(confirmed) <= source.lsn_number(stored)


@pytest.mark.parametrize("quiet", ["both", "to client"])
def test_a_network_that_takes_everything_and_passes_nothing_on(
    registered: Any, apart: Cluster, distant: SmallSource, start: Callable[..., Worker], quiet: str
) -> None:
    """No TCP timeout notices it: the intake does, within the time that the source itself would wait."""
    distant.execute("ALTER DATABASE postgres SET wal_sender_timeout = '4s'")
    up = start("up", "small")
    live = "SELECT 1 FROM headrace.worker_progress WHERE role = 'intake' AND phase = 'streaming'"
    wait_until(lambda: registered.query(live), 60, "it streams")
    for direction in ("to client", "to server") if quiet == "both" else ("to client",):
        assert apart.proxy.silence(direction) > 0
    distant.add(*distant.rows(50, 10))
    wait_until(lambda: ("intake", "source_away") in states(registered, now=False), 20, "the state has a name")
    wait_until(lambda: events(registered) == 60, 60, "new connections work, so it goes on")
    wait_until(lambda: not states(registered), 30, "all is well again")
    is_sound(registered)
    assert up.end() == 0
    assert not up.says("Traceback")
