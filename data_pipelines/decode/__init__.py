"""Member encodings: PNG, JPEG, JSON, class ids, and label planes; called by all other packages.

The planes format is our own because a 16-bit PNG, the lossless alternative for label pictures,
takes several times as long to decode (`benchmarks/data.py` measures both).
"""
