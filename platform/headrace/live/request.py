"""A request's JSON object as a row of the events' table, judged as the intake would judge it.

Each value becomes a field in Postgres's text format (a list in binary format) and goes through the very decoder and gate
that rows of the change stream go through, so a request is refused exactly when the row would end in quarantine, and a row
that passes gives the columns that the log would give. A field that is left out is NULL. Column modifiers are the source's
own: send what it would store (a `char(5)` padded, a `numeric(6, 2)` rounded). Pure; knows nothing of HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, NoReturn

import numpy as np

from headrace.definition.stream import Stream
from headrace.errors import DecodeError
from headrace.events import Columns, LogColumn
from headrace.flow.arrays import encode_list
from headrace.flow.features import series
from headrace.flow.gate import Rows, event_gate
from headrace.flow.pgtypes import ELEMENTS, SUPPORTED, TIMESTAMPTZ, PgType
from headrace.flow.wire import Cells, as_bytes
from headrace.models.text import NULL

_FINER_THAN_MICROSECONDS = re.compile(r"[.,]\d{7}")
_EXPECTED = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "numeric": "a number",
    "date": "a date such as 2026-01-31",
    "uuid": "a text with a UUID",
    "texts": "a list of texts",
}


@dataclass(frozen=True)
class EventRow:
    """A row that the gate accepts: one-row log columns by name, and its event time in microseconds."""

    columns: Columns
    event_time: int


@dataclass(frozen=True)
class Violation:
    """One reason to refuse a request; `expectation`, `found` and `reason` are as in quarantine."""

    field: str | None  # the source column; None when the whole body is meant
    expectation: str
    found: str | None
    reason: str


class RowReader:
    """Reads and judges requests for one stream.

    Parameters
    ----------
    stream
        Its definition.
    columns
        The log's columns.
    """

    def __init__(self, stream: Stream, columns: Sequence[LogColumn]) -> None:
        self.columns = tuple(columns)
        self._by_source = {c.source: c for c in self.columns}
        self._index = {c.source: (i, c.type_oid) for i, c in enumerate(self.columns)}
        self._gate, self._event_time = event_gate(stream), stream.source.event_time

    def read(self, body: bytes, now: int) -> EventRow | list[Violation]:
        """The row that a body holds, or every type mistake in it, or the first expectation that it breaks.

        Parameters
        ----------
        body
            A JSON object: values by the source's column names.
        now
            Microseconds: when the row would be committed.
        """
        try:
            document = json.loads(body, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            return [Violation(None, "json", _shown(body.decode(errors="replace")), f"the body is not JSON: {error}")]
        if not isinstance(document, dict):
            return [Violation(None, "json", _shown(document), f"the body is {_shown(document)}, expected an object")]
        cells = self._cells(document)
        rows = Rows(cells, self._index)
        if mistakes := [*self._unknown(document), *self._wrong(document, rows)]:
            return mistakes
        broken = int(self._gate.check(rows, np.array([now], dtype=np.int64))[0])
        if broken >= 0:
            field = self._gate.rules[broken].column if broken < len(self._gate.rules) else self._event_time
            return [Violation(field, *self._gate.explain(rows.contents(np.zeros(1, dtype=np.intp))[0], broken))]
        columns = {c.name: series(cells, i, c.type_oid) for i, c in enumerate(self.columns)}
        return EventRow(columns, int(rows[self._event_time].values[0]))

    def schema(self) -> dict[str, Any]:
        """The request as JSON Schema."""
        properties = {c.source: _json_schema(SUPPORTED[c.type_oid], c.type_name) for c in self.columns}
        return {"type": "object", "properties": properties, "additionalProperties": False}

    def _cells(self, document: dict[str, Any]) -> Cells:
        values = ((document.get(c.source), SUPPORTED[c.type_oid]) for c in self.columns)
        fields = [to_wire(value, pg) for value, pg in values]
        lengths = np.array([NULL if f is None else len(f) for f in fields], dtype=np.int32)
        starts = np.cumsum(np.maximum(lengths, 0), dtype=np.int64) - np.maximum(lengths, 0)
        names = tuple(c.source for c in self.columns)
        text = np.array([[c.type_oid not in ELEMENTS] for c in self.columns])
        return Cells(as_bytes(b"".join(f or b"" for f in fields)), starts[:, None], lengths[:, None], text, names)

    def _unknown(self, document: dict[str, Any]) -> list[Violation]:
        expected = f"expected some of {', '.join(self._by_source)}"
        names = [name.encode(errors="backslashreplace").decode() for name in document if name not in self._by_source]
        return [Violation(n, "known_field", n, f"{_shown(n)} is no column of this stream, {expected}") for n in names]

    def _wrong(self, document: dict[str, Any], rows: Rows) -> list[Violation]:
        """Values that are not of their column's type; decodes every other one."""
        mistakes = []
        for name, column in self._by_source.items():
            value, pg = document.get(name), SUPPORTED[column.type_oid]
            try:
                wrong = bool(rows[name].null[0]) and value is not None
            except DecodeError:  # beyond the type's range, or not of its form; said below in the request's words
                wrong = True
            if wrong:
                reason = f"{name} is {_shown(value)}, expected {_expected(pg)} ({pg.name})"
                mistakes.append(Violation(name, f"type({name})", _shown(value), reason))
        return mistakes


def to_wire(value: Any, pg: PgType) -> bytes | None:
    """A JSON value in Postgres's text format, a list in binary format; None for null and for what cannot be of the type.

    >>> to_wire(True, SUPPORTED[16]), to_wire(3.0, SUPPORTED[23]), to_wire("3", SUPPORTED[23]), to_wire("3", SUPPORTED[1009])
    (b't', b'3', None, None)
    >>> to_wire("2013-01-01T05:15:00Z", SUPPORTED[1184])
    b'2013-01-01 05:15:00+00:00'
    """
    match pg.kind, value:
        case "bool", bool():
            return b"t" if value else b"f"
        case (("int" | "float" | "numeric"), bool()):
            return None
        case "int", float() if value.is_integer():
            return str(int(value)).encode()
        case (("int" | "float" | "numeric"), int()):
            return str(value).encode()
        case (("float" | "numeric"), float()):
            return repr(value).replace("inf", "Infinity").encode()
        case (("timestamp" | "date"), str()):
            return _time_to_text(value, pg)
        case "uuid", str():
            return _utf8(value.lower())
        case (("text" | "char"), str()):
            return _utf8(value)
        case "texts", list():
            if all(isinstance(token, str) and "\0" not in token and _utf8(token) is not None for token in value):
                return encode_list(value, ELEMENTS[pg.oid])
    return None


def _time_to_text(value: str, pg: PgType) -> bytes | None:
    try:
        if pg.kind == "date":
            return date.fromisoformat(value).isoformat().encode()
        time = datetime.fromisoformat(value)
        if (time.tzinfo is not None) != (pg.oid == TIMESTAMPTZ) or _FINER_THAN_MICROSECONDS.search(value):
            return None
        return (time.astimezone(UTC) if time.tzinfo else time).isoformat(" ").encode()
    except (ValueError, OverflowError):  # not a time, or one that its zone carries out of the calendar
        return None


def _utf8(value: str) -> bytes | None:
    try:
        return value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return None


def _expected(pg: PgType) -> str:
    if pg.kind == "timestamp":
        zone, example = ("with its", "Z") if pg.oid == TIMESTAMPTZ else ("without", "")
        return f"an ISO 8601 time {zone} zone, in microseconds at the finest, such as 2026-01-31T08:30:00{example}"
    return _EXPECTED.get(pg.kind, "a text")


def _json_schema(pg: PgType, title: str) -> dict[str, Any]:
    items = {"items": {"type": "string"}} if pg.oid in ELEMENTS else {}
    return {"type": [_json_type(pg), "null"], "title": title, **items}


def _json_type(pg: PgType) -> str:
    if pg.oid in ELEMENTS:
        return "array"
    return {"bool": "boolean", "int": "integer", "float": "number", "numeric": "number"}.get(pg.kind, "string")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"found {name}, which JSON does not have, expected null or a number")
