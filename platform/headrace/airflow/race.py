"""What the page of the web UI shows, read from the platform's database: the views of schema metrics, one snapshot.

Only reads, as role headrace_reader. Numbers become words here (ages, counts, shares), so that the template only places
them; nothing here is HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg2.extensions import connection as Connection

from headrace.definition.loss import Loss
from headrace.store import db

CHART_WIDTH, CHART_HEIGHT = 640, 150  # units of the drawing
_CURVES = 5  # as many as the page has colours for


@dataclass(frozen=True)
class Curve:
    """One version's loss over the last epochs, as points of a drawing."""

    version: str
    points: str  # of an SVG polyline
    last: float
    end: tuple[float, float]
    colour: int  # 0 is the champion's


@dataclass(frozen=True)
class Chart:
    """The race: curves on a common scale."""

    curves: Sequence[Curve]
    low: float
    high: float
    first_time: datetime | None
    last_time: datetime | None


@dataclass(frozen=True)
class Race:
    """One stream, as the page shows it."""

    stream: str
    champion: str | None
    recipe: str | None
    since: datetime | None
    why: str | None
    seq: int | None
    watermark: datetime | None
    now: datetime
    leaderboard: Sequence[Mapping[str, Any]] = ()
    comparisons: Sequence[Mapping[str, Any]] = ()
    workers: Sequence[Mapping[str, Any]] = ()
    verdicts: Sequence[Mapping[str, Any]] = ()
    quality: Mapping[str, Any] | None = None
    incidents: Sequence[Mapping[str, Any]] = ()
    chart: Chart | None = None
    colours: Mapping[str, int] = field(default_factory=dict)

    @property
    def loss(self) -> Loss:
        """What its versions are scored by, once one is."""
        return Loss(next((entry["loss_kind"] for entry in self.leaderboard if entry["loss_kind"]), "log"))

    @property
    def behind(self) -> float:
        """Seconds that the worker furthest behind is behind."""
        return max((float(worker["seconds"] or 0) for worker in self.workers), default=0.0)


def races(dsn: str) -> list[Race]:
    """Every stream as it is now.

    Raises
    ------
    ServerError
        When the database cannot be reached.
    psycopg2.Error
        When it has not been migrated, or fails meanwhile.
    """
    with closing(db.connect(dsn, role="headrace_reader", application="headrace page")) as conn:
        conn.set_session(isolation_level="REPEATABLE READ", readonly=True)
        return [_race(conn, row) for row in db.rows(conn, "page_streams")]


def _race(conn: Connection, row: db.Row) -> Race:
    stream, champion, recipe, since, why, seq, watermark, _, now = row
    colours = {} if champion is None else {champion: 0}
    leaderboard = _named(
        conn,
        "page_leaderboard",
        stream,
        (
            "version",
            "recipe",
            "status",
            "labels",
            "loss",
            "normalised_entropy",
            "calibration",
            "own_labels",
            "own_loss",
            "loss_kind",
            "rmse",
            "r2",
            "bias",
        ),
    )
    for version in sorted(entry["version"] for entry in leaderboard):
        colours.setdefault(version, min(len(colours), _CURVES - 1))
    quality = db.row(conn, "page_quality", {"stream": stream})
    return Race(
        stream=stream,
        champion=champion,
        recipe=recipe,
        since=since,
        why=why,
        seq=seq,
        watermark=watermark,
        now=now,
        leaderboard=leaderboard,
        comparisons=[_with_progress(one) for one in _comparisons(conn, stream)],
        workers=_named(
            conn,
            "page_workers",
            stream,
            ("worker", "phase", "message", "position", "entries", "seconds", "wal", "safe_wal", "reported_at"),
        ),
        verdicts=_named(
            conn,
            "page_verdicts",
            stream,
            ("at", "verdict", "champion", "challenger", "reason", "by", "run_type", "dag_run_id", "looks"),
        ),
        quality=None if quality is None else dict(zip(("at", "checks", "passed", "failed"), quality, strict=True)),
        incidents=_named(conn, "page_incidents", stream, ("role", "state", "message", "opened_at")),
        chart=chart(db.rows(conn, "page_race", {"stream": stream}), colours),
        colours=colours,
    )


def _named(conn: Connection, query: str, stream: str, names: Sequence[str]) -> list[dict[str, Any]]:
    return [dict(zip(names, row, strict=True)) for row in db.rows(conn, query, {"stream": stream})]


def _comparisons(conn: Connection, stream: str) -> list[dict[str, Any]]:
    names = (
        "champion",
        "challenger",
        "recipe",
        "rule",
        "labels",
        "gain",
        "low",
        "high",
        "log_e",
        "needed",
        "missing",
        "at",
    )
    return _named(conn, "page_comparisons", stream, names)


def _with_progress(comparison: Mapping[str, Any]) -> dict[str, Any]:
    return {**comparison, "share": share(comparison["log_e"], comparison["needed"])}


def share(log_e: float | None, needed: float | None) -> float:
    """How much of the evidence that is needed is there, from 0 to 1; evidence against the challenger counts as none.

    >>> share(2.3, 4.6), share(-3.0, 4.6), share(9.0, 4.6), share(None, None)
    (0.5, 0.0, 1.0, 0.0)
    """
    if log_e is None or not needed or needed < 0:
        return 0.0
    return min(max(log_e / needed, 0.0), 1.0)


def chart(rows: Sequence[tuple[Any, ...]], colours: Mapping[str, int]) -> Chart | None:
    """Curves from rows (version, bucket, loss, first time, last time); None with fewer than two points to draw.

    >>> drawn = chart([("a-1", 1, 0.5, None, None), ("a-1", 2, 0.4, None, None)], {"a-1": 0})
    >>> drawn.curves[0].points
    '0.0,6.0 640.0,144.0'
    """
    if len({row[1] for row in rows}) < 2:
        return None
    low, high = min(row[2] for row in rows), max(row[2] for row in rows)
    first, last = min(row[1] for row in rows), max(row[1] for row in rows)
    margin = 6

    def place(bucket: int, loss: float) -> tuple[float, float]:
        x = (bucket - first) / (last - first) * CHART_WIDTH
        y = margin + (high - loss) / ((high - low) or 1.0) * (CHART_HEIGHT - 2 * margin)
        return round(x, 1), round(y, 1)

    curves = []
    for version in dict.fromkeys(row[0] for row in rows):
        own = [(row[1], row[2]) for row in rows if row[0] == version]
        placed = [place(*one) for one in own]
        points = " ".join(f"{x},{y}" for x, y in placed)
        curves.append(Curve(version, points, own[-1][1], placed[-1], colours.get(version, _CURVES - 1)))
    curves.sort(key=lambda curve: -curve.colour)  # the champion is drawn last, over the others
    times = [row[3] for row in rows if row[3] is not None], [row[4] for row in rows if row[4] is not None]
    return Chart(curves, low, high, min(times[0], default=None), max(times[1], default=None))


def age(then: datetime | None, now: datetime) -> str:
    """How long ago, in the largest unit that fits.

    >>> from datetime import UTC, timedelta
    >>> now = datetime(2026, 1, 2, tzinfo=UTC)
    >>> [age(now - timedelta(seconds=s), now) for s in (0.4, 42, 600, 7300, 200_000)]
    ['just now', '42 s ago', '10 min ago', '2 h ago', '2 days ago']
    """
    if then is None:
        return "never"
    said = span((now - then).total_seconds())
    return "just now" if said == "0 s" else f"{said} ago"


def span(seconds: float) -> str:
    """A length of time, in the largest unit that fits.

    >>> span(0.003), span(59), span(3599), span(100_000)
    ('0 s', '59 s', '59 min', '27 h')
    """
    whole = max(int(seconds), 0)
    for size, unit in ((172_800, "days"), (3600, "h"), (60, "min")):
        if whole >= size:
            return f"{whole // (86_400 if unit == 'days' else size)} {unit}"
    return f"{whole} s"


def size(count: int | None) -> str:
    """Bytes in the largest binary unit that fits.

    >>> size(512), size(48_234_496), size(None)
    ('512 B', '46.0 MiB', '–')
    """
    if count is None:
        return "–"
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
