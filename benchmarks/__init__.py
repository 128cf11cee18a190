"""Benchmarks: each module is a script (``python -m benchmarks.map``), and rivals take turns in one run."""
