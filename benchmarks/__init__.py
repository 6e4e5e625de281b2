"""What the parts cost, beside one another: ``make bench``, or ``python -m benchmarks``. Results: docs/benchmarks.md."""
