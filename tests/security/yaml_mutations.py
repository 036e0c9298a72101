"""Strategies that mutate YAML files, and the search for keys that come twice."""

from __future__ import annotations

import json
from typing import Any

import yaml
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.security.mutations import RAW, Draw, Mutant, changed_tree, edited

_LINES = (
    "a: &a [x, x, x, x, x, x, x, x, x]",
    "<<: *a",
    "? [a, b] : c",
    "x: !!python/object/apply:os.system [true]",
    "x: !!python/name:os.system",
    "x: !!timestamp 2001-01-01",
    "x: !!binary aGVsbG8=",
    "x: !!set {a, b}",
    "x: 190:20:30",
    "x: .inf",
    "x: 0x" + "f" * 20_000,
    "x: 1" + "0" * 5_000,
    "---",
    "...",
    "%YAML 9.9",
    "\t- tab",
    "- item",
    "1: 2",
    "null: 1",
    "base: ../../outside.yaml",
)


def _bomb() -> str:
    lines = ["b0: &b0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join(lines) + "\n"


_WHOLE = (
    ("alias bomb", _bomb().encode()),
    ("alias of itself", b"a: &a [*a]\n"),
    ("deep flow", b"[" * 20_000),
    ("deep block", "\n".join(f"{' ' * n}a{n}:" for n in range(2_000)).encode()),
    ("deep closed flow", b"a: " + b"[" * 3_000 + b"]" * 3_000),
    ("UTF-16", "a: 1\n".encode("utf-16")),
    ("NUL", b"a: \0\n"),
    ("empty", b""),
    ("many keys", b"".join(b"k%d: 1\n" % n for n in range(4_000))),
    ("long line", b"a: " + b"x" * 2_000_000),
)


def yaml_texts(tree: dict[str, Any]) -> SearchStrategy[Mutant]:
    """YAML with a changed tree, changed lines, edited bytes, or a content of its own."""
    text = yaml.safe_dump(tree, sort_keys=False)
    return st.one_of(
        changed_tree(tree).map(_dumped),
        changed_tree(tree).map(_dumped),
        _changed_lines(text),
        edited(text.encode()),
        st.sampled_from([(data, name) for name, data in _WHOLE]),
        st.sampled_from([(text.encode() + data, f"{name} at the end") for name, data in _WHOLE]),
    )


def _dumped(mutant: Mutant) -> Mutant:
    text = yaml.safe_dump(mutant[0], sort_keys=False, allow_unicode=False)
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw).replace(f"'{name}'", raw)
    return text.encode(), mutant[1]


@st.composite
def _changed_lines(draw: Draw, text: str) -> Mutant:
    lines = text.splitlines()
    at = draw(st.integers(0, len(lines) - 1))
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    kind = draw(st.sampled_from(("twice", "insert", "drop", "indent", "move")))
    if kind == "twice":
        lines.insert(at, lines[at])
    elif kind == "insert":
        lines.insert(at, indent + draw(st.sampled_from(_LINES)))
    elif kind == "drop":
        del lines[at]
    elif kind == "indent":
        lines[at] = draw(st.sampled_from(("", "  ", "    ", "\t"))) + lines[at].lstrip()
    else:
        lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
    note = f"{kind} line {at}, now {lines[min(at, len(lines) - 1)]!r:.60}"
    return ("\n".join(lines) + "\n").encode(), note


def repeated_key(data: bytes) -> str | None:
    """Return a key that a mapping of a YAML file has twice; None if there is none."""
    tree = yaml.compose(data, Loader=yaml.SafeLoader)
    nodes, seen = [tree], set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = [key for key in keys if keys.count(key) > 1]
            if twice:
                return f"loaded a mapping that has the key {twice[0]!r} twice"
            nodes += [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
    return None
