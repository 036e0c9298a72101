"""What every package builds on: registries of named parts, plug-ins, and files written whole.

It imports none of the other packages; all of them, and plug-ins from outside, import it.
"""
