"""Will this visit score high? Labels lie in a table of their own, and some visits never get one."""

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
    expect,
    hour_of_day,
    number,
    recipes,
    target_mean,
)


def logistic() -> Any:
    from river import compose, linear_model, optim, preprocessing

    numbers = compose.SelectType(int, float) | preprocessing.StandardScaler()
    categories = compose.SelectType(str) | preprocessing.OneHotEncoder(drop_zeros=True)
    return (numbers + categories) | linear_model.LogisticRegression(optim.FTRLProximal(alpha=0.1))


def slow() -> Any:
    from river import compose, linear_model, optim, preprocessing

    return (
        compose.SelectType(int, float)
        | preprocessing.StandardScaler()
        | linear_model.LogisticRegression(optim.SGD(0.001))
    )


stream = Stream(
    name="visits",
    source=Source(conn_id="shop_db", table="public.visits", key="visit_id", event_time="seen_at"),
    label=Label(
        table="public.outcomes",
        key="visit_id",
        value=col("score") > 15,
        label_time="known_at",
        window=timedelta(hours=6),
        if_missing="drop",
    ),
    features=[
        category("colour", "place"),
        number("size"),
        hour_of_day("seen_at"),
        cross("colour", "place"),
        target_mean("colour"),
    ],
    contract=[
        expect.not_null("colour"),
        expect.in_set("colour", {"a", "b", "c", "d"}),
        expect.between("size", 0, 1000),
    ],
    champion=recipes.river(logistic),
    challengers=[recipes.river(slow, name="slow", target_means=True)],
    slices=["colour"],
    policy=Policy(epoch_labels=300, epoch_time=timedelta(hours=12), challenger_slots=2),
)
