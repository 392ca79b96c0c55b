"""Reading a change stream: whole transactions from a replication cursor, decoded a chunk at a time.

A transaction that is larger than a chunk waits in a temporary file until its Commit has come, so memory stays bounded. The
reader acknowledges only what its caller says is durable. `tally` is the second reader of an audit: it counts what a slot
delivers and keeps nothing else.
"""

from __future__ import annotations

import select
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from psycopg2.extras import ReplicationCursor

from headrace.definition.stream import Stream
from headrace.errors import SourceError
from headrace.flow.pgoutput import DELETE, INSERT, UPDATE, Messages, Session, parse
from headrace.store import source
from headrace.store.copyboth import FULL, KEEPALIVE, NOTHING, PASSED, CopyBoth, Inbox

_CHUNK_BYTES = 4 * 1024 * 1024
_CHUNK_MESSAGES = 60_000
_STEP_BYTES = 256 * 1024  # that are received before others get their turn
_LET_IN = 0.00005  # seconds
_SIGN_SECONDS = 2.0  # after which the source hears that somebody reads
PATIENCE = 60.0  # seconds without a word after which the source counts as away: Postgres's own wal_receiver_timeout
_QUIET_SECONDS = 2.0  # a slot that delivers nothing for so long has nothing more up to now
_KINDS = {INSERT: "insert", UPDATE: "update", DELETE: "delete"}


class Large:
    """A transaction that is too large for a chunk, in a temporary file; its parts can be read any number of times."""

    def __init__(self) -> None:
        self.session = self.session_after = Session()  # before and after it
        self.end_lsn = 0
        self._file = tempfile.TemporaryFile(prefix="headrace-transaction-")  # noqa: SIM115 (`close` closes it)
        self._parts: list[NDArray[np.int64]] = []  # offsets of the payloads

    def add(self, payloads: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        """The next messages, one after the other, and where each begins and the last ends."""
        if len(payloads):
            self._parts.append(offsets)
            self._file.write(payloads.data)

    def parts(self) -> Iterator[tuple[Messages, bool]]:
        """The messages, a chunk at a time, and whether it is the last one."""
        self._file.seek(0)
        session = self.session
        for number, offsets in enumerate(self._parts, start=1):
            messages = parse(self._file.read(int(offsets[-1])), offsets, session)
            session = messages.session
            yield messages, number == len(self._parts)
        self.session_after = session

    def close(self) -> None:
        """Done with it."""
        self._file.close()


class Reader:
    """Whole transactions from a replication cursor; close it before its connection.

    A thread takes what comes while the caller works on what it was given, so a caller that falls behind is given more at a
    time. The thread tells the source, too, that somebody still reads, however long the caller takes.

    Parameters
    ----------
    patience
        Seconds without a word from the source after which it counts as away; at half of it, it is asked for one. The time
        in which there is no room for more does not count.

    Attributes
    ----------
    asked
        Whether the source wants to know what is durable, and gave all it has: it may be shutting down, and waits for us.
    """

    def __init__(self, cursor: ReplicationCursor, patience: float = PATIENCE) -> None:
        self._copy, self._patience = CopyBoth(cursor), patience
        self._pause = min(_SIGN_SECONDS, patience / 4)
        self._session = Session()
        self.asked = False
        # What follows is shared with the thread, and looked at in turns; so is the connection.
        self._turn = threading.Condition()
        self._inbox = Inbox()
        self._large: Large | None = None  # the transaction that is being received, when it is one
        self._complete: Large | None = None  # and when all of it has come
        self._known, self._idle = 0, 0  # positions: all before it was received, or given
        self._durable = 0  # acknowledged
        self._unconfirmed = False  # whether the source has not heard of it
        self._confirmed = time.monotonic()
        self._wondered: float | None = None  # since when an answer is awaited
        self._failed: BaseException | None = None
        self._entering = False  # whether the caller wants its turn
        self._closed = False
        self._woken, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._receive, name="change stream", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Read no more."""
        with self._my_turn():
            self._closed = True
            self._turn.notify_all()
        self._wake.send(b".")
        self._thread.join()
        self._wake.close()
        self._woken.close()
        for large in (self._large, self._complete):
            if large is not None:
                large.close()

    def read(self, wait: float) -> Messages | Large | None:
        """What has come, up to the last Commit; None when nothing whole came within `wait` seconds, or when `asked`.

        A transaction of more than a chunk comes alone and as a file; say `done` when it is dealt with. Messages outside of
        transactions (heartbeats of other programs) say nothing that is wanted here.

        Raises
        ------
        SourceError
            When the connection ended: the source went away, or took the slot from us.
        """
        deadline = time.monotonic() + wait
        with self._my_turn():
            while not self._inbox.whole and self._complete is None:
                if self._failed is not None:
                    raise self._failed
                if self.asked or not self._turn.wait(max(deadline - time.monotonic(), 0)):
                    if self._nothing_inside():
                        self._idle = self._known
                    return None
            large, self._complete = self._complete, None
            taken = None if large is not None else self._inbox.taken(self._inbox.whole)
            if self._nothing_inside():
                self._idle = self._known
            self._turn.notify_all()
        if large is not None:
            large.session = self._session
            return large
        assert taken is not None  # one of both
        messages = parse(*taken, self._session)
        self._session = messages.session
        return messages

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        """The caller's: the thread gives way at once, and takes none of its naps meanwhile."""
        self._entering = self._inbox.awaited = True
        with self._turn:
            self._entering = False
            try:
                yield
            finally:
                self._inbox.awaited = False

    def _nothing_inside(self) -> bool:
        """Whether all that was received has been given."""
        return self._inbox.count == 0 and self._large is None and self._complete is None

    def _receive(self) -> None:
        """Take what comes, until there is no room for more or the end: the thread."""
        try:
            while not self._closed:
                while self._entering:  # a lock goes to whoever is there first, and that would be this thread again
                    time.sleep(_LET_IN)
                with self._turn:
                    stopped = self._take()
                if self._unconfirmed:
                    self._say_durable()
                if stopped in (NOTHING, FULL):
                    self._rest(stopped)
                self._say_so()
            if self._unconfirmed:
                self._say_durable()
        except BaseException as error:  # whatever it is, a full disk or no memory, the caller must hear of it
            with self._turn:
                self._failed = error
                self._turn.notify_all()

    def _take(self) -> int:
        """Some of what has come; why it stopped."""
        inbox = self._inbox
        if self._no_room():
            return FULL
        if self._is_chunk():
            if self._large is None:
                self._large = Large()
            self._large.add(*inbox.taken(inbox.count))
        size = min(inbox.size + _STEP_BYTES, _CHUNK_BYTES)
        stopped = self._copy.drain(inbox, size, _CHUNK_MESSAGES, single=self._large is not None)
        if self._large is not None and inbox.whole:
            payloads, offsets = inbox.taken(inbox.whole)
            self._large.add(payloads, offsets)
            self._large.end_lsn = int.from_bytes(payloads[offsets[-2] + 10 : offsets[-2] + 18].tobytes(), "big")
            self._complete, self._large = self._large, None
        if stopped == KEEPALIVE:
            self._keepalive(self._copy.keepalive)
        if inbox.whole or self._complete is not None or self.asked:
            self._turn.notify_all()
        return PASSED if stopped == FULL else stopped  # there may be more

    def _is_chunk(self) -> bool:
        return self._inbox.size >= _CHUNK_BYTES or self._inbox.count >= _CHUNK_MESSAGES

    def _no_room(self) -> bool:
        """Whether nothing more can be taken before the caller is given what is there."""
        return self._complete is not None or (self._is_chunk() and self._inbox.whole > 0)

    def _rest(self, stopped: int) -> None:
        """Wait until there is something to do."""
        if stopped == NOTHING:
            select.select([self._copy.fileno(), self._woken.fileno()], [], [], self._pause)
        with self._turn:
            if stopped == FULL and self._no_room() and not self._closed:  # the caller may have been given it meanwhile
                self._turn.wait(self._pause)
            if stopped == NOTHING:
                self._listen()

    def _say_so(self) -> None:
        """Let the source hear from time to time that somebody reads, also when it has no time to ask."""
        if time.monotonic() - self._confirmed > self._pause:
            with self._turn:
                self._confirm()

    def _keepalive(self, message: bytes) -> None:
        """Where the source's WAL ends; inside a transaction that says nothing."""
        if self._inbox.count == self._inbox.whole and self._large is None:
            self._known = max(self._known, int.from_bytes(message[1:9], "big"))
            self.asked |= bool(message[17]) and not self._inbox.whole

    def _listen(self) -> None:
        """Ask a source that was silent for long, and give up one that does not answer."""
        now = time.monotonic()
        if self._wondered is not None and self._copy.heard > self._wondered:
            self._wondered = None
        if self._wondered is None:
            if now - self._copy.heard > self._patience / 2:
                self._wondered = now
                self._confirm(ask=True)
        elif now - self._wondered > self._patience / 2:
            raise SourceError(
                f"the source said nothing for {now - self._copy.heard:.0f} s and does not answer: something between may "
                "pass nothing on",
                state="source_away",
            )

    def done(self, large: Large) -> None:
        """A large transaction has been dealt with."""
        self._session = large.session_after
        large.close()

    @property
    def idle_at(self) -> str:
        """How far the source's WAL is known to hold nothing but what `read` gave; 0/0 when that is not known."""
        return source.lsn_text(self._idle)

    def acknowledge(self, lsn: str) -> None:
        """Tell the source that everything up to a position is durable here; nothing else is ever confirmed.

        It does not wait for its turn: the thread has it for as long as it takes what comes, and tells the source then.
        """
        self._durable = max(self._durable, source.lsn_number(lsn))
        self.asked, self._unconfirmed = False, True
        self._say_durable(wait=False)

    def _say_durable(self, *, wait: bool = True) -> None:
        """Confirm what was acknowledged; whoever does not wait leaves it to the other, who looks after each turn."""
        if self._turn.acquire(blocking=wait):
            try:
                if self._unconfirmed:
                    self._unconfirmed = False
                    self._confirm()
            finally:
                self._turn.release()

    def alive(self) -> None:
        """Tell a source that asked what is durable: no more than before."""
        with self._my_turn():
            self.asked = False
            self._confirm()

    def _confirm(self, *, ask: bool = False) -> None:
        self._copy.confirm(max(self._known, self._durable), self._durable, ask=ask)
        self._confirmed = time.monotonic()


@dataclass(frozen=True)
class Tally:
    """What a slot delivered."""

    until: str  # position of the last commit counted
    changes: dict[str, dict[str, int]]  # table -> insert, update, delete -> count
    within_gaps: dict[str, dict[str, int]]  # the same of what lies in gaps, which the intake did not receive


def tally(dsn: str, stream: Stream, slot: str, since: str, until: str, gaps: Sequence[tuple[str, str]] = ()) -> Tally:
    """Count the changes that a slot delivers between two positions, without acknowledging any of them.

    Parameters
    ----------
    slot
        A slot of its own, made when or before the stream's slot was.
    since, until
        Positions at the source: where the stream's history ends, and where its log stands.
    gaps
        Pairs of positions that a resync closed: nobody read for the log what was committed between them.

    Raises
    ------
    SlotError
        When the slot is missing or in use.
    """
    counts: dict[str, Counter[str]] = {}
    unread: dict[str, Counter[str]] = {}
    last = "0/0"
    with source.replication(dsn) as cursor:
        source.start(cursor, slot, stream.publication, "0/0")
        with closing(Reader(cursor)) as reader:
            while source.lsn_number(last) < source.lsn_number(until):
                read = reader.read(wait=_QUIET_SECONDS)
                if read is None and reader.asked:
                    reader.alive()
                    continue
                if read is None:
                    break
                end = read.end_lsn if isinstance(read, Large) else int(read.transactions.end_lsn[-1])
                for messages in (m for m, _ in read.parts()) if isinstance(read, Large) else [read]:
                    ends = np.full(1, end) if isinstance(read, Large) else messages.transactions.end_lsn
                    counted = (ends > source.lsn_number(since)) & (ends <= source.lsn_number(until))
                    lost = np.zeros(len(ends), dtype=np.bool_)
                    for first, end_of_gap in gaps:
                        lost |= (ends > source.lsn_number(first)) & (ends <= source.lsn_number(end_of_gap))
                    _count(messages, counted & ~lost, counts)
                    _count(messages, counted & lost, unread)
                    if counted.any():
                        last = source.lsn_text(int(ends[counted].max()))
                if isinstance(read, Large):
                    reader.done(read)
                if end > source.lsn_number(until):
                    break
    return Tally(last, _plain(counts), _plain(unread))


def _plain(counts: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {table: dict(kinds) for table, kinds in sorted(counts.items())}


def _count(messages: Messages, counted: NDArray[np.bool_], counts: dict[str, Counter[str]]) -> None:
    """Add the changes of the transactions that count."""
    for changes in messages.changes:
        table = f"{changes.relation.namespace or 'pg_catalog'}.{changes.relation.name}"
        for kind in changes.kind[counted[changes.transaction]].tolist():
            counts.setdefault(table, Counter())[_KINDS[kind]] += 1
    for truncate in messages.truncates:
        if counted[messages.transaction[truncate.index]]:
            counts.setdefault("truncated", Counter())["truncate"] += len(truncate.oids)
