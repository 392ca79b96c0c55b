"""The learner: one process per version that reads the log in order and keeps checkpoint, metrics and position in step.

Woken by NOTIFY, with a slow poll beside it. It computes nothing of its own: `headrace.flow.progressive` does, and this
loop moves data. Checkpoints fall on epoch ends, at most one a second while it catches up; each is one transaction with
the metrics of all epochs since the last one, so a kill -9 at any point is as if the work since then was never done. They
are written by a thread, on the connection that holds the lease; the log is read on another one.
"""

from __future__ import annotations

import logging
import resource
import select
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any

from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from headrace.definition.stream import Stream
from headrace.errors import ModelError
from headrace.events import LogColumn
from headrace.flow.progressive import EpochScore
from headrace.live.witness import Witness
from headrace.store import checkpoints, db, log, registry
from headrace.store.checkpoints import Checkpoint, EpochCost
from headrace.store.leases import Lease
from headrace.store.state import Live, read_on

logger = logging.getLogger(__name__)

BATCH = 20_000  # entries read at a time while catching up
_CHECKPOINT_SECONDS = 1.0
_REPORT_SECONDS, _LATE_SECONDS = 0.5, 5.0  # between two reports, and after which one waits for a checkpoint
_QUIET_SECONDS = 0.1  # after which it counts as if nothing follows
_REST, _SHORT_REST = 0.05, 0.004  # seconds after a step: of a version that nobody asks, and at most of the champion
_EDGE_SECONDS = 0.5  # who reads all that the log has in less is at its edge


class Aside:
    """A thread for one job at a time; what a job raises is raised for whoever gave it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "aside")
        self._job: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether the job that was given last still runs; raises what it raised, once it has ended."""
        if self._job is None or not self._job.done():
            return self._job is not None
        self.settle()
        return False

    def give(self, job: Callable[[], None]) -> None:
        """Have a job done when the last one is."""
        self.settle()
        self._job = self._thread.submit(job)

    def settle(self) -> None:
        """Wait until nothing is left to do."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def close(self) -> None:
        """End the thread when its job has ended."""
        self._thread.shutdown()
        if self._job is not None and (error := self._job.exception()) is not None:
            logger.warning("what was being written failed as well: %s", error)


@dataclass
class Learner:
    """The loop's own state.

    Parameters
    ----------
    conn
        The platform's database, as role headrace_learner; the lease is held on it, and all is written on it.
    reads
        The same, for the log; may be the same connection as long as nothing is written aside.
    opened
        Opens the version at its newest checkpoint.
    batch
        Entries read at a time; any number gives the same digests.
    """

    conn: Connection
    reads: Connection
    stream: Stream
    columns: tuple[LogColumn, ...]
    opened: Callable[[], Live]
    batch: int = BATCH
    caught_up: bool = False
    lease: Lease | None = None  # None: it stands by, and writes nothing
    status: str = ""  # of the version, when it was reported last
    kept: Checkpoint | None = None  # that is not written yet
    live: Live = field(init=False)
    _pending: list[tuple[EpochScore, EpochCost]] = field(init=False)
    _witness: Witness = field(init=False)
    _written: float = 0.0
    _cpu: float = field(default_factory=time.process_time)
    _rate: float = 0.0
    _through: datetime | None = None
    _aside: Aside | None = None

    def __post_init__(self) -> None:
        self._open()

    def _open(self) -> None:
        self.live, self._pending, self.kept = self.opened(), [], None
        self._witness = Witness(self.stream.name, self.live.version.version, self.live.engine.id)

    def begin(self, lease: Lease) -> None:
        """Write for the role from now on, after every epoch that its former holder made durable.

        Epochs that ended here but are not stored are stored now, if the last of them ended at the log's edge, where its state
        was kept; else they are learned again, since a state within an epoch cannot be a checkpoint.

        Raises
        ------
        DivergedError
            As `follow`.
        """
        self._compare()
        newest = db.row(self.conn, "newest_checkpoint", {"stream": self.stream.name, "version": lease.role})
        kept = self.kept is not None and self._pending and self.kept.epoch == self._pending[-1][0].epoch.epoch
        if (self._pending and not kept) or (newest is not None and not self._goes_on(*newest)):
            self._open()
        with db.transaction(self.conn):
            db.run(self.conn, "close_incidents", {"stream": self.stream.name, "role": lease.role})
        self.lease = lease
        if self._pending:
            self.write_kept()
        self.kept = None  # what the former holder has stored by now
        lease.ready(self.conn)

    def _goes_on(self, seq: int, engine: str) -> bool:
        """Whether the state here is the one that goes on after a checkpoint.

        After one of another engine it is not, however far it is: a chain of digests begins where its engine does.
        """
        return seq <= self.live.progressive.seq and engine == self.live.engine.id and self._witness.comparable

    def follow(self) -> int:
        """Stand by: learn what the log has, as the holder does; gives the seq reached, or -1 when the version is retired.

        Raises
        ------
        DivergedError
            When the holder stored another digest for an epoch than was computed here, on the same engine.
        """
        name = self.live.version.version
        if registry.version(self.conn, self.stream.name, name).status in ("retired", "rejected"):
            self.conn.commit()
            return -1
        self.step()
        self._compare()
        return self.live.progressive.seq

    def _compare(self) -> None:
        """Forget epochs that the holder has stored, if they are what was learned here."""
        self._witness.compare(self.conn)
        self.conn.commit()
        self._pending = [(score, cost) for score, cost in self._pending if score.epoch.epoch > self._witness.stored]

    def step(self, edge: log.Edge | None = None) -> bool:
        """Read and learn what the log has, one batch at most; False when there was nothing.

        Parameters
        ----------
        edge
            Where the log ends, as far as it is known already.
        """
        edge = edge or log.Edge.asked(self.reads, self.stream.name)
        at = self.live.progressive
        if edge is None or at.seq >= edge.seq:
            self.caught_up = edge is not None
            if self._aside is None or self._due():
                self.write_kept()
            return False
        started, before = time.monotonic(), at.seq
        upto = min(at.seq + self.batch, edge.seq)
        batch, scores = read_on(self.reads, self.stream.name, self.columns, at, upto, states=False)
        self.reads.commit()
        ended = list(islice(scores, len(batch.epochs)))  # to the last one's end, where the state may be asked for
        if ended:
            self._end(ended, at_edge=edge.epoch == ended[-1].epoch.epoch + 1)
        if self._due():
            self.write_kept()
        beyond = next(scores, None)  # learns what is left of the batch
        assert beyond is None
        self._through = batch.received_through
        seconds = time.monotonic() - started
        self._rate = (at.seq - before) / max(seconds, 1e-6)
        if upto == edge.seq and seconds < _EDGE_SECONDS:
            self.caught_up = True
        elif edge.seq - at.seq > 2 * self.batch:
            self.caught_up = False
        return True

    def _end(self, scores: list[EpochScore], *, at_edge: bool) -> None:
        """Epochs that were learned in one go: note what they cost, and take a checkpoint when it will be written."""
        self._pending += zip(scores, self._costs(scores), strict=True)
        if self.lease is None:
            self._witness.saw(scores)
        self.live.learned += sum(score.learned for score in scores)
        if at_edge or self._due():
            self.kept = None  # before another state is made
            self.kept = self.live.checkpoint(scores[-1].epoch.epoch)

    def _due(self) -> bool:
        """Whether a checkpoint should be written though more entries come."""
        busy = self.lease is None or (self._aside is not None and self._aside.busy)
        return time.monotonic() - self._written > _CHECKPOINT_SECONDS and not busy

    @contextmanager
    def aside(self) -> Iterator[Aside]:
        """While the block runs, checkpoints and reports are written by a thread; at its end all of them are."""
        self._aside = Aside()
        try:
            try:
                yield self._aside
            except ModelError:  # an entry that it cannot learn: what it learned before is durable all the same
                self.write_kept()
                raise
            self.write_kept()
            self._aside.settle()
        finally:
            self._aside.close()
            self._aside = None

    def _do(self, job: Callable[[], None]) -> None:
        job() if self._aside is None else self._aside.give(job)

    def write_kept(self) -> None:
        """Have the last checkpoint written that was taken, with the metrics up to it, in one transaction.

        One at the log's edge is taken in case nothing follows: it is written when nothing does, or when it is time. A standby
        keeps it.
        """
        if self.kept is None or self.lease is None:
            return
        checkpoint, self.kept = self.kept, None
        count = sum(score.epoch.epoch <= checkpoint.epoch for score, _ in self._pending)
        self._do(partial(self._store, self.lease, self._pending[:count], checkpoint))
        self._pending, self._written = self._pending[count:], time.monotonic()

    def _store(self, lease: Lease, scores: list[tuple[EpochScore, EpochCost]], checkpoint: Checkpoint) -> None:
        with db.transaction(self.conn):
            lease.check(self.conn)
            checkpoints.write_metrics(self.conn, self.stream.name, lease.role, checkpoint.engine, scores)
            checkpoints.write(self.conn, self.stream.name, lease.role, checkpoint)

    def report(self) -> None:
        """Have people told where this version is; `status` is what it should be by then."""
        params = {
            "stream": self.stream.name,
            "role": self.live.version.version,
            "phase": "live" if self.caught_up else "catching up",
            "done": self.live.progressive.seq,
            "per_second": self._rate,
            "received_through": self._through,
        }
        assert self.lease is not None  # a standby reports by itself
        self._do(partial(self._tell, self.lease, params, caught_up=self.caught_up))

    def _tell(self, lease: Lease, params: dict[str, Any], *, caught_up: bool) -> None:
        position = log.position(self.conn, self.stream.name)
        at, goal = params["done"], position.seq if position else 0
        message = "live" if caught_up else _eta(goal - at, params["per_second"])
        with db.transaction(self.conn):
            lease.check(self.conn)
            db.run(self.conn, "report_progress", {**params, "goal": goal, "message": message})
            status = registry.version(self.conn, self.stream.name, lease.role).status
            if status == "catching_up" and caught_up:
                registry.set_status(self.conn, self.stream.name, lease.role, "shadow", was=("catching_up",))
                logger.info("%s has caught up at seq %d: in shadow from now on", lease.role, at)
        self.status = status

    def _costs(self, scores: list[EpochScore]) -> list[EpochCost]:
        """What each epoch cost, by its labels: they were learned together."""
        before, self._cpu = self._cpu, time.process_time()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        mode = "live" if self.caught_up else "replay"
        labels = [score.learned + 1 for score in scores]
        return [EpochCost((self._cpu - before) * n / sum(labels), peak, mode) for n in labels]


def _eta(entries: int, per_second: float) -> str:
    """How long the rest takes.

    >>> _eta(90_000, 3_000.0)
    '90,000 entries behind, caught up in about 30 s'
    """
    if per_second <= 0:
        return f"{entries:,} entries behind"
    return f"{entries:,} entries behind, caught up in about {entries / per_second:.0f} s"


def run(learner: Learner, stop: Callable[[], bool]) -> None:
    """Learn until `stop` says so, or the version is retired.

    Raises
    ------
    LeaseError
        When another process took the version over.
    """
    conn, reported, name = learner.reads, 0.0, learner.live.version.version
    with conn.cursor() as cursor:
        cursor.execute(sql.SQL("LISTEN {}").format(sql.Identifier(f"headrace_{learner.stream.name}")))
    conn.commit()
    logger.info("%s learns from seq %d on", name, learner.live.progressive.seq + 1)
    edge, unsure = None, True
    with learner.aside() as aside:
        while not stop():
            told, unsure = log.Edge.told(conn, learner.stream.name), unsure or bool(conn.notifies)
            conn.notifies.clear()  # before the look at the log: what is notified during it must wake us again
            if told is not None or unsure:
                edge, unsure = told or log.Edge.asked(conn, learner.stream.name), False
            overdue = time.monotonic() - reported
            if overdue > _LATE_SECONDS or (overdue > _REPORT_SECONDS and not aside.busy):
                learner.report()
                reported = time.monotonic()
            began, worked = time.monotonic(), edge is not None and learner.step(edge)
            if learner.status in ("retired", "rejected"):
                logger.info("%s was retired: it learns no more", name)
                return
            conn.poll()  # what came while the log was read is with libpq already: no `select` would wake for it
            if worked and learner.caught_up:  # entries come together meanwhile
                champion = learner.status == "champion"
                time.sleep(min(time.monotonic() - began, _SHORT_REST) if champion else _REST)
                conn.poll()
            elif not worked and not conn.notifies:
                quiet = not any(select.select([conn], [], [], _QUIET_SECONDS if learner.kept else _REPORT_SECONDS))
                conn.poll()
                unsure = quiet and not learner.kept
                if quiet:
                    learner.write_kept()
