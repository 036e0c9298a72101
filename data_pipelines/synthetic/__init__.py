"""Data sets that need no download: ray-cast rooms and pairs of handwritten digits."""
