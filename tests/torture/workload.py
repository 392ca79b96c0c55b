"""What the application commits, as a pure function of the seed: transactions, and what must have become of their rows.

Every label shape: before its event, in time, after the window, changed, deleted, moved to another event, never; in a table
of its own (visits) and in the event's own row (payments). Mixed in are hostile rows, ALTERs of what is not published,
heartbeats that tell the time or nonsense, bursts, and now and then a big transaction. It does no I/O.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tests.torture import hostile
from tests.torture.hostile import Row

START = datetime(2020, 3, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Statement:
    """One statement; with rows it holds `VALUES %s`."""

    text: str
    rows: tuple[Row, ...] = ()
    counts: bool = True  # whether each row is a change of a published table


@dataclass(frozen=True)
class Transaction:
    """What is committed at once."""

    number: int
    statements: tuple[Statement, ...]
    minute: int  # stream time, minutes from START

    @property
    def changes(self) -> int:
        """Changes of published tables."""
        return sum(len(s.rows) for s in self.statements if s.counts)


@dataclass
class Truth:
    """What must have become of one stream's rows, by key as text."""

    labels: dict[str, bool | None] = field(default_factory=dict)  # accepted events -> their label in the end
    refused: dict[str, str] = field(default_factory=dict)  # refused events -> why they are hostile
    orphans: set[str] = field(default_factory=set)  # labels whose event never comes


class Workload:
    """The sequence of transactions.

    Parameters
    ----------
    seed
        The same seed gives the same transactions, whatever happens to anybody.
    """

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(f"workload {seed}")
        self._minute = 0
        self._due: list[tuple[int, int, str, int]] = []  # minute, order, what, key
        self._order = itertools.count()
        self._keys = itertools.count(1)
        self.visits, self.payments = Truth(), Truth()
        self._scores: dict[int, int] = {}  # outcomes that are there
        self._stray: list[int] = []  # visits that never get a label of their own
        self._late_visits: dict[int, Row] = {}  # overtaken by their label
        self._columns = 0

    def transactions(self) -> Iterator[Transaction]:
        """All transactions, without end."""
        for number in itertools.count(1):
            yield Transaction(
                number, tuple(s for s in self._statements(number) if s.rows or not s.counts), self._minute
            )

    def time(self, minutes: int) -> datetime:
        """Stream time."""
        return START + timedelta(minutes=minutes)

    def _statements(self, number: int) -> Iterator[Statement]:
        if number % 97 == 0:
            yield from self._alter()
        if number % 13 == 0:
            told = hostile.heartbeat(self._dice, self.time(self._minute))
            yield Statement(f"SELECT pg_logical_emit_message(true, 'headrace.clock', '{told}')", counts=False)
        size = 1 + int(self._dice.expovariate(1 / 12))
        if number % 151 == 0:
            size = 1500
        elif number % 23 == 0:
            size *= 15
        events = [self._dice.random() < 0.6 for _ in range(size)]  # True: a visit
        yield from self._visits(events.count(True))
        if number % 997 == 90:
            yield self._huge()
        yield from self._payments(events.count(False))
        yield from self._answers()

    def _visits(self, count: int) -> Iterator[Statement]:
        early, rows = [], []
        for _ in range(count):
            self._minute += 1
            key, dice = next(self._keys), self._dice.random()
            row: Row = (key, self.time(self._minute), *self._visit())
            if dice < 0.02:
                reason, row = hostile.visit(self._dice, row)
                if reason:
                    self.visits.refused[str(key)] = reason
                    rows.append(row)
                    continue
            self.visits.labels[str(key)] = None
            fate = self._dice.random()
            if fate < 0.04:
                early.append(self._outcome(key))  # a label that overtakes its event, by a statement or by transactions
                if fate < 0.02:
                    self._late_visits[key] = row
                    del self.visits.labels[str(key)]  # the run may end before its event is committed
                    self._later("visit", key, 1, 100)
                    continue
            elif fate < 0.045:
                early.append((orphan := next(self._keys), self._dice.randrange(30), self.time(self._minute)))
                self.visits.orphans.add(str(orphan))
            elif fate < 0.86:
                self._later("label", key, 1, 300)
            elif fate < 0.93:
                self._later("label", key, 400, 900)
            else:
                self._stray.append(key)
            rows.append(row)
        yield Statement("INSERT INTO outcomes VALUES %s", tuple(early))
        yield Statement("INSERT INTO visits VALUES %s", tuple(rows))

    def _huge(self) -> Statement:
        """Rows of 100 kB each: together more than the intake keeps in memory of one transaction."""
        rows = []
        for _ in range(100):
            key = next(self._keys)
            self.visits.refused[str(key)] = "colour of 100 kB"
            rows.append((key, self.time(self._minute), hostile.HUGE, "p1", 1.0))
        return Statement("INSERT INTO visits VALUES %s", tuple(rows))

    def _visit(self) -> Row:
        return self._dice.choice("abcd"), f"p{self._dice.randrange(17)}", round(self._dice.random() * 100, 3)

    def _outcome(self, key: int) -> Row:
        score = self._dice.randrange(30)
        self._scores[key] = score
        self.visits.labels[str(key)] = score > 15
        return key, score, self.time(self._minute)

    def _payments(self, count: int) -> Iterator[Statement]:
        rows = []
        for _ in range(count):
            self._minute += self._dice.random() < 0.5
            key, at = next(self._keys), self.time(self._minute)
            row: Row = (
                _payment(key),
                at,
                f"card {self._dice.randrange(40)}",
                self._dice.randrange(1, 99_999),
                None,
                None,
            )
            if self._dice.random() < 0.02:
                reason, row = hostile.payment(self._dice, row)
                if reason:
                    self.payments.refused[_payment(key)] = reason
                    rows.append(row)
                    continue
            self.payments.labels[_payment(key)] = None
            fate = self._dice.random()
            if fate < 0.2:
                fraud = self._dice.random() < 0.3
                self.payments.labels[_payment(key)] = fraud
                row = (*row[:4], fraud, at)
            elif fate < 0.7:
                self._later("fraud", key, 1, 1200)
            elif fate < 0.8:
                self._later("fraud", key, 1500, 3000)
            elif fate < 0.82:
                self._later("amount", key, 1, 2000)
            elif fate < 0.84:
                self._later("card", key, 1, 2000)
            rows.append(row)
        yield Statement("INSERT INTO payments VALUES %s", tuple(rows))

    def _later(self, what: str, key: int, least: int, most: int) -> None:
        minute = self._minute + self._dice.randrange(least, most)
        heapq.heappush(self._due, (minute, next(self._order), what, key))

    def _answers(self) -> Iterator[Statement]:
        due: dict[str, list[int]] = {}
        while self._due and self._due[0][0] <= self._minute:
            _, _, what, key = heapq.heappop(self._due)
            due.setdefault(what, []).append(key)
        late = tuple(self._late_visits.pop(key) for key in due.get("visit", []))
        self.visits.labels |= {str(key): self._scores[key] > 15 for key, *_ in late}
        yield Statement(
            "INSERT INTO visits VALUES %s", tuple((key, self.time(self._minute), *rest) for key, _, *rest in late)
        )
        labels = due.get("label", [])
        nonsense = [hostile.outcome(self._dice, key) for key in labels if self._dice.random() < 0.01]
        refused = {row[0] for row in nonsense}
        rows = tuple(self._outcome(key) for key in labels if key not in refused)
        yield Statement("INSERT INTO outcomes VALUES %s", (*rows, *nonsense))
        for key in labels:
            if key not in refused and (dice := self._dice.random()) < 0.05:
                self._later("change" if dice < 0.025 else "delete" if dice < 0.04 else "move", key, 1, 900)
        yield from self._second_thoughts(due)
        yield from self._of_payments(due)

    def _second_thoughts(self, due: dict[str, list[int]]) -> Iterator[Statement]:
        changed = [key for key in due.get("change", []) if key in self._scores]
        for key in changed:
            self._scores[key] = 40 - self._scores[key]
            self.visits.labels[str(key)] = self._scores[key] > 15
        yield Statement(
            "UPDATE outcomes SET score = 40 - score FROM (VALUES %s) AS v (key) WHERE visit_id = v.key",
            tuple((key,) for key in changed),
        )
        deleted = [key for key in due.get("delete", []) if key in self._scores]
        for key in deleted:
            del self._scores[key]
            self.visits.labels[str(key)] = None
        yield Statement(
            "DELETE FROM outcomes USING (VALUES %s) AS v (key) WHERE visit_id = v.key", tuple((key,) for key in deleted)
        )
        moved = []
        for key in due.get("move", []):
            if key in self._scores and self._stray:
                new = self._stray.pop(self._dice.randrange(len(self._stray)))
                moved.append((key, new))
                self._scores[new] = self._scores.pop(key)
                self.visits.labels[str(new)], self.visits.labels[str(key)] = self._scores[new] > 15, None
        yield Statement(
            "UPDATE outcomes SET visit_id = v.new FROM (VALUES %s) AS v (key, new) WHERE visit_id = v.key", tuple(moved)
        )

    def _of_payments(self, due: dict[str, list[int]]) -> Iterator[Statement]:
        told = []
        for what in ("fraud", "correct"):
            for key in due.get(what, []):
                fraud = self._dice.random() < 0.3
                told.append((_payment(key), fraud, self.time(self._minute)))
                self.payments.labels[_payment(key)] = fraud
        both = {row[0] for row in told}
        for row in told:
            if (dice := self._dice.random()) < 0.03:
                self._later("correct" if dice < 0.02 else "withdraw", int(row[0].rpartition("-")[2]), 1, 3000)
        yield Statement(
            "UPDATE payments SET is_fraud = v.fraud, labeled_at = v.at "
            "FROM (VALUES %s) AS v (key, fraud, at) WHERE payment_id = v.key",
            tuple(told),
        )
        withdrawn = [_payment(key) for key in due.get("withdraw", []) if _payment(key) not in both]
        for name in withdrawn:
            self.payments.labels[name] = None
        yield Statement(
            "UPDATE payments SET is_fraud = NULL, labeled_at = NULL FROM (VALUES %s) AS v (key) WHERE payment_id = v.key",
            tuple((name,) for name in withdrawn),
        )
        for column, value in (("amount", "amount + 1"), ("card", "card || '!'")):  # one is immutable, the other frozen
            yield Statement(
                f"UPDATE payments SET {column} = {value} FROM (VALUES %s) AS v (key) WHERE payment_id = v.key",
                tuple((_payment(key),) for key in due.get(column, [])),
            )

    def _alter(self) -> Iterator[Statement]:
        """A column that nobody publishes comes, changes its type, and goes."""
        table = self._dice.choice(("visits", "payments", "outcomes"))
        name = f"extra_{self._columns}"
        self._columns += 1
        yield Statement(f"ALTER TABLE {table} ADD COLUMN {name} integer DEFAULT 7", counts=False)
        yield Statement(f"ALTER TABLE {table} ALTER COLUMN {name} TYPE text", counts=False)
        if self._columns % 5:
            yield Statement(f"ALTER TABLE {table} DROP COLUMN {name}", counts=False)


def _payment(key: int) -> str:
    return f"payment-{key}"
