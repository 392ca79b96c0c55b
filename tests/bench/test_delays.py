"""On a real year of delays the models of numbers are better than the best constant."""

import pytest
from tests.bench.delays import LOSSES, features, race
from tests.bench.flights import log_of

from headrace import recipes
from headrace.definition.loss import Loss
from headrace.demo import flights


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
def test_models_of_numbers_beat_the_best_constant(loss: Loss) -> None:
    data = flights.load()
    batch = log_of(data, int(data.departures["scheduled_at"].cast("int64").to_numpy()[0]), minutes=True)
    X, row = features(batch, target_means=True)
    entrants = [recipes.ftrl(alpha=0.01), recipes.lightgbm(), recipes.gbdt_lr()]
    found = {name: numbers["loss"] for name, numbers in race(batch, loss, X, row, entrants).items()}
    best = min(found.pop("median"), found.pop("mean"))
    assert set(found) == {"ftrl", "lightgbm", "gbdt_lr"}
    assert all(loss < 0.9 * best for loss in found.values()), (best, found)
