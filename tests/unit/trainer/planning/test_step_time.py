import math
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec
from trainer.builders import build_network
from trainer.config.loading import parse_config
from trainer.errors import UserError
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


@pytest.fixture
def measured(monkeypatch):
    """Measure a network on a machine of a given speed: of the clock, only passes and updates count.

    The first pass may take longer, and a pass of more samples than a limit runs out of memory.

    Returns the measurement and the sizes of the batches that passed through the network.
    """
    clock, sizes = SimpleNamespace(now=0.0), []
    timer = SimpleNamespace(perf_counter=lambda: clock.now)
    monkeypatch.setattr("trainer.planning.step_time.time", timer)

    def measure(batch, seconds_per_sample, seconds_per_update=0.0, first=0.0, limit=math.inf):
        def before_forward(module, arguments):
            # Operations are counted on fake tensors, which take no time.
            if isinstance(module, MultiTaskNetwork) and not isinstance(arguments[0], FakeTensor):
                sizes.append(len(arguments[0]))
                if sizes[-1] > limit:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
                clock.now += seconds_per_sample * sizes[-1] + first * (len(sizes) == 1)

        def after_update(*_):
            clock.now += seconds_per_update

        hooks = (
            register_module_forward_pre_hook(before_forward),
            register_optimizer_step_post_hook(after_update),
        )
        try:
            return measure_network(batch), sizes
        finally:
            for hook in hooks:
                hook.remove()

    return measure


def measure_network(batch):
    tree = {
        "run": {"out": "x", "steps": 1},
        "data": {"shards": "x", "image_size": [32, 32], "global_batch": 4},
        "model": {"branches": 2, "encoder": {"name": "residual64"}},
    }
    config = parse_config(tree, "test")
    with torch.device("meta"):
        network = build_network(config, (TaskSpec("a", "binary"),))
    return measure_time(network, network.heads, batch, "fp32", config.optim, torch.device("cpu"))


def test_passes_of_the_whole_batch_and_updates_are_measured(measured):
    time, sizes = measured(32, 0.01, 0.05)
    assert time.micro_batch == pytest.approx(0.32) and time.update == pytest.approx(0.05)
    assert sizes[-1] == max(sizes) == 32


def test_what_would_take_too_long_is_inferred_from_less(measured):
    time, sizes = measured(100, 0.3)
    assert time.micro_batch == pytest.approx(0.3 * 100, rel=1e-6)
    assert max(sizes) == 4, "two seconds are enough"


def test_the_first_pass_does_not_count(measured):
    time, sizes = measured(32, 0.01, first=60.0)
    assert time.micro_batch == pytest.approx(0.32) and sizes[-1] == 32
    assert time.largest is None


def test_what_does_not_fit_is_inferred_from_what_does(measured):
    time, sizes = measured(32, 0.01, 0.05, limit=5)
    assert time.micro_batch == pytest.approx(0.32, rel=1e-6) and time.update == pytest.approx(0.05)
    assert time.largest == 4 and sizes[-1] == 4


def test_a_sample_that_does_not_fit_is_one_line(measured):
    with pytest.raises(UserError) as caught:
        measured(32, 0.01, limit=0)
    assert str(caught.value) == (
        "--tflops measured: one sample and the update of the weights do not fit into the memory of "
        "this machine's CPU; give --tflops a number"
    )


def test_other_errors_of_a_pass_are_raised(monkeypatch):
    def fail(*_):
        raise RuntimeError("mat1 and mat2")

    monkeypatch.setattr("trainer.planning.step_time._pass_seconds", fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        measure_network(4)
