"""Compare, promote, roll back: the decision rule on what the tables say, one verdict and one sentence each.

The statistics are `headrace.flow.decision`'s. A run looks at every open comparison, stores its numbers and verdict, and
acts on promote, retire and rollback through the registry, which serialises decisions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from psycopg2.extensions import connection as Connection

from headrace.definition.stream import Stream
from headrace.errors import BatchError
from headrace.flow import decision as rule
from headrace.store import db, registry
from headrace.store.registry import Decision


@dataclass(frozen=True)
class Outcome:
    """What a compare run decided about one challenger."""

    champion: str
    challenger: str
    verdict: str
    reason: str
    evidence: dict[str, Any]


@dataclass(frozen=True)
class _Look:
    """One open comparison with its epochs."""

    comparison_id: int
    verdict: rule.Verdict
    first: int | None
    last: int | None


def the_rule(stream: Stream) -> rule.Rule:
    """The decision rule as the stream's policy sets it."""
    policy = stream.policy
    slots, guards = policy.challenger_slots, tuple(policy.guards)
    return rule.Rule(slots=slots, min_gain=policy.min_gain, season=policy.season, guards=guards)


def compare(
    conn: Connection, stream: Stream, *, dag_run_id: str | None = None, run_type: str | None = None
) -> tuple[list[Outcome], str | None]:
    """Look at every challenger, and at the champion while its predecessor is in probation.

    Parameters
    ----------
    conn
        The platform's database, as role headrace_steer.

    Returns
    -------
    (outcomes, promoted)
        A verdict per comparison, and the version that serves from now on, if that changed.
    """
    with db.transaction(conn):
        db.run(conn, "lock_stream", {"stream": stream.name})
        champion = registry.champion(conn, stream.name)
        versions = registry.versions(conn, stream.name)
        former = next((v.version for v in versions if v.status == "probation"), None)
        looks = [_look(conn, stream, champion, v.version) for v in versions if v.status == "shadow"]
        chosen = rule.choose([look.verdict for look in looks])
        looks = [_Look(k.comparison_id, verdict, k.first, k.last) for k, verdict in zip(looks, chosen, strict=True)]
        if former is not None:
            looks.append(_look_back(conn, stream, champion, former))
        # Who changes the champion comes last: that ends the other comparisons.
        looks.sort(key=lambda look: look.verdict.verdict in ("promote", "rollback"))
        position = db.row(conn, "log_position", {"stream": stream.name})
        seq = int(position[0]) if position else 0
        changed = None
        outcomes = []
        for look in looks:
            verdict = look.verdict
            if changed is not None and verdict.verdict in ("promote", "rollback"):
                continue  # the champion it was decided against serves no more
            evidence = _plain(asdict(verdict.evidence))
            made = Decision(
                verdict.verdict,
                champion,
                verdict.challenger,
                verdict.reason,
                evidence,
                "compare",
                look.comparison_id,
                look.first,
                look.last,
                dag_run_id,
                run_type,
            )
            closes = verdict.verdict != "keep"
            db.run(
                conn, "look", {"comparison_id": look.comparison_id, "evidence": json.dumps(evidence), "close": closes}
            )
            if verdict.verdict in ("promote", "rollback"):
                registry.change_champion(conn, stream.name, made)
                changed = verdict.challenger
            else:
                registry.decide(conn, stream.name, made, seq=seq)
            if verdict.verdict == "retire":
                registry.set_status(conn, stream.name, verdict.challenger, "retired", was=("shadow",))
            outcomes.append(Outcome(champion, verdict.challenger, verdict.verdict, verdict.reason, evidence))
    return outcomes, changed


def _look(conn: Connection, stream: Stream, champion: str, challenger: str) -> _Look:
    comparison_id, epochs, first, last = _evidence(conn, stream.name, champion, challenger, "promotion")
    return _Look(
        comparison_id, rule.compare(epochs, the_rule(stream), champion=champion, challenger=challenger), first, last
    )


def _look_back(conn: Connection, stream: Stream, champion: str, former: str) -> _Look:
    comparison_id, epochs, first, last = _evidence(conn, stream.name, champion, former, "probation")
    return _Look(comparison_id, rule.probation(epochs, the_rule(stream), champion=champion, former=former), first, last)


def _evidence(
    conn: Connection, stream: str, champion: str, challenger: str, kind: str
) -> tuple[int, rule.PairedEpochs, int | None, int | None]:
    """The open comparison of a pair and the epochs that count for it."""
    serving = db.row(conn, "champion", {"stream": stream})
    since = int(serving[1]) if serving else 1
    # Between two versions evidence starts where the later of them was registered, or where the champion began to serve.
    start = max(since, registry.version(conn, stream, challenger).evidence_seq)
    row = db.row(
        conn,
        "open_comparison",
        {"stream": stream, "champion": champion, "challenger": challenger, "rule": kind, "evidence_seq": start},
    )
    assert row is not None  # RETURNING
    comparison_id, evidence_seq = row
    rows = db.rows(
        conn,
        "paired_epochs",
        {"stream": stream, "champion": champion, "challenger": challenger, "evidence_seq": evidence_seq},
    )
    sums: list[Any] = [None] * 3
    if rows and rows[0][9] is not None:  # a stream of numbers has no positive labels
        sums = [np.array([r[i] for r in rows], dtype=np.float64) for i in (9, 10, 11)]
    epochs = rule.PairedEpochs(
        np.array([r[1] for r in rows], dtype=np.int64),
        np.array([r[2] for r in rows], dtype=np.float64),
        np.array([r[3] for r in rows], dtype=np.float64),
        [r[4] for r in rows],
        [r[5] for r in rows],
        *sums,
    )
    return comparison_id, epochs, rows[0][0] if rows else None, rows[-1][0] if rows else None


def _plain(evidence: dict[str, Any]) -> dict[str, Any]:
    """Numbers as JSON can hold them: what is not finite becomes null."""
    plain: dict[str, Any] = json.loads(json.dumps(evidence, default=float), parse_constant=lambda _: None)
    return plain


def rollback(
    conn: Connection, stream: Stream, *, to: str | None, reason: str, by: str, dag_run_id: str | None = None
) -> tuple[str, str]:
    """Let a former champion serve again; gives (new champion, former one).

    Raises
    ------
    BatchError
        When there is no former champion, or the one asked for no longer runs.
    """
    with db.transaction(conn):
        db.run(conn, "lock_stream", {"stream": stream.name})
        champion = registry.champion(conn, stream.name)
        if to is None:
            former = db.row(conn, "former_champion", {"stream": stream.name})
            if former is None:
                raise BatchError(
                    f"{champion} is the first champion of {stream.name!r}: there is nobody to roll back to"
                )
            to = str(former[0])
        if to == champion:
            raise BatchError(f"{to} serves already")
        sentence = f"{by} rolled back from {champion} to {to}: {reason}"
        made = Decision(
            "rollback", champion, to, sentence, {}, by, dag_run_id=dag_run_id, run_type="manual" if dag_run_id else None
        )
        registry.change_champion(conn, stream.name, made)
    return to, champion


def promote(conn: Connection, stream: Stream, *, version: str, reason: str, by: str) -> tuple[str, str]:
    """Let a version serve because a person says so; gives (new champion, former one)."""
    with db.transaction(conn):
        db.run(conn, "lock_stream", {"stream": stream.name})
        champion = registry.champion(conn, stream.name)
        if version == champion:
            raise BatchError(f"{version} serves already")
        sentence = f"{by} promoted {version} over {champion}: {reason}"
        registry.change_champion(conn, stream.name, Decision("promote", champion, version, sentence, {}, by))
    return version, champion


def sentence_of(outcomes: Sequence[Outcome]) -> str:
    """A compare run in one sentence."""
    if not outcomes:
        return "There are no challengers in shadow to compare yet."
    return " ".join(outcome.reason for outcome in outcomes)
