"""`headrace worth`: is online training worth it on this past?"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from headrace.cli.common import platform, show_json, stream_of
from headrace.definition.recipes import Recipe
from headrace.errors import BatchError, SettingsError
from headrace.settings import Settings
from headrace.store import db, experiments

if TYPE_CHECKING:
    from headrace.worth.past import Past
    from headrace.worth.report import Worth


def add_commands(commands: Any) -> None:
    """Add this module's command to the command line."""
    worth = commands.add_parser(
        "worth",
        help="replay a history, a stream's or a file's: does online training pay, and how fresh must weights be?",
    )
    worth.add_argument("past", metavar="STREAM|FILE", help="a registered stream, or a .parquet, .csv or .tsv file")
    worth.add_argument("--label", metavar="COLUMN", help="of a file: what is to be predicted, true or false")
    worth.add_argument("--event-time", metavar="COLUMN", help="of a file: when the prediction is needed")
    worth.add_argument("--label-time", metavar="COLUMN", help="of a file: when the label became known")
    worth.add_argument("--features", nargs="+", metavar="COLUMN", help="of a file; all other columns by default")
    worth.add_argument("--predictions", type=Path, metavar="FILE", help="write every scored prediction, Parquet or CSV")
    worth.add_argument("--plot", type=Path, metavar="FILE", help="write a page (.html) or the freshness curve (.svg)")
    worth.add_argument("--json", nargs="?", const="-", metavar="FILE", help="print the result as JSON, or write it")
    worth.set_defaults(run=run_worth)


def run_worth(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace worth`"""
    from headrace.worth.past import from_file, from_log  # here: models would slow every other command's start
    from headrace.worth.report import check_names

    check_names(arguments.predictions, arguments.plot)
    if Path(arguments.past).suffix:
        if arguments.label is None or arguments.event_time is None:
            raise SettingsError("a file needs --label and --event-time, and --label-time where labels come later")
        past = from_file(
            Path(arguments.past), arguments.label, arguments.event_time, arguments.label_time, arguments.features
        )
        worth = _replay(past, ())
        document = worth.document()
    else:
        if given := [n for n in ("label", "event_time", "label_time", "features") if getattr(arguments, n) is not None]:
            raise SettingsError(f"--{given[0].replace('_', '-')} is for files: a stream's definition says it already")
        stream = stream_of(settings, arguments.past)
        if stream.loss.regression:
            raise SettingsError(
                f"the labels of {stream.name!r} are numbers, expected a yes or no: `headrace worth` replays classification only"
            )
        with platform(settings) as dsn:
            with closing(db.connect(dsn, role="headrace_steer")) as conn:
                batch = experiments.past(conn, stream)
            worth = _replay(from_log(stream, batch), stream.recipes())  # takes minutes: nothing is kept open for it
            document = worth.document()
            with closing(db.connect(dsn, role="headrace_steer")) as conn:
                experiments.add(conn, stream.name, batch, document)
    if arguments.predictions is not None:
        worth.write_predictions(arguments.predictions)
    if arguments.plot is not None:
        worth.write_plot(arguments.plot)
    if arguments.json == "-":
        show_json(document)
        return 0
    if arguments.json is not None:
        try:
            Path(arguments.json).write_text(json.dumps(document, indent=2) + "\n")
        except OSError as error:
            raise BatchError(f"the result cannot be written to {arguments.json}: {error}") from error
    _print(document)
    return 0


def _replay(past: Past, own: Sequence[Recipe]) -> Worth:
    from headrace.worth.advice import advise
    from headrace.worth.freshness import freshness
    from headrace.worth.race import race
    from headrace.worth.report import Worth

    began = time.monotonic()

    def told(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {what}", file=sys.stderr, flush=True)

    ran = race(past, own, told)
    curve = freshness(past, ran.trainings, told)
    return Worth(ran, curve, advise(ran, curve))


def _print(document: dict[str, Any]) -> None:
    console = Console()
    console.print(
        f"{document['labels']:,} labels of {document['events']:,} events from {document['from'][:16]} to "
        f"{document['to'][:16]} UTC; scored on the last {document['scored']:,}",
        highlight=False,
    )
    table = Table("model", "family", title="The race", title_justify="left", box=None, header_style="bold")
    for name in ("log loss", "NE", "AUC", "calibration", "µs a label"):
        table.add_column(name, justify="right")
    for name, m in sorted(document["models"].items(), key=lambda item: item[1]["log_loss"]):
        numbers = (f"{m['log_loss']:.5f}", f"{m['ne']:.4f}", f"{m['auc']:.4f}", f"{m['calibration']:.3f}")
        table.add_row(name, m["family"], *numbers, f"{m['us_per_label']:.1f}")
    for family, loss in document["families"].items():
        table.add_row(f"[bold]all of {family}[/]", family, f"[bold]{loss:.5f}[/]")
    console.print(table)
    curve = Table("weights synced", title="Freshness", title_justify="left", box=None, header_style="bold")
    for name in ("log loss", "CPU s"):
        curve.add_column(name, justify="right")
    for name, point in document["freshness"].items():
        curve.add_row(name, f"{point['log_loss']:.5f}", f"{point['cpu_s']:.1f}")
    console.print(curve)
    advice = document["advice"]
    console.print(f"[bold]{advice['says']}[/]")
    for sentence in (*advice["reasons"], *document["remarks"]):
        console.print(f"- {sentence}", highlight=False)
