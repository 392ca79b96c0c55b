"""The wire codec against a real server: what it writes we read, what we write it reads."""

from __future__ import annotations

import io
import math
import select
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import psycopg2.extras
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.flow import pgtypes
from headrace.flow.arrays import counts, encode_list, tokens
from headrace.flow.copybinary import encode, pack, unpack
from headrace.flow.pgoutput import DELETE, INSERT, KEY, OLD, UPDATE, Changes, Messages, Session, parse
from headrace.flow.pgtypes import NEGATIVE_INFINITY, POSITIVE_INFINITY, SUPPORTED, decode
from headrace.flow.wire import UNCHANGED, Cells, Fields, as_bytes
from headrace.models.text import NULL
from headrace.store.embedded import EmbeddedPostgres

ARRAYS = [
    *(
        "{}",
        "{a}",
        "{NULL}",
        '{"NULL",null,"null"}',
        '{"","a b","q\\"uote","back\\\\slash","{x,y}","tab\t","\v"}',
        "{☂,naïve}",
    ),
    *("[2:3]={a,b}", "[-1:0]={NULL,a}", "{{a,b},{c,d}}", "[0:1][5:5]={{a},{NULL}}", "{{{a}}}", "{a,a,b}"),
]
EDGES = {
    pgtypes.BOOL: ["true", "false"],
    pgtypes.CHAR: ["a", "", "~"],
    pgtypes.NAME: ["pg_class", "ünï"],
    pgtypes.INT8: ["0", "-1", "9223372036854775807", "-9223372036854775808"],
    pgtypes.INT2: ["0", "-32768", "32767"],
    pgtypes.INT4: ["0", "-2147483648", "2147483647"],
    pgtypes.TEXT: ["", "AA", "AA", "naïve ☂ 🚕", "tab\tline\nend", "x" * 5000],
    pgtypes.FLOAT4: ["0.1", "-0", "3.4028235e38", "1e-45", "NaN", "Infinity", "-Infinity"],
    pgtypes.FLOAT8: ["0.1", "-0", "1.7976931348623157e308", "5e-324", "NaN", "Infinity", "-Infinity"],
    pgtypes.BPCHAR: ["a", "ab c"],
    pgtypes.VARCHAR: ["", "é"],
    pgtypes.DATE: ["2000-01-01", "1969-12-31", "0044-03-15 BC", "99999-12-31", "infinity", "-infinity"],
    pgtypes.TIMESTAMP: ["2013-03-10 02:30:00", "1999-12-31 23:59:59.999999", "0044-03-15 12:00 BC", "infinity"],
    pgtypes.TIMESTAMPTZ: ["2013-03-10 02:30:00-05", "4713-01-01 00:00+00 BC", "290000-01-01 00:00+00", "-infinity"],
    pgtypes.NUMERIC: [
        *("0", "0.000", "-0.1", "0.30000000000000004", "1234567.891", "9007199254740993", "-12345678901234567890.5"),
        *("1e-30", "1e300", "1e-320", "123456789012345678901234567890e50", "10000", "0.0001", "NaN"),
        *("Infinity", "-Infinity", "9999999999999999.99999999", "1.7976931348623157e308", "4.35", "5e-324"),
    ],
    pgtypes.TEXT_ARRAY: ARRAYS,
    pgtypes.VARCHAR_ARRAY: ARRAYS,
    pgtypes.UUID: ["00000000-0000-0000-0000-000000000000", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
}


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    with tempfile.TemporaryDirectory(prefix="headrace-wire-") as home:
        Path(home).chmod(0o755)
        with EmbeddedPostgres(Path(home)) as server:
            yield server


@pytest.fixture
def dsn(server: EmbeddedPostgres, request: pytest.FixtureRequest) -> str:
    name = f"wire_{abs(hash(request.node.name)) % 10**9}"
    server.create_database(name)
    return server.dsn(name)


@pytest.fixture
def connection(dsn: str) -> Iterator[Any]:
    with closing(psycopg2.connect(dsn)) as connection:
        connection.autocommit = True
        yield connection


def query(connection: Any, statement: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def copy_out(connection: Any, statement: str) -> bytes:
    sink = io.BytesIO()
    with connection.cursor() as cursor:
        cursor.copy_expert(f"copy ({statement}) to stdout (format binary)", sink)
    return sink.getvalue()


def as_python(oid: int, column: str) -> str:
    """An expression whose psycopg2 value is what `decode` should give."""
    if SUPPORTED[oid].kind in ("timestamp", "date"):
        infinite = f"case when {column} > '2000-01-01' then {POSITIVE_INFINITY} else {NEGATIVE_INFINITY} end"
        finite = f"case when isfinite({column}) then (extract(epoch from {column}) * 1000000)::int8 else {infinite} end"
        return f"case when {column} is not null then {finite} end"
    # numeric to float8 overflows or underflows with an error: let Python round its digits.
    return f"{column}::text" if SUPPORTED[oid].kind in ("numeric", "uuid", "char", "text", "texts") else column


def as_decoded(oid: int, value: Any) -> Any:
    return float(value) if SUPPORTED[oid].kind == "numeric" and value is not None else value


def same(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert type(a) is type(b)
        if isinstance(a, float):
            assert np.array_equal([a], [b], equal_nan=True)
            assert math.isnan(a) or np.signbit(a) == np.signbit(b)
        else:
            assert a == b


def sql_type(oid: int) -> str:
    return "character(5)" if oid == pgtypes.BPCHAR else SUPPORTED[oid].name


@pytest.mark.parametrize("oid", SUPPORTED, ids=lambda oid: SUPPORTED[oid].name)
def test_copy_out_decodes_to_what_psycopg2_reads(connection: Any, oid: int) -> None:
    query(connection, f"create table edges (n serial, v {sql_type(oid)})")
    with connection.cursor() as cursor:
        for value in [*EDGES[oid], None]:
            cursor.execute("insert into edges (v) values (%s)", (value,))
    column = decode(unpack(copy_out(connection, "select v from edges order by n")), 0, oid)
    reference = [
        as_decoded(oid, v) for (v,) in query(connection, f"select {as_python(oid, 'v')} from edges order by n")
    ]
    if oid == pgtypes.FLOAT4:
        reference = [None if v is None else float(np.float32(v)) for v in reference]
    if oid == pgtypes.BPCHAR:
        reference = [None if v is None else v.ljust(5) for v in reference]  # the cast to text drops the padding
    assert column.null.tolist() == [v is None for v in reference]
    assert reference[-1] is None
    same(column.values[:-1].tolist(), reference[:-1])


@given(rows=st.lists(st.none() | st.lists(st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0")))))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lists_are_what_psycopg2_reads(connection: Any, rows: list[list[str | None] | None]) -> None:
    """In both directions, whatever the array is written like."""
    query(connection, "drop table if exists lists; create table lists (n serial, a text[], b varchar[], c text[])")
    with connection.cursor() as cursor:
        for row in rows:
            cursor.execute("insert into lists (a, b, c) values (%s, %s, %s)", (row, row, row and [*row, *row]))
    cells = unpack(copy_out(connection, "select a, b, c from lists order by n"), 3)
    kept = [None if row is None else list(dict.fromkeys(t for t in row if t is not None)) for row in rows]
    for column, element in enumerate((pgtypes.TEXT, pgtypes.VARCHAR, pgtypes.TEXT)):
        assert tokens(cells.column(column), element).lists() == kept
    assert query(connection, "select a from lists order by n") == [(row,) for row in rows]
    written = [None if row is None else encode_list(row, pgtypes.TEXT) for row in rows]
    payload = pack([encode(np.arange(len(rows)), pgtypes.INT8), encode_bytes(written)]).tobytes()
    query(connection, "drop table if exists written; create table written (n int8, a text[])")
    with connection.cursor() as cursor:
        cursor.copy_expert("copy written from stdin (format binary)", io.BytesIO(payload))
    assert query(connection, "select a from written order by n") == [(row,) for row in rows]


def test_only_lists_of_one_dimension_count(connection: Any) -> None:
    arrays = ["{{a,b},{c,d}}", "[2:3]={a,b}", "{}", "[0:0]={NULL}", "{{{a}}}"]
    values = ", ".join(f"({n}, '{array}'::text[])" for n, array in enumerate(arrays))
    fields = unpack(copy_out(connection, f"select a from (values {values}) as t (n, a) order by n")).column(0)
    assert (counts(fields, pgtypes.TEXT) < NULL).tolist() == [True, False, False, False, True]
    assert counts(fields, pgtypes.TEXT)[1:4].tolist() == [2, 0, 1]


def encode_bytes(fields: list[bytes | None]) -> Fields:
    """Binary fields as they are."""
    length = np.array([NULL if field is None else len(field) for field in fields], dtype=np.int32)
    start = np.cumsum(np.maximum(length, 0), dtype=np.int64) - np.maximum(length, 0)
    text = np.zeros(len(fields), dtype=np.bool_)
    return Fields(as_bytes(b"".join(field or b"" for field in fields)), start, length, text, "lists")


def test_packed_rows_are_accepted_and_equal(connection: Any) -> None:
    query(
        connection,
        "create table packed (a int8, b int4, c int2, d float8, e bool, f timestamptz, g text, h float4, i numeric)",
    )
    rng = np.random.default_rng(7)
    rows = 5000
    null = rng.random(rows) < 0.1
    longs = rng.integers(-(2**62), 2**62, rows)
    times = rng.integers(-(10**15), 2 * 10**15, rows)
    times[:2] = POSITIVE_INFINITY, NEGATIVE_INFINITY
    times[2:4] = 0
    null[:4] = False
    words = [None if n else "" if k % 7 == 0 else f"näme {k % 100}" for k, n in enumerate(null.tolist())]
    numerics = unpack(copy_out(connection, f"select (n * 1.5)::numeric from generate_series(1, {rows}) n")).column(0)
    columns = [
        encode(longs, pgtypes.INT8, null),
        encode(longs.astype(np.int32), pgtypes.INT4, null),
        encode(longs.astype(np.int16), pgtypes.INT2, null),
        encode(longs / 3e7, pgtypes.FLOAT8, null),
        encode(longs % 2 == 0, pgtypes.BOOL, null),
        encode(times, pgtypes.TIMESTAMPTZ, null),
        encode(words, pgtypes.TEXT),
        encode((longs / 3e7).astype(np.float32), pgtypes.FLOAT4, null),
        numerics,
    ]
    with connection.cursor() as cursor:
        cursor.copy_expert("copy packed from stdin (format binary)", io.BytesIO(pack(columns).tobytes()))
    clock = as_python(pgtypes.TIMESTAMPTZ, "f")
    found = query(connection, f"select a, b, c, d, e, {clock}, g, h::float8, i::float8 from packed order by i")
    expected = [
        [*longs.tolist()],
        longs.astype(np.int32).tolist(),
        longs.astype(np.int16).tolist(),
        (longs / 3e7).tolist(),
        (longs % 2 == 0).tolist(),
        times.tolist(),
        words,
        (longs / 3e7).astype(np.float32).tolist(),
        [(n + 1) * 1.5 for n in range(rows)],
    ]
    for column, wanted in enumerate(expected):
        masked = [None if n and column != 8 else v for n, v in zip(null.tolist(), wanted, strict=True)]
        assert [row[column] for row in found] == masked


# --- a real slot ------------------------------------------------------------------------------------------------------


def stream(dsn: str, slot: str, binary: str) -> list[bytes]:
    """All payloads from the slot's position up to the next logical message `stop`; nothing is acknowledged."""
    payloads: list[bytes] = []
    replication = psycopg2.connect(dsn, connection_factory=psycopg2.extras.LogicalReplicationConnection)
    with closing(replication), replication.cursor() as cursor:
        options = {"proto_version": "1", "publication_names": "pub", "binary": binary, "messages": "true"}
        cursor.start_replication(slot_name=slot, decode=False, options=options)
        while True:
            message = cursor.read_message()
            if message is None:
                assert select.select([cursor], [], [], 20)[0], "the server fell silent"
                continue
            if message.payload[:1] == b"M" and b"\0stop" not in message.payload[:10] and b"stop\0" in message.payload:
                break
            payloads.append(message.payload)
    wait_until_free(dsn, slot)
    return payloads


def wait_until_free(dsn: str, slot: str) -> None:
    """The server notices a moment later that the reader has gone."""
    deadline = time.monotonic() + 20
    with closing(psycopg2.connect(dsn)) as connection:
        connection.autocommit = True
        while query(connection, f"select active from pg_replication_slots where slot_name = '{slot}'") == [(True,)]:
            assert time.monotonic() < deadline, "the slot is still in use"
            time.sleep(0.01)


def in_chunks(payloads: list[bytes], size: int, session: Session) -> list[Messages]:
    out = []
    for first in range(0, len(payloads), size):
        part = payloads[first : first + size]
        out.append(parse(b"".join(part), np.cumsum([0, *map(len, part)], dtype=np.int64), session))
        session = out[-1].session
    return out


@pytest.fixture
def source(connection: Any, dsn: str) -> Iterator[Any]:
    query(connection, "create type mood as enum ('calm', 'stormy')")
    query(connection, "create table trips (id bigint primary key, note text, mood mood, fare numeric, at timestamptz)")
    query(connection, "create table labels (id bigint primary key, late boolean)")
    query(connection, "create table bodies (id integer primary key, body text, n integer)")
    query(connection, "create table whole (id integer primary key, body text, n integer)")
    query(connection, "alter table whole replica identity full")
    query(connection, "alter table bodies alter body set storage external")
    query(connection, "alter table whole alter body set storage external")
    query(connection, "create publication pub for all tables")
    slot = connection.get_dsn_parameters()["dbname"]
    query(connection, f"select pg_create_logical_replication_slot('{slot}', 'pgoutput')")
    yield connection
    query(connection, f"select pg_drop_replication_slot('{slot}')")


def values(group: Changes, cells: Cells, name: str, only: Any) -> list[Any]:
    """The decoded column of the rows in `only`; user-defined types as text."""
    column = next(k for k, c in enumerate(group.relation.columns) if c.name == name)
    oid = group.relation.columns[column].type_oid
    decoded = decode(cells.take(only), column, oid if oid in SUPPORTED else pgtypes.TEXT)
    return [None if n else v for v, n in zip(decoded.values.tolist(), decoded.null.tolist(), strict=True)]


@pytest.mark.parametrize("binary", ["true", "false"])
@pytest.mark.parametrize("size", [1, 5, 10_000])
def test_every_kind_of_change_arrives(source: Any, dsn: str, binary: str, size: int) -> None:
    slot = source.get_dsn_parameters()["dbname"]
    oids = dict(query(source, "select relname, oid::int8 from pg_class where relkind = 'r' and relnamespace = 2200"))
    query(
        source,
        """
        begin;
        insert into trips values (1, 'één', 'calm', 12.50, '2013-01-01 05:00+00');
        insert into trips values (2, null, 'stormy', null, 'infinity');
        insert into labels values (1, true);
        insert into trips values (3, '', null, -0.1, '1960-01-01 00:00:00.000001+00');
        select pg_logical_emit_message(true, 'inside', 'a transaction');
        commit;
        """,
    )
    query(source, "begin; insert into trips values (99); rollback")
    query(source, "begin; update trips set note = 'new' where id = 1; update trips set id = 20 where id = 2; commit")
    query(source, "delete from trips where id = 3")
    query(source, "select pg_logical_emit_message(false, 'outside', 'any')")
    query(
        source,
        "insert into bodies values (1, repeat('b', 50000), 1); insert into whole values (1, repeat('w', 50000), 1)",
    )
    query(source, "update bodies set n = 2; update whole set n = 2; delete from whole")
    query(source, "alter table labels add column score float8 default 0.5")
    query(source, "insert into labels values (4, null, 0.25)")
    query(source, "alter table labels drop column late")
    query(source, "insert into labels values (5, 0.75)")
    query(source, "truncate trips, labels restart identity cascade")
    query(source, "select pg_logical_emit_message(false, 'stop', '')")

    payloads = stream(dsn, slot, binary)
    chunks = in_chunks(payloads, size, Session())
    if size >= len(payloads):
        assert len(chunks) == 1
        assert [len(g.relation.columns) for g in chunks[0].rows(oids["labels"])] == [2, 3, 2]

    order: list[tuple[tuple[int, int], str, str]] = []
    found: dict[str, list[Changes]] = {}
    for number, messages in enumerate(chunks):
        for group in messages.changes:
            for row, index in enumerate(group.message.tolist()):
                order.append(((number, index), group.relation.name, chr(group.kind[row])))
            found.setdefault(group.relation.name, []).append(group)
    assert [(name, kind) for _, name, kind in sorted(order)] == [
        *(
            ("trips", "I"),
            ("trips", "I"),
            ("labels", "I"),
            ("trips", "I"),
            ("trips", "U"),
            ("trips", "U"),
            ("trips", "D"),
        ),
        *(
            ("bodies", "I"),
            ("whole", "I"),
            ("bodies", "U"),
            ("whole", "U"),
            ("whole", "D"),
            ("labels", "I"),
            ("labels", "I"),
        ),
    ]

    def column(table: str, name: str, kind: int) -> list[Any]:
        out = []
        for group in found[table]:
            if name in (c.name for c in group.relation.columns):
                out += values(group, group.filled(), name, group.kind == kind)
        return out

    def old(table: str, name: str, kind: int, identity: int) -> list[Any]:
        out = []
        for group in found[table]:
            if group.old is not None:
                out += values(group, group.old, name, (group.kind == kind) & (group.identity == identity))
        return out

    assert column("trips", "id", INSERT) == [1, 2, 3]
    assert column("trips", "note", INSERT) == ["één", None, ""]
    assert column("trips", "mood", INSERT) == ["calm", "stormy", None]
    assert column("trips", "fare", INSERT) == [12.5, None, -0.1]
    assert column("trips", "at", INSERT) == [1357016400000000, POSITIVE_INFINITY, -315619199999999]
    assert column("trips", "id", UPDATE) == [1, 20]
    assert column("trips", "note", UPDATE) == ["new", None]
    assert old("trips", "id", UPDATE, KEY) == [2]
    assert old("trips", "id", DELETE, KEY) == [3]
    assert column("labels", "id", INSERT) == [1, 4, 5]
    assert column("labels", "late", INSERT) == [True, None]
    assert column("labels", "score", INSERT) == [0.25, 0.75]
    assert [c.is_key for c in found["labels"][0].relation.columns] == [True, False]

    assert column("whole", "body", UPDATE) == ["w" * 50000]
    assert old("whole", "body", DELETE, OLD) == ["w" * 50000]
    assert old("whole", "n", UPDATE, OLD) == [1]
    (bodies,) = [g for g in found["bodies"] if np.any(g.kind == UPDATE)]
    row = int(np.flatnonzero(bodies.kind == UPDATE)[0])
    assert bodies.filled().length[1, row] == UNCHANGED
    assert values(bodies, bodies.new, "n", bodies.kind == UPDATE) == [2]

    assert [t.oids for m in chunks for t in m.truncates] == [(oids["trips"], oids["labels"])]
    assert [(t.cascade, t.restart_identity) for m in chunks for t in m.truncates] == [(True, True)]
    logical = [(m.transactional, m.prefix, m.content) for c in chunks for m in c.logical]
    assert sorted(logical) == [(False, "outside", b"any"), (True, "inside", b"a transaction")]
    assert {t.name for c in chunks for t in c.types} == {"mood"}


def test_a_commits_end_lsn_is_where_the_slot_goes_on(source: Any, dsn: str) -> None:
    slot = source.get_dsn_parameters()["dbname"]
    for number in range(3):
        query(source, f"insert into labels values ({number}, false)")
    (before,) = query(source, "select extract(epoch from now()) * 1000000")[0]
    query(source, "select pg_logical_emit_message(false, 'stop', '')")
    (messages,) = in_chunks(stream(dsn, slot, "true"), 10_000, Session())
    found = messages.transactions
    assert found.end_lsn.size == 3
    assert np.all(found.end_lsn > found.final_lsn)
    assert np.all(np.abs(found.commit_time - int(before)) < 60_000_000)
    end = int(found.end_lsn[1])
    query(source, f"select pg_replication_slot_advance('{slot}', '{end >> 32:X}/{end & 0xFFFFFFFF:X}')")
    query(source, "select pg_logical_emit_message(false, 'stop', '')")
    (rest,) = in_chunks(stream(dsn, slot, "true"), 10_000, Session())
    (group,) = rest.changes
    assert values(group, group.new, "id", group.kind == INSERT) == [2]


def test_fields_of_the_stream_are_copied_into_a_table_as_they_are(source: Any, dsn: str) -> None:
    slot = source.get_dsn_parameters()["dbname"]
    query(
        source,
        "insert into trips select n, case when n % 3 > 0 then 'note ' || n end, 'stormy', n * 1.1, "
        "timestamptz '2013-01-01' + n * interval '1 hour' from generate_series(1, 3000) n",
    )
    query(source, "select pg_logical_emit_message(false, 'stop', '')")
    (messages,) = in_chunks(stream(dsn, slot, "true"), 10_000, Session())
    (group,) = messages.changes
    payload = pack([group.new.column(c) for c in range(group.new.columns)])
    query(source, "create table copied (like trips)")
    with source.cursor() as cursor:
        cursor.copy_expert("copy copied from stdin (format binary)", io.BytesIO(payload.tobytes()))
    assert query(source, "select count(*) from copied") == [(3000,)]
    assert query(source, "(table trips except table copied) union all (table copied except table trips)") == []
