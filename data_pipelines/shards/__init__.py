"""The folder format: tar shards, an index for each, one manifest; written here and read by sample.

Called by `reading`, by the converters and by `dmtg shards`. The index and the manifest are our
own because WebDataset reads tars sequentially only: an exact, resumable order needs random access
to a sample, and checksums, label counts and field types must be known before a shard is opened.
"""
