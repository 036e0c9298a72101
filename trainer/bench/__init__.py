"""Measurements: recipes on planted problems, and the training step against the published step.

The commands `dmtg bench grouping` and `dmtg bench step` and the scripts of benchmarks/ call it.
"""
