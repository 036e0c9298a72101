"""How deep lists and mappings are inside each other."""

from __future__ import annotations


def is_deeper(tree: object, levels: int) -> bool:
    """Return whether lists and mappings, as JSON has them, are inside each other too often.

    Args:
        tree: A value that was read from JSON; a list or mapping is one level.
        levels: How many are allowed.
    """
    values = [tree]
    for _ in range(levels + 1):
        level = [value for value in values if isinstance(value, (dict, list))]
        if not level:
            return False
        values = [
            part
            for value in level
            for part in (value.values() if isinstance(value, dict) else value)
        ]
    return True
