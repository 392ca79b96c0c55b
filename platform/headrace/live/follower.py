"""The follower: the champion of one stream in memory, kept where the log stands, ready to be asked.

It opens the champion at its newest checkpoint and reads on from there exactly as the version's learner does, woken by
NOTIFY with a slow poll beside it, so its weights at a seq are the learner's at that seq, to the bit. It never writes.
When serving_history names another champion, that one catches up beside the old one and takes its place in one
assignment: whoever asks gets one of the two, and never waits for the change. When the database is away the last weights
go on answering, and their age tells. When an epoch's digest is not the learner's, it stops: its answers may be wrong.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from headrace.definition.stream import Stream
from headrace.errors import DefinitionError, DivergedError, ForgottenError, ModelError, ServerError
from headrace.events import LogBatch, LogColumn, micros, moment
from headrace.flow.progressive import EpochScore, Progressive
from headrace.live.request import EventRow
from headrace.live.witness import Witness
from headrace.models.engine import engine
from headrace.store import db, log, registry
from headrace.store.log import Position
from headrace.store.state import Live, open_version, read_on

logger = logging.getLogger(__name__)

_LIVE = 200  # entries learned at a time by the version that is asked: its questions wait for no longer
_CATCH_UP = 5_000  # by the one that catches up
_FAR = 20_000  # entries: beyond that a newer checkpoint is nearer than a replay
_PATIENCE = 5.0  # seconds without a newer checkpoint after which we replay ourselves
_POLL = 0.5
_REST = 0.05  # seconds in which entries come together
_RETRY = 10.0  # before a champion that cannot be opened is tried again
_FRESH = timedelta(seconds=5)  # how long a look at the log's end holds


@dataclass(frozen=True)
class Answer:
    """What an event gets."""

    prediction: float  # the probability of a positive label, or the number where labels are numbers
    uncertainty: (
        float | None
    )  # how far one more label may move it, in logits or in the label's unit; None: it does not say
    version: str
    seq: int  # the log position at which the weights stand
    age_seconds: float  # see `Following.age`
    stream: str


class Following:
    """One version that follows the log; other threads may ask it while it learns."""

    def __init__(self, live: Live, stream: str) -> None:
        self._live, self._lock = live, threading.Lock()
        self.version, self.seq = live.version.version, live.progressive.seq
        self.witness = Witness(stream, self.version, live.engine.id)
        self._watermark = -(2**63)
        self._through, self._at_end = moment(0), False

    def move(self, batch: LogBatch | None, scores: Iterable[EpochScore], position: Position, looked: datetime) -> None:
        """Learn the next entries, if there are any, and take over the log's clock.

        Parameters
        ----------
        batch, scores
            The entries, and the iterator that learns them.
        position, looked
            Where the log stood, and a time before it was asked.
        """
        with self._lock:
            self.witness.saw(scores)
            self.seq = self._live.progressive.seq
            if position.watermark is not None:
                self._watermark = micros(position.watermark)
            self._at_end = self.seq >= position.seq
            if self._at_end:
                self._through = looked
            elif batch is not None and batch.received_through is not None:
                self._through = batch.received_through

    @property
    def progressive(self) -> Progressive:
        """The version at work; only the thread that follows the log may touch it."""
        return self._live.progressive

    def predict(self, row: EventRow) -> tuple[float, float | None, int]:
        """(prediction, uncertainty, seq): what the learner gives this event if its commit is the log's next one, alone."""
        with self._lock:
            clock = np.array([max(self._watermark, row.event_time)], dtype=np.int64)
            p, unsure = self._live.progressive.predict(row.columns, clock)
            return float(p[0]), None if unsure is None else float(unsure[0]), self.seq

    def age(self, now: datetime) -> float:
        """How many seconds the weights are behind what the platform has received.

        0 at the log's end. While entries wait: the time since the last learned one was received. When the log cannot be
        looked at: the time since it last could.
        """
        if self._at_end and now - self._through < _FRESH:
            return 0.0
        return max(0.0, (now - self._through).total_seconds())


class Follower:
    """Keeps a stream's champion ready.

    Parameters
    ----------
    dsn
        The platform's database.
    definition
        Gives the stream's definition as its file has it now: a champion may have a recipe that was added since.
    columns
        The log's columns.
    key
        Signs the states of river models.
    """

    def __init__(self, dsn: str, definition: Callable[[], Stream], columns: Sequence[LogColumn], key: bytes) -> None:
        self.stream = definition().name
        self.log_seq = 0
        self.message = "starting"
        self._dsn, self._definition, self._columns, self._key = dsn, definition, tuple(columns), key
        self._serving: Following | None = None
        self._coming: Following | None = None
        self._newest, self._moved = ("", 0), 0.0  # version and seq of the newest checkpoint, and when it was new
        self._retry_at = 0.0

    @property
    def serving(self) -> Following | None:
        """The version that answers; None until the first one has caught up."""
        return self._serving

    def answer(self, row: EventRow) -> Answer | None:
        """The champion's answer; None while there is none."""
        serving = self._serving  # once: another thread may replace it
        if serving is None:
            return None
        p, unsure, seq = serving.predict(row)
        return Answer(p, unsure, serving.version, seq, serving.age(datetime.now(UTC)), self.stream)

    def run(self, stop: Callable[[], bool]) -> None:
        """Follow until `stop` says so; connects again whenever the database was away.

        Raises
        ------
        DefinitionError, ModelError
            The champion cannot be opened while nothing else serves, or an entry breaks a model.
        DivergedError
            The champion's digests here are not those that its learner stored; an incident says so.
        """
        while not stop():
            try:
                application = f"headrace serve {self.stream}"
                with closing(db.connect(self._dsn, role="headrace_reader", application=application)) as conn:
                    conn.set_session(readonly=True, autocommit=True)
                    self._follow(conn, stop)
            except (psycopg2.OperationalError, psycopg2.InterfaceError, ServerError) as error:
                self._say(f"cannot follow the log: {' '.join(str(error).split())}", logging.WARNING)
                time.sleep(_POLL)

    def _follow(self, conn: Connection, stop: Callable[[], bool]) -> None:
        with conn.cursor() as cursor:
            cursor.execute(sql.SQL("LISTEN {}").format(sql.Identifier(f"headrace_{self.stream}")))
        while not stop():
            conn.notifies.clear()  # before the look: what comes during it wakes us again
            worked = self.step(conn)
            conn.poll()  # what came while the log was read is with libpq already
            if worked:
                serving = self._serving
                if serving is not None and serving.seq >= self.log_seq:
                    time.sleep(_REST)
            elif not conn.notifies:
                select.select([conn], [], [], _POLL)
                conn.poll()

    def step(self, conn: Connection) -> bool:
        """Look at the log and at who should serve, and follow a stretch; False when there was nothing to do."""
        looked = datetime.now(UTC)
        position = log.position(conn, self.stream)
        if position is None:
            self._say("the stream's history is still being imported")
            return False
        self.log_seq = position.seq
        champion, serving = registry.champion(conn, self.stream), self._serving
        worked = serving is not None and self._advance(conn, serving, position, looked, _LIVE)
        if serving is None or serving.version != champion:
            worked |= self._bring(conn, champion, position, looked)
        else:
            self._coming = None
            self._say(f"{champion} serves")
        return worked

    def _advance(self, conn: Connection, following: Following, position: Position, looked: datetime, many: int) -> bool:
        self._compare(conn, following)
        upto = min(following.seq + many, position.seq)
        if upto == following.seq:
            following.move(None, (), position, looked)
            return False
        try:
            batch, scores = read_on(conn, self.stream, self._columns, following.progressive, upto)
        except ForgottenError as error:  # this process was stopped for so long: the newest checkpoint is nearer
            logger.warning("%s", error)
            if following is self._serving:
                self._serving = None
            else:
                self._coming = None
            return True
        following.move(batch, scores, position, looked)
        return True

    def _compare(self, conn: Connection, following: Following) -> None:
        """With what its learner stored."""
        try:
            following.witness.compare(conn)
        except DivergedError as error:
            params = {"stream": self.stream, "version": error.version, "epoch": error.epoch, "message": str(error)}
            with closing(db.connect(self._dsn, role="headrace_reader", autocommit=True)) as writing:
                db.run(writing, "report_endpoint", {**params, "host": socket.gethostname()})
            raise

    def _bring(self, conn: Connection, champion: str, position: Position, looked: datetime) -> bool:
        """Bring the champion to where it can take over; True when there was something to do."""
        row = db.row(conn, "newest_checkpoint", {"stream": self.stream, "version": champion})
        newest = 0 if row is None else int(row[0])
        coming = self._coming
        if coming is None or coming.version != champion or newest > coming.seq + _FAR:
            if self._learner_is_nearer(champion, newest, position):
                self._say(f"waiting for the learner of {champion}")
                return False
            self._coming = coming = self._open(conn, champion)
            if coming is None:
                return False
            logger.info("%s follows the log from seq %d on", champion, coming.seq + 1)
        worked = self._advance(conn, coming, position, looked, _CATCH_UP)
        if coming.seq < (position.seq if self._serving is None else self._serving.seq):
            self._say(f"{champion} catches up", logging.DEBUG)
            return worked
        before = "nobody" if self._serving is None else self._serving.version
        self._serving, self._coming = coming, None
        logger.info("%s answers from seq %d on, %s before it", champion, coming.seq, before)
        return True

    def _learner_is_nearer(self, version: str, newest: int, position: Position) -> bool:
        """Whether a far-off version has a learner at work, whose next checkpoint will spare us the replay."""
        now = time.monotonic()
        if (version, newest) != self._newest:
            self._newest, self._moved = (version, newest), now
        return position.seq - newest > _FAR and now - self._moved < _PATIENCE

    def _open(self, conn: Connection, name: str) -> Following | None:
        """The version at its newest checkpoint; None when it cannot be opened, but another one serves."""
        if time.monotonic() < self._retry_at:
            return None
        try:
            stream = self._definition()
            columns, version = registry.registered(conn, stream), registry.version(conn, self.stream, name)
            return Following(open_version(conn, stream, version, columns, self._key, engine()), self.stream)
        except (DefinitionError, ModelError) as error:
            if self._serving is None:
                raise
            self._retry_at = time.monotonic() + _RETRY
            self._say(f"{self._serving.version} goes on answering, {name} cannot be opened: {error}", logging.ERROR)
            return None

    def _say(self, message: str, level: int = logging.INFO) -> None:
        if message != self.message:
            self.message = message
            logger.log(level, "%s", message)
