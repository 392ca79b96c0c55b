"""The page of the web UI on a real database: what it shows, what it escapes, what it says when it cannot know."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from headrace.airflow import page, race
from headrace.airflow.plugin import HeadracePlugin

REPOSITORY = Path(__file__).parents[2]
EVIL = "<script>alert('\"&')</script>"


@pytest.fixture
def client() -> Iterator[TestClient]:
    """The page behind a door that lets everybody in: the real door is Airflow's, tried in tests/system."""
    app = page.app()
    app.dependency_overrides[page.authenticated] = lambda: None
    with TestClient(app) as client:
        yield client


@pytest.fixture
def raced(registered: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The small stream with a challenger, twenty epochs of both, a comparison and verdicts."""
    monkeypatch.setenv("HEADRACE_DSN", registered.dsn)
    registered.query(
        "INSERT INTO headrace.versions (stream, version, number, recipe, config, first_seq, evidence_seq, status, engine,"
        " code_sha, definition_hash) VALUES ('small', 'small-2', 2, %s, '{}', 1, 1, 'shadow', '{}', '', '') RETURNING 1",
        EVIL,
    )
    registered.query(
        "INSERT INTO headrace.intake_positions (stream, slot, system_identifier, timeline, publication, consistent_lsn, lsn, seq,"
        " epoch, epoch_seq_first, epoch_labels, watermark, received_at, slot_wal_bytes)"
        " VALUES ('small', 's', '1', 1, 'p', '0/1', '0/1', 20000, 21, 1, 1, '2020-03-04 05:06Z', now(), 3145728) RETURNING 1"
    )
    for epoch in range(1, 21):
        at = (epoch, epoch * 1000, epoch * 1000 + 999)
        registered.query(
            "INSERT INTO headrace.epochs VALUES ('small', %s, %s, %s, 100, '2020-03-01Z', '2020-03-01Z') RETURNING 1",
            *at,
        )
        for version, loss in (("small-1", 0.5), ("small-2", 0.4)):
            registered.query(
                "INSERT INTO headrace.epoch_metrics (stream, version, epoch, seq_first, seq_last, labels, positives, loss_sum,"
                " loss_sq_sum, brier_sum, p_sum, clips, histogram, learned, left_out, unscored, cpu_seconds, peak_rss_bytes,"
                " event_time_first, event_time_last, mode, digest, engine) VALUES ('small', %s, %s, %s, %s, 100, 40, %s, 1, 20,"
                " 42, 0, '', 100, 0, 0, 1, 1, '2020-03-01Z', '2020-03-02Z', 'live', '', 't') RETURNING 1",
                *(version, *at, 100 * (loss + 0.01 * (epoch % 3))),
            )
    for version, done in (("small-1", 20000), ("small-2", 14000)):
        registered.query(
            "INSERT INTO headrace.worker_progress (stream, role, phase, done, goal, per_second, received_through)"
            " VALUES ('small', %s, 'live', %s, 20000, 1, now() - interval '95 seconds') RETURNING 1",
            *(version, done),
        )
    evidence = {
        "labels": 2000,
        "gain": 0.2,
        "gain_low": 0.1,
        "gain_high": 0.3,
        "log_e": 1.5,
        "log_e_needed": 6.0,
        "missing": EVIL,
    }
    registered.query(
        "INSERT INTO headrace.comparisons (stream, champion, challenger, rule, evidence_seq, looked_at, evidence)"
        " VALUES ('small', 'small-1', 'small-2', 'promotion', 1, now(), %s) RETURNING 1",
        json.dumps(evidence),
    )
    for look in range(7):
        registered.query(
            "INSERT INTO headrace.decisions (stream, verdict, champion, challenger, reason, seq, decided_by, run_type)"
            " VALUES ('small', 'keep', 'small-1', 'small-2', %s, 1, 'compare', 'scheduled') RETURNING 1",
            f"look {look} {EVIL}",
        )
    return registered


def text(html: str) -> str:
    """What a reader sees of the stream's card, in one line."""
    body = html.partition('<main id="races">')[2].partition("</main>")[0]
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def test_shows_champion_race_evidence_lag_and_verdicts(raced: Any, client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    seen = text(answer.text)
    assert "log at 20,000 · the stream’s clock says 2020-03-04 05:06:00 UTC" in seen
    assert "Champion small-1 river, took over" in seen
    assert "Its log loss 0.5105 over 2,000 shared labels" in seen
    assert re.search(r"small-2 .* shadow 0\.4105 .* small-1 river champion 0\.5105", seen), "the best one first"
    assert "ln E 1.50 of 6.00" in seen
    assert 'style="width:25.0%"' in answer.text
    assert "+20.00 % gain (+10.00 to +30.00 %) over 2,000 labels against small-1." in seen
    assert "Behind 1 min 6,000 entries at most" in seen
    assert "3.0 MiB" in seen
    assert re.search(r"keep small-2 × 7 scheduled · just now look 6", seen), (
        "looks in a row are one line, the last one's"
    )
    assert "first small-1 definition" in seen
    assert "Quality – never checked" in seen
    assert answer.text.count("<polyline") == 2


def test_numbers_as_labels_show_their_own_measures(raced: Any, client: TestClient) -> None:
    raced.query(
        "UPDATE headrace.epoch_metrics SET loss_kind = 'squared', positives = NULL, brier_sum = NULL, histogram = NULL,"
        " abs_sum = 300, sq_sum = 1600, y_sum = 40, y_sq_sum = 6416 RETURNING 1"
    )
    seen = text(client.get("/").text)
    assert "Its squared error 0.5105 over 2,000 shared labels" in seen
    assert "Squared error, lower is better" in seen
    assert "Squared error RMSE R² Bias Labels" in seen and "Calibration" not in seen
    assert re.search(r"small-1 river champion 0\.5105 4\.000 0\.750 0\.020 2,000", seen)


def test_quality_and_incidents_show_by_name(raced: Any, client: TestClient) -> None:
    for run_id, success in (("old", False), ("new", True), ("new", True)):
        raced.query(
            "INSERT INTO headrace.quality_results (stream, dag_run_id, seq_first, seq_last, expectation, success)"
            " VALUES ('small', %s, 1, 9, %s, %s) RETURNING 1",
            *(run_id, f"expectation of {run_id} {EVIL}", success),
        )
    assert "Quality 2 of 2 hold, just now" in text(client.get("/").text)
    raced.query(
        "INSERT INTO headrace.quality_results (stream, dag_run_id, seq_first, seq_last, expectation, success)"
        " VALUES ('small', 'newest', 1, 9, 'between(size)', false) RETURNING 1"
    )
    raced.query(
        "INSERT INTO headrace.incidents (stream, role, state, message)"
        " VALUES ('small', 'intake', 'slot_lost', 'Make a new slot.') RETURNING 1"
    )
    seen = text(client.get("/").text)
    assert "Quality 0 of 1" in seen
    assert "The last check failed: between(size)." in seen
    assert "intake: slot_lost , just now. Make a new slot." in seen


def test_everything_from_the_database_is_escaped_and_only_the_pages_own_scripts_run(
    raced: Any, client: TestClient
) -> None:
    answer = client.get("/")
    assert EVIL not in answer.text
    assert answer.text.count("&lt;script&gt;alert(&#39;&#34;&amp;&#39;)&lt;/script&gt;") >= 3
    policy = answer.headers["content-security-policy"]
    (nonce,) = re.findall(r"'nonce-([^']+)'", policy)
    assert re.findall(r"<script([^>]*)>", answer.text) == [f' nonce="{nonce}"'] * 2
    assert "default-src 'none'" in policy
    assert f"nonce-{nonce}" not in client.get("/").headers["content-security-policy"], "a nonce is used once"
    outside = re.findall(r"""(?:src|href)=|url\(|https?://|@import""", answer.text)
    assert outside == [], "nothing is loaded from elsewhere"


def test_a_new_stream_and_an_empty_platform_are_no_errors(
    registered: Any, platform: str, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_DSN", registered.dsn)
    seen = text(client.get("/").text)
    assert "small history is not imported yet" in seen
    assert "No worker has reported yet" in seen


def test_without_streams_it_says_how_to_get_one(
    migrated: str, fresh_database: Any, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_DSN", fresh_database("empty", migrated))
    answer = client.get("/")
    assert answer.status_code == 200
    assert "No stream is registered yet" in text(answer.text)


def test_a_database_that_is_down_unprepared_or_unknown_is_one_sentence(
    fresh_database: Any, client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HEADRACE_DSN", f"postgresql://ada:secret@/none?host={tmp_path}")
    answer = client.get("/")
    assert answer.status_code == 503
    assert "cannot connect to ada@" in text(answer.text)
    assert "secret" not in answer.text
    monkeypatch.setenv("HEADRACE_DSN", fresh_database("bare"))
    answer = client.get("/")
    assert answer.status_code == 503
    assert "headrace migrate" in text(answer.text)
    monkeypatch.delenv("HEADRACE_DSN")
    answer = client.get("/")
    assert answer.status_code == 503
    assert "headrace_platform" in text(answer.text)


def test_anonymous_requests_are_refused() -> None:
    with TestClient(page.app()) as client:
        assert client.get("/").status_code == 401


def test_the_chart_needs_two_points_and_survives_a_flat_line() -> None:
    assert race.chart([("a", 1, 0.5, None, None)], {}) is None
    flat = race.chart([("a", 1, 0.5, None, None), ("a", 2, 0.5, None, None)], {"a": 0})
    assert flat is not None
    assert flat.curves[0].points == "0.0,6.0 640.0,6.0"


def test_the_plugin_is_registered_once_and_loading_it_is_light() -> None:
    """Where the distribution is installed its entry point counts, and the file in plugins/ stands back."""
    defined = runpy.run_path(str(REPOSITORY / "plugins" / "headrace_plugin.py"))
    assert "HeadracePlugin" not in defined
    assert [view["url_route"] for view in HeadracePlugin.external_views] == ["headrace"]
    heavy = "print([m for m in ('fastapi', 'jinja2', 'psycopg2', 'numpy') if m in sys.modules])"
    before, after = (
        output(f"import sys, {module}; {heavy}") for module in ("airflow.plugins_manager", "headrace.airflow.plugin")
    )
    assert after == before, "the plugin adds nothing heavy to what Airflow's own processes load"


def output(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
