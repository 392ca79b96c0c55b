"""The race, the curve and the advice: nothing is known too early, and how the past is cut does not matter."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from headrace.definition import recipes
from headrace.errors import BatchError
from headrace.worth import race as racing
from headrace.worth.advice import advise, gain
from headrace.worth.freshness import LIVE, NEVER, Curve, freshness
from headrace.worth.past import Past, from_file
from headrace.worth.race import FAMILIES, Race, race, train_all
from headrace.worth.report import Worth

N = 12_000
MINUTE = 60_000_000


def told(what: str) -> None:
    """Nobody listens."""


def history(folder: Path, *, drifts: bool, seed: int = 1, turned: int | None = None) -> Past:
    """Thirty days of logistic labels whose meaning turns every five days, or never; `turned`: labels from then on negated."""
    random = np.random.default_rng(seed)
    t = 1_700_000_000_000_000 + np.sort(random.integers(0, 30 * 1_440, N)) * MINUTE
    x, place = random.normal(size=N), random.integers(0, 6, N)
    sign = np.where((t - t[0]) // (5 * 1_440 * MINUTE) % 2 == 1, -1.0, 1.0) if drifts else np.ones(N)
    y = random.random(N) < 1 / (1 + np.exp(-(1.5 * x * sign + 0.5 * (place - 2.5) * sign)))
    delay = (random.exponential(60, N) + 1).astype(int) * MINUTE
    if turned is not None:
        y = y ^ (t + delay > t[turned])
    columns = {"x": x, "place": pa.array([f"p{i}" for i in place]), "y": y}
    path = folder / f"{drifts}-{seed}-{turned}.parquet"
    times = {"t": pa.array(t, pa.timestamp("us", "UTC")), "told": pa.array(t + delay, pa.timestamp("us", "UTC"))}
    pyarrow.parquet.write_table(pa.table(columns | times), path)
    return from_file(path, "y", "t", "told")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Worth:
    """All of it where the world turns."""
    past = history(tmp_path_factory.mktemp("past"), drifts=True)
    ran = race(past, (), told)
    curve = freshness(past, ran.trainings, told)
    return Worth(ran, curve, advise(ran, curve))


def everything(ran: Race, curve: Curve) -> dict[str, Any]:
    """All predictions by name."""
    return (
        {r.entrant.name: r.p for r in ran.ran}
        | dict(ran.families)
        | {f"served {name}": p for name, p in curve.p.items()}
    )


def test_where_the_world_turns_freshness_pays(found: Worth) -> None:
    assert found.advice.verdict == "yes"
    losses = [found.race.sums(found.curve.p[name]).mean_loss for name in found.curve.p]
    assert list(found.curve.p) == [NEVER, "7 d", "1 d", "6 h", "1 h", "10 min", LIVE]
    assert losses[0] > 1.05 * losses[-1]
    assert losses[2] > losses[3] > losses[-1] - 1e-3


def test_where_nothing_changes_it_does_not(tmp_path: Path) -> None:
    past = history(tmp_path, drifts=False)
    ran = race(past, (), told)
    advice = advise(ran, freshness(past, ran.trainings, told))
    assert advice.verdict == "no"
    assert any("is refuted" in reason for reason in advice.reasons)
    assert ran.regret < 0.005


def test_nobody_knows_a_label_before_it_comes(found: Worth, tmp_path: Path) -> None:
    """Labels that come after a moment are negated: not a bit of what was predicted before it changes."""
    middle = N // 2
    past = history(tmp_path, drifts=True, turned=middle)
    ran = race(past, (), told)
    curve = freshness(past, ran.trainings, told)
    before = past.event_time <= past.event_time[middle]
    for name, p in everything(ran, curve).items():
        first = everything(found.race, found.curve)[name]
        assert np.array_equal(p[before], first[before], equal_nan=True), name
        assert not np.array_equal(p, first, equal_nan=True) or name == f"served {NEVER}" or "frozen" in name, name


def test_pieces_change_nothing(found: Worth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(racing, "_PIECE", 777)
    again = race(found.race.past, (), told)
    for mine, other in zip(again.ran, found.race.ran, strict=True):
        assert np.array_equal(mine.p, other.p, equal_nan=True), mine.entrant.name
    for family in FAMILIES:
        assert np.array_equal(again.families[family], found.race.families[family], equal_nan=True)


def test_served_weights_are_as_old_as_said(found: Worth) -> None:
    """Between two syncs, what is served is one function of an event: equal features get equal predictions."""
    past = found.race.past
    start = past.event_time[past.first]
    twins = replace(past, X={name: values[np.zeros(len(values), dtype=int)] for name, values in past.X.items()})
    curve = freshness(twins, train_all(past, told), told)
    for name, hours in (("1 d", 24), ("1 h", 1)):
        window = past.event_time // (hours * 60 * MINUTE)
        rows = np.flatnonzero(past.event_time >= start)
        p = curve.p[name][rows]
        assert ((p[1:] == p[:-1]) | (window[rows][1:] != window[rows][:-1])).all()
        assert (p[1:] != p[:-1]).any()
    assert len(np.unique(curve.p[NEVER][past.event_time > start])) == 1


def test_never_is_never(tmp_path: Path) -> None:
    """Times that are dates leave gaps, in which a sync of its own would be due."""
    random = np.random.default_rng(5)
    t = 1_700_006_400_000_000 + np.sort(random.integers(0, 40, 6_000)) * 1_440 * MINUTE
    x = random.normal(size=6_000)
    y = random.random(6_000) < 1 / (1 + np.exp(-2 * x))
    times = {"t": pa.array(t, pa.timestamp("us", "UTC")), "told": pa.array(t + MINUTE, pa.timestamp("us", "UTC"))}
    pyarrow.parquet.write_table(pa.table({"x": x, "y": y, **times}), tmp_path / "dates.parquet")
    past = from_file(tmp_path / "dates.parquet", "y", "t", "told")
    same = replace(past, X={name: values[np.zeros(len(values), dtype=int)] for name, values in past.X.items()})
    curve = freshness(same, train_all(past, told), told)
    assert len(np.unique(curve.p[NEVER][same.event_time > same.event_time[same.first]])) == 1


def test_too_few_labels_to_score_are_said(tmp_path: Path) -> None:
    past = history(tmp_path, drifts=True)
    early = past.label_row < past.first + 100
    few = replace(past, label_row=past.label_row[early], label_time=past.label_time[early], y=past.y[early])
    kept = np.concatenate([np.flatnonzero(past.order >= 0), np.flatnonzero(past.order < 0)[early]])
    kept.sort()
    order = past.order[kept]
    order[order < 0] = -1 - np.arange(int(early.sum()))
    with pytest.raises(BatchError, match="found 100 labels after the first fifth of the events, expected at least 500"):
        race(replace(few, order=order), (), told)


def test_a_river_recipe_races_as_it_learns(tmp_path: Path) -> None:
    """A stream's own recipes run beside the usual ones, row by row where they must."""

    def logistic() -> Any:
        from river import compose, linear_model, preprocessing

        return compose.SelectType(float) | preprocessing.StandardScaler() | linear_model.LogisticRegression()

    past = history(tmp_path, drifts=True)
    entrant = racing.Entrant("online", recipes.river(logistic))
    walker = racing.Walker(past, entrant, train_all(past, told))
    for first, last in pairwise([0, 1_000, 1_001, 6_000]):
        walker.go(first, last, walker.prepared(first, last))
    model, events = logistic(), 0
    names = [name for name, values in past.features(False).items() if isinstance(values, np.ndarray)]
    for entry in past.order[:6_000].tolist():
        row = {name: float(past.X[name][entry if entry >= 0 else past.label_row[~entry]]) for name in names}
        if entry >= 0:
            assert walker.p[entry] == model.predict_proba_one(row).get(True, 0.5)
            events += 1
        else:
            model.learn_one(row, bool(past.y[~entry]))
    assert events > 2_000


@pytest.mark.parametrize(
    "recipe",
    [
        recipes.calibrated(recipes.ftrl(), by=["place"]),
        recipes.calibrated(recipes.lightgbm(), by=["place"]),
        recipes.stack(members=[recipes.ftrl(), recipes.label_mean()]),
        recipes.stack(members=[recipes.lightgbm(), recipes.gbdt_lr()], calibrate_by=["place"]),
        recipes.stack(members=[recipes.lightgbm(), recipes.ftrl()], calibrate_by=["place"]),
    ],
    ids=lambda recipe: "+".join(member.name for member in recipe.members),
)
def test_a_stack_of_any_members_predicts_all_that_is_scored(found: Worth, recipe: recipes.Recipe) -> None:
    """With trees, without any, and of one."""
    past, trainings = found.race.past, found.race.trainings
    walker = racing.Walker(past, racing.Entrant("hybrid", recipe), trainings)
    for first, last in racing.bounds(past, trainings):
        walker.turn(first)
        walker.go(first, last, walker.prepared(first, last))
    assert np.isfinite(walker.p[found.race.scored]).all()
    assert found.race.sums(walker.p).mean_loss < 0.75


def test_predictions_can_be_scored_again(found: Worth, tmp_path: Path) -> None:
    found.write_predictions(tmp_path / "p.parquet")
    rows, document = pyarrow.parquet.read_table(tmp_path / "p.parquet"), found.document()
    y = rows["y"].to_numpy()
    for name, model in document["models"].items():
        p = np.clip(rows[name].to_numpy(), 1e-6, 1 - 1e-6)
        assert -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)) == pytest.approx(model["log_loss"], abs=1e-12)
    assert len(rows) == document["scored"]
    past, events = found.race.past, rows["event"].to_numpy()
    told_at = dict(zip(past.label_row.tolist(), past.label_time.tolist(), strict=True))
    assert rows["label_time"].cast(pa.int64()).to_pylist() == [told_at[event] for event in events.tolist()]


def test_the_document_is_plain_json(found: Worth) -> None:
    document = json.loads(json.dumps(found.document(), allow_nan=False))
    assert set(document["families"]) == {"batch", "online", "hybrid"}
    assert set(document["models"]["ftrl_slow"]) == {"log_loss", "ne", "auc", "calibration", "us_per_label", "family"}
    assert set(document["freshness"][LIVE]) == {"log_loss", "cpu_s"}
    assert document["advice"]["verdict"] in ("yes", "no", "not_yet") and len(document["advice"]["reasons"]) == 5


def test_the_page_stands_alone(found: Worth, tmp_path: Path) -> None:
    found.write_plot(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 2 and "http" not in page.replace("http://www.w3.org", "")
    assert "Yes: online training pays here." in page


def test_a_gain_is_found_in_what_neighbours_share() -> None:
    """Bounds hold for series whose neighbours are alike: a gain that is none is taken for one twice in a hundred."""
    random = np.random.default_rng(1)
    missed = 0
    for _ in range(300):
        slow = np.repeat(np.convolve(random.normal(size=300), np.full(6, 1 / 6), "same"), 500) * 0.05
        before = 0.5 + random.normal(size=slow.size) * 0.1
        missed += gain(before, before + slow + random.normal(size=slow.size) * 0.05).low > 0
    assert missed <= 20
