"""Comparison of recipes: one run for each recipe and seed, then tables, JSON and a plot.

The commands `dmtg compare` and `dmtg slurm --compare` call it.
"""
