import copy
import re

import pytest

from model.encoders import build_encoder
from model.network import MultiTaskNetwork
from model.network_config import check_config
from model.tasks.spec import TaskSpec


@pytest.fixture
def config():
    encoder = build_encoder("mlp", 2, image_size=(1, 1), options={"widths": [4, 2]})
    return MultiTaskNetwork([TaskSpec("a", "binary")], encoder, (1, 1)).config()


def test_what_a_network_describes_is_allowed(config):
    before = copy.deepcopy(config)
    check_config(config)
    assert config == before
    old = {name: value for name, value in config.items() if name != "decoder_options"}
    check_config(old)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": 1}, "network.weights is 1, must be left out; allowed are image_size"),
        ({"encoder": None}, "network.encoder is None, must be a mapping"),
        ({"image_size": [1, 5000]}, "network.image_size is [1, 5000], must be integers from 1"),
        ({"image_size": "big"}, "network.image_size is 'big', must be a list of at most 2"),
        ({"image_size": [1, True]}, "network.image_size is [1, True], must be integers"),
        ({"num_branches": "2"}, "network.num_branches is '2', must be an integer from 1 to 1000"),
        ({"tasks": {}}, "network.tasks is {}, must be a list"),
        ({"tasks": []}, "len(network.tasks) is 0, must be from 1 to 10000"),
        ({"heads": 3}, "network.heads is 3, must be a list"),
        ({"heads": [[0]]}, "network.heads is [0], must be pairs of a task and a branch"),
        ({"heads": [[0, 0]] * 3}, "len(network.heads) is 3, must be at most 2"),
        ({"image_mean": [float("inf")]}, "network.image_mean is inf, must be finite numbers"),
        ({"gradient_scale": ["x"]}, "network.gradient_scale is 'x', must be finite numbers"),
        ({"dense_widths": [0]}, "network.dense_widths is [0], must be integers from 1"),
        ({"decoder_options": 1}, "network.decoder_options is 1, must be a mapping"),
        ({"decoder_options": {"a": 1e300}}, "network.decoder_options.a is 1e+300, must be a num"),
    ],
)
def test_faults(config, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_config({**config, **change})


@pytest.mark.parametrize("name", ["tasks", "heads", "encoder", "image_size", "num_branches"])
def test_an_entry_that_is_missing(config, name):
    config.pop(name)
    with pytest.raises(ValueError, match=f"network.{name} is missing"):
        check_config(config)
