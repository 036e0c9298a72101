"""Benchmarks: recipes on planted problems, and the training step compared to the published step.

The commands `dmtg bench grouping` and `dmtg bench step` and the scripts in benchmarks/ call it.
"""
