"""Shards on disk to batches of tensors: writing, ordering, reading, decoding, collating."""
