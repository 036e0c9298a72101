import importlib.util
import sys

import pytest

from dmtg.optional_packages import hide_if_broken, import_package

NAME = "a_package_of_these_tests"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write the package; afterwards nothing of it is left in this process."""

    def write(code, part=""):
        (tmp_path / NAME).mkdir()
        (tmp_path / NAME / "__init__.py").write_text(code)
        (tmp_path / NAME / "part.py").write_text(part)
        monkeypatch.syspath_prepend(tmp_path)

    yield write
    for module in [m for m in sys.modules if m.partition(".")[0] == NAME]:
        del sys.modules[module]


BROKEN = {
    "RuntimeError: operator x::y is unknown": "raise RuntimeError('operator x::y is unknown')",
    "OSError: lib.so: cannot open": "raise OSError('lib.so:\\n cannot open')",
    "ModuleNotFoundError: No module named 'nowhere'": "import nowhere",
    "SyntaxError: ": "this is no Python",
}


@pytest.mark.parametrize("cause", BROKEN)
def test_a_broken_package_looks_as_if_it_were_not_installed(cause, package):
    package(f"from {NAME} import part\n{BROKEN[cause]}")
    if "this" not in BROKEN[cause]:
        assert importlib.util.find_spec(NAME) is not None
    assert hide_if_broken(NAME) is False
    assert importlib.util.find_spec(NAME) is None
    with pytest.raises(ModuleNotFoundError):
        __import__(NAME)
    assert f"{NAME}.part" not in sys.modules
    assert hide_if_broken(NAME) is False  # also when it is asked again


def test_a_package_that_can_be_imported_stays(package):
    package("value = 3")
    assert hide_if_broken(NAME) is True
    assert import_package(NAME, "this", "").value == 3


def test_a_package_that_is_not_installed():
    assert hide_if_broken(NAME) is False
    del sys.modules[NAME]
    with pytest.raises(ValueError, match=r"this needs the package .*No module named.*; do that"):
        import_package(NAME, "this", "do that")


@pytest.mark.parametrize("cause", BROKEN)
def test_the_message_is_one_line_with_the_cause(cause, package):
    package(BROKEN[cause])
    for _ in range(2):  # also the second time, when parts of it could be left
        with pytest.raises(ValueError) as caught:
            import_package(NAME, "model.encoder.name x", "do that")
        text = str(caught.value)
        assert text.startswith(f"model.encoder.name x needs the package {NAME}, which cannot be")
        assert cause in text and text.endswith("; do that") and "\n" not in text


def test_no_memory_is_no_broken_package(package):
    package("raise MemoryError")
    for call in (lambda: hide_if_broken(NAME), lambda: import_package(NAME, "this", "")):
        with pytest.raises(MemoryError):
            call()
