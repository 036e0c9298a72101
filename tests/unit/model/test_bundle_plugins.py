"""Which plug-ins an exported model names, and the message without them."""

import pytest

from dmtg import plugins
from dmtg.plugins import PluginError
from model.bundle import BundleError, load_pruned, save_bundle
from model.bundle_plugins import missing_plugins, plugins_of
from model.encoders import build_encoder
from model.encoders.residual64 import Residual64
from model.heads.deconv import DeconvHeads
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec

SIZE = (16, 16)


class Mine(Residual64):
    """An encoder of another module."""


class MyHeads(DeconvHeads):
    """A decoder of another module."""


@pytest.fixture
def registered(monkeypatch):
    for registry, name, entry in (
        (plugins.ENCODERS, "mine", Mine),
        (plugins.DENSE_DECODERS, "heads", MyHeads),
    ):
        registry.names()
        monkeypatch.setitem(registry._entries, name, entry)
    return monkeypatch


@pytest.fixture
def network(registered):
    registered.setattr(Mine, "__module__", "my_package.parts")
    registered.setattr(MyHeads, "__module__", "my_package.parts")
    encoder = build_encoder("mine", 1, image_size=SIZE, options={"channels": 8})
    tasks = [TaskSpec("depth", "dense_regression")]
    return MultiTaskNetwork(tasks, encoder, SIZE, decoder="heads")


def test_a_network_of_built_in_parts_needs_none():
    encoder = build_encoder("residual64", 1, image_size=SIZE, options={"channels": 8})
    network = MultiTaskNetwork([TaskSpec("cube", "binary")], encoder, SIZE)
    assert plugins_of(network.config()) == {} and missing_plugins({}) is None


def test_parts_by_module(network):
    expected = {"my_package.parts": ["encoder mine", "dense decoder heads"]}
    assert plugins_of(network.config()) == expected
    assert missing_plugins(expected) is None


def test_loading_needs_them(network, registered, tmp_path):
    path = tmp_path / "model.safetensors"
    save_bundle(path, network, {})
    assert load_pruned(path).network.config() == network.config()
    registered.delitem(plugins.ENCODERS._entries, "mine")
    registered.delitem(plugins.DENSE_DECODERS._entries, "heads")
    with pytest.raises(BundleError) as caught:
        load_pruned(path)
    message = str(caught.value)
    assert (
        "needs plug-ins that are not registered: encoder mine, dense decoder heads of " in message
    )
    assert "load_pruned(path, plugins=['my_package.parts'])" in message
    assert "--plugin my_package.parts for a dmtg command" in message
    with pytest.raises(PluginError, match=r"my_package\.parts cannot be imported"):
        load_pruned(path, plugins=["my_package.parts"])


@pytest.mark.usefixtures("network")
def test_a_part_of_another_module_will_do():
    assert missing_plugins({"another.module": ["encoder mine"]}) is None
    assert "loss_of_nothing x of m" in str(missing_plugins({"m": ["loss_of_nothing x"]}))
