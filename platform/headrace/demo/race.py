"""The race as the terminal shows it: log, champion, challengers, evidence, verdicts.

Reads the platform's tables and makes text of them; changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg2.extensions import connection as Connection
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from headrace.store import db

_BAR = 24


@dataclass(frozen=True)
class Race:
    """What is known of a stream at one moment."""

    stream: str
    seq: int
    watermark: datetime | None
    received: int
    quarantined: int
    timeouts: int
    phase: str  # what the intake says it does
    versions: tuple[db.Row, ...]
    evidence: tuple[db.Row, ...]
    verdicts: tuple[db.Row, ...]

    @property
    def champion(self) -> str | None:
        """Who serves."""
        return next((row[0] for row in self.versions if row[2] == "champion"), None)

    def line(self) -> str:
        """The race in one line, for logs."""
        when = f"{self.watermark:%d %b %H:%M}" if self.watermark else "before history"
        parts = [f"log {self.seq:,} ({when})"] if self.seq else [self.phase]
        for version, recipe, status, done, message, labels, loss, own in self.versions:
            score = f" {loss:.4f} over {labels:,}" if loss is not None else f" ({own:.4f})" if own is not None else ""
            behind = f", {message}" if self.seq - done > 0 and message != "live" else ""
            parts.append(f"{version} ({recipe}, {status}{behind}){score}")
        parts += [f"{row[0]}: ln E {row[4]:.1f} of {row[5]:.1f}" for row in self.evidence if row[5] is not None]
        return " | ".join(parts)


def look(conn: Connection, stream: str) -> Race:
    """Read the present state."""
    at = db.row(conn, "race_log", {"stream": stream}) or (0, None, 0, 0, 0)
    intake = db.row(conn, "progress", {"stream": stream, "role": "intake"})
    phase = "waiting for the intake"
    if intake is not None and intake[0] != "streaming":
        phase = f"{intake[0]}: {intake[4]}, {intake[1]:,} of {intake[2]:,} rows"
    return Race(
        stream=stream,
        seq=int(at[0]),
        watermark=at[1],
        received=int(at[2]),
        quarantined=int(at[3]),
        timeouts=int(at[4]),
        phase=phase,
        versions=tuple(db.rows(conn, "race_versions", {"stream": stream})),
        evidence=tuple(db.rows(conn, "race_evidence", {"stream": stream})),
        verdicts=tuple(r for r in db.rows(conn, "last_decisions", {"stream": stream, "many": 40}) if r[1] != "keep")[
            :5
        ],
    )


def render(race: Race, sent: dict[str, int], elsewhere: list[str]) -> RenderableType:
    """The race for a terminal.

    Parameters
    ----------
    sent
        Events and labels that the demo's application has committed since it went live.
    elsewhere
        Lines on what else to look at: Airflow's address, the next step.
    """
    head = Text()
    head.append(f"{race.stream}  ", style="bold")
    if race.watermark is None:
        head.append(race.phase)
    else:
        head.append(f"stream time {race.watermark:%a %d %b %Y %H:%M} UTC   log {race.seq:,} entries   ")
        head.append(f"live: {sent['events']:,} flights departed, {sent['labels']:,} landed   ")
        head.append(f"quarantined {race.quarantined:,}   timed out {race.timeouts:,}")
    return Group(Panel(head), _versions(race), _evidence(race), _verdicts(race), *(Text(line) for line in elsewhere))


def _versions(race: Race) -> Table:
    table = Table(
        title="who predicts how well (epochs that all running versions scored)", title_justify="left", expand=True
    )
    for name, justify in (
        ("version", "left"),
        ("recipe", "left"),
        ("status", "left"),
        ("behind", "right"),
        ("log loss", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("labels", justify="right")
    for version, recipe, status, done, message, labels, loss, own in race.versions:
        behind = max(0, race.seq - done)
        shown = f"{loss:.4f}" if loss is not None else f"({own:.4f})" if own is not None else ""
        style = {"champion": "bold green", "shadow": "cyan", "probation": "yellow", "retired": "dim"}.get(status, "")
        lag = message if behind > 5000 else f"{behind:,}"
        table.add_row(version, recipe, status, lag, shown, f"{labels:,}" if labels else "", style=style)
    return table


def _evidence(race: Race) -> Table:
    table = Table(title="evidence that a challenger is better by the margin", title_justify="left", expand=True)
    for name in ("challenger", "labels", "gain", "ln E of what a promotion needs", "missing"):
        table.add_column(name)
    for challenger, rule, labels, gain, log_e, needed, missing in race.evidence:
        if rule == "promotion" and needed:
            share = min(1.0, max(0.0, log_e / needed))
            bar = "█" * int(share * _BAR) + "░" * (_BAR - int(share * _BAR))
            shown = f"{bar} {log_e:5.1f} of {needed:.1f}"
        else:
            shown = f"probation: ln E {log_e:.1f} of {needed or 0:.1f} to roll back"
        table.add_row(challenger, f"{labels:,}", "" if gain is None else f"{gain:+.2%}", shown, missing or "")
    return table


def _verdicts(race: Race) -> Table:
    table = Table(title="verdicts", title_justify="left", expand=True)
    for name in ("at", "verdict", "reason"):
        table.add_column(name)
    for decided_at, verdict, _, _, reason, *_ in race.verdicts:
        table.add_row(f"{decided_at:%H:%M:%S}", verdict, reason, style="bold green" if verdict == "promote" else "")
    return table
