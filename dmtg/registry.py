"""Registries: parts of the program that a configuration chooses by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

T = TypeVar("T", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Classes or functions by name.

    Built-in entries are defined in a package or module, and register themselves with the decorator
    when it is imported. This happens when the registry is first read, so that a reader need not
    import it.

    Args:
        noun: What an entry is called in messages.
        package: The package or module with the built-in entries; None if there are none.
    """

    def __init__(self, noun: str, package: str | None = None) -> None:
        self.noun = noun
        self._package = package
        self._loaded = package is None
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a class or function under `name`.

        A module that is reloaded replaces its entries.

        Raises:
            ValueError: Another class or function has the name.
        """

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
            raise ValueError(f"{self.noun} is {name!r}, must be one of {', '.join(self.names())}")
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

        A name that is also the name of a built-in module passes without an import, which keeps
        the check of a configuration fast; it is looked up when the entry is used.

        Raises:
            ValueError: The name is unknown; the message lists those that are allowed.
        """
        if name not in self._entries and name not in self._module_names():
            self[name]
        return name

    def plugin_of(self, name: str) -> str | None:
        """Return the module of the plug-in that registered a name; None for a built-in entry.

        Raises:
            ValueError: The name is unknown.
        """
        module = self[name].__module__
        return None if self._is_built_in(module) else module

    def _is_built_in(self, module: str) -> bool:
        return self._package is not None and f"{module}.".startswith(f"{self._package}.")

    def _module_names(self) -> set[str]:
        spec = None if self._package is None else find_spec(self._package)
        locations = None if spec is None else spec.submodule_search_locations
        return {module.name for module in pkgutil.iter_modules(locations or [])}

    def _load(self) -> None:
        if self._loaded:
            return
        assert self._package is not None
        package = importlib.import_module(self._package)
        for module in pkgutil.walk_packages(
            getattr(package, "__path__", []), f"{self._package}.", onerror=_raise
        ):
            importlib.import_module(module.name)
        self._loaded = True


def _raise(_name: str) -> None:
    """Raise the error of an import inside `pkgutil.walk_packages`, which would hide some."""
    raise


def _identity(entry: Callable[..., Any]) -> tuple[str, str]:
    """Module and name: equal for an entry that is defined again because its module is reloaded."""
    return entry.__module__, entry.__qualname__
