"""The audit behind `headrace check`: every invariant that tables can show, with the counts it was checked on.

It only reads. What retention dropped counts as it was when it was dropped. An invariant that does not hold is named with
what was found and what was expected; the log, the metrics and the registry stay as they are. Where the source can be
reached, its own row counts are held against the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from headrace.definition.stream import Stream
from headrace.errors import ServerError
from headrace.store import db, log, source
from headrace.store.queries import all_queries


@dataclass
class Invariant:
    """One invariant of one stream."""

    name: str
    promise: str
    counts: dict[str, Any] = field(default_factory=dict)
    breaches: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether it holds."""
        return not self.breaches

    def expect(self, holds: bool, breach: str) -> None:
        """Note a breach unless `holds`."""
        if not holds:
            self.breaches.append(breach)


def audit(
    conn: Connection, stream: Stream, source_dsn: str | None, ledger: Mapping[str, Any] | None = None
) -> list[Invariant]:
    """Check a stream.

    Parameters
    ----------
    conn
        The platform's database, as role headrace_reader.
    source_dsn
        The source, or None to leave it out.
    ledger
        What a second reader of the source's WAL counted (`headrace ledger`), up to where the log stands.

    Raises
    ------
    ServerError
        When the stream's history is not imported yet: there is nothing to check.
    """
    at = log.position(conn, stream.name)
    if at is None:
        raise ServerError(
            f"stream {stream.name!r} has no log yet: its history is still being imported, or `headrace up` never ran"
        )
    checks = (_conservation, _dense, _labels, _learned, _epochs, _serving, _positions)
    with log.kept_whole(conn, stream.name):
        found = [check(conn, stream.name, at) for check in checks]
    if ledger is not None:
        found.append(_ledger(conn, stream, at, ledger))
    if source_dsn is not None:
        found.extend(_source(conn, stream, at, source_dsn))
    return found


def _conservation(conn: Connection, stream: str, at: log.Position) -> Invariant:
    inv = Invariant("conservation", "every change received is logged, held, quarantined or a counted no-op")
    in_log: dict[str, list[int]] = {}
    dropped = db.rows(conn, "audit_dropped", {"stream": stream})
    for origin, *counts in [*db.rows(conn, "audit_log_counts", schema=stream), *dropped]:
        in_log[origin] = [a + b for a, b in zip(in_log.get(origin, [0] * 4), counts, strict=True)]
    held = quarantined = 0
    for origin, received, events, labels, corrections, h, q, ignored, timeouts, _ in db.rows(
        conn, "audit_accounting", {"stream": stream}
    ):
        lost = received - events - labels - corrections - h - q - ignored
        inv.expect(lost == 0, f"{origin}: {lost} of {received} changes are unaccounted for")
        told = [events, labels, timeouts, corrections]
        there = in_log.get(origin, [0] * 4)
        for name, a, b in zip(("events", "labels", "time-outs", "corrections"), told, there, strict=True):
            inv.expect(a == b, f"{origin}: the accounting has {a} {name}, the log {b}")
        inv.counts[origin] = {
            "received": received,
            "events": events,
            "labels": labels,
            "corrections": corrections,
            "timeouts": timeouts,
        }
        held, quarantined = held + h, quarantined + q
    row = db.row(conn, "audit_kept", schema=stream) or (0, 0)
    inv.expect(row[0] == held, f"the accounting has {held} held labels, the table {row[0]}")
    inv.expect(row[1] == quarantined, f"the accounting has {quarantined} quarantined rows, the table {row[1]}")
    inv.counts |= {"held": held, "quarantined": quarantined}
    if dropped:
        inv.counts["dropped"] = sum(sum(counts) for _, *counts in dropped)
    return inv


def _dense(conn: Connection, stream: str, at: log.Position) -> Invariant:
    inv = Invariant("seq_dense", "the log's entries are numbered without gap or repeat, up to its position")
    gone = log.dropped_through(conn, stream)
    entries, distinct, low, high = db.row(conn, "audit_seq", schema=stream) or (0, 0, 0, 0)
    inv.counts = {"entries": entries, "position": at.seq} | ({"dropped": gone} if gone else {})
    inv.expect(entries == distinct, f"{entries - distinct} seqs are used twice")
    inv.expect(
        not entries or (low, high, distinct) == (gone + 1, high, high - gone),
        f"{distinct} entries lie between {low} and {high}, expected {gone + 1} to {gone + distinct}",
    )
    inv.expect((high or 0) == at.seq, f"the log ends at {high}, its position says {at.seq}")
    segments, broken, last, covered = db.row(conn, "audit_segments", {"dropped": gone}, schema=stream) or (0, 0, 0, 0)
    inv.counts["segments"] = segments
    inv.expect(broken == 0, f"{broken} segments do not follow the one before")
    inv.expect(
        (last or 0) == (high or 0) and (covered or 0) == entries,
        f"segments cover {covered} entries up to {last}, the log has {entries}",
    )
    return inv


def _labels(conn: Connection, stream: str, at: log.Position) -> Invariant:
    inv = Invariant("labelled_once", "each event is labelled at most once for decisions, after it came")
    gone = {"dropped": log.dropped_through(conn, stream)}
    labels, orphans, early, twice = db.row(conn, "audit_labels", gone, schema=stream) or (0, 0, 0, 0)
    inv.counts = {"labels": labels}
    inv.expect(orphans == 0, f"{orphans} labels answer an event that is not in the log")
    inv.expect(early == 0, f"{early} labels stand before their event")
    inv.expect(twice == 0, f"{twice} events have more than one label")
    return inv


def _learned(conn: Connection, stream: str, at: log.Position) -> Invariant:
    inv = Invariant("learned_once", "each version learned each label of its range exactly once")
    checkpoints = {version: rest for version, *rest in db.rows(conn, "audit_checkpoints", {"stream": stream})}
    for version, epochs, first, last, learned, out, scored, unscored, odd, sums, ranges, _, seq_last in db.rows(
        conn, "audit_learned", {"stream": stream}
    ):
        inv.counts[version] = {
            "epochs": epochs,
            "learned": int(learned),
            "scored": int(scored),
            "unscored": int(unscored),
        }
        if out:
            inv.promise = "each version learned each label of its range exactly once, or left it out as a negative"
            inv.counts[version]["left_out"] = int(out)
        inv.expect(epochs == last - first + 1, f"{version} has {epochs} epochs between {first} and {last}")
        inv.expect(odd == 0, f"{version} learned, or left out, another number of labels than {odd} of its epochs have")
        inv.expect(sums == 0, f"{version} has {sums} epochs whose scored and unscored labels do not add up")
        inv.expect(ranges == 0, f"{version} has {ranges} epochs with another range than the log's")
        seq, epoch, counted = checkpoints.get(version, (None, None, None))
        inv.expect(
            seq == seq_last and epoch == last,
            f"{version} has metrics up to epoch {last} (seq {seq_last}), its checkpoint is of {epoch} (seq {seq})",
        )
        inv.expect(counted == learned, f"{version}'s checkpoint counts {counted} labels learned, its metrics {learned}")
    return inv


def _epochs(conn: Connection, stream: str, at: log.Position) -> Invariant:
    inv = Invariant("epochs", "epochs cover the log without gap or overlap, and their sums agree")
    epochs, broken, last, labels, there = db.row(conn, "audit_epochs", {"stream": stream}, schema=stream) or (
        0,
        0,
        0,
        0,
        0,
    )
    there += (db.row(conn, "audit_gone", {"stream": stream}) or (0,))[0]
    inv.counts = {"epochs": epochs, "labels": int(labels or 0)}
    inv.expect(broken == 0, f"{broken} epochs do not follow the one before")
    inv.expect(
        labels == there or not epochs, f"epochs count {labels} labels, the log has, or had, {there} up to seq {last}"
    )
    inv.expect(
        at.epoch.seq_first == (last or 0) + 1,
        f"the open epoch starts at {at.epoch.seq_first}, the last one ended at {last}",
    )
    slices, off = db.row(conn, "audit_slices", {"stream": stream}) or (0, 0)
    inv.counts["slices"] = slices
    inv.expect(off == 0, f"{off} epochs have slices that do not add up to them")
    return inv


def _serving(conn: Connection, stream: str, at: log.Position) -> Invariant:
    inv = Invariant("serving_history", "exactly one version serves each entry, from the first on")
    rows = db.rows(conn, "audit_serving", {"stream": stream})
    inv.counts = {"champions": len(rows)}
    inv.expect(bool(rows) and rows[0][1] == 1, "nobody served the first entry")
    for before, after in pairwise(rows):
        inv.expect(
            before[2] is not None and after[1] == before[2] + 1,
            f"{before[0]} served up to {before[2]}, {after[0]} from {after[1]}",
        )
        inv.expect(before[4] == after[3], f"{before[0]} served until {before[4]}, {after[0]} from {after[3]}")
    inv.expect(bool(rows) and rows[-1][2] is None, "nobody serves now")
    return inv


def _positions(conn: Connection, stream: str, at: log.Position) -> Invariant:
    inv = Invariant("positions", "no position is ahead of what is durable")
    _, _, _, high = db.row(conn, "audit_seq", schema=stream) or (0, 0, 0, 0)
    inv.counts = {"log": at.seq, "lsn": at.lsn}
    inv.expect(at.seq <= (high or 0), f"the log's position is {at.seq}, its last entry {high}")
    for version, seq, _, _ in db.rows(conn, "audit_checkpoints", {"stream": stream}):
        inv.counts[version] = seq
        inv.expect(seq <= (high or 0), f"{version} has a checkpoint at {seq}, the log ends at {high}")
    return inv


def _ledger(conn: Connection, stream: Stream, at: log.Position, ledger: Mapping[str, Any]) -> Invariant:
    """What a second reader of the same WAL counted, but for gaps: what lies in them the intake did not receive."""
    inv = Invariant("ledger", "the intake received every change that a second reader of the source's WAL counted")
    changes: dict[str, dict[str, int]] = ledger["changes"]
    inv.counts = {"until": ledger["until"], **{table: sum(kinds.values()) for table, kinds in changes.items()}}
    gaps = db.rows(conn, "gaps", {"stream": stream.name})
    if gaps:
        inv.counts["gaps"] = len(gaps)
        inv.counts["within_gaps"] = sum(sum(kinds.values()) for kinds in ledger["within_gaps"].values())
    if any(why.startswith("another_source") for _, _, why in gaps):
        inv.counts["compared"] = "not the changes: the source became another cluster, whose WAL has its own positions"
        return inv
    received = sum(
        row[1] - row[9] for row in db.rows(conn, "audit_accounting", {"stream": stream.name}) if row[0] == "stream"
    )
    counted = sum(sum(kinds.values()) for kinds in changes.values())
    outside = ", outside of gaps" if gaps else ""
    inv.expect(
        received == counted,
        f"the ledger has {counted} changes up to {ledger['until']}{outside}, the intake received {received}",
    )
    behind = source.lsn_number(ledger["until"]) > source.lsn_number(at.lsn)
    inv.expect(not behind, f"the ledger goes to {ledger['until']}, beyond the log at {at.lsn}")
    return inv


def _source(conn: Connection, stream: Stream, at: log.Position, dsn: str) -> Iterator[Invariant]:
    """What the source itself says; left out where its rows are not comparable."""
    inv = Invariant("source", "the log has what the source's tables have, and the slot is not ahead of the log")
    with closing(db.connect(dsn, application="headrace check", autocommit=True)) as origin:
        slot = db.row(origin, "source_slot", {"slot": at.feed.slot})
        if slot is not None and slot[2] is not None:
            inv.counts["slot_confirmed"] = slot[2]
            inv.expect(
                source.lsn_number(slot[2]) <= source.lsn_number(at.lsn),
                f"the slot confirmed {slot[2]}, the log stands at {at.lsn}",
            )
        rows = db.rows(conn, "audit_accounting", {"stream": stream.name})
        refused: dict[str, int] = dict(db.rows(conn, "audit_refused", schema=stream.name))
        if stream.own_row or sum(row[4] + row[7] for row in rows):
            inv.counts["compared"] = "not the row counts: rows were updated or deleted at the source"
            yield inv
            return
        for table, taken in (
            (stream.source.table, sum(row[2] for row in rows)),
            (stream.label_table, sum(row[3] + row[5] for row in rows)),
        ):
            with origin.cursor() as cursor:
                cursor.execute(sql.SQL(all_queries()["source_count"]).format(table=source.identifiers(table)))
                there = int((cursor.fetchone() or (0,))[0])
            taken += refused.get(table, 0)
            inv.counts[table] = there
            inv.expect(
                there == taken, f"{table} has {there} rows, the log took in {taken}: is the intake still behind?"
            )
    yield inv
