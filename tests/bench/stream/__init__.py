"""What learning from a change stream costs beside reading it: see `tests.bench.stream.bench`."""
