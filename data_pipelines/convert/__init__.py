"""Converters from datasets as they are released to shards; called by `dmtg shards`.

A converter lists its source samples and reads them; `run.convert` writes the shards in parallel
and continues an interrupted conversion.
"""
