"""The audit: what the tortured platform has against the undisturbed reference, a third reader, and the application.

Three numbers come out of it: `lost`, rows that are missing, too many or different; `learned_twice`, labels that a version
learned more often than the log has them; `digest_mismatches`, epochs and states whose digests differ from the reference's,
or from a rebuild. Each has its findings, for people.
"""

from __future__ import annotations

import io
import json
import subprocess
from collections import Counter
from dataclasses import dataclass, field

from tests.torture.reference import headrace
from tests.torture.stage import PLATFORM, REFERENCE, Stage
from tests.torture.workload import Truth

_CHECK_SECONDS = 900.0


@dataclass
class Findings:
    """What the audit found wrong."""

    lost: int = 0
    learned_twice: int = 0
    digest_mismatches: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, count: int, note: str) -> None:
        """Count something wrong; nothing when the count is 0."""
        if count:
            setattr(self, name, getattr(self, name) + count)
            self.notes.append(f"{name}: {count}: {note}")


def audit(stage: Stage, changes: int) -> Findings:
    """Look at everything; the workers are stopped, and the reference is made.

    Parameters
    ----------
    changes
        What the application committed after the history.
    """
    found = Findings()
    for stream in stage.streams:
        compare_rows(stage, stream, found)
        compare_learning(stage, stream, found)
        compare_with_application(stage, stream, getattr(stage.workload, stream), found)
    third_reader(stage, changes, found)
    rebuild(stage, found)
    return found


def compare_rows(stage: Stage, stream: str, found: Findings) -> None:
    """Every table of the log, against the reference: content first, then order."""
    where = f"WHERE stream = '{stream}'"
    log = {
        "events": f'SELECT * FROM "{stream}".events ORDER BY seq',
        "labels": f'SELECT * FROM "{stream}".labels ORDER BY seq',
        "segments": f"""SELECT seq_first, seq_last, lsn, commit_time, watermark, origin FROM "{stream}".segments
            ORDER BY seq_first""",
        "epochs": f"SELECT * FROM headrace.epochs {where} ORDER BY epoch",
        "held": f'SELECT key, y, label_time FROM "{stream}".held ORDER BY key',
        "quarantine": f"""SELECT relation, key, expectation, found, content, lsn FROM "{stream}".quarantine
            ORDER BY lsn, relation, key, expectation, content::text""",
        "accounting": f"SELECT * FROM headrace.accounting {where} ORDER BY origin",
    }
    content = {
        "events": f"SELECT to_jsonb(e) - 'seq' FROM \"{stream}\".events AS e ORDER BY seq",
        "labels": f"""SELECT e.key, l.kind, l.y, l.y_before, l.label_time FROM "{stream}".labels AS l
            JOIN "{stream}".events AS e ON e.seq = l.event_seq ORDER BY l.seq""",
    }
    for name, query in log.items():
        ours, theirs = (_lines(stage, database, query) for database in (PLATFORM, REFERENCE))
        if ours == theirs:
            continue
        if name in content:  # one missing row moves all that follow it: count what is missing itself
            a, b = (Counter(_lines(stage, database, content[name])) for database in (PLATFORM, REFERENCE))
            missing, extra = b - a, a - b
        else:
            missing, extra = Counter(theirs) - Counter(ours), Counter(ours) - Counter(theirs)
        count = missing.total() + extra.total()
        example = next(iter(missing or extra), "the order")
        note = f"{stream}.{name}: {missing.total()} missing, {extra.total()} too many, for example {example:.200}"
        found.add("lost", max(count, 1), note)


def compare_learning(stage: Stage, stream: str, found: Findings) -> None:
    """What each version learned and its digests, against the log and against the reference."""
    rows = stage.platform.query(
        PLATFORM,
        f"""SELECT m.version, m.epoch, m.learned - count(l.seq) FROM headrace.epoch_metrics AS m
        LEFT JOIN "{stream}".labels AS l ON l.seq BETWEEN m.seq_first AND m.seq_last
            AND l.kind <> 'correction' AND l.y IS NOT NULL
        WHERE m.stream = %s GROUP BY m.version, m.epoch, m.learned HAVING m.learned <> count(l.seq) ORDER BY 1, 2""",
        stream,
    )
    twice = sum(max(more, 0) for _, _, more in rows)
    found.add("learned_twice", twice, f"{stream}: (version, epoch, too many) {rows[:5]}")
    found.add("lost", sum(max(-more, 0) for _, _, more in rows), f"{stream}: not learned: {rows[:5]}")
    query = """SELECT version, epoch, seq_first, seq_last, labels, positives, loss_sum, loss_sq_sum, brier_sum, p_sum, clips,
        histogram, learned, unscored, event_time_first, digest, engine FROM headrace.epoch_metrics
        WHERE stream = '{}' ORDER BY version, epoch"""
    states = """SELECT DISTINCT ON (version) version, seq, epoch, digest, state_digest, learned, engine
        FROM headrace.checkpoints WHERE stream = '{}' ORDER BY version, seq DESC"""
    for name, text in (("epochs", query), ("last states", states)):
        ours, theirs = (set(_lines(stage, database, text.format(stream))) for database in (PLATFORM, REFERENCE))
        differing = sorted({line.split("\t")[0] + " " + line.split("\t")[1] for line in ours ^ theirs})
        found.add("digest_mismatches", len(differing), f"{stream}: {name} that differ: {', '.join(differing[:5])}")


def compare_with_application(stage: Stage, stream: str, truth: Truth, found: Findings) -> None:
    """Every event that was committed is in the log once or in quarantine, and its last label is the committed one."""
    events = stage.platform.query(PLATFORM, f'SELECT key::text, count(*) FROM "{stream}".events GROUP BY 1')
    there = dict(events)
    missing = [key for key in truth.labels if there.get(key, 0) != 1]
    found.add("lost", len(missing), f"{stream}: committed events that are not in the log exactly once: {missing[:5]}")
    strange = [key for key in there if key not in truth.labels]
    found.add("lost", len(strange), f"{stream}: events in the log that should not be: {strange[:5]}")
    table = stage.streams[stream].source.table
    quarantined = stage.platform.query(
        PLATFORM, f'SELECT DISTINCT key FROM "{stream}".quarantine WHERE relation = %s', table
    )
    refused = {key for (key,) in quarantined}
    escaped = [f"{key} ({why})" for key, why in truth.refused.items() if key not in refused]
    found.add("lost", len(escaped), f"{stream}: hostile events that are not in quarantine: {escaped[:5]}")
    last = stage.platform.query(
        PLATFORM,
        f"""SELECT DISTINCT ON (e.seq) e.key::text, l.kind::text, l.y FROM "{stream}".events AS e
        JOIN "{stream}".labels AS l ON l.event_seq = e.seq ORDER BY e.seq, l.seq DESC""",
    )
    told = {key: None if y is None or kind == "timeout" else y == 1.0 for key, kind, y in last}
    wrong = [(key, told.get(key), label) for key, label in truth.labels.items() if told.get(key) != label]
    found.add("lost", len(wrong), f"{stream}: (key, label in the log, committed) {wrong[:5]}")
    waiting = stage.platform.query(
        PLATFORM,
        f"""SELECT key::text FROM "{stream}".held UNION SELECT key FROM "{stream}".quarantine WHERE expectation = 'orphan'""",
    )
    gone = truth.orphans - {key for (key,) in waiting}
    found.add(
        "lost",
        len(gone),
        f"{stream}: labels without an event that are neither held nor in quarantine: {sorted(gone)[:5]}",
    )


def third_reader(stage: Stage, changes: int, found: Findings) -> None:
    """`headrace check`, with the count of a third reader of the same WAL, which the application's own count confirms."""
    environment = stage.environment(disturbed=False)
    counted = 0
    for stream in stage.streams:
        ledger = stage.home / f"{stream}.ledger.json"
        words = headrace("ledger", stream, "--slot", f"{stage.streams[stream].slot}_ledger")
        with ledger.open("w") as output:
            subprocess.run(words, env=environment, cwd=stage.home, stdout=output, check=True, timeout=_CHECK_SECONDS)
        counted += sum(sum(kinds.values()) for kinds in json.loads(ledger.read_text())["changes"].values())
        words = headrace("check", stream, "--ledger", str(ledger))
        done = subprocess.run(
            words, env=environment, cwd=stage.home, capture_output=True, text=True, check=False, timeout=_CHECK_SECONDS
        )
        found.add("lost", int(done.returncode != 0), f"{stream}: `headrace check`: {done.stderr.strip()}")
    found.add(
        "lost", abs(counted - changes), f"the application committed {changes} changes, a third reader saw {counted}"
    )


def rebuild(stage: Stage, found: Findings) -> None:
    """`headrace rebuild` of every version gives the stored digests."""
    environment = stage.environment(disturbed=False)
    for stream, version in stage.platform.query(
        PLATFORM, "SELECT stream, version FROM headrace.versions ORDER BY 1, 2"
    ):
        words = headrace("rebuild", stream, version, "--json")
        done = subprocess.run(
            words, env=environment, cwd=stage.home, capture_output=True, text=True, check=False, timeout=_CHECK_SECONDS
        )
        try:
            different = len(json.loads(done.stdout)["different"])
        except json.JSONDecodeError:
            different = 1
        note = f"{version}: `headrace rebuild`: {done.stderr.strip()[-300:]}"
        found.add("digest_mismatches", max(different, int(done.returncode != 0)), note)


def _lines(stage: Stage, database: str, query: str) -> list[str]:
    """A query's rows in COPY's text format."""
    file = io.StringIO()
    with stage.platform.connection(database) as conn, conn.cursor() as cursor:
        cursor.execute("SET timezone = 'UTC'")
        cursor.copy_expert(f"COPY ({query}) TO STDOUT", file)
    return file.getvalue().splitlines()
