"""Configurations from YAML files with `base:`, and `section.key=value` overrides."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dmtg.names import shortened
from dmtg.plugins import PluginError, load_plugins
from dmtg.suggestions import closest
from dmtg.yaml_text import YamlError, parse_yaml, read_yaml
from trainer.config.config import Config
from trainer.config.messages import error_lines
from trainer.config.suggestions import suggest_key
from trainer.config.unions import CHOICES, SHORTHANDS
from trainer.errors import UserError

# Keys outside of a section that may have a value.
_VALUES = ("plugins", *(path for path in SHORTHANDS if "." not in path))


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` overrides and validate everything.

    A file may name another one by `base: PATH`, relative to itself, and contain only what differs.
    What chooses another recipe or schedule than the file below replaces that section as a whole.

    Raises:
        UserError: The file cannot be read, a plug-in cannot be imported, or keys or values are not
            allowed; all errors are in one message, a line each.
    """
    tree = _read(path, ())
    apply_overrides(tree, overrides)
    return parse_config(tree, str(path))


def configure(
    config: Config | Mapping[str, Any] | str | Path,
    overrides: Mapping[str, Any] | Iterable[str] = (),
) -> Config:
    """Return a configuration that is given in Python, with overrides.

    Args:
        config: A configuration, the path of a YAML file, or a mapping of sections.
        overrides: Values by dotted key, or `section.key=value` texts.

    Raises:
        UserError: As `load_config`.
    """
    source = "config"
    if isinstance(config, str | Path):
        tree, source = _read(Path(config), ()), str(config)
    elif isinstance(config, Config):
        tree = config.model_dump(mode="json")
    else:
        tree = copy.deepcopy(dict(config))
    if isinstance(overrides, Mapping):
        for path in sorted(overrides, key=lambda path: not _chooses(path)):
            _set(tree, path, overrides[path], f"override {path!r}")
    else:
        apply_overrides(tree, overrides)
    return parse_config(tree, source)


def parse_config(tree: dict[str, Any], source: str) -> Config:
    """Import the plug-ins that a tree of plain values names, and validate the tree.

    Args:
        source: Where it comes from, for the message.

    Raises:
        UserError: As `load_config`.
    """
    _load_plugins(tree, source)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = error_lines(error.errors())
        listed = "\n".join(f"  {line}" for line in lines)
        raise UserError(f"{source}: {len(lines)} error(s)\n{listed}") from None


def load_plugins_of(path: Path, overrides: Iterable[str] = ()) -> None:
    """Import the plug-ins that a YAML file and overrides name, and validate nothing else.

    Raises:
        UserError: The file cannot be read, or a plug-in cannot be imported.
    """
    tree = _read(path, ())
    apply_overrides(tree, overrides)
    _load_plugins(tree, str(path))


def _load_plugins(tree: dict[str, Any], source: str) -> None:
    plugins = tree.get("plugins", ())
    is_list = isinstance(plugins, (list, tuple)) and all(isinstance(name, str) for name in plugins)
    try:
        load_plugins(plugins if is_list else ())  # anything else is an error of the validation
    except PluginError as error:
        raise UserError(f"{source}: {error}") from None


def apply_overrides(tree: dict[str, Any], overrides: Iterable[str]) -> None:
    """Set in a tree of plain values what each `section.key=value` says.

    The overrides that choose a recipe or a schedule are applied first: another choice than the
    tree's drops the keys of that section which the tree has, not those of other overrides.

    Raises:
        UserError: One does not have that form, or names a value where a section is needed.
    """
    for override in sorted(overrides, key=lambda override: not _chooses(override)):
        _apply(tree, override)


def _chooses(override: str) -> bool:
    path = override.partition("=")[0]
    return path in CHOICES or path in {f"{union}.{key}" for union, (key, _) in CHOICES.items()}


def _apply(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or path.startswith("-") or not ("." in path or path in _VALUES):
        raise UserError(f"override {override!r}: expected section.key=value{_form(path)}")
    try:
        value = parse_yaml(text)
    except YamlError as error:
        raise UserError(f"override {override!r}: {text!r} is not a YAML value: {error}") from None
    _set(tree, path, value, f"override {override!r}")


def _set(tree: dict[str, Any], path: str, value: Any, named: str) -> None:  # noqa: ANN401
    """Set the value of a dotted key in a tree of plain values.

    Args:
        named: The override, for messages.
    """
    *sections, key = path.split(".")
    if not (sections or key in _VALUES):
        raise UserError(f"{named}: expected section.key{_form(path)}")
    place, union = tree, ""
    for name in sections:
        union = f"{union}.{name}" if union else name
        inner = _expanded(union, place.get(name, {}))
        if not isinstance(inner, dict):
            raise UserError(f"{named}: {union!r} is a value, not a section")
        place[name] = inner
        place = inner
    if not _same_choice(union, place, {key: value}):
        place.clear()
    place[key] = value


def _form(path: str) -> str:
    """Return the end of a message about an override that has not the form of one."""
    if path.startswith("-"):
        return f", without dashes: {path.lstrip('-')}=..."
    if path in Config.model_fields:
        return f"; {path} is a section, its keys are set as in {path}.KEY=VALUE"
    return "" if "." in path else suggest_key(path)


def _read(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    """Return the values of a file and of its bases; `readers` are the files that led to it."""
    chain = " -> ".join(map(str, (*readers, path)))
    if path.resolve() in {reader.resolve() for reader in readers}:
        raise UserError(f"--config {chain}: base leads back to a file that is being read")
    try:
        tree = read_yaml(path)
    except FileNotFoundError as error:
        raise UserError(f"--config {chain}: {error.strerror}{_similar_file(path)}") from None
    except OSError as error:
        raise UserError(f"--config {chain}: {error.strerror}") from None
    except YamlError as error:
        raise UserError(f"--config {chain}: {error}") from None
    if not isinstance(tree, dict):
        found = shortened(repr(tree))
        raise UserError(f"--config {chain} holds {found}; expected a mapping of sections")
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UserError(f"--config {chain}: base is {base!r}; allowed is the path of a YAML file")
    return _merged(_read(path.parent / base, (*readers, path)), tree)


def _similar_file(path: Path) -> str:
    """Return the end of a message about a file that does not exist."""
    try:
        names = {each.name for each in path.parent.iterdir() if each.suffix in (".yaml", ".yml")}
    except OSError:
        return ""
    name = closest(path.name, names)
    return "" if name is None else f"; did you mean {path.parent / name}?"


def _merged(under: dict[str, Any], over: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of both trees, where both have one that of `over`.

    A union of sections is replaced as a whole if `over` chooses another of its sections. A section
    without keys, which YAML reads as null, changes nothing.
    """
    both: dict[str, Any] = {}
    for key, value in over.items():
        path = f"{prefix}{key}"
        below = _expanded(path, under.get(key, {}))
        if isinstance(value, dict) and isinstance(below, dict) and _same_choice(path, below, value):
            both[key] = _merged(below, value, f"{path}.")
        elif value is None and isinstance(under.get(key), dict):
            both[key] = under[key]
    return under | over | both


def _expanded(path: str, value: Any) -> Any:  # noqa: ANN401 - any YAML value
    """Return a section in place of the text that stands for it, and of null."""
    if value is None:
        return {}
    if path in SHORTHANDS and isinstance(value, str):
        return {SHORTHANDS[path]: value}
    return value


def _same_choice(path: str, under: dict[str, Any], over: dict[str, Any]) -> bool:
    if path not in CHOICES:
        return True
    key, default = CHOICES[path]
    return key not in over or over[key] == under.get(key, default)
