"""Datasets that need no download: ray-cast rooms, pairs of digits, icons, and a planted problem.

Called by `dmtg shards rooms|digits|icons`, by `dmtg bench` (the planted problem) and by the tests.
"""
