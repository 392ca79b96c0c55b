"""`headrace worth` as a user runs it: on a file without any server, on a stream, and what it says of mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest


def headrace(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-P", "-m", "headrace", "worth", *words]
    return subprocess.run(argv, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random = np.random.default_rng(2)
    n = 2_000
    t, x = 1_700_000_000 + 600 * np.arange(n), random.normal(size=n)
    columns = {"t": t, "told": t + 3_600, "x": x, "y": (random.random(n) < 1 / (1 + np.exp(-2 * x))).astype(int)}
    pyarrow.csv.write_csv(pa.table(columns), tmp_path / "data.csv")
    return tmp_path / "data.csv"


def test_on_a_file(data: Path, tmp_path: Path) -> None:
    told = ["--label", "y", "--event-time", "t", "--label-time", "told"]
    written = ["--json", "w.json", "--predictions", "p.csv", "--plot", "w.html"]
    done = headrace(
        str(data), *told, *(str(tmp_path / w) if "." in w else w for w in written), HEADRACE_HOME=str(tmp_path / "home")
    )
    assert done.returncode == 0, done.stderr
    assert "The race" in done.stdout and "Freshness" in done.stdout and "online training" in done.stdout
    document = json.loads((tmp_path / "w.json").read_text())
    assert document["labels"] == 2_000 and document["families"]["hybrid"] < 0.6
    assert len(pyarrow.csv.read_csv(tmp_path / "p.csv")) == document["scored"]
    assert (tmp_path / "w.html").read_text().startswith("<!doctype html>")
    assert not (tmp_path / "home").exists(), "a file needs no server"


def test_mistakes_are_one_line(data: Path, tmp_path: Path) -> None:
    for words, says in (
        ([str(data)], "headrace: a file needs --label and --event-time"),
        ([str(data), "--label", "y", "--event-time", "when"], "found no column when, expected one of t, told, x, y"),
        (
            [str(data), "--label", "y", "--event-time", "t", "--plot", str(tmp_path / "no" / "w.html")],
            "there is no folder",
        ),
        (
            [str(data), "--label", "y", "--event-time", "t", "--plot", "w.png"],
            "expected a name that ends in .html or .svg",
        ),
        (["flights", "--label", "y"], "--label is for files: a stream's definition says it already"),
    ):
        done = headrace(*words, HEADRACE_HOME=str(tmp_path / "home"))
        assert done.returncode != 0 and says in done.stderr and done.stderr.strip().count("\n") == 0, done.stderr


def test_on_a_stream(registered: Any, origin: Any, definitions: Path, tmp_path: Path) -> None:
    """Its own recipes race too; the result is kept, and no slot is taken."""
    origin.add(*origin.rows(0, 2_500, labelled=0.9))
    registered.import_history(origin)
    versions = registered.query("SELECT count(*) FROM headrace.versions")
    done = headrace(
        "small", "--json", HEADRACE_DSN=registered.dsn, HEADRACE_HOME=str(tmp_path), HEADRACE_STREAMS=str(definitions)
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    rows = registered.query(
        "SELECT model, family, log_loss, verdict, found ->> 'scored' FROM metrics.experiments WHERE stream = 'small'"
    )
    assert {row[0]: row[2] for row in rows} == {name: m["log_loss"] for name, m in document["models"].items()}
    assert {row[1] for row in rows} == {"batch", "online", "hybrid"}
    assert {row[3] for row in rows} == {document["advice"]["verdict"]}
    assert registered.stream.champion.name in document["models"]
    assert registered.query("SELECT count(*) FROM headrace.versions") == versions


def test_a_stream_of_numbers_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "delays.py").write_text(
        """
from datetime import timedelta
from headrace import Label, Source, Stream, col, number, recipes

stream = Stream(
    name="delays",
    source=Source(conn_id="air", table="public.departures", key="id", event_time="left_at"),
    label=Label(value=col("delay"), label_time="landed_at", window=timedelta(days=1), if_missing="drop", task="regression",
                loss="absolute"),
    features=[number("miles")],
    champion=recipes.ftrl(),
)
"""
    )
    done = headrace("delays", HEADRACE_STREAMS=str(tmp_path), HEADRACE_HOME=str(tmp_path / "home"))
    assert done.returncode != 0
    assert (
        "the labels of 'delays' are numbers, expected a yes or no: `headrace worth` replays classification only"
        in done.stderr
    )
