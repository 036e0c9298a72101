from types import SimpleNamespace

import pytest
import torch

from trainer.engines import accelerator


@pytest.mark.parametrize(
    ("device", "offload", "threads"),
    [
        ("cuda", {"offload_optimizer": {"device": "cpu"}}, [14]),
        ("cuda", {"offload_optimizer": {"device": "none"}}, []),
        ("cuda", {}, []),
        ("cpu", {"offload_optimizer": {"device": "cpu"}}, []),
    ],
)
def test_more_threads_are_used_only_for_moments_of_a_gpu(
    rooms_config, monkeypatch, device, offload, threads
):
    used = []
    monkeypatch.setattr(accelerator, "offload_threads", lambda workers: 16 - workers)
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": offload})
    fake = SimpleNamespace(
        state=SimpleNamespace(deepspeed_plugin=plugin),
        device=torch.device(device),
        mixed_precision="no",
    )
    accelerator._configure_deepspeed(fake, rooms_config("data.workers=2"), micro_batch=4)
    assert used == threads
