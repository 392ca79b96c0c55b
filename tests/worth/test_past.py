"""A file as history: order, honest delays, kinds of columns, and what is said of rows and columns that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from headrace.errors import SourceError
from headrace.models.text import as_names
from headrace.worth.past import Past, from_file

N = 3_000
MINUTE = 60_000_000


def table(**columns: Any) -> pa.Table:
    """A history with delays, a category with gaps, a number with gaps, and labels that never came."""
    random = np.random.default_rng(3)
    t = 1_700_000_000_000_000 + np.arange(N) * MINUTE
    known = {
        "t": pa.array(t, pa.timestamp("us", "UTC")),
        "told": pa.array(t + random.integers(0, 90, N) * MINUTE, pa.timestamp("us", "UTC")),
        "y": pa.array([None if i % 50 == 7 else bool(v) for i, v in enumerate(random.random(N) < 0.3)]),
        "place": pa.array([None if i % 11 == 0 else "abc"[i % 3] for i in range(N)]),
        "size": pa.array([None if i % 13 == 0 else float(i % 17) for i in range(N)]),
    }
    return pa.table({name: values for name, values in (known | columns).items() if values is not None})


def read(tmp_path: Path, made: pa.Table, **options: Any) -> Past:
    path = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(made, path)
    return from_file(path, **({"label": "y", "event_time": "t", "label_time": "told"} | options))


def test_events_before_labels_in_order_of_time(tmp_path: Path) -> None:
    past = read(tmp_path, table())
    assert len(past.event_time) == N and len(past.y) == N - N // 50
    assert (np.diff(past.entry_time) >= 0).all()
    is_label = past.order < 0
    ties = past.entry_time[1:] == past.entry_time[:-1]
    assert not (ties & is_label[:-1] & ~is_label[1:]).any(), "an event of the same moment comes first"
    assert (past.label_time >= past.event_time[past.label_row]).all()


def test_turns_say_what_a_learner_would_know(tmp_path: Path) -> None:
    """Rows, outstanding events and memos of any stretch, against a plain walk over the entries."""
    past = read(tmp_path, table())
    labelled = set(past.label_row.tolist())
    memo = np.arange(N, dtype=np.float64)[:, None]
    waiting, seen = 0, 0
    for first, last in ((0, 700), (700, 701), (701, 2_500), (2_500, len(past.order))):
        turns = past.turns(first, last, memo)
        events, labels = past.slices(first, last)
        event = label = 0
        for place, entry in enumerate(past.order[first:last].tolist()):
            if entry >= 0:
                assert turns.order[place] == event == entry - events.start
                assert turns.outstanding[event] == waiting
                waiting += entry in labelled
                event, seen = event + 1, seen + 1
            else:
                row = int(past.label_row[~entry])
                assert turns.order[place] == ~label and ~entry == labels.start + label
                assert turns.asked[label] == (row - events.start if row >= events.start else -1)
                assert turns.memo[label, 0] == row
                assert turns.y[label] == past.y[~entry]
                waiting, label = waiting - 1, label + 1
    assert seen == N


def test_target_means_hold_labels_that_had_come_only(tmp_path: Path) -> None:
    """Turning labels round that come after a moment changes no mean before it."""
    made = table()
    past = read(tmp_path, made)
    moment = int(past.event_time[N // 2])
    late = np.array(made["told"].cast(pa.int64())) > moment
    flipped = [
        None if v is None else v != turned for v, turned in zip(made["y"].to_pylist(), late.tolist(), strict=True)
    ]
    other = read(tmp_path, made.set_column(2, "y", pa.array(flipped)))
    before = past.event_time <= moment
    assert past.means == other.means and len(past.means) == 8
    for name in past.means:
        assert np.array_equal(past.X[name][before], other.X[name][before])
        assert not np.array_equal(past.X[name], other.X[name])


def test_kinds_of_columns(tmp_path: Path) -> None:
    made = table(
        flag=pa.array([i % 2 == 0 for i in range(N)]),
        code=pa.array(["x", "y", "z"] * (N // 3)).dictionary_encode(),
        count=pa.array(range(N), pa.int32()),
        blob=pa.array([b"1"] * N),
        odd=pa.array([float("inf") if i == 5 else 1.0 for i in range(N)]),
    )
    past = read(tmp_path, made)
    assert as_names(past.X["flag"])[:2].tolist() == ["true", "false"]
    assert as_names(past.X["code"])[:3].tolist() == ["x", "y", "z"]
    assert as_names(past.X["place"])[:3].tolist() == [None, "b", "c"]
    assert np.isnan(past.X["size"][0]) and past.X["count"][7] == 7.0 and np.isnan(past.X["odd"][5])
    assert {"t_hour", "t_weekday"} <= set(past.X) and "blob" not in past.X
    assert "blob (binary) was left out: neither a text, a number nor a list of texts." in past.remarks


def test_lists_of_texts_are_tokens(tmp_path: Path) -> None:
    lists = [None if i % 7 == 0 else ["x", "y", None, "x"][: i % 5] for i in range(N)]
    made = table(words=pa.array(lists, pa.list_(pa.string())), large=pa.array(lists, pa.large_list(pa.large_string())))
    made = made.append_column("numbers", pa.array([[i] for i in range(N)]))
    past = read(tmp_path, made)
    kept = [None if row is None else list(dict.fromkeys(t for t in row if t is not None)) for row in lists]
    assert past.X["words"].lists() == past.X["large"].lists() == kept
    assert "numbers (list<element: int64>) was left out: neither a text, a number nor a list of texts." in past.remarks
    backwards = read(tmp_path, made.take(pa.array(range(N - 1, -1, -1))))
    assert backwards.X["words"].lists() == kept
    assert past.row_bytes > read(tmp_path, made.drop_columns(["words"])).row_bytes


def test_no_name_of_a_column_is_the_key_s(tmp_path: Path) -> None:
    past = read(tmp_path, table(row=pa.array(range(N)), key=pa.array(["k"] * N)))
    assert past.X["row"][7] == 7.0 and as_names(past.X["key"])[0] == "k"


def test_csv_and_seconds_say_the_same(tmp_path: Path) -> None:
    made = table()
    past = read(tmp_path, made)
    seconds = {name: pa.array(np.array(made[name].cast(pa.int64())) / 1e6) for name in ("t", "told")}
    path = tmp_path / "data.csv"
    pyarrow.csv.write_csv(pa.table({**{n: made[n] for n in ("y", "place", "size")}, **seconds}), path)
    same = from_file(path, "y", "t", "told")
    assert np.array_equal(past.order, same.order) and np.array_equal(past.y, same.y)
    assert as_names(same.X["place"]).tolist()[1:3] == ["b", "c"]


def test_rows_out_of_order_are_sorted_and_said(tmp_path: Path) -> None:
    made = table()
    past, turned = read(tmp_path, made), read(tmp_path, made.take(np.arange(N)[::-1]))
    assert np.array_equal(past.entry_time, turned.entry_time)
    assert "The rows were not in order of t: they were sorted." in turned.remarks


def test_a_label_before_its_event_is_left_out_and_counted(tmp_path: Path) -> None:
    told = table()["told"].cast(pa.int64()).to_numpy().copy()
    told[[3, 5]] = 1_600_000_000_000_000
    past = read(tmp_path, table(told=pa.array(told, pa.timestamp("us", "UTC"))))
    assert f"2 of {N:,} rows were left out: they have a label from before their event." in past.remarks
    assert len(past.event_time) == N - 2


def test_a_label_without_its_time_is_said(tmp_path: Path) -> None:
    told = table()["told"].to_pylist()
    past = read(tmp_path, table(told=pa.array([None, *told[1:]], pa.timestamp("us", "UTC"))))
    assert "1 rows have a label but no told: they count as never labelled." in past.remarks


def test_the_means_begin_with_nothing_that_is_scored(tmp_path: Path) -> None:
    """Labels are rare among the first events: a fifth of the labels is not a fifth of the events."""
    made = table()
    rare = [None if i < N // 4 and i % 10 else v for i, v in enumerate(made["y"].to_pylist())]
    turned = [v if v is None or i < N // 5 + 50 else not v for i, v in enumerate(rare)]
    one, two = (read(tmp_path, made.set_column(2, "y", pa.array(y))) for y in (rare, turned))
    for name in one.means:
        assert one.X[name][: N // 5].tolist() == two.X[name][: N // 5].tolist()


@pytest.mark.parametrize(
    ("columns", "options", "says"),
    [
        ({}, {"label": "z"}, "found no column z, expected one of t, told, y, place, size"),
        ({"y": pa.array([True] * N)}, {}, "the label y is always 1, expected 0 and 1: there is nothing to learn"),
        ({"y": pa.array([None] * N, pa.bool_())}, {}, "the label y is always NULL"),
        ({"y": pa.array([i % 3 for i in range(N)])}, {}, r"the label y has values such as 2, expected 0 and 1: a column"),
        ({"y": pa.array(["yes"] * N)}, {}, "the label y is string, expected booleans"),
        ({"t": pa.array(["yesterday"] * N)}, {}, "t is no column of times .* expected timestamps, or seconds since 1970"),
        ({"place": None, "size": None}, {}, "found no column that can be a feature"),
        ({}, {"features": ["size", "told"]}, "told is what the label says: as a feature it would leak"),
        ({"t_hour": pa.array(["a"] * N)}, {}, "found a column called t_hour, as headrace calls something of its own: rename it"),
        ({"event_time": pa.array([0.5] * N)}, {}, "found a column called event_time, as headrace calls"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(SourceError, match=says):
        read(tmp_path, table(**columns), **options)


def test_too_little_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="found 490 labelled events, expected at least 1,000: wait for more"):
        read(tmp_path, table().slice(0, 500))


def test_a_file_that_is_not_one(tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_text("no")
    with pytest.raises(SourceError, match=r"data.parquet cannot be read"):
        from_file(tmp_path / "data.parquet", "y", "t", None)
    with pytest.raises(SourceError, match=r"found 'data.txt', expected a name that ends in .parquet, .csv or .tsv"):
        from_file(tmp_path / "data.txt", "y", "t", None)
