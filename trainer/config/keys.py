"""All keys of the configuration in order, with their types and documentation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic.fields import FieldInfo

from trainer.config.allowed import KeysOf, Type
from trainer.config.config import Config
from trainer.config.section import Section
from trainer.config.unions import alternatives, section_type


@dataclass(frozen=True)
class Key:
    """A key.

    Attributes:
        path: Dotted path, with `TASK` or `KIND` for the name of one.
        field: Its default and documentation.
        of: Its type.
        union: The union of sections that holds it; None outside of unions.
        choice: The value that chooses its section in that union; empty outside of unions.
    """

    path: str
    field: FieldInfo
    of: Type
    union: Key | None = None
    choice: str = ""

    @property
    def section(self) -> type[Section] | None:
        """The section that the key holds; None if it is a value or a union of sections."""
        return section_type(self.of.annotation)

    @property
    def alternatives(self) -> dict[str, type[Section]]:
        """The sections of a union by the value that chooses them; nothing for other keys."""
        return alternatives(self.of.annotation)


def all_keys() -> Iterator[Key]:
    """Yield every key, a section before its keys, with those of every recipe and schedule."""
    return _keys(Config, "", None, "")


def _keys(section: type[Section], prefix: str, union: Key | None, choice: str) -> Iterator[Key]:
    for name, field in section.model_fields.items():
        key = Key(f"{prefix}{name}", field, Type.of_field(field), union, choice)
        yield key
        if key.section is not None:
            yield from _keys(key.section, f"{key.path}.", union, choice)
        for value, member in key.alternatives.items():
            yield from _keys(member, f"{key.path}.", key, value)
        element = key.of.element("")
        keys_of = None if element is None else element.find(KeysOf)
        if keys_of is not None:
            yield from _keys(keys_of.section, f"{key.path}.{keys_of.placeholder}.", union, choice)
