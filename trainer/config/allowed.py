"""What a key of the configuration allows, in plain words, from its type.

The words are those of error messages and of docs/configuration.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from dmtg.registry import Registry

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler

    from trainer.config.section import Section


@dataclass(frozen=True)
class Words:
    """Metadata of a key: what it allows, where the type does not say it.

    Attributes:
        text: Such as `a folder or a URL`.
        also: Another type whose values are converted to the key's; None if there is none.
    """

    text: str
    also: Any = None


@dataclass(frozen=True)
class NameIn:
    """Metadata of a key whose value is a name in a registry, which it checks.

    Attributes:
        registry: Of the names.
        or_empty: Whether an empty text is allowed, too.
    """

    registry: Registry[Any]
    or_empty: bool = False

    def __get_pydantic_core_schema__(
        self,
        source: Any,  # noqa: ANN401 - a type
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        """Check the name after the type."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, name: str) -> str:
        return name if self.or_empty and not name else self.registry.check(name)


@dataclass(frozen=True)
class KeysOf:
    """Metadata of a mapping that stays as it is given: its keys are those of a section.

    Attributes:
        section: Checks the mapping; its values are not taken over.
        placeholder: What stands for the name of the mapping in the paths of its keys.
    """

    section: type[Section]
    placeholder: str

    def __get_pydantic_core_schema__(
        self,
        source: Any,  # noqa: ANN401 - a type
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        """Check the mapping after the type."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        # Strict: the values are used as they are given, so a text must be no number.
        self.section.model_validate(_with_tuples(values), strict=True)
        return values


@dataclass(frozen=True)
class Type:
    """A type of a value with its metadata, without `Annotated` around it.

    Attributes:
        annotation: The type.
        origin: The class or special form, such as `int`, `tuple`, `Literal` or `Union`.
        arguments: Of the special form.
        metadata: Bounds and the classes of this module.
    """

    annotation: Any
    origin: Any
    arguments: tuple[Any, ...]
    metadata: tuple[Any, ...]

    @classmethod
    def of(cls, annotation: Any, metadata: Sequence[Any] = ()) -> Type:  # noqa: ANN401 - a type
        """Take an annotation apart."""
        metadata = tuple(metadata)
        while get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            metadata = (*metadata, *more)
        unpacked: list[Any] = []
        for each in metadata:
            unpacked += each.metadata if isinstance(each, FieldInfo) else [each]
        origin = get_origin(annotation) or annotation
        origin = Union if origin is UnionType else origin
        return cls(annotation, origin, get_args(annotation), tuple(unpacked))

    @classmethod
    def of_field(cls, field: FieldInfo) -> Type:
        """Take the annotation of a key apart."""
        return cls.of(field.annotation, field.metadata)

    @property
    def members(self) -> list[Type]:
        """The members of a union without null; the type itself if it is no union."""
        if self.origin is not Union:
            return [self]
        members = [each for each in self.arguments if each is not NoneType]
        # The metadata of a key that may be null are those of the value that it may have.
        more = self.metadata if len(members) == 1 else ()
        return [Type.of(each, more) for each in members]

    @property
    def nullable(self) -> bool:
        """Whether null is allowed."""
        return self.origin is Union and NoneType in self.arguments

    def find(self, kind: type) -> Any:  # noqa: ANN401 - an instance of `kind`
        """Return the first metadata of a class; None if there is none."""
        return next((each for each in self.metadata if isinstance(each, kind)), None)

    @property
    def name_in(self) -> NameIn | None:
        """The registry whose names are allowed, beside null."""
        return next((found for m in self.members if (found := m.find(NameIn)) is not None), None)

    def element(self, key: int | str) -> Type | None:
        """Return the type of an element of a list or mapping; None of other types."""
        for member in self.members:
            arguments = member.arguments
            if member.origin is tuple and isinstance(key, int) and arguments:
                fixed = Ellipsis not in arguments
                if fixed and key >= len(arguments):
                    return None
                return Type.of(arguments[key if fixed else 0])
            if member.origin is dict and len(arguments) == 2:
                return Type.of(arguments[1])
        return None

    def takes(self, kind: type) -> bool:
        """Return whether a value of a class, such as `bool`, may be given."""
        return any(
            member.origin is kind
            or (member.origin is Literal and any(isinstance(v, kind) for v in member.arguments))
            for member in self.members
        )


def allowed(of: Type) -> str:
    """Return what values a type allows, such as `a whole number from 1 to 10^12, or null`."""
    words = of.find(Words)
    phrases = [phrase for member in of.members for phrase in _phrases(member)]
    phrases = phrases if words is None else [words.text]
    if not of.nullable:
        return either(phrases)
    if any(" " in phrase for phrase in phrases):
        return f"{either(phrases)}, or null"
    return either([*phrases, "null"])


def in_yaml(value: Any) -> str:  # noqa: ANN401 - any YAML value
    """Return a value as a YAML file would have it, on one line; text is in quotes."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {in_yaml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(in_yaml, value)) + "]"
    return repr(value) if isinstance(value, (str, int, float)) else str(value)


def either(phrases: Sequence[str]) -> str:
    """Return `a, b or c`."""
    return " or ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))


def _with_tuples(value: Any) -> Any:  # noqa: ANN401 - any YAML value
    if isinstance(value, Mapping):
        return {key: _with_tuples(part) for key, part in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _phrases(of: Type) -> list[str]:
    """Return the alternatives that a type allows, each with its article."""
    words, name = of.find(Words), of.find(NameIn)
    if words is not None:
        return [words.text]
    if name is not None:
        return list(name.registry.names())
    if of.origin is Literal:
        return [str(value) for value in of.arguments]
    if of.origin is bool:
        return ["true", "false"]
    if of.origin is tuple:
        return [_list(of)]
    single, _ = _nouns(of)
    return [f"{single}{_range(of)}"]


def _nouns(of: Type) -> tuple[str, str]:
    """Return the words for one value and for several."""
    if of.origin is int:
        return "a whole number", "whole numbers"
    if of.origin is float:
        return "a number", "numbers"
    if of.origin is str:
        return "text", "texts"
    if of.origin is Path:
        return "a path", "paths"
    if of.origin is Any:
        return "any value", "values"
    return "a mapping", "mappings"


def _list(of: Type) -> str:
    elements = [Type.of(each) for each in of.arguments if each is not Ellipsis]
    if Ellipsis in of.arguments:
        count = "one or more " if _bounds(of).get("min_length") else ""
    elif len({repr(each) for each in elements}) == 1:
        count = f"{len(elements)} "
    else:
        return "a list of " + " and ".join(either(_phrases(each)) for each in elements)
    return f"a list of {count}{_several(elements[0])}"


def _several(of: Type) -> str:
    choices = of.find(NameIn) is not None or of.origin in (Literal, bool)
    if choices or of.find(Words) is not None or of.origin in (tuple, Union):
        return f"values that are {allowed(of)}"
    return f"{_nouns(of)[1]}{_range(of)}"


def _bounds(of: Type) -> dict[str, Any]:
    names = ("gt", "ge", "lt", "le", "min_length")
    return {
        name: getattr(each, name)
        for each in of.metadata
        for name in names
        if getattr(each, name, None) is not None
    }


def _range(of: Type) -> str:
    bounds = _bounds(of)
    if of.origin is int:  # above 0 is from 1
        low = bounds["gt"] + 1 if "gt" in bounds else bounds.get("ge")
        high = bounds["lt"] - 1 if "lt" in bounds else bounds.get("le")
        bounds = {k: v for k, v in (("ge", low), ("le", high)) if v is not None}
    if "ge" in bounds and "le" in bounds:
        return f" from {_number(bounds['ge'])} to {_number(bounds['le'])}"
    words = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}
    parts = [f"{words[name]} {_number(bounds[name])}" for name in words if name in bounds]
    return "".join(f" {part}" for part in parts[:1]) + "".join(
        f" and {part.removeprefix('of ')}" for part in parts[1:]
    )


def _number(value: float) -> str:
    """Return a bound as people write it: 10^12, 2^63 - 1, 0.5."""
    whole = int(value)
    if whole == value and whole >= 10**6:
        tens = round(math.log10(whole))
        twos = (whole + 1).bit_length() - 1
        if whole == 10**tens:
            return f"10^{tens}"
        if whole + 1 == 2**twos:
            return f"2^{twos} - 1"
    return f"{value:.10g}"
