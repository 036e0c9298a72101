"""Registration, look-up, order and import of entries by name."""

import importlib
import subprocess
import sys

import pytest

from dmtg.registry import Registry


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write a package of built-in shapes, some in a sub-package, and return a registry of it."""
    folder = tmp_path / "shapes"
    (folder / "round").mkdir(parents=True)
    (folder / "__init__.py").write_text("from dmtg.registry import Registry\n")
    (folder / "registry.py").write_text(
        "from dmtg.registry import Registry\nSHAPES = Registry('shape', 'shapes')\n"
    )
    define = "from shapes.registry import SHAPES\n@SHAPES.register({0!r})\nclass Shape: pass\n"
    (folder / "square.py").write_text(define.format("square"))
    (folder / "round" / "__init__.py").write_text("")
    (folder / "round" / "circle.py").write_text(define.format("circle"))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("shapes.registry").SHAPES
    for name in [name for name in sys.modules if name.partition(".")[0] == "shapes"]:
        del sys.modules[name]


def plugin(module, name="Shape"):
    """Return a class as a plug-in's module would define it."""
    return type(name, (), {"__module__": module})


def test_built_in_modules_are_imported_when_the_registry_is_read(package):
    assert "shapes.square" not in sys.modules
    assert package.names() == ("circle", "square")
    assert package["circle"].__module__ == "shapes.round.circle"
    assert "square" in package and "triangle" not in package


def test_an_unknown_name_lists_the_allowed_ones(package):
    with pytest.raises(
        ValueError, match=r"^shape is 'triangle', must be one of circle, square, blob$"
    ):
        package.register("blob")(plugin("mine"))
        package["triangle"]


def test_built_in_names_come_first_in_alphabetical_order(package):
    for name in ("zigzag", "arrow"):
        package.register(name)(plugin("mine", name))
    assert package.names() == ("circle", "square", "arrow", "zigzag")


def test_another_module_cannot_take_a_name(package):
    package.register("blob")(plugin("mine"))
    message = "shape 'blob' is registered by mine and by yours; give one of them another name"
    with pytest.raises(ValueError, match=message):
        package.register("blob")(plugin("yours"))
    with pytest.raises(ValueError, match="'blob' is registered by mine and by mine"):
        package.register("blob")(plugin("mine", "Other"))
    assert package["blob"].__module__ == "mine"


def test_a_built_in_name_is_refused_before_the_built_in_modules_are_imported(package):
    with pytest.raises(ValueError, match=r"'square' is registered by shapes\.square and by mine"):
        package.register("square")(plugin("mine"))


def test_a_reloaded_module_replaces_its_entry(package):
    first, again = plugin("mine"), plugin("mine")
    package.register("blob")(first)
    assert package.register("blob")(again) is again
    assert package["blob"] is again


def test_a_name_is_a_single_word(package):
    for name in ("two words", "", " x"):
        with pytest.raises(ValueError, match="a name must be a single word"):
            package.register(name)


def test_plugin_of_is_the_module_outside_of_the_built_in_packages(package):
    package.register("blob")(plugin("shapes_of_mine.blobs"))
    assert package.plugin_of("square") is None and package.plugin_of("circle") is None
    assert package.plugin_of("blob") == "shapes_of_mine.blobs"
    with pytest.raises(ValueError, match="shape is 'triangle'"):
        package.plugin_of("triangle")


def test_check_accepts_the_names_of_entries_only(package):
    assert package.check("square") == "square"
    package.register("blob")(plugin("mine"))
    assert package.check("blob") == "blob"
    for name in ("triangle", "registry"):  # the second is a module of the package
        with pytest.raises(ValueError, match=f"shape is '{name}', must be one of circle, square"):
            package.check(name)


def test_an_unknown_name_that_is_close_to_a_known_one(package):
    with pytest.raises(ValueError, match=r"circle, square; did you mean 'square'\?$"):
        package["sqare"]


def test_a_registry_of_several_modules():
    registry = Registry("thing", "json.decoder", "json.scanner")
    assert registry.names() == ()
    registry.register("one")(plugin("json.scanner"))
    registry.register("two")(plugin("json.encoder"))
    assert [registry.plugin_of(name) for name in ("one", "two")] == [None, "json.encoder"]


def test_a_built_in_module_that_cannot_be_imported_is_named(package, tmp_path):
    (tmp_path / "shapes" / "broken.py").write_text("import a_module_that_is_not_there\n")
    for _ in range(2):  # also the second time
        with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
            package.names()


def test_listing_encoders_imports_no_heavy_library():
    code = (
        "import sys, dmtg.plugins as p\n"
        "assert p.ENCODERS.names() == ('backbone', 'mlp', 'residual64', 'timm', 'xception')\n"
        "assert p.DENSE_DECODERS.names() == ('deconv', 'resize')\n"
        "assert p.CONVERTERS.names() == ('celeba', 'taskonomy')\n"
        "heavy = {'timm', 'transformers', 'huggingface_hub', 'datasets', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
