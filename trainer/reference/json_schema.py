"""The JSON Schema of configuration files, for editors with a YAML language server.

Its dialect is draft 7 without references, which all of them understand. Names of parts that
plug-ins may register are open: a file without `plugins` and `base` may have the known ones only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from pydantic.fields import FieldInfo

from dmtg.plugins import ENCODERS
from trainer.config.allowed import KeysOf, NameIn, Type, Words
from trainer.config.config import Config
from trainer.config.keys import Key, all_keys
from trainer.config.section import Section
from trainer.config.unions import (
    CHOICES,
    SHORTHANDS,
    alternatives,
    from_registry,
    section_type,
)
from trainer.reference.entries import (
    OPTIONS,
    default_of,
    describe_alternative,
    entries,
    unions,
)

Schema = dict[str, Any]

_BASE = "Another configuration file, relative to this one, of which this file changes keys."
_OPEN = ("plugins", "base")  # keys of a file that may bring names which are not known here


def configuration_schema() -> Schema:
    """Return the schema of configuration files, with the parts that are registered now."""
    root = _section(Config, "")
    root["properties"] = {"base": {"type": "string", "description": _BASE}, **root["properties"]}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Configuration of a dmtg run",
        **root,
        "allOf": [
            _unless(["base"], _required(Config)),
            _unless(_OPEN, _merged(_known_names())),
        ],
    }


def schema_text() -> str:
    """Return the schema as the text of a file."""
    return json.dumps(configuration_schema(), indent=1) + "\n"


def _section(section: type[Section], path: str) -> Schema:
    """Return the schema of a mapping with the keys of a section; null stands for no keys."""
    properties = {
        name: _key(field, f"{path}.{name}" if path else name)
        for name, field in section.model_fields.items()
    }
    return {
        "description": " ".join((section.__doc__ or "").split()),
        "type": ["object", "null"] if path else "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _key(field: FieldInfo, path: str) -> Schema:
    of = Type.of_field(field)
    schema = _value(of, path)
    if field.description:
        schema = {**schema, "description": " ".join(field.description.split())}
    if section_type(of.annotation) is None and not field.is_required():
        schema["default"] = default_of(field)
    return schema


def _value(of: Type, path: str) -> Schema:
    inner, words = section_type(of.annotation), of.find(Words)
    if inner is not None:
        schema = _section(inner, path)
        if path == OPTIONS.rpartition(".")[0]:
            schema["allOf"] = list(_encoder_options())
    elif alternatives(of.annotation):
        schema = _union(next(key for key, _ in unions() if key.path == path))
    else:
        members = [_member(member, path) for member in of.members]
        members += [] if words is None or words.also is None else [_value(Type.of(words.also), "")]
        schema = _any_of([*members, *([{"type": "null"}] if of.nullable else [])])
    if path in SHORTHANDS:
        schema = _any_of([_shorthand(of), schema])
    return schema


def _shorthand(of: Type) -> Schema:
    """Return the schema of the text that stands for a section."""
    names = [
        name
        for name, section in alternatives(of.annotation).items()
        if not any(_is_needed(field, key, section) for key, field in section.model_fields.items())
    ]
    return {"enum": names} if names and not from_registry(of.annotation) else {"type": "string"}


def _union(union: Key) -> Schema:
    """Return the schema of a mapping whose keys depend on the value of one of them."""
    choosing, default = CHOICES[union.path]
    has_default = from_registry(union.of.annotation)
    conditions = []
    for name, section in union.alternatives.items():
        chosen: Schema = {"properties": {choosing: {"const": name}}}
        if name != default or not has_default:
            chosen["required"] = [choosing]
        then = _section(section, union.path)
        then["properties"][choosing] = {"const": name}
        keys = section.model_fields.items()
        then["required"] = [key for key, field in keys if _is_needed(field, key, section)]
        conditions.append({"if": chosen, "then": then})
    names = list(union.alternatives)
    described = " ".join(f"{name}: {describe_alternative(union, name)}" for name in names)
    if has_default:
        choice = {**_open(names), "description": described, "default": default}
        properties = {choosing: choice}
        return {"type": ["object", "null"], "properties": properties, "allOf": conditions}
    properties = {choosing: {"enum": names, "description": described}}
    return {
        "type": "object",
        "properties": properties,
        "required": [choosing],
        "allOf": conditions,
    }


def _is_needed(field: FieldInfo, name: str, section: type[Section]) -> bool:
    """Return whether an alternative of a union needs a key besides the one that chooses it."""
    return field.is_required() and name != section.discriminator


def _member(of: Type, path: str) -> Schema:
    """Return the schema of a type that is no union and no section."""
    name = of.find(NameIn)
    if name is not None:
        return _open(_names(name))
    if of.origin is Union:
        return _any_of([_member(member, path) for member in of.members])
    if of.origin is Literal:
        return {"enum": list(of.arguments)}
    if of.origin is tuple:
        return _list(of)
    if of.origin is dict:
        element = of.element("")
        keys_of = None if element is None else element.find(KeysOf)
        schema: Schema = {"type": ["object", "null"]}
        if keys_of is not None:
            schema["additionalProperties"] = _section(
                keys_of.section, f"{path}.{keys_of.placeholder}"
            )
        return schema
    types = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}
    return {"type": types[of.origin], **_bounds(of)} if of.origin in types else {}


def _list(of: Type) -> Schema:
    elements = [_value(Type.of(each), "") for each in of.arguments if each is not Ellipsis]
    schema: Schema = {"type": "array", "items": _any_of(elements)}
    if Ellipsis not in of.arguments:
        return {**schema, "minItems": len(elements), "maxItems": len(elements)}
    least = next((m.min_length for m in of.metadata if hasattr(m, "min_length")), None)
    return schema if not least else {**schema, "minItems": least}


def _bounds(of: Type) -> Schema:
    words = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
    return {
        word: getattr(each, name)
        for each in of.metadata
        for name, word in words.items()
        if getattr(each, name, None) is not None
    }


def _names(name: NameIn) -> list[str]:
    return [*name.registry.names(), *([""] if name.or_empty else [])]


def _open(names: Sequence[str]) -> Schema:
    """Return the schema of a text of which some values are known, for completion."""
    return {"anyOf": [{"enum": list(names)}, {"type": "string"}]}


def _any_of(schemas: Sequence[Schema]) -> Schema:
    different = [each for n, each in enumerate(schemas) if each not in schemas[:n]]
    return different[0] if len(different) == 1 else {"anyOf": different}


def _encoder_options() -> Iterator[Schema]:
    """Yield a condition for each encoder: which options it has."""
    listed = list(entries())
    for name in ENCODERS.names():
        options = {
            entry.path.removeprefix(f"{OPTIONS}."): {
                "description": f"{entry.meaning} Allowed: {entry.allowed}."
            }
            for entry in listed
            if entry.of == f"encoder {name}"
        }
        then: Schema = {"properties": options}
        if not ENCODERS[name].more_options:
            then["additionalProperties"] = False
        chosen = {"properties": {"name": {"const": name}}, "required": ["name"]}
        yield {"if": chosen, "then": {"properties": {"options": then}}}


def _required(section: type[Section]) -> Schema:
    """Return the schema of the keys that must be given, at any depth."""
    needed = [name for name, field in section.model_fields.items() if field.is_required()]
    inner = {
        name: schema
        for name, field in section.model_fields.items()
        if (found := section_type(field.annotation)) is not None and (schema := _required(found))
    }
    return {
        **({"required": needed} if needed else {}),
        **({"properties": inner} if inner else {}),
    }


def _known_names() -> Iterator[Schema]:
    """Yield a schema for each key whose value names a part: the names that are known."""
    for key in all_keys():
        name = key.of.name_in
        if name is not None:
            path, known = key.path, [*_names(name), *([None] if key.of.nullable else [])]
        elif from_registry(key.of.annotation):
            path, known = f"{key.path}.{CHOICES[key.path][0]}", [*key.alternatives]
        else:
            continue
        yield _at(path, {"enum": known})
        parent, _, last = path.rpartition(".")
        if SHORTHANDS.get(parent) == last:
            yield _at(parent, {"if": {"type": "string"}, "then": {"enum": known}})


def _at(path: str, schema: Schema) -> Schema:
    """Return the schema of a configuration whose key at a path has a schema."""
    for part in reversed(path.split(".")):
        schema = (
            {"additionalProperties": schema} if part.isupper() else {"properties": {part: schema}}
        )
    return schema


def _merged(schemas: Iterable[Schema]) -> Schema:
    """Return one schema with the properties of all, at any depth."""
    result: Schema = {}
    for schema in schemas:
        for key, value in schema.items():
            both = isinstance(value, dict) and key in result
            result[key] = _merged([result[key], value]) if both else value
    return result


def _unless(keys: Sequence[str], schema: Schema) -> Schema:
    """Return the schema of a file that has a schema if it has none of some keys."""
    return {"if": {"anyOf": [{"required": [key]} for key in keys]}, "else": schema}
