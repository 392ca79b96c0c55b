"""The registry and the leases: one registration, one champion, one writer; nobody wins by chance."""

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
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from tests.conftest import DEFINITION

from headrace.cli.run import register
from headrace.definition import expect
from headrace.errors import BatchError, DefinitionError, LeaseError, ServerError
from headrace.events import Engine
from headrace.settings import from_env
from headrace.store import db, leases, registry
from headrace.store.registry import Decision

ENGINE = Engine("test", "0" * 8, {"python": "any"})
LENGTH = timedelta(seconds=5)


@pytest.fixture
def conn(registered: Any) -> Iterator[Any]:
    with closing(db.connect(registered.dsn, role="headrace_steer")) as made:
        yield made


def add(conn: Any, stream: Any, status: str = "shadow") -> str:
    with db.transaction(conn):
        return registry.add_version(
            conn, stream, stream.recipe("slow"), ENGINE, first_seq=1, evidence_seq=1, status=status
        )


def promote(conn: Any, champion: str, challenger: str, verdict: str = "promote") -> int:
    with db.transaction(conn):
        decision = Decision(verdict, champion, challenger, f"{challenger} is better.", {"log_e": 9.0}, "compare")
        return registry.change_champion(conn, "small", decision)


def statuses(conn: Any) -> dict[str, str]:
    return {v.version: v.status for v in registry.versions(conn, "small")}


def move_log(registered: Any, seq: int) -> None:
    registered.query(
        "INSERT INTO headrace.intake_positions (stream, slot, system_identifier, timeline, publication, consistent_lsn, lsn, seq,"
        " epoch, epoch_seq_first, epoch_labels) VALUES ('small', 's', '1', 1, 'p', '0/0', '0/0', %s, 1, 1, 0)"
        " ON CONFLICT (stream) DO UPDATE SET seq = excluded.seq",
        seq,
    )


def check_serving(registered: Any) -> list[tuple[str, int, int | None]]:
    rows = registered.query(
        "SELECT version, seq_first, seq_last, during FROM headrace.serving_history ORDER BY decision_id"
    )
    assert rows[0][1] == 1
    assert [row[2] is None for row in rows] == [False] * (len(rows) - 1) + [True]
    for (_, _, last, until), (_, first, _, since) in pairwise(rows):
        assert first == last + 1
        assert until.upper == since.lower
    return [row[:3] for row in rows]


def test_a_stream_is_registered_with_its_log_and_first_champion(registered: Any, conn: Any) -> None:
    assert statuses(conn) == {"small-1": "champion"}
    assert registry.champion(conn, "small") == "small-1"
    assert check_serving(registered) == [("small-1", 1, None)]
    assert registry.columns_of(conn, "small") == registered.columns
    ((verdict, reason),) = registered.query("SELECT verdict, reason FROM metrics.decisions")
    assert (verdict, reason) == ("first", "river is the stream's first champion, as its definition says.")
    types = registered.query(
        "SELECT attname, atttypid::regtype::text, attnotnull FROM pg_attribute"
        " WHERE attrelid = 'small.events'::regclass AND attnum > 0 ORDER BY attnum"
    )
    assert types[:3] == [
        ("seq", "bigint", True),
        ("key", "bigint", False),  # an erased event has none
        ("event_time", "timestamp with time zone", True),
    ]
    assert [t[0] for t in types[3:]] == ["colour", "place", "size"]


def test_registering_again_is_quiet_and_a_change_is_refused(registered: Any) -> None:
    stream, columns = registered.stream, registered.columns
    with closing(db.connect(registered.dsn)) as conn:
        policy = replace(stream.policy, min_gain=0.02)
        with db.transaction(conn):
            assert registry.register(conn, replace(stream, policy=policy), columns, ENGINE) is False
        assert registered.query("SELECT definition #>> '{policy,min_gain}' FROM headrace.streams") == [("0.02",)]
        changed = replace(stream, contract=[expect.not_null("colour")])
        message = (
            f"the definition of 'small' has hash {changed.hash()}, the registered one {stream.hash()}: source, label"
        )
        with pytest.raises(DefinitionError, match=message):
            registry.register(conn, changed, columns, ENGINE)
        conn.rollback()
        with pytest.raises(DefinitionError, match=message):
            registry.registered(conn, changed)
        assert registry.registered(conn, stream) == columns


def test_two_register_at_once(platform: str, small: Any, registered: Any) -> None:
    with closing(db.connect(platform)) as conn, conn, conn.cursor() as cursor:
        cursor.execute("DROP SCHEMA small CASCADE")
        cursor.execute(
            "TRUNCATE headrace.streams, headrace.versions, headrace.serving_history, headrace.decisions CASCADE"
        )
    outcomes: list[Any] = []

    def once() -> None:
        try:
            with closing(db.connect(platform)) as conn, db.transaction(conn):
                outcomes.append(registry.register(conn, small, registered.columns, ENGINE))
        except BaseException as error:
            outcomes.append(error)

    threads = [threading.Thread(target=once) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False, False, False, True]


def test_unknown_names_say_what_to_do(conn: Any) -> None:
    with pytest.raises(BatchError, match="stream 'small' has no version 'small-9'; `headrace status` lists them"):
        registry.version(conn, "small", "small-9")
    with pytest.raises(BatchError, match="stream 'none' has no champion"):
        registry.champion(conn, "none")
    with pytest.raises(DefinitionError, match="stream 'none' is not registered on this platform"):
        registry.columns_of(conn, "none")


def test_promotion_probation_and_the_way_back(registered: Any, conn: Any) -> None:
    second, third = add(conn, registered.stream), add(conn, registered.stream)
    move_log(registered, 100)
    promote(conn, "small-1", second)
    assert statuses(conn) == {"small-1": "probation", second: "champion", third: "shadow"}
    move_log(registered, 150)
    promote(conn, second, "small-1", "rollback")
    assert statuses(conn) == {"small-1": "champion", second: "shadow", third: "shadow"}
    move_log(registered, 175)
    promote(conn, "small-1", third)
    move_log(registered, 200)
    promote(conn, third, second)
    assert statuses(conn) == {"small-1": "retired", second: "champion", third: "probation"}
    assert check_serving(registered) == [
        ("small-1", 1, 100), (second, 101, 150), ("small-1", 151, 175), (third, 176, 200), (second, 201, None)
    ]  # fmt: skip


def test_champions_may_change_while_the_log_stands_still(registered: Any, conn: Any) -> None:
    second = add(conn, registered.stream)
    promote(conn, "small-1", second)
    promote(conn, second, "small-1", "rollback")
    move_log(registered, 7)
    promote(conn, "small-1", second)
    promote(conn, second, "small-1", "rollback")
    assert check_serving(registered) == [
        ("small-1", 1, 0), (second, 1, 0), ("small-1", 1, 7), (second, 8, 7), ("small-1", 8, None)
    ]  # fmt: skip
    assert db.row(conn, "former_champion", {"stream": "small"}) == (second, 8, 7)


@pytest.mark.parametrize("status", ["candidate", "catching_up", "retired", "rejected"])
def test_only_a_running_version_can_serve(registered: Any, conn: Any, status: str) -> None:
    other = add(conn, registered.stream, status)
    with pytest.raises(BatchError, match=f"{other} is {status}, expected shadow or probation: it cannot serve"):
        promote(conn, "small-1", other)
    assert statuses(conn) == {"small-1": "champion", other: status}
    assert registered.query("SELECT count(*) FROM headrace.decisions") == [(1,)]


def test_of_two_decisions_at_once_one_wins(registered: Any, conn: Any) -> None:
    challengers = [add(conn, registered.stream) for _ in range(4)]
    outcomes: list[Any] = []
    start = threading.Barrier(4)

    def decide(challenger: str) -> None:
        with closing(db.connect(registered.dsn, role="headrace_steer")) as own:
            start.wait()
            try:
                outcomes.append(promote(own, "small-1", challenger))
            except BatchError as error:
                outcomes.append(str(error))

    threads = [threading.Thread(target=decide, args=(c,)) for c in challengers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [o for o in outcomes if isinstance(o, int)]
    lost = [o for o in outcomes if isinstance(o, str)]
    assert len(won) == 1
    champion = registry.champion(conn, "small")
    assert all(f"was decided against small-1, but {champion} serves by now; compare again" in text for text in lost)
    assert sorted(statuses(conn).values()) == ["champion", "probation", "shadow", "shadow", "shadow"]
    check_serving(registered)


def test_a_change_of_champion_closes_its_comparisons(registered: Any, conn: Any) -> None:
    second = add(conn, registered.stream)
    with db.transaction(conn):
        params = {
            "stream": "small",
            "champion": "small-1",
            "challenger": second,
            "rule": "promotion",
            "evidence_seq": 1,
        }
        first = db.row(conn, "open_comparison", params)
        assert db.row(conn, "open_comparison", params) == first, "an open one is found again"
    promote(conn, "small-1", second)
    assert registered.query("SELECT closed_at IS NOT NULL FROM headrace.comparisons") == [(True,)]


def test_a_status_changes_only_from_what_it_was(registered: Any, conn: Any) -> None:
    assert registry.set_status(conn, "small", "small-1", "retired", was=("shadow",)) is False
    assert statuses(conn) == {"small-1": "champion"}


def test_versions_get_numbers_of_their_own(registered: Any) -> None:
    made: list[str] = []

    def once() -> None:
        with closing(db.connect(registered.dsn, role="headrace_steer")) as own:
            made.append(add(own, registered.stream, "candidate"))

    threads = [threading.Thread(target=once) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [f"small-{n}" for n in range(2, 7)]


def test_a_role_has_one_holder(registered: Any) -> None:
    with closing(db.connect(registered.dsn, role="headrace_intake")) as one:
        lease = leases.take(one, "small", "intake", LENGTH)
        with closing(db.connect(registered.dsn, role="headrace_intake")) as two:
            message = (
                rf"the role 'intake' of stream 'small' is held by \S+:{os.getpid()} \(backend {one.info.backend_pid}\)"
            )
            with pytest.raises(LeaseError, match=message):
                leases.take(two, "small", "intake", LENGTH)
            other = leases.take(two, "small", "small-1", LENGTH)
            assert other.token == 1
        with db.transaction(one):
            lease.check(one)
    with closing(db.connect(registered.dsn, role="headrace_intake")) as three:
        deadline = time.monotonic() + 5
        while True:  # the server sees the end of a connection a moment later
            try:
                assert leases.take(three, "small", "intake", LENGTH).token == lease.token + 1
                return
            except LeaseError:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_a_killed_holder_frees_its_role(registered: Any) -> None:
    program = (
        "import sys, time\nfrom datetime import timedelta\nfrom headrace.store import db, leases\n"
        "conn = db.connect(sys.argv[1], role='headrace_intake')\n"
        "leases.take(conn, 'small', 'intake', timedelta(seconds=3600))\nprint('held', flush=True)\ntime.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, registered.dsn], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder.stdout, closing(db.connect(registered.dsn, role="headrace_intake")) as conn:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LeaseError, match=f":{holder.pid} "):
            leases.take(conn, "small", "intake", LENGTH)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        killed = time.monotonic()
        while True:
            try:
                leases.take(conn, "small", "intake", LENGTH)
                break
            except LeaseError:
                assert time.monotonic() < killed + 5, "whatever the lease's length says"
                time.sleep(0.01)


def test_a_role_that_comes_and_goes_is_waited_for(registered: Any) -> None:
    """A worker that cannot work takes its role and ends, again and again: whoever repairs it gets its turn."""
    with (
        closing(db.connect(registered.dsn, role="headrace_intake")) as waiting,
        closing(db.connect(registered.dsn, role="headrace_intake")) as failing,
    ):
        leases.take(failing, "small", "intake", LENGTH)
        with pytest.raises(LeaseError, match="stop that one first"):
            leases.take(waiting, "small", "intake", LENGTH, patience=timedelta(seconds=0.05))
        threading.Timer(0.3, failing.close).start()
        assert leases.take(waiting, "small", "intake", LENGTH, patience=timedelta(seconds=5)).token == 2


def test_attempts_that_come_to_nothing_are_one_failover(registered: Any) -> None:
    for number in range(4):
        with closing(db.connect(registered.dsn, role="headrace_intake")) as conn:
            lease = leases.take(conn, "small", "intake", LENGTH, patience=timedelta(seconds=5))
            if number in (0, 3):
                lease.ready(conn)
    rows = registered.query("SELECT token, ready_at IS NOT NULL FROM headrace.failovers")
    assert rows == [(4, True)], "three tries to take over from the first one, and the third worked"


def test_a_holder_whose_work_is_stuck_is_silent(registered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread could renew for ever: whoever stands by takes over."""
    monkeypatch.setattr(leases, "_STUCK", 0.5)
    short = timedelta(seconds=0.2)
    with (
        closing(db.connect(registered.dsn, role="headrace_intake")) as conn,
        closing(db.connect(registered.dsn, role="headrace_intake")) as other,
    ):
        lease = leases.take(conn, "small", "intake", short)
        with leases.kept(registered.dsn, lease, "headrace_intake"):
            silence = leases.Silence(other, registered.dsn, "small", "intake", 0.1)
            assert not silent(silence, lambda: None, 1.0), "work that gives no signs yet"
            assert not silent(silence, lease.pulse.beat, 1.0)
            assert silent(silence, lambda: None, 5.0)
        taken = leases.try_take(other, "small", "intake", short, silent=True)
        assert taken is not None and taken.token == lease.token + 1


def silent(silence: leases.Silence, meanwhile: Callable[[], None], seconds: float) -> bool:
    """Whether a holder is found silent within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        meanwhile()
        if silence.look():
            return True
        time.sleep(0.1)
    return False


def test_a_server_that_does_not_answer_in_time(registered: Any) -> None:
    with closing(db.connect(registered.dsn, autocommit=True)) as conn, conn.cursor() as cursor:
        with db.answering(conn, 5.0):
            cursor.execute("SELECT pg_sleep(0.01)")
        cursor.execute("SELECT 1")
        with pytest.raises(psycopg2.OperationalError, match="closed the connection"), db.answering(conn, 0.1):
            cursor.execute("SELECT pg_sleep(60)")


def test_who_lost_a_role_writes_nothing(registered: Any) -> None:
    """The lock alone would not do: a holder can lose it without noticing, as behind a pooler."""
    with closing(db.connect(registered.dsn, role="headrace_intake")) as old:
        lease = leases.take(old, "small", "intake", LENGTH)
        with old.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock_all()")
        old.commit()
        with closing(db.connect(registered.dsn, role="headrace_intake")) as new:
            newer = leases.take(new, "small", "intake", LENGTH)

            def write() -> None:
                with db.transaction(old), old.cursor() as cursor:
                    cursor.execute("INSERT INTO headrace.accounting (stream, origin) VALUES ('small', 'stream')")
                    lease.check(old)

            with pytest.raises(
                LeaseError, match="lost the role 'intake' of stream 'small' to another process; nothing"
            ):
                write()
            with db.transaction(new):
                newer.check(new)
    assert registered.accounting() == {}


def test_roles_and_dsns_that_do_not_work_say_so(registered: Any, server: Any) -> None:
    registered.query("DO $$ BEGIN CREATE ROLE outsider LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    dsn = psycopg2.extensions.make_dsn(registered.dsn, user="outsider")
    with pytest.raises(
        ServerError, match=r"cannot take role headrace_intake on outsider@.*run `headrace migrate` as the owner"
    ):
        db.connect(dsn, role="headrace_intake")


WEIGHTLESS = """def logistic() -> Any:
    from river import compose, naive_bayes

    return compose.SelectType(int, float) | naive_bayes.GaussianNB()
"""


def test_a_stream_is_registered_once_its_recipes_were_tried(platform: str, origin: Any, tmp_path: Path) -> None:
    """The weights of `reweight` are lost on this pipeline: found before there is a log, in a process of its own."""
    kept, _, rest = DEFINITION.partition("def logistic() -> Any:")
    weightless = kept + WEIGHTLESS + rest[rest.index("\n\n\ndef slow()") :]
    assert "on_late" not in weightless
    (tmp_path / "small.py").write_text(
        weightless.replace('if_missing="drop"', 'if_missing="negative", on_late="reweight"')
    )
    named = {"HEADRACE_CONN_SMALL_DB": origin.dsn, "HEADRACE_STREAMS": str(tmp_path), "HEADRACE_HOME": str(tmp_path)}
    settings = from_env(os.environ | named)
    with pytest.raises(DefinitionError) as refused:
        register(settings, platform, ["small"])
    assert str(refused.value).startswith(
        "stream 'small' was not registered: recipe 'river': found a classifier that learns the same whatever a label weighs"
    )
    with closing(db.connect(platform)) as conn:
        assert db.rows(conn, "list_streams") == []
    (tmp_path / "small.py").write_text(weightless)
    assert register(settings, platform, ["small"]) == ["small"]
    with closing(db.connect(platform)) as conn:
        assert db.rows(conn, "list_streams") == [("small",)]
