"""Plots of runs: the grouping over the steps, the number of live heads and the loss.

Used by the command `report`; `trainer.compare` reads metrics through it.
"""
