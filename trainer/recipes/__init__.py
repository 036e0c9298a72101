"""Recipes: how a run gets its groups, one module each with its section, its learner and its facts.

The registry `dmtg.plugins.RECIPES` imports all modules, so none of them has a heavy import; called
by `trainer.config.grouping`, `trainer.builders`, the training step and the search.
"""
