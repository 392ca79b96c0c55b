"""Is this payment fraud? The label is filled into the payment's own row, at once, later or never; none means no."""

from datetime import timedelta
from typing import Any

from headrace import Label, Policy, Source, Stream, category, col, expect, hour_of_day, number, recipes, target_mean


def logistic() -> Any:
    from river import compose, linear_model, optim, preprocessing

    numbers = compose.SelectType(int, float) | preprocessing.StandardScaler()
    categories = compose.SelectType(str) | preprocessing.OneHotEncoder(drop_zeros=True)
    return (numbers + categories) | linear_model.LogisticRegression(optim.FTRLProximal(alpha=0.1))


stream = Stream(
    name="payments",
    source=Source(conn_id="shop_db", table="public.payments", key="payment_id", event_time="paid_at"),
    label=Label(
        value=col("is_fraud"),
        label_time="labeled_at",
        window=timedelta(hours=24),
        if_missing="negative",
        on_late="learn",
    ),
    features=[category("card"), number("amount"), hour_of_day("paid_at"), target_mean("card")],
    contract=[expect.not_null("card"), expect.between("amount", 0, 100_000), expect.immutable("amount")],
    champion=recipes.river(logistic, target_means=True),
    slices=["card"],
    policy=Policy(epoch_labels=300, epoch_time=timedelta(hours=12)),
)
