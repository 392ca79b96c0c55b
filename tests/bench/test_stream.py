"""What the stream's bench works out from what it saw, and the loop by hand reads messages right."""

import doctest
import struct

from tests.bench.stream import by_hand, live


def test_latencies_and_lags() -> None:
    assert doctest.testmod(live) == (0, 2)


def test_the_loop_by_hand_reads_tables_and_rows() -> None:
    columns = b"".join(struct.pack(">b", 0) + name + b"\0" + struct.pack(">ii", 25, -1) for name in (b"site", b"u"))
    told = b"R" + struct.pack(">i", 7) + b"public\0impressions\0d" + struct.pack(">h", 2) + columns
    assert by_hand.relation(told) == (7, "impressions", ["site", "u"])
    row = b"I" + struct.pack(">icH", 7, b"N", 2) + b"t" + struct.pack(">i", 6) + b"site 1" + b"n"
    assert by_hand.values(row, 6) == ["site 1", None]
