"""headrace: online training on the Postgres and Airflow that you already run.

What a stream definition needs is exported here; nothing heavy is imported with it.
"""

from headrace.definition import expect, recipes
from headrace.definition.columns import col
from headrace.definition.features import category, cross, day_of_week, hour_of_day, number, target_mean, tokens
from headrace.definition.stream import Label, Policy, Source, Stream

__version__ = "0.1.0"

__all__ = [
    "Label",
    "Policy",
    "Source",
    "Stream",
    "category",
    "col",
    "cross",
    "day_of_week",
    "expect",
    "hour_of_day",
    "number",
    "recipes",
    "target_mean",
    "tokens",
]
