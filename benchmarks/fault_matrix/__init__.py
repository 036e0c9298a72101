"""The cases of `benchmarks/faults.py`: what can happen to real runs, and what must come of it."""
