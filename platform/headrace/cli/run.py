"""Commands that run processes: up, down, intake, resync, learn, migrate, demo."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection

from headrace.cli.common import platform, show_json, stream_of, until_signalled
from headrace.definition.load import load_folder
from headrace.definition.stream import Stream
from headrace.errors import DefinitionError, DivergedError, HeadraceError, LeaseError, ServerError, SourceError
from headrace.settings import Settings, connection, signing_key
from headrace.store import db, leases, log, registry, source

logger = logging.getLogger(__name__)


def add_commands(commands: Any) -> None:
    """Add this module's commands to the command line."""
    demo = commands.add_parser("demo", help="the whole product on a year of flights; Ctrl-C stops everything")
    demo.add_argument(
        "--speed",
        type=float,
        default=28_800.0,
        metavar="N",
        help="seconds of 2013 per second; 50 days in 150 s by default",
    )
    demo.add_argument(
        "--until-promotion", action="store_true", help="end at the first promotion by a scheduled compare run"
    )
    demo.add_argument("--json", type=Path, metavar="FILE", help="write a summary at the end")
    demo.add_argument("--port", type=int, metavar="N", help="port of Airflow's web UI; a free one by default")
    demo.set_defaults(run=run_demo)
    up = commands.add_parser("up", help="run every stream's intake and learners until stopped")
    up.add_argument("streams", nargs="*", help="streams to run; all that are defined when none is named")
    up.set_defaults(run=run_up)
    down = commands.add_parser("down", help="stop what `headrace up` runs")
    down.set_defaults(run=run_down)
    move = commands.add_parser("migrate", help="bring the platform's database to this release's schema")
    move.add_argument("--json", action="store_true", help="print the result as JSON")
    move.set_defaults(run=run_migrate)
    intake = commands.add_parser("intake", help="import a stream's history once, then follow its changes")
    intake.add_argument("stream")
    intake.set_defaults(run=run_intake)
    again = commands.add_parser(
        "resync",
        help="after a lost slot, a restored platform or a failover: bring in what the log lacks, make a new slot",
    )
    again.add_argument("stream")
    again.add_argument("--json", action="store_true", help="print the result as JSON")
    again.set_defaults(run=run_resync)
    learn = commands.add_parser("learn", help="run one version's learner")
    learn.add_argument("stream")
    learn.add_argument("version")
    learn.add_argument(
        "--until-caught-up", action="store_true", help="end at the log's end instead of waiting for more"
    )
    learn.add_argument(
        "--batch", type=int, default=0, metavar="N", help="entries read at a time; any number learns the same"
    )
    learn.set_defaults(run=run_learn)


def run_demo(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace demo`"""
    from headrace.cli import demo

    return demo.run_demo(settings, arguments)


def run_migrate(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace migrate`"""
    from headrace.store.migrate import migrate

    with platform(settings) as dsn:
        done = migrate(dsn)
    if arguments.json:
        show_json(vars(done))
    elif done.before == done.after and not done.views:
        print(f"the schema is at {done.after}: nothing to do")
    else:
        print(f"migrated from {done.before or 'nothing'} to {done.after}, {done.views} views written")
    return 0


def register(settings: Settings, dsn: str, names: list[str]) -> list[str]:
    """Register streams that are new, once their recipes were tried; gives the names of all that were asked for.

    Raises
    ------
    DefinitionError
        When a recipe breaks the model contract on rows that the stream's contract allows.
    """
    from headrace.models.engine import engine
    from headrace.store.migrate import migrate

    streams = load_folder(settings.streams)
    wanted = [stream_of(settings, name) for name in names] if names else list(streams.values())
    for stream in wanted:
        with closing(
            db.connect(connection(settings, stream.source.conn_id), application="headrace register")
        ) as origin:
            columns = source.log_columns(origin, stream)
        with closing(db.connect(dsn)) as conn:
            new = db.row(conn, "get_stream", {"stream": stream.name}) is None
        if new:
            _try(settings, dsn, stream)
        with closing(db.connect(dsn)) as conn, db.transaction(conn):
            if registry.register(conn, stream, columns, engine()):
                logger.info(
                    "registered stream %s: %d log columns, first champion %s-1", stream.name, len(columns), stream.name
                )
    migrate(dsn)  # the views name every stream
    return [stream.name for stream in wanted]


def _try(settings: Settings, dsn: str, stream: Stream) -> None:
    """Models are built in processes of their own: this one's hash seed is not fixed, and it stays small."""
    from headrace.live.supervisor import command, environment

    argv, variables = command("try", stream.name), environment(settings, dsn)
    done = subprocess.run(argv, env=variables, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        raise DefinitionError(f"stream {stream.name!r} was not registered: {said[-1].removeprefix('headrace: ')}")


def run_up(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace up`"""
    from headrace.live.guard import Guard
    from headrace.live.supervisor import Supervisor
    from headrace.store.migrate import migrate

    stop = until_signalled()
    pidfile = settings.home / "up.pid"
    settings.home.mkdir(parents=True, exist_ok=True)
    with platform(settings) as dsn:
        migrate(dsn)
        names = register(settings, dsn, arguments.streams)
        pidfile.write_text(str(os.getpid()))
        try:
            logger.info("running %s; stop with Ctrl-C or `headrace down`", ", ".join(names) or "no stream")
            streams = [stream_of(settings, name) for name in names]
            guard = Guard(dsn, [(stream, connection(settings, stream.source.conn_id)) for stream in streams])
            guard.start()
            Supervisor(settings, dsn, names).run(stop)
            guard.end()
        finally:
            pidfile.unlink(missing_ok=True)
    return 0


def run_down(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace down`"""
    pidfile = settings.home / "up.pid"
    if not pidfile.exists():
        print("nothing runs here")
        return 0
    pid = int(pidfile.read_text())
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pidfile.unlink(missing_ok=True)
        print("nothing runs here; `headrace up` was killed, and its processes ended with it")
        return 0
    for _ in range(300):
        if not pidfile.exists():
            print("stopped")
            return 0
        time.sleep(0.1)
    raise ServerError(f"`headrace up` (pid {pid}) did not stop within 30 s; see {settings.home / 'logs'}")


@contextmanager
def _noted(dsn: str, conn: Connection, stream: str, role: str) -> Iterator[None]:
    """While a worker fails, its state is an open incident that `headrace status` and SQL show.

    A role that was lost to another process is no incident: it is at work, and metrics.failovers tells.
    """
    try:
        with _named(dsn, conn, stream, role):
            yield
    except LeaseError:
        raise
    except HeadraceError as error:
        # When this cannot be told either, the next attempt tries again: the worker is started until it works.
        told = suppress(ServerError, psycopg2.Error, MemoryError)
        with told, closing(db.connect(dsn, role="headrace_learner", autocommit=True)) as noting:
            params = {"stream": stream, "role": role, "state": error.state, "message": str(error)}
            if isinstance(error, DivergedError):
                db.run(noting, "open_divergence", {**params, "version": error.version, "epoch": error.epoch})
            else:
                db.run(noting, "open_incident", params)
        raise


@contextmanager
def _named(dsn: str, conn: Connection, stream: str, role: str) -> Iterator[None]:
    """What psycopg2 and the machine say becomes an error of ours with a state: a broken connection, a full disk, a lock."""
    try:
        yield
    except psycopg2.Error as error:
        state = db.state_of(error)
        if state is None:
            raise
        if state == "disk_full":
            message = f"a disk is full: {_line(error)}; free some space, it goes on by itself"
        elif state != db.AWAY:
            message = f"a database could not do what it was told: {_line(error)}"
        elif lost := _lost(dsn, stream, role):
            raise lost from error
        elif not conn.closed and role == "intake":
            raise SourceError(f"the source's database went away: {_line(error)}", state="source_away") from error
        else:
            state, message = "platform_away", f"the platform's database went away: {_line(error)}"
        raise ServerError(message, state=state) from error
    except SourceError as error:
        if lost := _lost(dsn, stream, role):  # who takes a role over ends the connections of who had it
            raise lost from error
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ServerError(
            f"the disk for temporary files is full: {_line(error)}; free some space, or point TMPDIR to a larger one",
            state="disk_full",
        ) from error
    except MemoryError as error:
        raise ServerError(
            "out of memory; give the process more, or the version less to remember", state="out_of_memory"
        ) from error


def _lost(dsn: str, stream: str, role: str) -> LeaseError | None:
    """The error of who has lost its role to another process."""
    with suppress(ServerError), closing(db.connect(dsn, autocommit=True)) as conn:
        held = db.row(conn, "who_holds", {"stream": stream, "role": role})
        if held is not None and held[0] != leases.holder():
            return LeaseError(
                f"lost the role {role!r} of stream {stream!r} to {held[0]}: this process was silent for too long"
            )
    return None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def run_intake(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace intake`"""
    stop = until_signalled()
    stream = stream_of(settings, arguments.stream)
    application = f"headrace intake {stream.name}"
    with (
        platform(settings) as dsn,
        closing(db.connect(dsn, role="headrace_intake", application=application)) as conn,
        _noted(dsn, conn, stream.name, "intake"),
    ):
        _intake(settings, dsn, conn, stream, stop)
    return 0


def _intake(settings: Settings, dsn: str, conn: Connection, stream: Stream, stop: Callable[[], bool]) -> None:
    from headrace.batch.history import import_history
    from headrace.cli.progress import Reporter
    from headrace.live import intake
    from headrace.live.standby import stand_by

    origin = connection(settings, stream.source.conn_id)
    columns = registry.registered(conn, stream)
    known = intake.standing(conn, stream, columns)
    lease = leases.try_take(conn, stream.name, "intake", settings.lease)
    if lease is None:
        follow = partial(known.follow, conn)
        lease = stand_by(conn, dsn, stream.name, "intake", settings.lease, follow, stop)
    if lease is None:
        return
    with leases.kept(dsn, lease, "headrace_intake"):
        if log.position(conn, stream.name) is None:
            conn.commit()
            with Reporter(dsn, stream.name) as progress:
                done = import_history(conn, origin, stream, columns, lease, progress)
            logger.info(
                "imported %d events and %d labels; %d rows in quarantine, %d labels held",
                done.events,
                done.labels,
                done.quarantined,
                done.held,
            )
        intake.run(conn, origin, known, lease, stop)


def run_resync(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace resync`"""
    from headrace.batch.resync import resync
    from headrace.cli.progress import Reporter

    stream = stream_of(settings, arguments.stream)
    origin = connection(settings, stream.source.conn_id)
    application = f"headrace resync {stream.name}"
    with (
        platform(settings) as dsn,
        closing(db.connect(dsn, role="headrace_intake", application=application)) as conn,
        Reporter(dsn, stream.name) as progress,
        _named(dsn, conn, stream.name, "intake"),
    ):
        columns = registry.registered(conn, stream)
        lease = leases.take(conn, stream.name, "intake", settings.lease, patience=settings.lease)
        with leases.kept(dsn, lease, "headrace_intake"):
            done = resync(conn, origin, stream, columns, lease, progress)
    if arguments.json:
        show_json(vars(done) | {"sentence": done.sentence})
    else:
        print(done.sentence)
    return 0


def run_learn(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace learn`"""
    stop = until_signalled()
    stream = stream_of(settings, arguments.stream)
    application = f"headrace learn {arguments.version}"
    with (
        platform(settings) as dsn,
        closing(db.connect(dsn, role="headrace_learner", application=application)) as conn,
        closing(db.connect(dsn, role="headrace_learner", application=f"{application}: the log")) as reads,
        _noted(dsn, conn, stream.name, arguments.version),
    ):
        _learn(settings, arguments, dsn, conn, reads, stream, stop)
    return 0


def _learn(
    settings: Settings,
    arguments: argparse.Namespace,
    dsn: str,
    conn: Connection,
    reads: Connection,
    stream: Stream,
    stop: Callable[[], bool],
) -> None:
    from headrace.live import learner
    from headrace.live.standby import stand_by
    from headrace.models.engine import engine
    from headrace.store.state import open_version

    columns = registry.registered(conn, stream)
    version = registry.version(conn, stream.name, arguments.version)
    batch = arguments.batch or learner.BATCH
    opened = partial(open_version, conn, stream, version, columns, signing_key(settings), engine())
    loop = learner.Learner(conn, reads, stream, columns, opened, batch)
    lease = leases.try_take(conn, stream.name, version.version, settings.lease)
    if lease is None:
        lease = stand_by(conn, dsn, stream.name, version.version, settings.lease, loop.follow, stop)
    if lease is None:
        return
    with leases.kept(dsn, lease, "headrace_learner"):
        loop.begin(lease)
        if arguments.until_caught_up:
            while loop.step():
                pass
            loop.report()
        else:
            learner.run(loop, stop)
