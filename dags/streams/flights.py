"""Will this flight land more than 15 minutes late?

The demo's stream: every flight that left New York in 2013. An event is a flight at its scheduled departure, its label is
known when the flight lands; cancelled and diverted flights never get one.
"""

from datetime import timedelta
from typing import Any

from headrace import (
    Label,
    Policy,
    Source,
    Stream,
    category,
    col,
    cross,
    day_of_week,
    expect,
    hour_of_day,
    number,
    recipes,
    target_mean,
)


def river_ftrl() -> Any:
    """What one would write first with river alone: scaled numbers and one-hot categories into a logistic regression."""
    from river import compose, linear_model, optim, preprocessing

    numbers = compose.SelectType(int, float) | preprocessing.StandardScaler()
    categories = compose.SelectType(str) | preprocessing.OneHotEncoder(drop_zeros=True)
    return (numbers + categories) | linear_model.LogisticRegression(optim.FTRLProximal(alpha=0.1))


stream = Stream(
    name="flights",
    source=Source(conn_id="flights_db", table="public.departures", key="flight_id", event_time="scheduled_at"),
    label=Label(
        table="public.arrivals",
        key="flight_id",
        value=col("arr_delay") > 15,
        label_time="landed_at",
        window=timedelta(hours=36),
        if_missing="drop",
    ),
    features=[
        category("carrier", "origin", "dest", "tailnum"),
        number("distance", "scheduled_minutes", "plane_year", "plane_seats"),
        number("temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visibility"),
        hour_of_day("scheduled_at"),
        day_of_week("scheduled_at"),
        cross("carrier", "dest"),
        target_mean("carrier", "origin", "dest", "tailnum"),
    ],
    contract=[
        expect.not_null("carrier", "origin", "dest", "distance", "scheduled_at"),
        expect.in_set("origin", {"EWR", "JFK", "LGA"}),
        expect.regex("carrier", "^[A-Z0-9]{2}$"),
        expect.length("dest", 3, 3),
        expect.length("tailnum", 5, 6),
        expect.between("distance", 10, 6000),
        expect.between("scheduled_minutes", 20, 900),
        expect.between("plane_year", 1950, 2014),
        expect.between("temp", -20, 120),
        expect.between("dewp", -30, 100),
        expect.between("humid", 0, 100),
        expect.between("wind_speed", 0, 100),
        expect.between("visibility", 0, 10),
        expect.between("pressure", 950, 1060),
        expect.unique("flight_id"),
        expect.row_count(1000),
        expect.label_rate(0.05, 0.60),
    ],
    champion=recipes.river(river_ftrl),
    challengers=[recipes.gbdt_lr(), recipes.stack(calibrate_by=["carrier", "origin", "dest", "tailnum"])],
    slices=["origin"],
    policy=Policy(season=timedelta(days=1), challenger_slots=2),
)
