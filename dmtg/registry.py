"""Registries: parts of the program that a configuration chooses by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Classes or functions by name.

    Built-in entries are defined in the modules of `package`, each of which registers itself with
    the decorator. They are imported when the registry is first read, so that the packages which
    read a registry need not import the package that fills it.

    Args:
        noun: What an entry is called in messages.
        package: The package whose modules hold the built-in entries; None if there are none.
    """

    def __init__(self, noun: str, package: str | None = None) -> None:
        self.noun = noun
        self._package = package
        self._entries: dict[str, T] = {}
        self._loaded = package is None

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a class or function under `name`.

        Raises:
            ValueError: Another entry has the name.
        """

        def decorate(entry: T) -> T:
            known = self._entries.get(name)
            if known is not None and _identity(known) != _identity(entry):
                raise ValueError(
                    f"{self.noun} {name!r} is registered by {known.__module__} and by "
                    f"{entry.__module__}; give one of them another name"
                )
            self._entries[name] = entry
            return entry

        return decorate

    def __getitem__(self, name: str) -> T:
        """Return the entry of a name.

        Raises:
            ValueError: The name is unknown; the message lists those that are allowed.
        """
        self._load()
        if name not in self._entries:
            raise ValueError(f"{self.noun} is {name!r}, must be one of {', '.join(self.names())}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def names(self) -> tuple[str, ...]:
        """Return all names, the built-in ones first."""
        self._load()
        return tuple(self._entries)

    def plugin_of(self, name: str) -> str | None:
        """Return the module outside the built-in package that registered a name, else None."""
        module = self[name].__module__
        built_in = self._package is not None and f"{module}.".startswith(f"{self._package}.")
        return None if built_in else module

    def _load(self) -> None:
        if self._loaded or self._package is None:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__, f"{self._package}."):
            importlib.import_module(module.name)
        self._loaded = True


def _identity(entry: Callable[..., Any]) -> tuple[str, str]:
    """Module and name: equal for an entry that is defined again because its module is reloaded."""
    return entry.__module__, entry.__qualname__
