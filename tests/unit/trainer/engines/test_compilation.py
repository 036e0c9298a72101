"""Where compiled code is refused, and what an engine does for CUDA graphs."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from trainer.builders import build_network
from trainer.engines.accelerator import make_accelerator
from trainer.engines.compilation import check_compile
from trainer.engines.engine import Engine
from trainer.errors import UserError
from trainer.run_data import open_manifest
from trainer.tasks import resolve_tasks


def accelerator(device="cuda", zero_stage=None):
    settings = {"zero_optimization": {"stage": zero_stage}}
    return SimpleNamespace(
        device=torch.device(device),
        distributed_type=DistributedType.NO if zero_stage is None else DistributedType.DEEPSPEED,
        state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(deepspeed_config=settings)),
    )


@pytest.mark.parametrize(
    ("value", "compiles", "mode"),
    [("true", True, None), ("false", False, None), ("reduce-overhead", True, "reduce-overhead")],
)
def test_values_of_the_setting(value, compiles, mode, rooms_config):
    section = rooms_config(f"model.compile={value}").model
    assert (bool(section.compile), section.compile_mode) == (compiles, mode)


def test_another_mode_is_refused(rooms_config):
    expected = r"model\.compile: found 'fast'; allowed: true, false or reduce-overhead$"
    with pytest.raises(UserError, match=expected):
        rooms_config("model.compile=fast")


@pytest.mark.usefixtures("forget_accelerate")
def test_cuda_graphs_are_refused_on_a_cpu(rooms_config):
    with pytest.raises(UserError, match=r"model\.compile: reduce-overhead .* need a GPU; allowed"):
        make_accelerator(rooms_config("model.compile=reduce-overhead"))


@pytest.mark.parametrize("value", ["true", "reduce-overhead"])
def test_zero3_is_refused(value, rooms_config):
    config = rooms_config(f"model.compile={value}")
    check_compile(config, accelerator(zero_stage=2))
    check_compile(rooms_config(), accelerator(zero_stage=3))
    with pytest.raises(UserError, match=r"model\.compile: ZeRO 3 .* allowed with ZeRO 3: false"):
        check_compile(config, accelerator(zero_stage=3))


def test_cuda_graphs_are_refused_with_fsdp2(rooms_config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_compile(rooms_config("model.compile=true"), accelerator())
    with pytest.raises(UserError, match=r"model\.compile: .* allowed with FSDP2: true, false"):
        check_compile(rooms_config("model.compile=reduce-overhead"), accelerator())


@pytest.mark.usefixtures("forget_accelerate")
@pytest.mark.parametrize(("value", "marks", "resets"), [("reduce-overhead", 3, 1), ("true", 0, 0)])
def test_cuda_graphs_begin_with_each_step_and_end_with_the_network(
    value, marks, resets, rooms_config, monkeypatch
):
    config = rooms_config(f"model.compile={value}", "optim.gradient_accumulation_steps=2")
    found = {"marks": 0, "resets": 0}

    def count(name):
        found[name] += 1

    monkeypatch.setattr("trainer.engines.accelerator.check_compile", lambda *_: None)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: count("marks"))
    monkeypatch.setattr(torch.compiler, "reset", lambda: count("resets"))
    tasks = resolve_tasks(config.tasks, open_manifest(config))
    engine = Engine(make_accelerator(config), build_network(config, tasks), config)
    for number in range(6):  # micro-batches
        with engine.accumulate():
            assert found["marks"] == (number // 2 + 1 if marks else 0)
            engine.backward(sum(p.sum() for p in engine.module.parameters()))
    engine.release()
    assert found == {"marks": marks, "resets": resets}
