"""The year of flights rebuilt by `ftrl` from the log in Postgres, beside river's pipeline that replays it in memory.

A server of its own, fsync on, gets the flights as an application's tables; intake's import makes the log, a learner learns it
once, and then the version is rebuilt: the log read by COPY, predicted, scored, learned, and every epoch's digest compared.
Its time is the CPU of this process and what passed on the wall, Postgres's share included. River's replay is that of
`tests.bench.models`: dicts that are there already, nothing scored.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.bench.flights import _FLIGHTS, log_of

from headrace.batch.history import import_history
from headrace.batch.rebuild import rebuild
from headrace.definition import recipes
from headrace.definition.load import load_file
from headrace.demo import flights, replay
from headrace.live.learner import Learner
from headrace.models.engine import engine
from headrace.store import db, leases, registry, source
from headrace.store.embedded import EmbeddedPostgres
from headrace.store.migrate import migrate
from headrace.store.state import open_version

_KEY = b"k" * 32
_RUNS = 3
_AFTER_ALL = datetime(2014, 2, 1, tzinfo=UTC)


def of_the_year(data: flights.Flights) -> dict[str, float]:
    """Seconds of a rebuild, medians, and how many labels it learned."""
    stream = dataclasses.replace(load_file(_FLIGHTS), champion=recipes.ftrl())
    name = f"{stream.name}-1"
    with tempfile.TemporaryDirectory(prefix="headrace-bench-", dir="/tmp") as home:
        Path(home).chmod(0o755)  # for root's sake: its server runs as another user
        with EmbeddedPostgres(Path(home)) as server:
            for database in ("flights", "headrace"):
                server.create_database(database)
            origin, platform = server.dsn("flights"), server.dsn("headrace")
            replay.prepare(origin, stream, data, _AFTER_ALL)
            migrate(platform)
            with closing(db.connect(origin)) as conn:
                columns = source.log_columns(conn, stream)
            with closing(db.connect(platform)) as conn, db.transaction(conn):
                registry.register(conn, stream, columns, engine())
            migrate(platform)
            with closing(db.connect(platform, role="headrace_intake")) as conn:
                lease = leases.take(conn, stream.name, "intake", timedelta(minutes=5))
                with leases.kept(platform, lease, "headrace_intake"):
                    import_history(conn, origin, stream, columns, lease, lambda *_: None)
            with closing(db.connect(platform, role="headrace_learner")) as conn:
                version = registry.version(conn, stream.name, name)
                learner = Learner(
                    conn, conn, stream, columns, lambda: open_version(conn, stream, version, columns, _KEY, engine())
                )
                learner.begin(leases.take(conn, stream.name, name, timedelta(minutes=5)))
                while learner.step():
                    pass
                learned = learner.live.learned
            spent = []
            with closing(db.connect(platform, role="headrace_steer")) as conn:
                for _ in range(_RUNS):
                    cpu, wall = time.process_time(), time.perf_counter()
                    done = rebuild(conn, stream, columns, name, engine(), _KEY)
                    spent.append((time.process_time() - cpu, time.perf_counter() - wall))
                    assert done.equal == done.epochs > 500, done.sentence
    cpus, walls = zip(*spent, strict=True)
    return {"labels": learned, "cpu_s": statistics.median(cpus), "wall_s": statistics.median(walls)}


def rebuilt_faster(data: flights.Flights, river_s: float, labels: int) -> dict[str, float]:
    """Rebuild the year, and say how many times faster it is than river, which took so many seconds for so many labels."""
    rebuilt = of_the_year(data)
    ratio = river_s / labels * rebuilt["labels"] / rebuilt["wall_s"]
    print(
        f"{int(rebuilt['labels']):,} labels rebuilt from Postgres in {rebuilt['wall_s']:.2f} s, {rebuilt['cpu_s']:.2f} s CPU"
    )
    print(f"river in memory {river_s:.2f} s of CPU: {ratio:.1f}x")
    return {**rebuilt, "river_s": round(river_s, 2), "ratio_rebuild": round(ratio, 1)}


def run() -> dict[str, Any]:
    """Run the benchmark and print its table."""
    from tests.bench.models import by_river

    data = flights.load()
    batch = log_of(data, int(data.departures["scheduled_at"].cast("int64").to_numpy()[0]))
    return rebuilt_faster(data, by_river(batch)[1], len(batch.y))
