"""Plug-in modules: named ones, installed ones, and those that cannot be imported."""

import sys

import pytest

from dmtg import plugins
from dmtg.plugins import PluginError, load_plugins

REGISTER = """
from dmtg.plugins import register_sampler
from model.grouping.samplers.sampler import Sampler

@register_sampler({name!r})
class Mine(Sampler):
    def weights(self, logits, noise, temperature):
        return logits.softmax(dim=1)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Put a folder on the path, and forget afterwards what modules in it have registered."""
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.SAMPLERS.names()
    monkeypatch.setattr(plugins.SAMPLERS, "_entries", dict(plugins.SAMPLERS._entries))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_named_module_registers_its_parts(folder):
    (folder / "mine.py").write_text(REGISTER.format(name="mine"))
    load_plugins(["mine", "mine"])
    load_plugins(["mine"])
    assert plugins.SAMPLERS.plugin_of("mine") == "mine"


def test_an_installed_package_needs_no_name(folder):
    (folder / "installed_one.py").write_text(REGISTER.format(name="installed"))
    info = folder / "installed_one-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: installed-one\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dmtg.plugins]\nany = installed_one\n")
    load_plugins()
    assert plugins.SAMPLERS.plugin_of("installed") == "installed_one"


def test_a_missing_module_is_named():
    message = "plugins: no_such.module cannot be imported: ModuleNotFoundError: No module named"
    with pytest.raises(PluginError, match=message):
        load_plugins(["no_such.module"])


def test_an_error_in_a_module_is_named_with_its_cause(folder):
    (folder / "faulty.py").write_text("1 / 0\n")
    with pytest.raises(
        PluginError, match=r"^plugins: faulty cannot be imported: ZeroDivisionError: division"
    ) as caught:
        load_plugins(["faulty"])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_taken_name_is_an_error_of_the_module(folder):
    (folder / "greedy.py").write_text(REGISTER.format(name="gumbel"))
    with pytest.raises(
        PluginError,
        match=r"greedy cannot be imported: ValueError: sampler 'gumbel' is registered by "
        r"model\.grouping\.samplers\.gumbel and by greedy",
    ):
        load_plugins(["greedy"])


def test_registries_are_listed_by_their_nouns():
    assert plugins.REGISTRIES["dense decoder"] is plugins.DENSE_DECODERS
    assert len(plugins.REGISTRIES) == 10
