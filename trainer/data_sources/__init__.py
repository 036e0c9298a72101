"""Data sources by name: each gives a run its tasks and batches, see `trainer.run_data.RunData`.

`trainer.run_data.open_data` looks up the one that `data.source` names.
"""
