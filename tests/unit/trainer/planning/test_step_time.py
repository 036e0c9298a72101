import pytest
import torch

from model.tasks.spec import TaskSpec
from trainer.build import build_network
from trainer.config.loading import parse_config
from trainer.planning.step_time import measure_time, offload_seconds, step_time
from trainer.planning.traffic import Traffic

GRADIENTS = Traffic(all_reduce=4e9)  # 2 x 4e9 x 3/4 = 6e9 bytes from each of four processes


@pytest.mark.parametrize(
    ("engine", "arithmetic", "waited"),
    [
        ("ddp", 3.0, 4.0),  # of 6 s at 1 GB/s 2 s pass while backward computes
        ("ddp", 30.0, 0.0),
        ("fsdp2", 3.0, 3.0),
        ("zero1", 30.0, 6.0),
        ("zero2", 3.0, 6.0),
        ("zero3", 30.0, 6.0),
    ],
)
def test_what_is_sent_while_nothing_is_computed(engine, arithmetic, waited):
    found = step_time(engine, arithmetic, GRADIENTS, 4, link=1.0)
    assert (found.arithmetic, found.messages) == (arithmetic, waited)
    assert found.total == arithmetic + waited


def test_one_process_sends_nothing():
    assert step_time("zero2", 1.0, GRADIENTS, 1, link=1.0).messages == 0


def test_the_update_on_the_host():
    assert offload_seconds(4_000_000_000, 4) == pytest.approx(9e9 / 20e9)


def measured(batch):
    tree = {
        "run": {"out": "x", "steps": 1},
        "data": {"shards": "x", "image_size": [32, 32], "global_batch": 4},
        "model": {"branches": 2, "encoder": {"name": "residual64"}},
    }
    config = parse_config(tree, "test")
    with torch.device("meta"):
        network = build_network(config, (TaskSpec("a", "binary"),))
    return measure_time(network, network.heads, batch, "fp32", config.optim, torch.device("cpu"))


def test_a_time_is_measured_and_grows_with_the_batch():
    small, large = measured(1), measured(32)
    assert 0 < small.micro_batch < large.micro_batch
    assert 0 < small.update < 1


def test_what_would_take_too_long_is_inferred_from_less(monkeypatch):
    sizes = []

    def seconds(*arguments):
        sizes.append(arguments[2])
        return 0.3 * arguments[2]

    monkeypatch.setattr("trainer.planning.step_time._pass_seconds", seconds)
    assert measured(100).micro_batch == pytest.approx(0.3 * 100, rel=1e-6)
    assert max(sizes) == 4, "two seconds are enough"
