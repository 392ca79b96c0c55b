"""Lists of tokens from a real source's arrays to models: history, stream, quarantine, learners, rebuilds, requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from tests.conftest import ENGINE, Registered, SmallSource

from headrace.batch import quality
from headrace.batch.bootstrap import bootstrap
from headrace.batch.erasure import erase
from headrace.batch.rebuild import rebuild
from headrace.definition.load import load_file
from headrace.events import micros
from headrace.flow.arrays import MOST_TOKENS
from headrace.live.learner import Learner
from headrace.live.request import EventRow, RowReader
from headrace.models.build import fresh
from headrace.models.tokens import Tokens
from headrace.models.trial import try_recipe
from headrace.store import db, leases, log, registry, source
from headrace.store.migrate import migrate
from headrace.store.state import open_version

KEY = b"k" * 32
START = datetime(2020, 3, 1, tzinfo=UTC)
DEFINITION = """
from datetime import timedelta
from headrace import Label, Policy, Source, Stream, category, col, expect, number, recipes, target_mean, tokens


def bag():
    from river import compose, linear_model, preprocessing

    return compose.SelectType(list) | preprocessing.OneHotEncoder() | linear_model.LogisticRegression()


stream = Stream(
    name="films",
    source=Source(conn_id="cinema", table="public.films", key="film_id", event_time="shown_at"),
    label=Label(table="public.votes", key="film_id", value=col("liked"), label_time="voted_at", window=timedelta(hours=6),
                if_missing="drop"),
    features=[category("colour"), number("size"), tokens("genres", "tags"), target_mean("colour")],
    contract=[expect.not_null("genres")],
    champion=recipes.ftrl(),
    challengers=[recipes.river(bag), recipes.gbdt_lr(min_data_in_leaf=5), recipes.lightgbm(min_data_in_leaf=5),
                 recipes.ftrl(name="passes", batch=recipes.Batch(passes=3)),
                 recipes.stack(members=[recipes.lightgbm(), recipes.gbdt_lr(), recipes.ftrl()], min_data_in_leaf=5)],
    policy=Policy(epoch_labels=50, epoch_time=timedelta(hours=12), challenger_slots=5),
)
"""
TABLES = """
CREATE TABLE public.films (film_id bigint PRIMARY KEY, shown_at timestamptz, colour text, size double precision,
    genres text[], tags varchar(30)[]);
CREATE TABLE public.votes (film_id bigint PRIMARY KEY, liked boolean, voted_at timestamptz);
"""
ODD = ["drama", "", "NULL", "null", 'qu"ote', "back\\slash", "{b,c}", "a b", "naïve ☂ 🚕", "tab\tline\n"]


class Films(Registered):
    """The stream on a platform and a source of its own."""

    origin: SmallSource

    def show(self, first: int, count: int) -> None:
        """Films, a minute apart, most of them with a vote; those with an even genre are liked."""
        random = np.random.default_rng(first)
        with closing(db.connect(self.origin.dsn)) as conn, conn, conn.cursor() as cursor:
            for i in range(first, first + count):
                genres = [ODD[k] for k in random.choice(len(ODD), int(random.integers(0, 6))).tolist()]
                tags = None if random.random() < 0.2 else [f"t{k}" for k in random.integers(0, 9, 3).tolist()]
                shown = START + timedelta(minutes=i)
                row = (i, shown, "ab"[i % 2], float(random.random()), genres + [None] * (i % 3 == 0), tags)
                cursor.execute("INSERT INTO films VALUES (%s, %s, %s, %s, %s, %s)", row)
                if random.random() < 0.9:
                    liked = bool(random.random() < (0.9 if "drama" in genres else 0.2))
                    cursor.execute("INSERT INTO votes VALUES (%s, %s, %s)", (i, liked, shown + timedelta(minutes=40)))

    def learn(self) -> None:
        """A new learner, from the last checkpoint to the log's end."""
        with closing(db.connect(self.dsn, role="headrace_learner")) as conn:

            def opened() -> Any:
                known = registry.version(conn, "films", "films-1")
                return open_version(conn, self.stream, known, self.columns, KEY, ENGINE)

            learner = Learner(conn, conn, self.stream, self.columns, opened, batch=70)
            learner.begin(leases.take(conn, "films", "films-1", timedelta(seconds=5)))
            while learner.step():
                pass

    def digests(self) -> list[tuple[Any, ...]]:
        return self.query("SELECT epoch, digest FROM headrace.epoch_metrics ORDER BY epoch")


@pytest.fixture
def films(platform: str, database: Callable[..., str], tmp_path: Any) -> Iterator[Films]:
    (tmp_path / "films.py").write_text(DEFINITION)
    stream = load_file(tmp_path / "films.py")
    origin = SmallSource(database("cinema"), stream)
    origin.execute(TABLES)
    with closing(db.connect(origin.dsn)) as conn:
        origin.execute(source.statements(stream, role="postgres", identity=source.identity_columns(conn, stream)))
        columns = source.log_columns(conn, stream)
    with closing(db.connect(platform)) as conn, db.transaction(conn):
        registry.register(conn, stream, columns, ENGINE)
    migrate(platform)
    made = Films(platform, stream, columns)
    made.origin = origin
    yield made
    for name, counts in made.accounting().items():
        outcomes = ("events", "labels", "corrections", "held", "quarantined", "ignored")
        assert counts["received"] == sum(counts[n] for n in outcomes), f"{name}: something was lost"


def test_arrays_of_history_and_stream_are_the_logs(films: Films) -> None:
    assert [f for f in source.doctor(films.origin.dsn, films.stream) if not f.ok] == []
    films.show(0, 120)
    films.import_history(films.origin)
    films.show(120, 120)
    films.follow(films.origin)
    kept = films.origin.execute("SELECT film_id, genres, tags FROM films ORDER BY film_id")
    assert films.query("SELECT key, genres, tags FROM films.events ORDER BY key") == kept
    assert films.query("SELECT count(*), count(genres) FROM films.examples")[0][0] > 180
    with closing(db.connect(films.dsn)) as conn:
        ((upto,),) = films.query("SELECT seq FROM headrace.intake_positions")
        batch = log.read(conn, "films", films.columns, 0, upto)
    found = zip(batch.events["key"].tolist(), batch.events["genres"].lists(), batch.events["tags"].lists(), strict=True)
    sets = [
        (k, *(None if r is None else list(dict.fromkeys(t for t in r if t is not None)) for r in rest))
        for k, *rest in kept
    ]
    assert sorted(found) == sets


def test_what_is_no_list_goes_to_quarantine(films: Films) -> None:
    films.origin.execute(
        "INSERT INTO films VALUES (1, '2020-03-01', 'a', 1, '{{a,b},{c,d}}', NULL), "
        "(2, '2020-03-01', 'a', 1, '[2:3]={a,b}', '{}'), (3, '2020-03-01', 'a', 1, NULL, NULL), "
        "(4, '2020-03-01', 'a', 1, '{}', (SELECT array_agg('t' || n) FROM "
        f"generate_series(1, {MOST_TOKENS + 1}) n)), (5, '2020-03-01', 'a', 1, '{{}}', NULL)"
    )
    films.import_history(films.origin)
    films.origin.execute("INSERT INTO films VALUES (6, '2020-03-01', 'a', 1, '[0:1][1:1]={{a},{NULL}}', NULL)")
    films.follow(films.origin)
    assert films.query("SELECT key, genres FROM films.events ORDER BY key") == [(2, ["a", "b"]), (5, [])]
    expected = f"expected a list of one dimension, of at most {MOST_TOKENS:,} tokens"
    found = films.query("SELECT key, expectation, found, reason FROM films.quarantine ORDER BY key")
    assert [row[:2] for row in found] == [
        ("1", "tokens(genres)"), ("3", "not_null(genres)"), ("4", "tokens(tags)"), ("6", "tokens(genres)"),
    ]  # fmt: skip
    assert found[0][2:] == ("{{a,b},{c,d}}", f"genres is '{{{{a,b}},{{c,d}}}}', {expected}")
    assert found[1][2:] == (None, "genres is NULL, expected a value")
    assert found[2][2].startswith("{t1,t2,")
    assert found[3][2] == "[0:1][1:1]={{a},{NULL}}"
    ((content,),) = films.query("SELECT content FROM films.quarantine WHERE key = '1'")
    assert content["genres"] == "{{a,b},{c,d}}"


def test_a_learner_stops_starts_and_is_rebuilt_to_the_bit(films: Films) -> None:
    films.show(0, 200)
    films.import_history(films.origin)
    films.learn()
    films.show(200, 200)
    films.follow(films.origin)
    films.learn()
    digests = films.digests()
    assert len(digests) > 6
    with closing(db.connect(films.dsn, role="headrace_steer")) as conn:
        done = rebuild(conn, films.stream, films.columns, "films-1", ENGINE, KEY)
    assert (done.equal, done.different) == (len(digests), ())
    rates = dict(films.query("SELECT feature, weights FROM metrics.learning_rates WHERE version = 'films-1'"))
    assert rates["genres"] == len(ODD)
    assert rates["tags"] == 9


@pytest.mark.filterwarnings("ignore")  # what Great Expectations imports
def test_bootstraps_quality_and_erasure(films: Films) -> None:
    films.show(0, 900)
    films.import_history(films.origin)
    films.learn()
    with closing(db.connect(films.dsn, role="headrace_steer")) as conn:
        for recipe in films.stream.challengers[1:]:
            made = bootstrap(conn, films.stream, recipe, films.columns, ENGINE, KEY)
            assert made.heldout["loss"] < 0.6, "without the genres it is about 0.69"
    with closing(db.connect(films.dsn)) as conn:
        found = quality.check(conn, films.dsn, films.stream, "test")
        assert found.success, found.sentence
        assert "not_null(genres)" in {result.expectation for result in found.results}
    with closing(db.connect(films.dsn, role="headrace_steer")) as conn:
        erase(conn, films.stream, films.columns, "5", reason="asked", by="test")
    assert films.query("SELECT count(*) FROM films.events WHERE key IS NULL AND genres IS NULL AND tags IS NULL") == [
        (1,)
    ]


def test_a_river_pipeline_gets_lists(films: Films) -> None:
    assert (
        try_recipe(films.stream, films.stream.challengers[0]) == "Recipe 'river' keeps the model contract on 60 rows."
    )
    model = fresh(films.stream.challengers[0], key=KEY)
    X = model.prepare({"genres": Tokens.of([["a", "b", "a"], [], None])})
    assert X["river_row"].tolist() == [{"genres": ["a", "b"]}, {"genres": []}, {}]


def test_a_request_gives_what_the_log_gives(films: Films) -> None:
    films.show(0, 300)
    films.import_history(films.origin)
    films.learn()
    reader, now = RowReader(films.stream, films.columns), micros(START + timedelta(days=1))
    row = {
        "film_id": 9,
        "shown_at": "2020-03-01T00:00:00Z",
        "colour": "a",
        "genres": ["drama", "☂", "drama"],
        "size": 1.5,
    }
    accepted = reader.read(json.dumps(row).encode(), now)
    assert isinstance(accepted, EventRow)
    assert accepted.columns["genres"].lists() == [["drama", "☂"]]
    assert accepted.columns["tags"].lists() == [None]
    with closing(db.connect(films.dsn)) as conn:
        version = registry.version(conn, "films", "films-1")
        progressive = open_version(conn, films.stream, version, films.columns, KEY, ENGINE).progressive
    with_drama, _ = progressive.predict(accepted.columns, np.array([now]))
    without, _ = progressive.predict({**accepted.columns, "genres": Tokens.of([["null"]])}, np.array([now]))
    assert with_drama[0] > without[0] + 0.1
    for genres, reason in (
        ("drama", 'genres is "drama", expected a list of texts (text[])'),
        (["a", 1], 'genres is ["a", 1], expected a list of texts (text[])'),
        (["a", None], 'genres is ["a", null], expected a list of texts (text[])'),
        (["a\0"], 'genres is ["a\\u0000"], expected a list of texts (text[])'),
        (None, "genres is NULL, expected a value"),
        (["x"] * (MOST_TOKENS + 1), "of one dimension, of at most 1,024 tokens"),
    ):
        refused = reader.read(json.dumps({**row, "genres": genres}).encode(), now)
        assert isinstance(refused, list)
        assert reason in refused[0].reason
    assert reader.schema()["properties"]["genres"] == {
        "type": ["array", "null"], "title": "text[]", "items": {"type": "string"},
    }  # fmt: skip


def test_a_resync_brings_lists(films: Films) -> None:
    films.show(0, 30)
    films.import_history(films.origin)
    films.origin.execute("SELECT pg_drop_replication_slot('headrace_films')")
    films.show(30, 30)
    films.resync(films.origin)
    kept = films.origin.execute("SELECT film_id, genres, tags FROM films ORDER BY film_id")
    assert films.query("SELECT key, genres, tags FROM films.events ORDER BY key") == kept


def test_other_types_are_refused_by_name(films: Films) -> None:
    films.origin.execute("DROP PUBLICATION headrace_films")
    films.origin.execute("ALTER TABLE films ALTER genres TYPE integer[] USING NULL, ALTER tags TYPE text USING NULL, "
                         "ALTER colour TYPE text[] USING NULL")  # fmt: skip
    found = {f.what: f"{f.found}; {f.remedy}" for f in source.doctor(films.origin.dsn, films.stream) if not f.ok}
    assert "has type integer[], expected one of boolean" in found["column public.films.genres"]
    assert "text[], character varying[]" in found["column public.films.genres"]
    assert found["type of public.films.tags"] == (
        "is text, expected a list of texts (text[] or varchar[]); declare category('tags') instead"
    )
    assert (
        found["type of public.films.colour"] == "is text[], expected a single value; declare tokens('colour') instead"
    )
