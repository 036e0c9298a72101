"""The one reader and writer of YAML: bounded, without duplicate keys, numbers as in YAML 1.2."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

# Generous for files that people write: the 21,841 classes of ImageNet-21k are 1.3 MB and as many
# nodes. At these bounds a file is read in about a second.
MAX_BYTES = 4 * 2**20  # of a file
MAX_NODES = 100_000  # scalars, lists and mappings; an alias counts as all that it stands for
MAX_DEPTH = 50  # lists and mappings in each other

_COMPACT_WIDTH = 100  # columns of a list or mapping in one line

_INT = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_MERGE = "tag:yaml.org,2002:merge"
_EXPONENT = re.compile(r"^[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$")


class YamlError(ValueError):
    """A text is not YAML, or not YAML that is allowed here; the message names line and reason."""


# The C parser, where PyYAML was built with it, is about ten times as fast.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """SafeLoader for which `3e-4` is a number and `3:10` is none, as in YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _INT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _INT,
    re.compile(r"^[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+0123456789."))


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes the text `3e-4`, too."""


_Dumper.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+0123456789."))


def read_yaml(path: Path) -> Any:  # noqa: ANN401 - any YAML value
    """Return the value of a YAML file in UTF-8.

    Raises:
        OSError: It cannot be read.
        YamlError: It is longer than `MAX_BYTES`, or as `parse_yaml`.
    """
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise YamlError(f"more than {MAX_BYTES} bytes; allowed are at most so many")
    try:
        return parse_yaml(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise YamlError(f"byte {error.start} is not UTF-8 ({error.reason})") from None


def parse_yaml(text: str) -> Any:  # noqa: ANN401 - any YAML value
    """Return the value of a YAML text; only plain values are made.

    Raises:
        YamlError: It is not YAML, a mapping has a key twice, an alias stands for itself, or the
            text is deeper than `MAX_DEPTH` or has more than `MAX_NODES` nodes.
    """
    try:
        _check_bounds(text)
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _check_keys(loader, root)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise YamlError(f"this is not YAML: {_in_one_line(error)}") from None
    except YamlError:
        raise
    except (ValueError, OverflowError) as error:  # such as a date with a 13th month
        raise YamlError(f"this is not YAML: {error}") from None


def dump_yaml(value: Any, *, compact: bool = False) -> str:  # noqa: ANN401 - any YAML value
    """Return plain values as YAML, mappings in their order.

    Args:
        value: The values.
        compact: Whether a list or mapping of single values is written in one line, if it fits.
    """
    style, width = (None, _COMPACT_WIDTH) if compact else (False, None)
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=style, width=width)


def _check_bounds(text: str) -> None:
    """Read the text as a stream of events, before anything is built from it."""
    sizes: dict[str, int | None] = {}  # nodes of each anchor; None while it is read
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the count before it
    count = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor or "", 0)
            if size is None:
                raise YamlError(f"line {line}: alias *{event.anchor} stands for itself")
            count += size
        elif isinstance(event, yaml.NodeEvent):
            count += 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, count - 1))
                if event.anchor is not None:
                    sizes[event.anchor] = None
            elif event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        if len(open_nodes) > MAX_DEPTH:
            raise YamlError(f"line {line}: more than {MAX_DEPTH} lists and mappings in each other")
        if count > MAX_NODES:
            raise YamlError(
                f"line {line}: more than {MAX_NODES} values, each alias counted as what it stands "
                "for"
            )


def _check_keys(loader: Any, root: yaml.Node) -> None:  # noqa: ANN401 - of one of two bases
    """Refuse a mapping that has a key twice: the first value would be dropped."""
    seen: set[int] = set()
    nodes = [root]
    while nodes:
        node = nodes.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            _check_mapping(loader, node)
            nodes += [part for pair in node.value for part in pair]


def _check_mapping(loader: Any, node: yaml.MappingNode) -> None:  # noqa: ANN401
    lines: dict[Any, int] = {}
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == _MERGE:
            continue
        key, line = loader.construct_object(key_node), key_node.start_mark.line + 1
        if key in lines:
            raise YamlError(
                f"line {line}: key {key!r} is given twice, first in line {lines[key]}; allowed is "
                "each key once"
            )
        lines[key] = line


def _in_one_line(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error).replace("\n", " ")
    mark = error.problem_mark or error.context_mark
    parts = [part for part in (error.context, error.problem) if part]
    return f"line {mark.line + 1}: {', '.join(parts)}" if mark else ", ".join(parts)
