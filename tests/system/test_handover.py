"""The seam between history and stream: five writers commit all the while; nothing is missing, nothing comes twice."""

from __future__ import annotations

import random
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest

START = datetime(2020, 3, 1, tzinfo=UTC)


def write(dsn: str, writer: int, stop: threading.Event, written: list[int]) -> None:
    """Commit events and labels of keys of one's own until told to stop; some transactions stay open for a while."""
    dice = random.Random(writer)
    with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        waiting: list[int] = []
        for number in range(1_000_000):
            if stop.is_set():
                break
            for key in range(number * 20, number * 20 + dice.randrange(1, 6)):
                cursor.execute(
                    "INSERT INTO visits VALUES (%s, %s, %s, 'p', 1)",
                    (key * 5 + writer, START + timedelta(seconds=number), dice.choice("abcd")),
                )
                waiting.append(key * 5 + writer)
            if dice.random() < 0.05:
                time.sleep(dice.random() * 0.3)  # the slot must wait for it, or carry it whole
            if dice.random() < 0.5:
                conn.commit()
            dice.shuffle(waiting)
            for key in waiting[: len(waiting) // 2]:
                cursor.execute(
                    "INSERT INTO outcomes VALUES (%s, %s, %s)",
                    (key, dice.randrange(30), START + timedelta(seconds=number)),
                )
            del waiting[: len(waiting) // 2]
            if dice.random() < 0.05:
                conn.rollback()
                waiting.clear()
            conn.commit()
            written[writer] += 1


@pytest.mark.parametrize("attempt", range(3))
def test_nothing_is_missing_and_nothing_comes_twice(registered: Any, origin: Any, attempt: int) -> None:
    stop, written = threading.Event(), [0] * 5
    writers = [threading.Thread(target=write, args=(origin.dsn, i, stop, written)) for i in range(5)]
    for thread in writers:
        thread.start()
    try:
        time.sleep(0.3 + 0.2 * attempt)
        imported = registered.import_history(origin)
        time.sleep(0.3)
        registered.follow(origin)
        time.sleep(0.3)
        registered.follow(origin)
    finally:
        stop.set()
        for thread in writers:
            thread.join()
    registered.follow(origin)
    assert min(written) > 5

    visits = origin.execute("SELECT visit_id, seen_at, colour FROM visits ORDER BY 1")
    outcomes = origin.execute("SELECT visit_id, (score > 15)::int::float8, known_at FROM outcomes ORDER BY 1")
    assert registered.query("SELECT key, event_time, colour FROM small.events ORDER BY 1") == visits
    labels = "SELECT e.key, l.y, l.label_time FROM small.labels AS l JOIN small.events AS e ON e.seq = l.event_seq ORDER BY 1"
    assert registered.query(labels) == outcomes

    counts = registered.accounting()
    assert imported.events == counts["history"]["events"] > 0
    assert counts["stream"]["events"] > 0
    assert sum(c["received"] for c in counts.values()) == len(visits) + len(outcomes)
    assert sum(c["events"] for c in counts.values()) == len(visits)
    assert sum(c["labels"] for c in counts.values()) == len(outcomes)
    assert registered.query(
        "SELECT count(*), min(seq), max(seq) FROM (SELECT seq FROM small.events UNION ALL SELECT seq FROM small.labels) AS e"
    ) == [(len(visits) + len(outcomes), 1, len(visits) + len(outcomes))]
