"""The registry: streams, versions, who serves, verdicts. What should be true; long-running processes make it so.

Every change of who serves locks the stream's row and compares the champion it was decided against with the one that
serves, so two decisions can never both win.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from headrace.definition.recipes import Recipe
from headrace.definition.stream import Stream
from headrace.errors import BatchError, DefinitionError
from headrace.events import Engine, LogColumn
from headrace.store import db
from headrace.store.queries import SQL

RUNNING = ("champion", "probation", "shadow", "catching_up")


@dataclass(frozen=True)
class Version:
    """A registered version."""

    version: str
    number: int
    recipe: str
    config: Mapping[str, Any]
    first_seq: int
    evidence_seq: int
    status: str
    engine: str
    definition_hash: str
    heldout: Mapping[str, Any] | None
    dag_run_id: str | None
    created_at: datetime

    @classmethod
    def from_row(cls, row: db.Row) -> Self:
        return cls(*row)


@dataclass(frozen=True)
class Decision:
    """A verdict, ready to be stored."""

    verdict: str
    champion: str | None
    challenger: str | None
    reason: str
    evidence: Mapping[str, Any]
    decided_by: str
    comparison_id: int | None = None
    epoch_first: int | None = None
    epoch_last: int | None = None
    dag_run_id: str | None = None
    run_type: str | None = None


def columns_of(conn: Connection, stream: str) -> tuple[LogColumn, ...]:
    """The log's columns of a registered stream.

    Raises
    ------
    DefinitionError
        When the stream is not registered.
    """
    row = db.row(conn, "get_stream", {"stream": stream})
    if row is None:
        raise DefinitionError(f"stream {stream!r} is not registered on this platform; `headrace up` registers it")
    return tuple(LogColumn(**column) for column in row[2])


def registered(conn: Connection, stream: Stream) -> tuple[LogColumn, ...]:
    """The log's columns of a registered stream, after checking that its definition is still the one that made the log.

    Raises
    ------
    DefinitionError
        When the stream is not registered, or source, label, features, contract, slices or epochs changed since.
    """
    columns = columns_of(conn, stream.name)
    row = db.row(conn, "get_stream", {"stream": stream.name})
    if row is not None and row[1] != stream.hash():
        raise DefinitionError(_changed(stream, row[1]))
    return columns


def _changed(stream: Stream, known: str) -> str:
    return (
        f"the definition of {stream.name!r} has hash {stream.hash()}, the registered one {known}: source, label, features, "
        "contract, slices or epochs changed; give the changed stream a new name, or undo the change"
    )


def register(conn: Connection, stream: Stream, columns: Sequence[LogColumn], engine: Engine) -> bool:
    """Register a stream with its log and its first champion; True when it was new. The caller owns the transaction.

    Raises
    ------
    DefinitionError
        When what the log depends on differs from the registered definition.
    """
    params = {"stream": stream.name, "definition": json.dumps(stream.as_json())}
    db.row(conn, "lock_registration")
    found = db.row(conn, "get_stream", params)
    if found is not None:
        if found[1] != stream.hash():
            raise DefinitionError(_changed(stream, found[1]))
        db.run(conn, "update_definition", params)
        return False
    as_json = json.dumps([vars(column) for column in columns])
    db.run(conn, "add_stream", {**params, "definition_hash": stream.hash(), "columns": as_json})
    pairs = sql.SQL(",\n    ").join(
        sql.SQL("{} {}{}").format(sql.Identifier(c.name), sql.SQL(c.type_name), sql.SQL(_NOT_NULL.get(c.name, "")))
        for c in columns
    )
    text = sql.SQL((SQL / "stream" / "create.sql").read_text()).format(
        schema=sql.Identifier(stream.name), columns=pairs, key_type=sql.SQL(columns[0].type_name)
    )
    with conn.cursor() as cursor:
        cursor.execute(text)
    version = add_version(conn, stream, stream.champion, engine, first_seq=1, evidence_seq=1, status="champion")
    reason = f"{stream.champion.name} is the stream's first champion, as its definition says."
    decision_id = decide(conn, stream.name, Decision("first", None, version, reason, {}, "definition"), seq=0)
    db.run(
        conn,
        "begin_serving",
        {"stream": stream.name, "version": version, "seq_first": 1, "why": reason, "decision_id": decision_id},
    )
    return True


_NOT_NULL = {"event_time": " NOT NULL"}  # a key is NULL where its event was erased


def add_version(
    conn: Connection,
    stream: Stream,
    recipe: Recipe,
    engine: Engine,
    *,
    first_seq: int,
    evidence_seq: int,
    status: str,
    heldout: Mapping[str, Any] | None = None,
    dag_run_id: str | None = None,
) -> str:
    """Register a version under the stream's next number; gives its name."""
    db.run(conn, "lock_stream", {"stream": stream.name})
    row = db.row(conn, "next_number", {"stream": stream.name})
    assert row is not None  # an aggregate always has a row
    version = f"{stream.name}-{row[0]}"
    params = {
        "stream": stream.name,
        "version": version,
        "number": row[0],
        "recipe": recipe.name,
        "config": json.dumps(stream.config_of(recipe)),
        "first_seq": first_seq,
        "evidence_seq": evidence_seq,
        "status": status,
        "engine": json.dumps({"id": engine.id, **engine.parts}),
        "code_sha": engine.code_sha,
        "definition_hash": stream.hash(),
        "heldout": None if heldout is None else json.dumps(heldout),
        "dag_run_id": dag_run_id,
    }
    db.run(conn, "add_version", params)
    return version


def version(conn: Connection, stream: str, name: str) -> Version:
    """One version.

    Raises
    ------
    BatchError
        When there is none of this name.
    """
    row = db.row(conn, "get_version", {"stream": stream, "version": name})
    if row is None:
        raise BatchError(f"stream {stream!r} has no version {name!r}; `headrace status` lists them")
    return Version.from_row(row)


def versions(conn: Connection, stream: str) -> list[Version]:
    """All versions of a stream, oldest first."""
    return [Version.from_row(row) for row in db.rows(conn, "list_versions", {"stream": stream})]


def champion(conn: Connection, stream: str) -> str:
    """Who serves.

    Raises
    ------
    BatchError
        When the stream is not registered.
    """
    row = db.row(conn, "champion", {"stream": stream})
    if row is None:
        raise BatchError(f"stream {stream!r} has no champion: it is not registered; `headrace up` registers it")
    return str(row[0])


def set_status(conn: Connection, stream: str, name: str, status: str, *, was: Sequence[str]) -> bool:
    """Change what a version should be, if it is one of `was`; False when it was not."""
    params = {"stream": stream, "version": name, "status": status, "was": list(was)}
    changed = db.run(conn, "set_status", params) == 1
    if changed and status not in RUNNING:  # right or wrong, nobody runs it
        db.run(conn, "drop_divergences", params)
    return changed


def decide(conn: Connection, stream: str, decision: Decision, *, seq: int) -> int:
    """Store a verdict; gives its number."""
    params = {**vars(decision), "stream": stream, "evidence": json.dumps(decision.evidence), "seq": seq}
    row = db.row(conn, "add_decision", params)
    assert row is not None  # RETURNING
    return int(row[0])


def change_champion(conn: Connection, stream: str, decision: Decision) -> int:
    """Promote or roll back: `decision.challenger` serves from the log's next entry on. The caller owns the transaction.

    The former champion goes on learning: in probation after a promotion, in shadow after a rollback. Who was in probation
    before it is retired.

    Raises
    ------
    BatchError
        When another version than `decision.champion` serves by now, or the new one is not running.
    """
    assert decision.champion is not None and decision.challenger is not None
    db.run(conn, "lock_stream", {"stream": stream})
    serving = champion(conn, stream)
    if serving != decision.champion:
        raise BatchError(
            f"{decision.verdict} of {decision.challenger} was decided against {decision.champion}, but {serving} serves by "
            "now; compare again"
        )
    if not set_status(conn, stream, decision.challenger, "champion", was=("shadow", "probation")):
        now = version(conn, stream, decision.challenger).status
        raise BatchError(f"{decision.challenger} is {now}, expected shadow or probation: it cannot serve")
    for other in versions(conn, stream):
        if other.status == "probation":
            set_status(conn, stream, other.version, "retired", was=("probation",))
    after = "probation" if decision.verdict == "promote" else "shadow"
    set_status(conn, stream, serving, after, was=("champion",))
    position = db.row(conn, "log_position", {"stream": stream})
    seq = int(position[0]) if position else 0
    decision_id = decide(conn, stream, decision, seq=seq)
    db.run(conn, "end_serving", {"stream": stream, "version": serving, "seq": seq})
    db.run(
        conn,
        "begin_serving",
        {
            "stream": stream,
            "version": decision.challenger,
            "seq_first": seq + 1,
            "why": decision.reason,
            "decision_id": decision_id,
        },
    )
    db.run(conn, "close_comparisons", {"stream": stream, "champion": decision.challenger, "retired": []})
    return decision_id
