"""What `headrace worth` found, as JSON, as a page with two pictures, and as one row for each scored event.

Pictures are SVG that is written here: two axes and a few marks need no library. Nothing is computed here but what a reader
looks at.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.errors import BatchError
from headrace.events import moment
from headrace.worth.advice import Advice
from headrace.worth.freshness import Curve
from headrace.worth.race import FAMILIES, Race

_COLOURS = {"batch": "#7a869a", "online": "#2f80c2", "hybrid": "#c2571a"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 860px; margin: 2.5rem auto; padding: 0 1rem; color: #1d2433 }
h1 { font-size: 1.4rem; margin-bottom: .2rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .4rem; }
table { border-collapse: collapse; width: 100% }
td, th { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e3e7ee; }
td:first-child, th:first-child, td:nth-child(2), th:nth-child(2) { text-align: left; } .verdict { font-size: 1.2rem; }
"""


def check_names(predictions: Path | None, plot: Path | None) -> None:
    """Refuse names of files that could not be written, before anything is computed.

    Raises
    ------
    BatchError
        There is no such folder, or the name says nothing that can be written.
    """
    for path, what, endings in (
        (predictions, "predictions", (".parquet", ".csv")),
        (plot, "the plot", (".html", ".svg")),
    ):
        if path is None:
            continue
        if path.suffix not in endings:
            raise BatchError(f"found {path.name!r} for {what}, expected a name that ends in {' or '.join(endings)}")
        if not path.parent.is_dir():
            raise BatchError(f"there is no folder {path.parent} for {path.name}")


@dataclass(frozen=True)
class Worth:
    """Everything that a run found."""

    race: Race
    curve: Curve
    advice: Advice

    def document(self) -> dict[str, Any]:
        """As JSON values; losses are means in nats, `us_per_label` is CPU, training included."""
        race = self.race
        past = race.past
        return {
            "name": past.name,
            "events": len(past.event_time),
            "labels": len(past.y),
            "scored": len(race.y),
            "from": moment(int(past.event_time[0])).isoformat(),
            "to": moment(int(past.event_time[-1])).isoformat(),
            "trainings": len(race.trainings),
            "models": {
                ran.entrant.name: {
                    "log_loss": sums.mean_loss,
                    "ne": sums.normalised_entropy,
                    "auc": sums.auc,
                    "calibration": sums.calibration,
                    "us_per_label": 1e6 * ran.cpu_seconds / max(ran.labels, 1),
                    "family": ran.entrant.family,
                }
                for ran in race.ran
                for sums in (race.sums(ran.p),)
            },
            "families": {family: race.sums(race.families[family]).mean_loss for family in FAMILIES},
            "regret_to_best_member": race.regret,
            "freshness": {
                name: {"log_loss": race.sums(p).mean_loss, "cpu_s": self.curve.cpu_seconds[name]}
                for name, p in self.curve.p.items()
            },
            "advice": {
                "verdict": self.advice.verdict,
                "says": VERDICTS[self.advice.verdict],
                "reasons": list(self.advice.reasons),
                "numbers": dict(self.advice.numbers),
            },
            "remarks": list(past.remarks),
        }

    def write_predictions(self, path: Path) -> None:
        """One row for each scored label: its event's time, the label, and what every model and family said.

        Raises
        ------
        BatchError
            It cannot be written.
        """
        race, rows = self.race, self.race.scored
        columns: dict[str, Any] = {
            "event": rows,
            "event_time": pa.array(race.past.event_time[rows], pa.timestamp("us", "UTC")),
            "label_time": pa.array(race.label_time, pa.timestamp("us", "UTC")),
            "y": race.y,
        }
        columns |= {ran.entrant.name: ran.p[rows] for ran in race.ran}
        columns |= {f"family_{family}": race.families[family][rows] for family in FAMILIES}
        columns |= {f"served_{name.replace(' ', '_')}": p[rows] for name, p in self.curve.p.items()}
        table = pa.table(columns)
        try:
            if path.suffix == ".parquet":
                import pyarrow.parquet as pq

                pq.write_table(table, path)
            else:
                from pyarrow import csv

                csv.write_csv(table, path)
        except OSError as error:
            raise BatchError(f"the predictions cannot be written to {path}: {error}") from error

    def write_plot(self, path: Path) -> None:
        """The curve as SVG, or a page with everything.

        Raises
        ------
        BatchError
            It cannot be written.
        """
        try:
            path.write_text(self.curve_picture() if path.suffix == ".svg" else self.page())
        except OSError as error:
            raise BatchError(f"the plot cannot be written to {path}: {error}") from error

    def page(self) -> str:
        """A page of its own, with pictures, tables and advice."""
        document = self.document()
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{m['family']}</td><td>{m['log_loss']:.5f}</td><td>{m['ne']:.4f}</td>"
            f"<td>{m['auc']:.4f}</td><td>{m['calibration']:.3f}</td><td>{m['us_per_label']:.1f}</td></tr>"
            for name, m in sorted(document["models"].items(), key=lambda item: item[1]["log_loss"])
        )
        families = ", ".join(f"{family} {loss:.5f}" for family, loss in document["families"].items())
        legend = " &nbsp; ".join(f"<span style='color:{_COLOURS[family]}'>■</span> {family}" for family in FAMILIES)
        said = "".join(f"<li>{escape(reason)}</li>" for reason in (*self.advice.reasons, *self.race.past.remarks))
        return (
            f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(document['name'])}: worth training "
            f"online?</title><style>{_STYLE}</style></head><body><h1>Worth training online? {escape(document['name'])}</h1>"
            f"<p>{document['labels']:,} labels of {document['events']:,} events, {document['from'][:10]} to "
            f"{document['to'][:10]}; scored on the last {document['scored']:,}.</p>"
            f"<p class='verdict'><strong>{escape(VERDICTS[self.advice.verdict])}</strong></p><ul>{said}</ul>"
            f"<h2>Freshness: log loss when the weights that serve are so old</h2>{self.curve_picture()}"
            f"<h2>The race: log loss of each model</h2><p>{legend}</p>{self.race_picture()}"
            f"<p>Each family stacked by the same rule: {families}.</p>"
            "<table><tr><th>model</th><th>family</th><th>log loss</th><th>NE</th><th>AUC</th><th>calibration</th>"
            f"<th>CPU µs a label</th></tr>{rows}</table></body></html>"
        )

    def curve_picture(self) -> str:
        """Log loss by the age of the weights, as SVG."""
        points = [(name, self.race.sums(p).mean_loss) for name, p in self.curve.p.items()]
        losses = np.array([loss for _, loss in points])
        low, high = _padded(losses)
        width, height, left, bottom = 760, 300, 64, 40
        x = np.linspace(left + 20, width - 30, len(points))
        y = (height - bottom) - (losses - low) / (high - low) * (height - bottom - 20)
        marks = [_axis(low, high, left, width, height, bottom)]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        marks.append(f"<polyline points='{line}' fill='none' stroke='{_COLOURS['hybrid']}' stroke-width='2'/>")
        for (name, loss), a, b in zip(points, x, y, strict=True):
            marks.append(f"<circle cx='{a:.1f}' cy='{b:.1f}' r='3.5' fill='{_COLOURS['hybrid']}'/>")
            marks.append(f"<text x='{a:.1f}' y='{b - 9:.1f}' text-anchor='middle' font-size='11'>{loss:.4f}</text>")
            marks.append(
                f"<text x='{a:.1f}' y='{height - bottom + 20}' text-anchor='middle' font-size='12'>{name}</text>"
            )
        return _svg(width, height, marks)

    def race_picture(self) -> str:
        """Log loss of each model as bars, as SVG."""
        scored = [(ran.entrant.name, ran.entrant.family, self.race.sums(ran.p).mean_loss) for ran in self.race.ran]
        scored += [(f"all of {f}", f, self.race.sums(self.race.families[f]).mean_loss) for f in FAMILIES]
        scored.sort(key=lambda row: row[2])
        width, left, step = 760, 210, 22
        losses = np.array([loss for *_, loss in scored])
        low, high = losses.min() - 0.05 * (losses.max() - losses.min()) - 1e-9, losses.max()
        marks = []
        for place, (name, family, loss) in enumerate(scored):
            at, size = 6 + place * step, (loss - low) / (high - low) * (width - left - 70)
            bold = " font-weight='600'" if name.startswith("all of") else ""
            marks.append(
                f"<text x='{left - 8}' y='{at + 13}' text-anchor='end' font-size='12'{bold}>{escape(name)}</text>"
            )
            marks.append(f"<rect x='{left}' y='{at}' width='{size:.1f}' height='16' fill='{_COLOURS[family]}'/>")
            marks.append(f"<text x='{left + size + 6:.1f}' y='{at + 13}' font-size='12'>{loss:.4f}</text>")
        return _svg(width, 12 + step * len(scored), marks)


VERDICTS = {
    "yes": "Yes: online training pays here.",
    "no": "No: online training does not pay here.",
    "not_yet": "Not yet: the data cannot tell whether online training pays here.",
}


def _padded(losses: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    room = max(float(losses.max() - losses.min()) * 0.12, 1e-6)
    return float(losses.min()) - room, float(losses.max()) + room


def _axis(low: float, high: float, left: int, width: int, height: int, bottom: int) -> str:
    marks = []
    for value in np.linspace(low, high, 5):
        y = (height - bottom) - (value - low) / (high - low) * (height - bottom - 20)
        marks.append(f"<line x1='{left}' x2='{width - 10}' y1='{y:.1f}' y2='{y:.1f}' stroke='#e3e7ee'/>")
        marks.append(
            f"<text x='{left - 8}' y='{y + 4:.1f}' text-anchor='end' font-size='11' fill='#5b6577'>{value:.4f}</text>"
        )
    return "".join(marks)


def _svg(width: int, height: int, marks: list[str]) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' "
        f"font-family='system-ui, sans-serif' fill='#1d2433'>{''.join(marks)}</svg>"
    )
