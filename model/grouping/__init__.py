"""The grouping of tasks: its distributions, sampled heads, gradient statistics and clusters.

`model.network` uses samples and statistics; the learners in `trainer.recipes` use all of it.
"""
