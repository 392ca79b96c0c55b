"""The application: tables of impressions and of their outcomes, and the stream that is defined on them.

Every value follows from an impression's number, so that all contenders see the same; outcomes come `LAG` impressions late.
"""

from __future__ import annotations

from dataclasses import dataclass

LAG = 1_000  # impressions that come between one and its outcome
_DEFINITION = '''
"""Will this impression be clicked?"""

from datetime import timedelta

from headrace import Label, Policy, Source, Stream, category, col, number, recipes

stream = Stream(
    name="ads",
    source=Source(conn_id="shop", table="public.impressions", key="impression_id", event_time="shown_at"),
    label=Label(
        table="public.outcomes",
        key="impression_id",
        value=col("clicked"),
        label_time="told_at",
        window=timedelta(days=1),
        if_missing="drop",
    ),
    features=[category(*{categories}), number(*{numbers})],
    champion=recipes.ftrl(),
    challengers=[recipes.ftrl(name=f"ftrl_{{a}}", alpha=a) for a in (0.01, 0.03, 0.3, 1.0)],
    policy=Policy(epoch_labels=500, epoch_time=timedelta(days=30), challenger_slots=4),
)
'''
_TABLES = """
CREATE TABLE impressions (impression_id bigint PRIMARY KEY, shown_at timestamptz NOT NULL, {columns});
CREATE TABLE outcomes (impression_id bigint PRIMARY KEY, clicked boolean, told_at timestamptz NOT NULL);
CREATE PROCEDURE live(first bigint, last bigint, size int, lag bigint) LANGUAGE plpgsql AS $$
DECLARE
    i bigint := first;
BEGIN
    WHILE i <= last + lag LOOP  -- half of a transaction's rows are impressions, half outcomes of those `lag` before
        {impressions};
        {outcomes};
        COMMIT;
        i := i + size;
    END LOOP;
END $$;
CREATE PROCEDURE singly(first bigint, last bigint, lag bigint) LANGUAGE plpgsql AS $$
DECLARE
    i bigint := first;
BEGIN
    WHILE i <= last + lag LOOP
        IF i <= last THEN
            {impression};
            COMMIT;
        END IF;
        IF i - lag >= first THEN
            {outcome};
            COMMIT;
        END IF;
        i := i + 1;
    END LOOP;
END $$;
"""
_IMPRESSIONS = (
    "INSERT INTO impressions SELECT k, timestamptz '2026-01-01Z' + k * interval '10 ms', {row} "
    "FROM generate_series({first}, {last}) AS k"
)
_OUTCOMES = (
    "INSERT INTO outcomes SELECT k, (k * 7919 % 1000 + k * 31 % 97) % 11 = 0, timestamptz '2026-01-01Z' "
    "+ (k + {lag}) * interval '10 ms' FROM generate_series({first}, {last}) AS k"
)


@dataclass(frozen=True)
class Shape:
    """What an impression has, and how it follows from its number `k`."""

    categories: dict[str, str]
    numbers: dict[str, str]

    def definition(self) -> str:
        """The stream's file."""
        return _DEFINITION.format(categories=tuple(self.categories), numbers=tuple(self.numbers))

    def tables(self) -> str:
        """Statements that make the tables, and the procedures that fill them."""
        columns = [f"{name} text" for name in self.categories] + [f"{name} float8" for name in self.numbers]
        return _TABLES.format(
            columns=", ".join(columns),
            impressions=self.impressions("i", "least(i + size - 1, last)"),
            outcomes=self.outcomes("greatest(i - lag, first)", "i - lag + size - 1"),
            impression=self.impressions("i", "i"),
            outcome=self.outcomes("i - lag", "i - lag"),
        )

    def row(self) -> str:
        """Its columns after key and time, by `k`."""
        return ", ".join((*self.categories.values(), *self.numbers.values()))

    def impressions(self, first: str, last: str) -> str:
        """The statement that inserts some impressions."""
        return _IMPRESSIONS.format(row=self.row(), first=first, last=last)

    @staticmethod
    def outcomes(first: str, last: str) -> str:
        """The statement that inserts their outcomes."""
        return _OUTCOMES.format(lag=LAG, first=first, last=last)

    def statements(self) -> dict[str, str]:
        """Both by the name of their table, with the first and the last number as parameters."""
        return {"impressions": self.impressions("$1", "$2"), "outcomes": self.outcomes("$1", "$2")}


NARROW = Shape(
    {
        "site": "'site ' || k * 7919 % 1000",
        "campaign": "'campaign ' || k * 104729 % 5000",
        "device": "(ARRAY['phone', 'tablet', 'desktop'])[1 + k % 3]",
    },
    {"u": "(k * 13 % 997) / 100.0", "v": "(k * 15 % 997) / 100.0", "w": "(k * 17 % 997) / 100.0"},
)
WIDE = Shape(  # 100 columns with key and time
    {f"c{i}": f"'value ' || k * {7_919 + 2 * i} % {10 * (i + 2)}" for i in range(50)},
    {f"n{i}": f"(k * {13 + 2 * i} % 997) / 100.0" for i in range(48)},
)
