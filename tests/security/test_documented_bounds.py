"""The bounds in docs/security.md are those of the code."""

import re
from importlib import import_module
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
ROWS = re.findall(r"^\| .* \| ([\d ·^]+) \| `([\w.]+)` \|$", PAGE.read_text(), re.MULTILINE)


def test_the_table_is_read():
    assert len(ROWS) > 30


@pytest.mark.parametrize(("bound", "constant"), ROWS)
def test_a_bound(bound, constant):
    module, _, name = constant.rpartition(".")
    factor, _, power = bound.replace(" ", "").rpartition("·")
    base, _, exponent = power.partition("^")
    expected = int(factor or 1) * int(base) ** int(exponent or 1)
    assert getattr(import_module(module), name) == expected
