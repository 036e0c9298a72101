"""Errors that mean that memory has run out."""

from __future__ import annotations

import re
import sys

# In messages of PyTorch's allocators.
_NO_MEMORY = re.compile(
    "out of memory|(?:can't|cannot) allocate memory|not enough memory", re.IGNORECASE
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, or PyTorch on a device or on the host, had no memory."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")  # not imported here: it takes seconds
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
