"""Who may import whom, read from the source files."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("dmtg", "model", "data_pipelines", "trainer")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports_of(path, root=ROOT):
    """The absolute names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(root).parent.parts
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *filter(None, [node.module])))
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def test_the_reader_sees_every_form_of_import(tmp_path):
    source = tmp_path / "trainer" / "sub" / "a.py"
    source.parent.mkdir(parents=True)
    source.write_text("import x.y\nfrom z import w\nfrom .. import main\ndef f():\n  import late\n")
    assert {"x.y", "z.w", "trainer.main", "late"} <= imports_of(source, tmp_path)


def test_there_is_something_to_read():
    assert any(path.parent.name == "model" for path in SOURCES)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_layers(path):
    package = path.relative_to(ROOT).parts[0]
    forbidden = {
        "dmtg": {"model", "data_pipelines", "trainer"},
        "model": {"data_pipelines", "trainer"},
        "data_pipelines": {"model", "trainer"},
    }
    imported = imports_of(path)
    assert not {name.split(".")[0] for name in imported} & forbidden.get(package, set())
    assert not any(name.split(".")[:2] == ["trainer", "main"] for name in imported)


def test_trainer_files_hide_no_other_module():
    """`trainer/` comes first on the path when `trainer/main.py` runs as a script."""
    names = {path.stem for path in (ROOT / "trainer").glob("*.py")} - {"__init__"}
    names |= {path.name for path in (ROOT / "trainer").iterdir() if path.is_dir()} - {"__pycache__"}
    hidden = {
        name
        for name in names
        if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None
    }
    assert not hidden
