"""Packages that only some parts of the program need, and installations of them that are broken.

A package can be installed and still fail when it is imported, such as a torchvision that was built
for another torch. Libraries that look only whether it is installed then fail with it.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from dmtg.memory import is_out_of_memory
from dmtg.names import one_line

_LONGEST = 300  # characters of a cause


def import_package(name: str, needed_by: str, advice: str) -> ModuleType:
    """Import a package.

    Args:
        name: Its top-level module.
        needed_by: What needs it, at the beginning of the message.
        advice: How to install it, at the end of the message.

    Raises:
        ValueError: It is not installed, or cannot be imported; the message is one line.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        _forget(name)
        cause = one_line(f"{type(error).__name__}: {error}", _LONGEST)
        raise ValueError(
            f"{needed_by} needs the package {name}, which cannot be imported ({cause}); {advice}"
        ) from error


def hide_if_broken(name: str) -> bool:
    """Make a package that cannot be imported look as if it were not installed.

    `importlib.util.find_spec`, by which libraries look for it, then returns None.

    Returns:
        Whether the package can be imported.
    """
    if name in sys.modules:
        return sys.modules[name] is not None
    try:
        importlib.import_module(name)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        _forget(name)
        sys.modules[name] = None  # type: ignore[assignment]
        return False
    return True


def _forget(name: str) -> None:
    """Remove the parts of a package that were imported before it failed."""
    for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        del sys.modules[module]
