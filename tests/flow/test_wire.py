"""The wire codec against encoders written a second time, in plain Python, from the Postgres documentation."""

from __future__ import annotations

import math
import os
import struct
import subprocess
import sys
import tracemalloc
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace.errors import DecodeError
from headrace.flow import arrays, pgtypes
from headrace.flow.arrays import encode_list
from headrace.flow.copybinary import (
    CODE,
    HEADER,
    NUMBER,
    REFERENCE,
    TIME,
    TRAILER,
    WHOLE,
    encode,
    pack,
    pack_events,
    pack_table,
    unpack,
    unpack_chunk,
    unpack_table,
)
from headrace.flow.pgoutput import (
    DELETE,
    INSERT,
    KEY,
    OLD,
    UPDATE,
    Begin,
    LogicalMessage,
    Messages,
    Origin,
    Relation,
    RelationColumn,
    Session,
    Truncate,
    TypeName,
    parse,
)
from headrace.flow.pgtypes import (
    FLOAT8,
    INT8,
    NEGATIVE_INFINITY,
    POSITIVE_INFINITY,
    SUPPORTED,
    TEXT,
    TIMESTAMPTZ,
    decode,
)
from headrace.flow.wire import ABSENT, UNCHANGED, Cells, Fields, as_bytes, distinct
from headrace.models.text import NULL, Text

settings.register_profile("wire", deadline=None, max_examples=50)
settings.load_profile("wire")

Field = tuple[str, bytes]  # kind (b, t, n, u) and bytes


# --- the second codec -------------------------------------------------------------------------------------------------


def copy_payload(rows: list[list[bytes | None]]) -> bytes:
    out = [HEADER]
    for row in rows:
        out.append(struct.pack(">h", len(row)))
        out += [struct.pack(">i", -1) if f is None else struct.pack(">i", len(f)) + f for f in row]
    return b"".join([*out, TRAILER])


def tuple_data(fields: list[Field]) -> bytes:
    out = [struct.pack(">h", len(fields))]
    for kind, data in fields:
        out.append(kind.encode() + (struct.pack(">i", len(data)) + data if kind in "bt" else b""))
    return b"".join(out)


def begin(lsn: int, time: int, xid: int) -> bytes:
    return b"B" + struct.pack(">qqI", lsn, time - pgtypes.POSTGRES_EPOCH, xid)


def commit(lsn: int, end: int, time: int) -> bytes:
    return b"C\0" + struct.pack(">qqq", lsn, end, time - pgtypes.POSTGRES_EPOCH)


def describe(relation: Relation) -> bytes:
    out = [b"R", struct.pack(">I", relation.oid), relation.namespace.encode(), b"\0", relation.name.encode(), b"\0"]
    out += [relation.replica_identity.encode(), struct.pack(">h", len(relation.columns))]
    for c in relation.columns:
        out += [bytes([c.is_key]), c.name.encode(), b"\0", struct.pack(">Ii", c.type_oid, c.typmod)]
    return b"".join(out)


def chunk(messages: list[bytes]) -> tuple[bytes, NDArray[np.int64]]:
    return b"".join(messages), np.cumsum([0, *(len(m) for m in messages)], dtype=np.int64)


def cells_of(fields: list[Field], name: str = "c") -> Cells:
    """One column, each field at a place of its own in a buffer with gaps."""
    data, start, length = b"#", [], []
    for kind, raw in fields:
        start.append(len(data))
        length.append({"n": NULL, "u": UNCHANGED, "a": ABSENT}.get(kind, len(raw)))
        data += raw + b"#"
    text = np.array([[kind == "t" for kind, _ in fields]], dtype=np.bool_)
    shape = (1, len(fields))
    starts, lengths = np.array(start, np.int64).reshape(shape), np.array(length, np.int32).reshape(shape)
    return Cells(as_bytes(data), starts, lengths, text.reshape(shape), (name,))


def numeric_wire(value: Decimal) -> bytes:
    if not value.is_finite():
        return struct.pack(">HhHH", 0, 0, 0xC000 if value.is_nan() else 0xF000 if value < 0 else 0xD000, 0)
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits)) + "0" * max(0, exponent)
    whole, fraction = (text[:exponent], text[exponent:].rjust(-exponent, "0")) if exponent < 0 else (text, "")
    whole = whole.rjust(-(-len(whole) // 4) * 4, "0")
    fraction = fraction.ljust(-(-len(fraction) // 4) * 4, "0")
    groups = [int((whole + fraction)[k : k + 4]) for k in range(0, len(whole + fraction), 4)]
    weight = len(whole) // 4 - 1
    while groups and groups[0] == 0:
        groups, weight = groups[1:], weight - 1
    while groups and groups[-1] == 0:
        groups = groups[:-1]
    head = struct.pack(
        ">HhHH", len(groups), weight if groups else 0, 0x4000 if sign and groups else 0, max(0, -exponent)
    )
    return head + struct.pack(f">{len(groups)}H", *groups)


def numeric_text(value: Decimal) -> str:
    if value.is_finite():
        return format(abs(value) if value == 0 else value, "f")
    return "NaN" if value.is_nan() else "-Infinity" if value < 0 else "Infinity"


def float_text(value: float, shortest: str) -> str:
    return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(str(float(value)), shortest)


def micros(value: datetime) -> int:
    return (value - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def iso(value: datetime) -> str:
    return f"{value.year:04d}-" + value.strftime("%m-%d %H:%M:%S.%f")


Sample = tuple[Any, bytes, bytes]  # the decoded value, its binary format, its text format


def integers(width: int) -> st.SearchStrategy[Sample]:
    bound = 1 << (8 * width - 1)
    return st.integers(-bound, bound - 1).map(lambda v: (v, v.to_bytes(width, "big", signed=True), str(v).encode()))


def plain(value: str) -> Sample:
    return value, value.encode(), value.encode()


def time_sample(value: datetime | None, infinite: int = 0) -> Sample:
    if value is None:
        return infinite, struct.pack(">q", infinite), b"infinity" if infinite > 0 else b"-infinity"
    return micros(value), struct.pack(">q", micros(value) - pgtypes.POSTGRES_EPOCH), iso(value).encode() + b"+00"


def date_sample(value: date) -> Sample:
    days = (value - date(1970, 1, 1)).days
    return days * 86_400_000_000, struct.pack(">i", days - 10957), value.isoformat().encode()


def char_sample(byte: int) -> Sample:
    text = "" if byte == 0 else chr(byte) if byte < 128 else f"\\{byte:03o}"
    return text, bytes([byte]), text.encode()


def array_sample(tokens: list[str | None], element: int) -> Sample:
    odd = set('{}",\\ \t\n\r\v\f')
    parts = [
        "NULL" if t is None
        else '"' + "".join(f"\\{c}" if c in '"\\' else c for c in t) + '"' if not t or odd & set(t) or t.upper() == "NULL"
        else t
        for t in tokens
    ]  # fmt: skip
    text = "{" + ",".join(parts) + "}"
    return text, encode_list(tokens, element), text.encode()


infinite_times = [time_sample(None, POSITIVE_INFINITY), time_sample(None, NEGATIVE_INFINITY)]
times = st.datetimes(timezones=st.just(UTC)).map(time_sample) | st.sampled_from(infinite_times)
infinite_dates: list[Sample] = [
    (POSITIVE_INFINITY, struct.pack(">i", 2**31 - 1), b"infinity"),
    (NEGATIVE_INFINITY, struct.pack(">i", -(2**31)), b"-infinity"),
]
strings = (st.text(st.characters(blacklist_characters="\0", codec="utf-8")) | st.sampled_from(["AA", "UA"])).map(plain)
lists = st.lists(
    st.none()
    | st.text(st.characters(blacklist_characters="\0", codec="utf-8"), max_size=6)
    | st.sampled_from(["null", "NULL"]),
    max_size=6,
)
scaled = st.tuples(st.integers(-(2**54), 2**54), st.integers(-60, 60)).map(lambda p: Decimal(f"{p[0]}e{p[1]}"))
decimals = st.decimals(allow_nan=True, allow_infinity=True) | st.decimals(-(10**9), 10**9, places=3) | scaled

SAMPLES: dict[int, st.SearchStrategy[Sample]] = {
    pgtypes.BOOL: st.booleans().map(lambda v: (v, bytes([v]), b"t" if v else b"f")),
    pgtypes.CHAR: st.integers(0, 255).map(char_sample),
    pgtypes.NAME: strings,
    pgtypes.INT8: integers(8),
    pgtypes.INT2: integers(2),
    pgtypes.INT4: integers(4),
    pgtypes.TEXT: strings,
    pgtypes.FLOAT4: st.floats(width=32).map(
        lambda v: (v, struct.pack(">f", v), float_text(v, str(np.float32(v))).encode())
    ),
    pgtypes.FLOAT8: st.floats().map(lambda v: (v, struct.pack(">d", v), float_text(v, repr(v)).encode())),
    pgtypes.BPCHAR: strings,
    pgtypes.VARCHAR: strings,
    pgtypes.DATE: st.dates().map(date_sample) | st.sampled_from(infinite_dates),
    pgtypes.TIMESTAMP: times,
    pgtypes.TIMESTAMPTZ: times,
    pgtypes.NUMERIC: decimals.filter(lambda d: not d.is_snan() and -3000 < d.adjusted() < 3000).map(
        lambda d: (float(numeric_text(d)), numeric_wire(d), numeric_text(d).encode())
    ),
    pgtypes.UUID: st.uuids().map(lambda u: (str(u), u.bytes, str(u).encode())),
    pgtypes.TEXT_ARRAY: lists.map(lambda tokens: array_sample(tokens, pgtypes.TEXT)),
    pgtypes.VARCHAR_ARRAY: lists.map(lambda tokens: array_sample(tokens, pgtypes.VARCHAR)),
}


def assert_column(column: pgtypes.Column, expected: list[Any]) -> None:
    assert column.null.tolist() == [e is None for e in expected]
    for found, wanted in zip(column.values.tolist(), expected, strict=True):
        if isinstance(found, float):
            assert np.float64(found).tobytes() == np.float64(np.nan if wanted is None else wanted).tobytes() or (
                np.isnan(found) and (wanted is None or np.isnan(wanted))
            )
        elif isinstance(found, str) or found is None:
            assert found == wanted
        else:
            assert found == (0 if wanted is None else wanted)


# --- decode -----------------------------------------------------------------------------------------------------------


def test_every_supported_type_has_samples() -> None:
    assert SAMPLES.keys() == SUPPORTED.keys()


@pytest.mark.parametrize("oid", SUPPORTED, ids=lambda oid: SUPPORTED[oid].name)
@given(data=st.data())
def test_binary_and_text_decode_to_the_same_values(oid: int, data: st.DataObject) -> None:
    samples = data.draw(st.lists(st.none() | SAMPLES[oid], max_size=20))
    expected = [None if s is None else s[0] for s in samples]
    binary: list[Field] = [("n", b"") if s is None else ("b", s[1]) for s in samples]
    text: list[Field] = [("n", b"") if s is None else ("t", s[2]) for s in samples]
    mixed = [data.draw(st.sampled_from(pair)) for pair in zip(binary, text, strict=True)]
    for fields in (binary, text, mixed):
        assert_column(decode(cells_of(fields), 0, oid), expected)


@pytest.mark.parametrize("oid", SUPPORTED, ids=lambda oid: SUPPORTED[oid].name)
@given(data=st.data())
def test_pack_unpack_decode_is_the_identity(oid: int, data: st.DataObject) -> None:
    samples = data.draw(st.lists(st.none() | SAMPLES[oid], max_size=20))
    raw = [None if s is None else s[1] for s in samples]
    payload = pack([cells_of([("n", b"") if r is None else ("b", r) for r in raw]).column(0)] * 2)
    assert payload.tobytes() == copy_payload([[r, r] for r in raw])
    cells = unpack(payload, columns=2)
    for column in (0, 1):
        assert_column(decode(cells, column, oid), [None if s is None else s[0] for s in samples])


ENCODED: dict[int, Any] = {
    pgtypes.BOOL: np.bool_,
    pgtypes.INT2: np.int16,
    pgtypes.INT4: np.int32,
    pgtypes.INT8: np.int64,
    pgtypes.FLOAT4: np.float32,
    pgtypes.FLOAT8: np.float64,
    pgtypes.TIMESTAMP: np.int64,
    pgtypes.TIMESTAMPTZ: np.int64,
    pgtypes.TEXT: None,
    pgtypes.VARCHAR: None,
}


@pytest.mark.parametrize("oid", ENCODED, ids=lambda oid: SUPPORTED[oid].name)
@given(data=st.data())
def test_encode_writes_what_postgres_would(oid: int, data: st.DataObject) -> None:
    samples = data.draw(st.lists(st.none() | SAMPLES[oid], max_size=20))
    expected = [None if s is None else s[0] for s in samples]
    dtype = ENCODED[oid]
    if dtype is None:
        as_object = np.array([*expected, None], dtype=object)[:-1]
        columns = [
            encode(expected, oid),
            encode(as_object, oid),
            encode([None if e is None else e.encode() for e in expected], oid),
        ]
    else:
        values = np.array([0 if e is None else e for e in expected], dtype=dtype)
        columns = [encode(values, oid, np.array([e is None for e in expected], dtype=np.bool_))]
    payload = pack(columns)
    cells = unpack(payload, columns=len(columns))
    for column in range(len(columns)):
        assert_column(decode(cells, column, oid), expected)
    if oid != pgtypes.FLOAT4 and oid != pgtypes.FLOAT8:  # a NaN has many bit patterns
        assert payload.tobytes() == copy_payload([[None if s is None else s[1]] * len(columns) for s in samples])


@given(st.lists(SAMPLES[pgtypes.NUMERIC], min_size=1))
def test_to_float_keeps_numbers_and_marks_nulls(samples: list[Sample]) -> None:
    found = decode(cells_of([("n", b""), *(("b", s[1]) for s in samples)]), 0, pgtypes.NUMERIC).to_float()
    np.testing.assert_array_equal(found, [np.nan, *(s[0] for s in samples)])
    with pytest.raises(TypeError, match="strings"):
        decode(cells_of([("b", b"x")]), 0, pgtypes.TEXT).to_float()


def test_times_beyond_int64_saturate_to_infinity_in_both_formats() -> None:
    last = struct.pack(">q", 9223371331199999999)  # Postgres' last one; int64 microseconds since 1970 end in 294247
    fields: list[Field] = [("b", last), ("t", b"294276-12-31 23:59:59.999999+00")]
    assert decode(cells_of(fields), 0, pgtypes.TIMESTAMPTZ).values.tolist() == [POSITIVE_INFINITY] * 2
    fields = [("b", struct.pack(">i", 2**31 - 2000)), ("t", b"5874897-12-31")]
    assert decode(cells_of(fields), 0, pgtypes.DATE).values.tolist() == [POSITIVE_INFINITY] * 2


def test_equal_strings_are_one_object() -> None:
    values = decode(cells_of([("b", b"carrier"), ("b", b"origin"), ("t", b"carrier")]), 0, pgtypes.TEXT).values
    assert values[0] is values[2]


BAD_FIELDS: list[tuple[int, Field]] = [
    (pgtypes.INT8, ("b", b"1234567")),
    (pgtypes.INT2, ("t", b"40000")),
    (pgtypes.INT4, ("t", b"1_0")),
    (pgtypes.BOOL, ("b", b"")),
    (pgtypes.BOOL, ("t", b"true")),
    (pgtypes.FLOAT8, ("t", b"one")),
    (pgtypes.TIMESTAMPTZ, ("t", b"01/02/2013 04:05:06")),
    (pgtypes.DATE, ("t", b"2013-13-01")),
    (pgtypes.NUMERIC, ("b", struct.pack(">HhHH", 1, 0, 0, 0))),
    (pgtypes.NUMERIC, ("b", struct.pack(">HhHHH", 1, 0, 0, 0, 10000))),
    (pgtypes.NUMERIC, ("b", struct.pack(">HhHHH", 1, 0, 0x8000, 0, 1))),
    (pgtypes.UUID, ("b", bytes(15))),
    (pgtypes.UUID, ("t", b"not-a-uuid")),
    (pgtypes.TEXT, ("b", b"a\xff")),
    (pgtypes.TEXT, ("b", b"zero\0byte")),
]


@pytest.mark.parametrize(("oid", "field"), BAD_FIELDS, ids=str)
def test_a_field_that_is_not_of_its_type_is_named(oid: int, field: Field) -> None:
    good = ("n", b"")
    with pytest.raises(DecodeError, match=r'^column "delay", row 2: .* is not a .*; expected') as caught:
        decode(cells_of([good, good, field, good], "delay"), 0, oid)
    assert SUPPORTED[oid].name in str(caught.value)


def test_invalid_utf8_names_its_row_even_where_the_neighbours_would_complete_it() -> None:
    with pytest.raises(DecodeError, match="row 1"):
        decode(cells_of([("b", b"ok"), ("b", b"\xc3"), ("b", b"\xa9")]), 0, pgtypes.TEXT)


def test_an_unsupported_type_is_named_with_its_column() -> None:
    with pytest.raises(DecodeError, match=r'column "payload" has the type with oid 3802; expected one of boolean'):
        decode(cells_of([("b", b"\x01{}")], "payload"), 0, 3802)


@pytest.mark.parametrize("oid", SUPPORTED, ids=lambda oid: SUPPORTED[oid].name)
@pytest.mark.parametrize(("kind", "reason"), [("u", "unchanged TOASTed"), ("a", "carries no such row")])
def test_what_is_not_in_the_message_is_never_taken_for_null(oid: int, kind: str, reason: str) -> None:
    cells = cells_of([("n", b""), (kind, b"")], "body")
    for use in (lambda: decode(cells, 0, oid), lambda: distinct(cells.column(0)), lambda: pack([cells.column(0)])):
        with pytest.raises(DecodeError, match=f'column "body", row 1: .*{reason}'):
            use()


# --- hash and distinct ------------------------------------------------------------------------------------------------


GAMMA = 0x9E3779B97F4A7C15


def mix_again(h: int) -> int:
    h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) % 2**64
    return h ^ (h >> 31)


def hash_again(data: bytes) -> int:
    h = mix_again((len(data) + GAMMA) % 2**64)
    for k in range(0, len(data), 8):
        h = mix_again(((h ^ int.from_bytes(data[k : k + 8], "little")) + GAMMA) % 2**64)
    return h or 1


def hashes(cells: Cells) -> list[int]:
    fields = cells.column(0)
    keys: list[int] = Text(fields.buffer, fields.start, fields.length).keys().tolist()
    return keys


@given(st.lists(st.none() | st.binary(max_size=40)))
def test_the_hash_is_the_documented_one(values: list[bytes | None]) -> None:
    cells = cells_of([("n", b"") if v is None else ("b", v) for v in values])
    assert hashes(cells) == [0 if v is None else hash_again(v) for v in values]


def test_the_hash_never_changes() -> None:
    """Stored hashes depend on it: these constants may not be edited."""
    cells = cells_of([("b", b""), ("b", b"\0"), ("b", b"headrace"), ("b", b"headrace!"), ("b", struct.pack(">q", 42))])
    assert [f"{h:016x}" for h in hashes(cells)] == GOLDEN_HASHES


GOLDEN_HASHES = ["e220a8397b1dcdaf", "5e41ab087439611e", "9bde48d956291b48", "51b12316873b452d", "0d466e4820eac6ca"]


@given(st.lists(st.none() | st.binary(max_size=3) | st.integers(0, 10**4).map(lambda v: str(v).encode())))
def test_distinct_numbers_fields_in_order_of_appearance(values: list[bytes | None]) -> None:
    check_distinct(values)


def check_distinct(values: list[bytes | None]) -> None:
    codes, first = distinct(cells_of([("n", b"") if v is None else ("b", v) for v in values]).column(0))
    numbers: dict[bytes, int] = {}
    assert codes.tolist() == [-1 if v is None else numbers.setdefault(v, len(numbers)) for v in values]
    assert [values[row] for row in first.tolist()] == list(numbers)


def test_distinct_tells_colliding_fields_apart() -> None:
    first = b"carrier1" + b"origin 1"
    start = mix_again((16 + GAMMA) % 2**64)
    one, two = (mix_again(((start ^ int.from_bytes(w, "little")) + GAMMA) % 2**64) for w in (first[:8], b"carrier2"))
    other = b"carrier2" + (int.from_bytes(first[8:], "little") ^ one ^ two).to_bytes(8, "little")
    cells = cells_of([("b", first), ("b", other), ("b", first)])
    assert len(set(hashes(cells))) == 1
    check_distinct([first, other, first])


def test_distinct_grows() -> None:
    check_distinct([str(k * k % 7919).encode() for k in range(20_000)])


# --- COPY -------------------------------------------------------------------------------------------------------------

tables = st.integers(1, 5).flatmap(
    lambda columns: st.lists(st.lists(st.none() | st.binary(max_size=12), min_size=columns, max_size=columns))
)


def rows_of(cells: Cells) -> list[list[bytes | None]]:
    columns = [cells.column(c) for c in range(cells.columns)]
    return [[None if f.length[r] < 0 else f.bytes_at(r) for f in columns] for r in range(cells.rows)]


@given(tables, st.integers(1, 7))
def test_chunks_of_any_size_give_all_rows(rows: list[list[bytes | None]], max_rows: int) -> None:
    payload = copy_payload(rows)
    width = len(rows[0]) if rows else 3
    assert rows_of(unpack(payload)) == rows
    found, at = [], 0
    while at < len(payload):
        cells, at = unpack_chunk(payload, width, at, max_rows)
        assert cells.rows <= max_rows
        found += rows_of(cells)
    assert found == rows


def test_a_mapped_file_is_walked_in_place(tmp_path: Path) -> None:
    numbers = np.arange(10_000)
    spool = tmp_path / "spool"
    spool.write_bytes(pack([encode(numbers, pgtypes.INT8), encode(numbers.astype(str).tolist(), pgtypes.TEXT)]).data)
    mapped, at, found = np.memmap(spool, dtype=np.uint8, mode="r"), 0, []
    while at < mapped.size:
        cells, at = unpack_chunk(mapped, ["id", "name"], at, 999)
        assert np.shares_memory(cells.buffer, mapped)
        found.append(decode(cells, 0, pgtypes.INT8).values)
        assert decode(cells, 1, pgtypes.TEXT).values.tolist() == [str(n) for n in found[-1]]
    assert np.array_equal(np.concatenate(found), numbers)


def test_more_rows_than_one_block_and_header_extensions() -> None:
    rows = [[str(k).encode(), None if k % 3 else b"x" * (k % 11)] for k in range(5_000)]
    payload = copy_payload(rows)
    extended = payload[:15] + struct.pack(">i", 5) + b"hello" + payload[19:]
    cells = unpack(extended)
    assert rows_of(cells) == rows
    assert pack([cells.column(0), cells.column(1)]).tobytes() == payload


@given(tables, st.data())
def test_damaged_copy_data_raises_or_stays_inside(rows: list[list[bytes | None]], data: st.DataObject) -> None:
    payload = copy_payload(rows)
    cut = data.draw(st.integers(0, len(payload) - 1))
    with pytest.raises(DecodeError, match=r"COPY data.*expected"):
        unpack(payload[:cut], columns=len(rows[0]) if rows else 1)
    with pytest.raises(DecodeError, match=r"COPY data.*expected"):
        unpack(payload + b"\0")
    damaged, at = data.draw(damage(payload)), 0
    with suppress(DecodeError):
        assert_inside(unpack(damaged))
    with suppress(DecodeError):
        while at < len(damaged):
            cells, at = unpack_chunk(damaged, len(rows[0]) if rows else 1, at, max_rows=1)
            assert_inside(cells)


def test_a_field_one_byte_too_long_is_refused_at_the_end_of_a_chunk() -> None:
    payload = copy_payload([[b"ab"]])[:-3]  # the row ends the data, one byte early
    with pytest.raises(DecodeError, match="ends in the middle of a row"):
        unpack_chunk(payload, 1, max_rows=1)


def test_copy_errors_say_where() -> None:
    payload = copy_payload([[b"a", b"b"], [b"c", b"d"]])
    with pytest.raises(DecodeError, match=r"row 0 .* another number of columns, at position 19 .* 3 columns"):
        unpack(payload, columns=3)
    with pytest.raises(DecodeError, match=r"starts with b'a,b\\n'; expected the signature"):
        unpack(b"a,b\n")
    with pytest.raises(DecodeError, match=r"flags 0x00010000; expected none"):
        unpack(payload[:11] + b"\0\1\0\0" + payload[15:])
    with pytest.raises(ValueError, match="outside a buffer"):
        unpack_chunk(payload, 2, offset=-1)


@given(
    st.lists(
        st.tuples(
            st.integers(-(2**63), 2**63 - 1),
            st.floats() | st.just(math.nan),
            st.sampled_from([0, 0, 1, -1, 2**62]),
            st.integers(-(10**15), 10**15) | st.sampled_from([2**63 - 1, -(2**63)]),
            st.integers(0, 2),
        )
    )
)
def test_a_table_is_packed_as_its_columns_are(rows: list[tuple[Any, ...]]) -> None:
    texts = ["", "no", "none at all"]
    whole, number, reference, time, code = (
        np.array([row[c] for row in rows], dtype=np.float64 if c == 1 else np.int64) for c in range(5)
    )
    values = np.column_stack([whole, number.view(np.int64), reference, time, code])
    packed = pack_table(values, (WHOLE, NUMBER, REFERENCE, TIME, CODE), [text.encode() for text in texts])
    columns = [encode(whole, INT8), encode(number, FLOAT8, np.isnan(number)), encode(reference, INT8, reference == 0)]
    columns += [encode(time, TIMESTAMPTZ), encode([texts[c] for c in code.tolist()], TEXT)]
    assert packed.tobytes() == pack(columns).tobytes()


@given(
    st.lists(
        st.tuples(
            st.integers(-(2**63), 2**63 - 1),
            st.none() | st.floats(),
            st.none() | st.integers(-(2**63), 2**63 - 1),
            st.integers(-(2**31), 2**31 - 1),
            st.integers(-(10**15), 10**15) | st.sampled_from([2**63 - 1, -(2**63)]),
        )
    ),
    st.data(),
)
def test_a_table_is_read_as_its_columns_are(rows: list[tuple[Any, ...]], data: st.DataObject) -> None:
    kinds, oids = (WHOLE, NUMBER, REFERENCE, WHOLE, TIME), (INT8, FLOAT8, INT8, pgtypes.INT4, TIMESTAMPTZ)
    columns = []
    for c, oid in enumerate(oids):
        null = np.array([row[c] is None for row in rows], dtype=np.bool_)
        dtype = {FLOAT8: np.float64, pgtypes.INT4: np.int32}.get(oid, np.int64)
        columns.append(encode(np.array([row[c] or 0 for row in rows], dtype=dtype), oid, null))
    payload = pack(columns)
    cells, table = unpack(payload, len(kinds)), unpack_table(payload, kinds)
    for c, oid in enumerate(oids):
        decoded = decode(cells, c, oid).values
        same = table[c].view(np.float64) if oid == FLOAT8 else table[c]
        assert np.array_equal(same, decoded, equal_nan=oid == FLOAT8)
    with pytest.raises(DecodeError, match=r"COPY data.*expected"):
        unpack_table(payload[: data.draw(st.integers(0, len(payload) - 1))], kinds)
    with pytest.raises(DecodeError, match=r"COPY data.*expected"):
        unpack_table(np.append(payload, np.uint8(0)), kinds)
    with suppress(DecodeError):
        unpack_table(np.frombuffer(data.draw(damage(payload.tobytes())), dtype=np.uint8), kinds)
    if rows:
        with pytest.raises(DecodeError, match="another number of columns"):
            unpack_table(payload, kinds[:-1])
        with pytest.raises(DecodeError, match="found b'abc', expected four or eight bytes"):
            unpack_table(pack([encode(["abc"], TEXT)]), kinds[:1])


@given(st.lists(st.lists(st.none() | st.binary(max_size=9), min_size=3, max_size=3)), st.data())
def test_events_are_packed_from_any_buffers(rows: list[list[bytes | None]], data: st.DataObject) -> None:
    cells, others = (unpack(copy_payload(rows), 3) for _ in range(2))
    fields = [data.draw(st.sampled_from([cells, others])).column(c) for c in range(3)]
    taken = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1))) if rows else [], dtype=np.int64)
    seqs = np.arange(len(taken)) * 2**40
    packed = pack_events(seqs, fields, taken)
    assert packed.tobytes() == copy_payload(
        [[struct.pack(">q", seq), *rows[row]] for seq, row in zip(seqs.tolist(), taken.tolist(), strict=True)]
    )


def test_of_a_large_buffer_only_what_is_needed_is_copied() -> None:
    table = np.zeros(1 << 26, dtype=np.uint8)
    start = np.arange(1000) * (len(table) // 1000)
    large = Fields(as_bytes(table), start, np.full(1000, 8, dtype=np.int32), np.zeros(1000, dtype=np.bool_), "n")
    some = encode(np.arange(1000), INT8)
    tracemalloc.start()
    try:
        packed = pack_events(np.zeros(3, dtype=np.int64), [large, some], np.array([500, 501, 502]))
        assert tracemalloc.get_traced_memory()[1] < len(table) / 100
    finally:
        tracemalloc.stop()
    assert unpack(packed, 3).column(2).bytes_at(1) == struct.pack(">q", 501)


def test_a_field_is_not_taken_from_the_next_buffer() -> None:
    first, second = (encode(np.arange(3), INT8) for _ in range(2))
    beyond = replace(first, start=first.start + 8)
    assert len(pack_events(np.zeros(2, dtype=np.int64), [beyond, second], np.array([0, 1]))) > 0
    with pytest.raises(ValueError, match="outside its buffer"):
        pack_events(np.zeros(1, dtype=np.int64), [beyond, second], np.array([2]))


def test_pack_and_encode_refuse_what_does_not_fit() -> None:
    ints = encode(np.arange(3), pgtypes.INT8)
    with pytest.raises(ValueError, match="equal size"):
        pack([ints, encode(np.arange(2), pgtypes.INT8)])
    with pytest.raises(ValueError, match="outside its buffer"):
        pack([replace(ints, start=ints.start + 1)])
    with pytest.raises(DecodeError, match='column "n", row 0: the field came in text format; expected binary'):
        pack([cells_of([("t", b"1")], "n").column(0)])
    with pytest.raises(TypeError, match="int64 does not fit integer; expected int32"):
        encode(np.arange(3), pgtypes.INT4)
    with pytest.raises(TypeError, match="no encoder"):
        encode(np.arange(3), pgtypes.NUMERIC)
    with pytest.raises(ValueError, match="zero byte"):
        encode(["a\0b"], pgtypes.TEXT)
    with pytest.raises(ValueError, match="before the first time"):
        encode(np.array([NEGATIVE_INFINITY + 1]), pgtypes.TIMESTAMPTZ)


# --- the change stream ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One change, as the model knows it."""

    kind: str
    relation: Relation
    new: list[Field] | None
    old: list[Field] | None
    identity: str

    def message(self) -> bytes:
        out = self.kind.encode() + struct.pack(">I", self.relation.oid)
        if self.old is not None:
            out += self.identity.encode() + tuple_data(self.old)
        return out + (b"N" + tuple_data(self.new) if self.new is not None else b"")


def relation_of(oid: int, columns: int, version: int) -> Relation:
    described = (RelationColumn(f"c{k}_{version}", 23 if k else 20, -1, k == 0) for k in range(columns))
    return Relation(oid, "public", f"t{oid}", "d", tuple(described))


field_of = st.tuples(st.sampled_from("bt"), st.binary(max_size=10)) | st.sampled_from([("n", b""), ("u", b"")])


@st.composite
def changes(draw: st.DrawFn, relation: Relation) -> Change:
    row = st.lists(field_of, min_size=len(relation.columns), max_size=len(relation.columns))
    kind = draw(st.sampled_from("IUUD"))
    identity = draw(st.sampled_from("KO"))
    new = draw(row) if kind != "D" else None
    old = draw(row) if kind == "D" or (kind == "U" and draw(st.booleans())) else None
    return Change(kind, relation, new, old, identity)


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[bytes, Any]]:
    """Messages of a few transactions over three relations whose columns change now and then, and what they mean."""
    out: list[tuple[bytes, Any]] = []
    current: dict[int, Relation] = {}
    for number in range(draw(st.integers(0, 4))):
        lsn, time, xid = draw(st.tuples(st.integers(0, 2**62), st.integers(0, 2**50), st.integers(0, 2**32 - 1)))
        out.append((begin(lsn, time, xid), ("begin", Begin(lsn, time, xid))))
        for _ in range(draw(st.integers(0, 8))):
            oid = draw(st.sampled_from([16384, 2**32 - 1, 7]))
            redefine = draw(st.integers(0, 4))
            if oid not in current or redefine <= 1:
                same = oid in current and redefine == 1
                relation = current[oid] if same else relation_of(oid, draw(st.integers(1, 4)), number)
                current[oid] = relation
                out.append((describe(relation), relation))
            change = draw(changes(current[oid]))
            out.append((change.message(), change))
        out.append((commit(lsn, lsn + 48, time), ("commit", lsn + 48)))
    return out


def merged(messages: Messages, first: int) -> dict[int, tuple[Change, int]]:
    """The changes of a chunk by message index, rebuilt from the columns; checks that each appears once."""
    out: dict[int, tuple[Change, int]] = {}
    for group in messages.changes:
        assert group.kind.size
        assert np.all(np.diff(group.message) > 0)
        for row, index in enumerate(group.message.tolist()):
            kind = chr(group.kind[row])
            new = fields_of(group.new, row)
            old = fields_of(group.old, row) if group.old is not None else None
            identity = chr(group.identity[row]) if group.identity[row] else ""
            assert (identity == "") == (old is None)
            assert index + first not in out
            change = Change(kind, group.relation, new, old, identity)
            out[index + first] = (change, int(messages.transactions.final_lsn[group.transaction[row]]))
    return out


def fields_of(cells: Cells, row: int) -> list[Field] | None:
    if cells.columns and cells.length[0, row] == ABSENT:
        assert np.all(cells.length[:, row] == ABSENT)
        return None
    kinds = {NULL: "n", UNCHANGED: "u"}
    found = []
    for c in range(cells.columns):
        column = cells.column(c)
        n = int(column.length[row])
        found.append((kinds[n], b"") if n < 0 else ("t" if column.text[row] else "b", column.bytes_at(row)))
    return found


@given(streams(), st.data())
def test_any_stream_cut_into_any_chunks_is_rebuilt_in_order(
    stream: list[tuple[bytes, Any]], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=4)) | {0, len(stream)})
    session = Session()
    found: dict[int, tuple[Change, int]] = {}
    begins, ends = [], []
    for a, b in pairwise(cuts):
        messages = parse(*chunk([m for m, _ in stream[a:b]]), session)
        session = messages.session
        found |= merged(messages, a)
        t = messages.transactions
        for k in range(t.begin.size):
            if t.begin[k] >= 0:
                assert stream[a + t.begin[k]][1][0] == "begin"
                begins.append(Begin(int(t.final_lsn[k]), int(t.commit_time[k]), int(t.xid[k])))
            if t.commit[k] >= 0:
                assert messages.transaction[t.commit[k]] == k
                ends.append(int(t.end_lsn[k]))
    lsn, expected = 0, {}
    for index, (_, meaning) in enumerate(stream):
        if isinstance(meaning, tuple) and meaning[0] == "begin":
            lsn = meaning[1].final_lsn
        if isinstance(meaning, Change):
            identity = meaning.identity if meaning.old is not None else ""
            expected[index] = (replace(meaning, identity=identity), lsn)
    assert found == expected
    assert begins == [m[1] for _, m in stream if isinstance(m, tuple) and m[0] == "begin"]
    assert ends == [m[1] for _, m in stream if isinstance(m, tuple) and m[0] == "commit"]
    assert session.open is None
    assert dict(session.relations) == {m.oid: m for _, m in stream if isinstance(m, Relation)}


T7 = relation_of(7, 2, 0)
INSERT_7 = Change("I", T7, [("b", b"k"), ("n", b"")], None, "").message()


def test_the_other_messages() -> None:
    emitted = b"M" + struct.pack(">bq", 0, 77) + b"headrace\0" + struct.pack(">i", 3) + b"\0\1\2"
    inside = b"M" + struct.pack(">bq", 1, 78) + b"p\0" + struct.pack(">i", 0)
    truncated = b"T" + struct.pack(">ib", 2, 3) + struct.pack(">II", 7, 2**32 - 1)
    named = b"Y" + struct.pack(">I", 16400) + b"public\0mood\0"
    origin = b"O" + struct.pack(">q", 5) + b"elsewhere\0"
    everything = [emitted, begin(9, 1, 2), origin, inside, named, truncated, commit(9, 10, 1), emitted]
    found = parse(*chunk(everything), Session())
    assert found.logical == (
        LogicalMessage(0, False, 77, "headrace", b"\0\1\2"),
        LogicalMessage(3, True, 78, "p", b""),
        LogicalMessage(7, False, 77, "headrace", b"\0\1\2"),
    )
    assert found.origins == (Origin(2, 5, "elsewhere"),)
    assert found.types == (TypeName(4, 16400, "public", "mood"),)
    assert found.truncates == (Truncate(5, (7, 2**32 - 1), True, True),)
    assert found.transaction.tolist() == [-1, 0, 0, 0, 0, 0, 0, -1]
    assert found.changes == ()


def test_unchanged_fields_are_filled_from_a_full_old_row_only() -> None:
    new: list[Field] = [("b", b"k"), ("u", b"")]
    full = Change("U", T7, new, [("b", b"k"), ("b", b"body")], "O")
    by_key = Change("U", T7, new, [("b", b"j"), ("n", b"")], "K")
    (group,) = parse(*chunk([begin(1, 1, 1), describe(T7), full.message(), by_key.message()]), Session()).rows(7)
    assert group.identity.tolist() == [OLD, KEY]
    assert group.kind.tolist() == [UPDATE, UPDATE]
    assert fields_of(group.filled(), 0) == [("b", b"k"), ("b", b"body")]
    assert fields_of(group.filled(), 1) == new


def test_rows_can_be_taken_by_mask_and_by_index() -> None:
    delete = Change("D", T7, None, [("b", b"gone"), ("n", b"")], "K").message()
    messages = [begin(1, 1, 1), describe(T7), INSERT_7, delete, INSERT_7]
    (group,) = parse(*chunk(messages), Session()).rows(7)
    assert group.old is not None
    assert rows_of(group.new.take(group.kind == INSERT)) == [[b"k", None], [b"k", None]]
    gone = group.old.take(np.flatnonzero(group.kind == DELETE))
    assert rows_of(gone) == [[b"gone", None]]
    assert gone.column(0).start.flags.c_contiguous


BAD_STREAMS: dict[str, tuple[list[bytes], str]] = {
    "unknown type": (
        [begin(1, 1, 1), b"Zap"],
        r"message 1 \(type 'Z'\) at position 21: unknown .*; byte 0x5a at .* 21",
    ),
    "stream in progress": ([b"S" + bytes(5)], "unknown message type.*proto_version 1.*; byte 0x53"),
    "change outside": ([describe(T7), INSERT_7], "must be inside a transaction"),
    "truncate outside": ([b"T" + struct.pack(">ib", 0, 0)], "must be inside a transaction"),
    "commit outside": ([commit(1, 2, 3)], "must be inside a transaction"),
    "begin inside": ([begin(1, 1, 1), begin(2, 1, 2)], "Begin inside a transaction"),
    "other commit": ([begin(1, 1, 1), commit(2, 3, 1)], "differs from its Begin's"),
    "not described": ([begin(1, 1, 1), INSERT_7], "was not described"),
    "other width": ([begin(1, 1, 1), describe(relation_of(7, 3, 1)), INSERT_7], "number of columns differs"),
    "bytes left": ([begin(1, 1, 1), describe(T7), INSERT_7 + b"\0"], "has bytes left over; "),
    "column kind": (
        [begin(1, 1, 1), describe(T7), INSERT_7[:-1] + b"x"],
        r"unknown column kind; expected one of b t n u; byte 0x78",
    ),
    "row marker": ([begin(1, 1, 1), describe(T7), INSERT_7.replace(b"N", b"K", 1)], "unexpected row marker"),
    "negative length": (
        [begin(1, 1, 1), describe(T7), INSERT_7.replace(b"\0\0\0\1k", b"\xff\0\0\1k")],
        "ends too early",
    ),
    "length too great": (
        [begin(1, 1, 1), describe(T7), INSERT_7.replace(b"\0\0\0\1k", b"\0\0\0\x09k")],
        "ends too early; byte 0x00",
    ),
    "name not UTF-8": ([b"Y" + struct.pack(">I", 1) + b"\xff\0a\0"], "not UTF-8; expected a name"),
}


@pytest.mark.parametrize("name", BAD_STREAMS)
def test_a_bad_stream_is_refused_with_byte_and_position(name: str) -> None:
    messages, reason = BAD_STREAMS[name]
    with pytest.raises(DecodeError, match=reason):
        parse(*chunk(messages), Session())


@pytest.mark.parametrize("offsets", [[], [0, 0], [0, 5], [-1, 1], [2, 1]])
def test_offsets_that_do_not_fit_are_refused(offsets: list[int]) -> None:
    with pytest.raises(DecodeError, match="offsets do not fit"):
        parse(b"abcd", np.array(offsets, dtype=np.int64), Session())


def test_no_messages_are_fine() -> None:
    held = parse(*chunk([begin(4, 5, 6), describe(T7)]), Session()).session
    found = parse(b"", np.zeros(1, dtype=np.int64), held)
    assert found.session == held
    assert (found.kind.size, found.changes, found.transactions.begin.tolist()) == (0, (), [-1])


# --- damage -----------------------------------------------------------------------------------------------------------


def damage(payload: bytes) -> st.SearchStrategy[bytes]:
    """Up to three bytes replaced, or a stretch cut out."""

    def replaced(edits: list[tuple[int, int]]) -> bytes:
        out = bytearray(payload)
        for at, byte in edits:
            out[at] = byte
        return bytes(out)

    at = st.integers(0, len(payload) - 1)
    edits = st.lists(st.tuples(at, st.integers(0, 255)), min_size=1, max_size=3).map(replaced)
    return edits | st.tuples(at, st.integers(1, 30)).map(lambda cut: payload[: cut[0]] + payload[cut[0] + cut[1] :])


def assert_inside(cells: Cells) -> None:
    assert np.all(cells.length >= ABSENT)
    real = cells.length >= 0
    assert np.all(cells.start[real] >= 0)
    assert np.all(cells.start[real] + cells.length[real] <= cells.buffer.size)


@given(streams().filter(bool), st.data())
def test_damaged_messages_raise_or_stay_inside(stream: list[tuple[bytes, Any]], data: st.DataObject) -> None:
    messages = [m for m, _ in stream]
    victim = data.draw(st.integers(0, len(messages) - 1))
    messages[victim] = data.draw(damage(messages[victim])) or b"\0"
    try:
        found = parse(*chunk(messages), Session())
    except DecodeError:
        return
    for group in found.changes:
        assert_inside(group.new)
        if group.old is not None:
            assert_inside(group.old)


@given(streams().filter(bool), st.data())
def test_damaged_messages_cut_short_always_raise(stream: list[tuple[bytes, Any]], data: st.DataObject) -> None:
    messages = [m for m, _ in stream]
    victim = data.draw(st.integers(0, len(messages) - 1))
    messages[victim] = messages[victim][: data.draw(st.integers(1, len(messages[victim]) - 1))]
    with pytest.raises(DecodeError):
        parse(*chunk(messages), Session())


@pytest.mark.parametrize("oid", SUPPORTED, ids=lambda oid: SUPPORTED[oid].name)
@given(raw=st.lists(st.binary(max_size=24), min_size=1), kind=st.sampled_from("bt"))
@example(raw=[b"\x7f\x80\x00\x01"], kind="b")  # a signaling NaN of real
def test_damaged_fields_decode_or_raise(oid: int, raw: list[bytes], kind: str) -> None:
    cells = cells_of([(kind, r) for r in raw])
    distinct(cells.column(0))
    with suppress(DecodeError):
        assert decode(cells, 0, oid).values.size == len(raw)


@given(lists, st.data())
def test_lists_are_read_as_they_were_written(tokens: list[str | None], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.none() | lists, max_size=4))
    fields = cells_of([("n", b"") if row is None else ("b", encode_list(row, 25)) for row in [tokens, *rows]]).column(0)
    assert arrays.counts(fields, 25).tolist() == [NULL if row is None else len(row) for row in [tokens, *rows]]
    assert (arrays.counts(fields, 1043)[fields.length >= 0] < NULL).all(), "elements of another type"
    kept = [None if row is None else list(dict.fromkeys(t for t in row if t is not None)) for row in [tokens, *rows]]
    assert arrays.tokens(fields, 25).lists() == kept


@given(lists.map(lambda tokens: encode_list(tokens, 25)) | st.binary(max_size=40), st.data())
def test_damaged_lists_are_told_apart_and_never_read(raw: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(raw)))
    changed = bytearray(raw)
    if changed:
        changed[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    fields = cells_of([("b", part) for part in (raw[:cut], bytes(changed), raw + b"\0", raw)]).column(0)
    counts = arrays.counts(fields, 25)
    assert counts[0] < NULL or cut == len(raw)
    assert counts[2] < NULL
    if (counts < NULL).any():
        with pytest.raises(DecodeError, match="that is no list of texts in binary format"):
            arrays.tokens(fields, 25)
    else:
        assert len(arrays.tokens(fields, 25)) == 4
    for row in range(4):
        assert arrays.array_text(fields.bytes_at(row))


def test_kernels_stay_in_bounds(tmp_path: Path) -> None:
    """The same tests of damage with numba's own bounds checks compiled in: an IndexError there is a bug here."""
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "damaged", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
