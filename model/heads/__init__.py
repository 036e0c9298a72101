"""Stacked heads: the heads of one signature are one module, and a layout maps heads to its rows.

`model.network` builds the stacks, selects heads for a step and computes their losses.
"""
