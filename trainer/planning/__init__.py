"""Prediction of parameters, memory and time of a run under every engine, without training.

`dmtg plan` and `benchmarks/plan.py` call `forecast`.
"""
