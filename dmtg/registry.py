"""Registries: parts of the program that a configuration chooses by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from dmtg.suggestions import did_you_mean

T = TypeVar("T", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Classes or functions by name.

    The modules of the built-in entries are imported when the registry is first read, and register
    their entries with the decorator, so that a reader need not import them.

    Args:
        noun: What an entry is called in messages.
        packages: Packages and modules with the built-in entries.
    """

    def __init__(self, noun: str, *packages: str) -> None:
        self.noun = noun
        self._packages = packages
        self._loaded = False
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a class or function under `name`.

        A module that is reloaded replaces its entries.

        Raises:
            ValueError: Another class or function has the name, or it is not a single word.
        """
        if name.split() != [name]:
            raise ValueError(f"{self.noun} {name!r}: a name must be a single word")

        def decorate(entry: T) -> T:
            if not self._is_built_in(entry.__module__):
                self._load()  # so that a plug-in cannot take a built-in entry's name
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
            allowed = self.names()
            raise ValueError(
                f"{self.noun} is {name!r}, must be one of {', '.join(allowed)}"
                f"{did_you_mean(name, allowed)}"
            )
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def names(self) -> tuple[str, ...]:
        """Return all names in alphabetical order, the built-in ones first."""
        self._load()
        return tuple(sorted(self._entries, key=lambda name: (self.plugin_of(name) or "", name)))

    def check(self, name: str) -> str:
        """Return a name that is known.

        Raises:
            ValueError: The name is unknown; the message lists those that are allowed.
        """
        self[name]
        return name

    def plugin_of(self, name: str) -> str | None:
        """Return the module of the plug-in that registered a name; None for a built-in entry.

        Raises:
            ValueError: The name is unknown.
        """
        module = self[name].__module__
        return None if self._is_built_in(module) else module

    def plugins(self) -> set[str]:
        """Return the modules of all plug-ins that registered a name."""
        modules = {entry.__module__ for entry in self._entries.values()}
        return {module for module in modules if not self._is_built_in(module)}

    def _is_built_in(self, module: str) -> bool:
        return any(f"{module}.".startswith(f"{package}.") for package in self._packages)

    def _load(self) -> None:
        if self._loaded:
            return
        for name in self._packages:
            folders = getattr(importlib.import_module(name), "__path__", [])
            for module in pkgutil.walk_packages(folders, f"{name}.", onerror=_raise):
                importlib.import_module(module.name)
        self._loaded = True


def _raise(_name: str) -> None:
    """Raise the error of an import inside `pkgutil.walk_packages`, which would hide some."""
    raise


def _identity(entry: Callable[..., Any]) -> tuple[str, str]:
    """Module and name: equal for an entry that is defined again because its module is reloaded."""
    return entry.__module__, entry.__qualname__
