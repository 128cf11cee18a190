"""The benchmarks: pairpool beside the other pools, all in one run. ``python -m benchmarks``, or ``make bench``.

_harness.py says how is measured, rivals.py who takes part, the other modules what is measured. What a figure
times, and what not, is said by the function that measures it.
"""
