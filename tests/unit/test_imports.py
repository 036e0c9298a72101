"""Which package imports which, read from the source files."""

import ast
import importlib.util
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("dmtg", "model", "data_pipelines", "trainer")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FORBIDDEN = {
    "dmtg": {"model", "data_pipelines", "trainer"},
    "model": {"data_pipelines", "trainer"},
    "data_pipelines": {"model", "trainer"},
}


def imports_of(path, root=ROOT):
    """Return the absolute names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(root).parent.parts
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *filter(None, [node.module])))
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def module_name(path, root=ROOT):
    """Return the dotted name of a source file, that of its package for an `__init__.py`."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit_of(module):
    """Return the sub-package or top-level module that a module belongs to: `trainer.recipes`."""
    return ".".join(module.split(".")[:2])


def unit_graph():
    """Return for every sub-package and top-level module the others that it imports."""
    modules = {module_name(path): path for path in SOURCES}
    graph = {}
    for module, path in modules.items():
        units = {unit_of(name) for name in imports_of(path) if name in modules}
        graph.setdefault(unit_of(module), set()).update(units - {unit_of(module), *PACKAGES})
    return {unit: imported for unit, imported in graph.items() if unit not in PACKAGES}


def test_the_reader_sees_every_form_of_import(tmp_path):
    source = tmp_path / "trainer" / "sub" / "a.py"
    source.parent.mkdir(parents=True)
    source.write_text("import x.y\nfrom z import w\nfrom .. import main\ndef f():\n  import late\n")
    assert {"x.y", "z.w", "trainer.main", "late"} <= imports_of(source, tmp_path)


def test_there_is_something_to_read():
    assert {"trainer.step", "trainer.recipes", "model.heads", "dmtg.registry"} <= set(unit_graph())


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_layers(path):
    package = path.relative_to(ROOT).parts[0]
    imported = imports_of(path)
    assert not {name.split(".")[0] for name in imported} & FORBIDDEN.get(package, set())
    assert not any(name.split(".")[:2] == ["trainer", "main"] for name in imported)


def test_packages_form_no_cycle():
    try:
        TopologicalSorter(unit_graph()).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle of imports: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_what_is_in_it(package):
    for folder in sorted({path.parent for path in SOURCES if path.is_relative_to(ROOT / package)}):
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert docstring and "TODO" not in docstring, folder


def test_the_table_of_the_architecture_is_true():
    """docs/architecture.md lists every package with the packages of its level that it imports."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    listed = {
        name: set(re.findall(r"`([\w.]+)`", imported))
        for name, imported in re.findall(r"^\| `([\w.]+)` \|.*\| ([^|]*) \|$", text, re.MULTILINE)
    }
    folders = {
        module_name(path) for path in SOURCES if path.name == "__init__.py" and path.parent != ROOT
    }
    graph = {
        unit: {name for name in imported if name in folders and name not in PACKAGES}
        for unit, imported in unit_graph().items()
        if unit in folders
    }
    same_level = {
        unit: {name for name in imported if name.split(".")[0] == unit.split(".")[0]}
        for unit, imported in graph.items()
    }
    assert listed == same_level


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
