"""A stream over the hostile table, whose contract lets about a third of the rows through to a model."""

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
    tokens,
)


def logistic() -> Any:
    from river import compose, linear_model, optim, preprocessing

    numbers = compose.SelectType(int, float) | preprocessing.StandardScaler()
    categories = compose.SelectType(str, list) | preprocessing.OneHotEncoder(drop_zeros=True)
    return (numbers + categories) | linear_model.LogisticRegression(optim.FTRLProximal(alpha=0.1))


stream = Stream(
    name="hostile",
    source=Source(conn_id="hostile_db", table="public.hostile", key="key", event_time="event_time"),
    label=Label(
        table="public.answers",
        key="key",
        value=col("score") > 15,
        label_time="known_at",
        window=timedelta(hours=6),
        if_missing="drop",
    ),
    features=[
        category("letter", "flag", "flag2", "code", "note", "word", "ident", "token"),
        number("small", "big", "single", "ratio", "amount", "price"),
        hour_of_day("event_time"),
        hour_of_day("moment"),
        day_of_week("local"),
        cross("letter", "flag2"),
        tokens("names", "names2"),
        target_mean("word", "letter"),
    ],
    contract=[
        expect.not_null("flag"),
        expect.in_set("letter", {chr(code) for code in range(33, 127)}),
        expect.length("note", maximum=40),
        expect.between("single", -100, 1e6),
        expect.between("ratio", -1e9, 1e9),
        expect.between("amount", -1000, 10**20),
        expect.not_in_set("code", {"\\N", "NULL"}),
    ],
    champion=recipes.river(logistic, target_means=True),
    slices=["letter"],
    policy=Policy(epoch_labels=500, epoch_time=timedelta(hours=12)),
)
