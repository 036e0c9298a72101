"""The configuration of a run: a section in each module, and their reading from YAML and overrides.

Called by the entry points, and read by every package of `trainer`; it imports no recipe.
"""
