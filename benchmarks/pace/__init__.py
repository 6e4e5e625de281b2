"""Whether a change leaves the speed alone: ``python -m benchmarks.pace --against REV``."""
