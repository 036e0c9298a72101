"""Pictures of runs: the grouping over the steps, the heads that are alive and the loss.

Used by the command `report`; `trainer.compare` reads metrics through it.
"""
