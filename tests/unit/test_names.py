"""Kinds, losses and displays decide by their classes: nothing else compares their names."""

import ast
from pathlib import Path

import pytest

from dmtg.plugins import LOSSES, TASK_KINDS
from model.tasks.display import DISPLAYS

ROOT = Path(__file__).resolve().parents[2]
DEFINED = ("model/kinds/", "model/losses/", "model/metrics/", "model/tasks/display.py")
SOURCES = [
    path
    for package in ("dmtg", "model", "trainer")
    for path in sorted((ROOT / package).rglob("*.py"))
    if not str(path.relative_to(ROOT)).startswith((*DEFINED, "model/tasks/presets.py"))
]
BUILT_IN = {
    "binary", "multiclass", "regression", "dense_regression", "dense_classification",
    "bce", "cross_entropy", "focal", "huber", "l1", "mse", "l1_shift",
    "grey", "depth", "normal", "signed",
}  # fmt: skip
OTHER_MEANINGS = {("model/grouping/grouping.py", "binary")}  # a form of the entropy


def decisions(source):
    """The strings that a source compares with, matches, or looks up in a literal dictionary."""
    strings = set()
    for node in ast.walk(ast.parse(source)):
        parts = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        elif isinstance(node, ast.Dict):
            parts = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            parts = node.args if node.func.attr in {"startswith", "endswith"} else []
        strings |= {
            inner.value
            for part in parts
            for inner in ast.walk(part)
            if isinstance(inner, ast.Constant) and isinstance(inner.value, str)
        }
    return strings


@pytest.mark.parametrize(
    "source",
    [
        "spec.kind == 'binary'",
        "'binary' not in spec.kind",
        "spec.kind in ('binary', 'regression')",
        "spec.kind in frozenset({'binary'})",
        "{'binary': 1}[spec.kind]",
        "spec.kind.startswith('binary')",
        "match kind:\n  case 'binary':\n    pass",
    ],
)
def test_the_reader_sees_every_form_of_decision(source):
    assert "binary" in decisions(source)
    assert "binary" not in decisions("TaskSpec('a', 'binary')\nkind = 'binary'")


def test_all_names_are_looked_for():
    assert set(TASK_KINDS.names()) | set(LOSSES.names()) | set(DISPLAYS) <= BUILT_IN | {"classes"}
    assert len(SOURCES) > 100


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_decides_by_a_name(path):
    name = str(path.relative_to(ROOT))
    words = decisions(path.read_text()) & BUILT_IN
    assert not words - {word for module, word in OTHER_MEANINGS if module == name}
