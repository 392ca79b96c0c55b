"""Quality: the contract as a Great Expectations suite, run on a view of a window of the log.

Everything is pushed down to Postgres. Each expectation's result becomes a row of headrace.quality_results with the run's
id. A check that could not be made is no failure of the data, and no pass either: the run then does not succeed. Importing
Great Expectations takes seconds, so this module is for child processes only.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import parse_dsn
from sqlalchemy import URL

from headrace.definition.expect import UPDATE_KINDS, Expectation, finite, not_null
from headrace.definition.stream import Stream
from headrace.errors import BatchError
from headrace.flow.pgtypes import BOOL
from headrace.store import db, log, registry
from headrace.store.queries import all_queries

_VARIABLE = "HEADRACE_QUALITY_URL"


@dataclass(frozen=True)
class Checked:
    """One expectation's result."""

    expectation: str
    success: bool
    rows_checked: int | None
    rows_unexpected: int | None
    observed: Any
    exception: str | None

    @property
    def reason(self) -> str:
        """Why it did not succeed."""
        if self.exception is not None:
            return f"{self.expectation} could not be checked: {self.exception}"
        if self.rows_unexpected:
            return f"{self.expectation} is broken by {self.rows_unexpected:,} of {self.rows_checked or 0:,} rows"
        return f"{self.expectation} is not met: observed {self.observed}"


@dataclass(frozen=True)
class Quality:
    """A quality run."""

    success: bool
    seq_first: int
    seq_last: int
    results: tuple[Checked, ...]
    sentence: str


def check(
    conn: Connection, dsn: str, stream: Stream, run_id: str, *, seq_first: int = 1, seq_last: int | None = None
) -> Quality:
    """Check a window of the log against the stream's contract, and store the results.

    Parameters
    ----------
    conn
        The platform's database, as role headrace_steer.
    dsn
        The same database, for Great Expectations.
    run_id
        Who asks: an Airflow run's id.
    seq_first, seq_last
        The window, of what the log still has; up to the newest complete epoch when not given.

    Raises
    ------
    BatchError
        When the log has no complete epoch yet.
    """
    if seq_last is None:
        row = db.row(conn, "last_epoch", {"stream": stream.name})
        if row is None:
            raise BatchError(f"stream {stream.name!r} has no complete epoch yet: wait until its history is imported")
        seq_last = int(row[1])
    types = {c.source: c.type_oid for c in registry.columns_of(conn, stream.name)}
    seq_first = max(seq_first, log.dropped_through(conn, stream.name) + 1)
    conn.commit()
    with log.kept_whole(conn, stream.name), _view(conn, stream, seq_first, seq_last) as view:
        results = tuple(_validate(dsn, stream, view, types))
    with db.transaction(conn):
        for result in results:
            params = {
                "stream": stream.name,
                "dag_run_id": run_id,
                "seq_first": seq_first,
                "seq_last": seq_last,
                "expectation": result.expectation,
                "success": result.success,
                "rows_checked": result.rows_checked,
                "rows_unexpected": result.rows_unexpected,
                "observed": None if result.observed is None else json.dumps(result.observed, default=str),
                "exception": result.exception,
            }
            db.run(conn, "add_quality_result", params)
    failed = [r for r in results if not r.success]
    where = f"entries {seq_first:,} to {seq_last:,} of {stream.name}"
    sentence = f"All {len(results)} expectations hold on {where}."
    if failed:
        sentence = (
            f"{len(failed)} of {len(results)} expectations fail on {where}: {'; '.join(r.reason for r in failed)}."
        )
    return Quality(not failed, seq_first, seq_last, results, sentence)


@contextmanager
def _view(conn: Connection, stream: Stream, seq_first: int, seq_last: int) -> Iterator[str]:
    """A view of the window's events with their labels, gone afterwards."""
    name = f"window_{os.getpid()}"
    parts = {
        "schema": sql.Identifier(stream.name),
        "view": sql.Identifier(name),
        "first": sql.Literal(seq_first),
        "last": sql.Literal(seq_last),
    }
    with db.transaction(conn), conn.cursor() as cursor:
        cursor.execute(sql.SQL(all_queries()["create_window"]).format(**parts))
    try:
        yield name
    finally:
        with db.transaction(conn), conn.cursor() as cursor:
            cursor.execute(sql.SQL(all_queries()["drop_window"]).format(**parts))


def _validate(dsn: str, stream: Stream, view: str, types: Mapping[str, int]) -> Iterator[Checked]:
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    os.environ[_VARIABLE] = _url(
        dsn
    )  # Great Expectations refuses an address without a host name unless it is substituted
    import great_expectations as gx

    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    source = context.data_sources.add_postgres("platform", connection_string="${" + _VARIABLE + "}")
    asset = source.add_table_asset("window", table_name=view, schema_name=stream.name)
    batch = asset.add_batch_definition_whole_table("all")
    wanted = [(name, made) for expectation in _all(stream, types) for name, made in compiled(stream, expectation)]
    for name, made in wanted:
        made.meta = {"name": name}
    suite = gx.ExpectationSuite(name=stream.name, expectations=[made for _, made in wanted])
    result = batch.get_batch().validate(
        suite, result_format={"result_format": "SUMMARY", "partial_unexpected_count": 0}
    )
    for one in result.results:
        yield _checked(one)


def _checked(one: Any) -> Checked:
    raised = (one.exception_info or {}).get("raised_exception")
    message = None
    if one.exception_info and raised is not False:
        infos = [one.exception_info] if raised else [i for i in one.exception_info.values() if isinstance(i, dict)]
        message = "; ".join(str(info.get("exception_message")) for info in infos) or None
    found = one.result or {}
    return Checked(
        expectation=one.expectation_config.meta["name"],
        success=bool(one.success),
        rows_checked=found.get("element_count"),
        rows_unexpected=found.get("unexpected_count"),
        observed=found.get("observed_value"),
        exception=message,
    )


def _all(stream: Stream, types: Mapping[str, int]) -> list[Expectation]:
    """The contract, with what every stream expects without being asked."""
    numbers = [n for n in stream.feature_columns("number") if types[n] != BOOL]  # booleans compare with no number
    implied = [not_null(stream.source.key), not_null(stream.source.event_time), *(finite(n) for n in numbers)]
    declared = {(e.kind, column) for e in stream.contract for column in e.columns}
    asked = [e for e in stream.contract if e.kind not in UPDATE_KINDS]
    return [e for e in implied if (e.kind, e.columns[0]) not in declared] + asked


def compiled(stream: Stream, expectation: Expectation) -> list[tuple[str, Any]]:
    """Great Expectations' form of one expectation: (name, expectation), one for each column it names."""
    gxe: Any = import_module("great_expectations.expectations")  # it does not say which names it exports
    params = expectation.params
    columns = [stream.log_column(column) for column in expectation.columns]
    make: dict[str, Callable[[str], Any]] = {
        "not_null": lambda c: gxe.ExpectColumnValuesToNotBeNull(column=c),
        "finite": lambda c: gxe.ExpectColumnValuesToBeBetween(
            column=c, min_value=-sys.float_info.max, max_value=sys.float_info.max
        ),
        "between": lambda c: gxe.ExpectColumnValuesToBeBetween(
            column=c, min_value=params["minimum"], max_value=params["maximum"]
        ),
        "in_set": lambda c: gxe.ExpectColumnValuesToBeInSet(column=c, value_set=list(params["values"])),
        "not_in_set": lambda c: gxe.ExpectColumnValuesToNotBeInSet(column=c, value_set=list(params["values"])),
        "regex": lambda c: gxe.ExpectColumnValuesToMatchRegex(column=c, regex=params["pattern"]),
        "length": lambda c: gxe.ExpectColumnValueLengthsToBeBetween(
            column=c, min_value=params["minimum"], max_value=params["maximum"]
        ),
        "unique": lambda c: gxe.ExpectColumnValuesToBeUnique(column=c),
    }
    match expectation.kind:
        case "less_than":
            pair = gxe.ExpectColumnPairValuesAToBeGreaterThanB(
                column_A=columns[1], column_B=columns[0], ignore_row_if="either_value_is_missing"
            )
            return [(expectation.name, pair)]
        case "label_rate":
            low, high = params["minimum"], params["maximum"]
            return [(expectation.name, gxe.ExpectColumnMeanToBeBetween(column="y", min_value=low, max_value=high))]
        case "label_between":
            low, high = params["minimum"], params["maximum"]
            return [(expectation.name, gxe.ExpectColumnValuesToBeBetween(column="y", min_value=low, max_value=high))]
        case "row_count":
            low, high = params["minimum"], params["maximum"]
            return [(expectation.name, gxe.ExpectTableRowCountToBeBetween(min_value=low, max_value=high))]
        case "not_null" | "finite":
            names = [f"{expectation.kind}({column})" for column in expectation.columns]
            return [(name, make[expectation.kind](c)) for name, c in zip(names, columns, strict=True)]
    return [(expectation.name, make[expectation.kind](columns[0]))]


def _url(dsn: str) -> str:
    """A libpq DSN as SQLAlchemy writes it, with its password."""
    parts = parse_dsn(dsn)
    database, user, password = parts.pop("dbname", None), parts.pop("user", None), parts.pop("password", None)
    parts["options"] = (
        f"{parts.get('options', '')} -c timezone=UTC".strip()
    )  # dates and times compare as the gate has it
    url = URL.create("postgresql+psycopg2", user, password, database=database, query=parts)
    return url.render_as_string(hide_password=False)
