"""Loss weights: what the losses of the tasks are multiplied by in the objective, a method a file.

`trainer.step` reads the weights before the backward pass and updates them after the step. The
grouping does not see them: see docs/losses.md.
"""
