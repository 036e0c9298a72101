"""From shards to batches: label requests, sample order, decoding, collation; called by the trainer.

The order is our own because no loader library gives the same global batches for any number of
processes and workers and resumes at any step without reading data: here both are computed from
seed and epoch.
"""
