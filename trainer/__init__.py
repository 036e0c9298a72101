"""The trainer of the multi-task network; `Trainer` and `fit` train from Python (docs/python.md)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.api import Trainer, fit
    from trainer.callback import Callback
    from trainer.errors import UserError
    from trainer.results.result import RunResult

__all__ = ["Callback", "RunResult", "Trainer", "UserError", "fit"]

# Imported when they are used: every command of `dmtg` imports this package.
_MODULES = {
    "Callback": "trainer.callback",
    "RunResult": "trainer.results.result",
    "Trainer": "trainer.api",
    "UserError": "trainer.errors",
    "fit": "trainer.api",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a class or a function
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
