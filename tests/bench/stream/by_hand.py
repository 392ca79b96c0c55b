"""What one would write by hand: a change stream into a river pipeline, a dict at a time, without headrace.

psycopg2 hands over one message of pgoutput at a time, rows become dicts, events wait in a dict for their label, and a label
asks the pipeline for a probability and teaches it. Nothing of it is durable: what waits and what was learned go with the
process. A program of its own: `by_hand.py DSN SLOT PUBLICATION CHANGES` reads so many changes, prints how many labels
it learned, and ends.
"""

from __future__ import annotations

import struct
import sys
from typing import Any

import psycopg2
from psycopg2.extras import LogicalReplicationConnection, ReplicationMessage, StopReplication
from river import compose, linear_model, optim, preprocessing

CATEGORIES, NUMBERS = ("site", "campaign", "device"), ("u", "v", "w")
_TEXT = ord("t")  # kind of a value; the others here are NULL
_short, _int = struct.Struct(">H").unpack_from, struct.Struct(">I").unpack_from


def pipeline() -> Any:
    """Scaled numbers and one-hot categories into a logistic regression."""
    numbers = compose.SelectType(float) | preprocessing.StandardScaler()
    categories = compose.SelectType(str) | preprocessing.OneHotEncoder(drop_zeros=True)
    return (numbers + categories) | linear_model.LogisticRegression(optim.FTRLProximal(alpha=0.1))


def relation(payload: bytes) -> tuple[int, str, list[str]]:
    """A table's oid, its name, and its columns'."""
    (oid,) = _int(payload, 1)
    _, table, rest = payload[5:].split(b"\0", 2)
    names, at = [], 3  # after the identity and the number of columns
    for _ in range(_short(rest, 1)[0]):
        end = rest.index(b"\0", at + 1)  # after the column's flags
        names.append(rest[at + 1 : end].decode())
        at = end + 9  # after its type and modifier
    return oid, table.decode(), names


def values(payload: bytes, at: int) -> list[str | None]:
    """The values of an inserted row, as text."""
    found: list[str | None] = []
    (count,) = _short(payload, at)
    at += 2
    for _ in range(count):
        if payload[at] == _TEXT:
            end = at + 5 + _int(payload, at + 1)[0]
            found.append(payload[at + 5 : end].decode())
            at = end
        else:
            found.append(None)
            at += 1
    return found


class Loop:
    """Learns from a change stream until it has seen so many changes."""

    def __init__(self, changes: int) -> None:
        self.left, self.learned = changes, 0
        self._model = pipeline()
        self._waiting: dict[str, dict[str, Any]] = {}
        self._tables: dict[int, tuple[str, list[str]]] = {}

    def __call__(self, message: ReplicationMessage) -> None:
        payload = message.payload
        kind = payload[:1]
        if kind == b"I":
            table, names = self._tables[_int(payload, 1)[0]]
            self._inserted(table, dict(zip(names, values(payload, 6), strict=True)))
            self.left -= 1
            if not self.left:
                raise StopReplication
        elif kind == b"R":
            oid, table, names = relation(payload)
            self._tables[oid] = table, names
        elif kind == b"C":
            message.cursor.send_feedback(flush_lsn=message.data_start)

    def _inserted(self, table: str, row: dict[str, Any]) -> None:
        if table == "impressions":
            features = {name: row[name] for name in CATEGORIES}
            features |= {name: float(row[name]) for name in NUMBERS}
            self._waiting[row["impression_id"]] = features
        elif row["impression_id"] in self._waiting:
            features = self._waiting.pop(row["impression_id"])
            self._model.predict_proba_one(features)
            self._model.learn_one(features, row["clicked"] == "t")
            self.learned += 1


def main(dsn: str, slot: str, publication: str, changes: int) -> None:
    loop = Loop(changes)
    conn = psycopg2.connect(dsn, connection_factory=LogicalReplicationConnection)
    cursor = conn.cursor()
    cursor.start_replication(slot, options={"proto_version": "1", "publication_names": publication})
    try:
        cursor.consume_stream(loop)
    except StopReplication:
        print(loop.learned)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
