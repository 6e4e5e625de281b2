"""Whether a change leaves the numbers alone: ``python -m benchmarks.losses --against REV``, and the tests' golden losses."""
