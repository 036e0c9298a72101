"""How deep lists and mappings are inside each other."""

from __future__ import annotations


def is_deeper(tree: object, levels: int) -> bool:
    """Return whether lists and mappings, as JSON has them, are inside each other too often.

    Args:
        tree: A value that was read from JSON; a list or mapping is one level.
        levels: How many are allowed.
    """
    inside = [tree]
    for _ in range(levels + 1):
        inside = [value for value in inside if isinstance(value, (dict, list))]
        if not inside:
            return False
        inside = [
            part
            for value in inside
            for part in (value.values() if isinstance(value, dict) else value)
        ]
    return True
