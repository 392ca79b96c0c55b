"""The demo's first champion is an honest one."""

from tests.bench.flights import AUTUMN, champion_alone

from headrace.demo import flights


def test_the_first_champion_alone_reaches_what_river_reaches() -> None:
    alone = champion_alone(flights.load(), AUTUMN)
    assert alone["labels"] > 80_000
    assert 0.470 < alone["log_loss"] < 0.478
