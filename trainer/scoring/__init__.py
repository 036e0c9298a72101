"""Scores of an exported model on shards, and the reference that they are compared with.

Used by the commands `eval` and `compare` and by `trainer.compare`.
"""
