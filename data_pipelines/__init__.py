"""Datasets on disk as batches of tensors: shards are written, read, decoded and collated.

The training loop calls `reading`; the commands `dmtg shards` and `dmtg doctor` call the rest.
Imports go in one direction: decode, shards, reading, convert, then synthetic and doctor.
"""
