"""One adapter to accelerate for one process, DDP, ZeRO 1 to 3 and FSDP2, and its optimizers.

`trainer.session` builds an engine, `trainer.step` and `trainer.evaluation` use it.
"""
