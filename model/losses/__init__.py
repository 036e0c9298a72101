"""The losses that tasks are trained with, one module each; `loss.py` is the base class.

Read by name through `get_loss`: by the heads, the gradient statistics and the task kinds.
"""
