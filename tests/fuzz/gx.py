"""What Great Expectations on SQL finds in a table: for each expectation the keys that its own query returns.

A program of its own, since importing Great Expectations takes seconds and its warnings are none of ours:
`python -m tests.fuzz.gx DSN TABLE FILE` writes {name: [keys] or the exception as text} as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import great_expectations as gx
from sqlalchemy import create_engine
from tests.fuzz.contract import STREAM

from headrace.batch import quality


def found(dsn: str, table: str) -> dict[str, list[int] | str]:
    """The keys of the rows that break each expectation of the contract, or why there is no answer."""
    os.environ["FUZZ_URL"] = quality._url(dsn)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_postgres("fuzz", connection_string="${FUZZ_URL}").add_table_asset("rows", table)
    batch = asset.add_batch_definition_whole_table("all").get_batch()
    wanted = [(name, made) for e in STREAM.contract for name, made in quality.compiled(STREAM, e)]
    for name, made in wanted:
        made.meta = {"name": name}
    suite = gx.ExpectationSuite(name="fuzz", expectations=[made for _, made in wanted])
    shape = {
        "result_format": "BASIC",
        "partial_unexpected_count": 0,
        "return_unexpected_index_query": True,
        "unexpected_index_column_names": ["key"],
    }
    results: dict[str, list[int] | str] = {}
    engine = create_engine(os.environ["FUZZ_URL"])
    with engine.connect() as conn:
        for one in batch.validate(suite, result_format=shape).results:
            results[one.expectation_config.meta["name"]] = _keys(conn, one)
    engine.dispose()
    return results


def _keys(conn: Any, one: Any) -> list[int] | str:
    checked = quality._checked(one)
    if checked.exception is not None:
        return checked.exception
    if one.result["unexpected_count"] == 0:
        return []  # without a query
    query = one.result["unexpected_index_query"].rstrip("; \n")
    keys = conn.exec_driver_sql(
        f"SELECT key FROM ({query}) AS found"
    )  # Python cannot hold all of the other column's values
    return sorted(key for (key,) in keys)


if __name__ == "__main__":
    began = time.monotonic()
    Path(sys.argv[3]).write_text(json.dumps(found(sys.argv[1], sys.argv[2])))
    print(round(time.monotonic() - began, 1), "s", file=sys.stderr)
