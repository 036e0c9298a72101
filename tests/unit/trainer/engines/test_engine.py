from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from model.sync_batch_norm import SyncBatchNorm, synchronise
from tests.waits import Waits
from trainer.builders import build_network
from trainer.engines.accelerator import make_accelerator
from trainer.engines.engine import Engine, _keeps_layout
from trainer.engines.running_statistics import RunningStatistics
from trainer.errors import UserError
from trainer.run_data import open_manifest
from trainer.tasks import resolve_tasks

RESNET = (
    "model.encoder.options={model_type: resnet, embedding_size: 8, hidden_sizes: [8, 16], "
    "depths: [1, 1], layer_type: basic}"
)


def make_engine(config):
    tasks = resolve_tasks(config.tasks, open_manifest(config))
    return Engine(make_accelerator(config), build_network(config, tasks), config)


def batch_norms(module):
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.usefixtures("forget_accelerate")
@pytest.mark.parametrize(("setting", "kind"), [("auto", SyncBatchNorm), ("never", nn.BatchNorm2d)])
def test_batch_statistics_are_those_of_all_gpus(setting, kind, rooms_config, monkeypatch):
    monkeypatch.setattr("trainer.engines.engine._can_synchronise", lambda _: True)
    config = rooms_config(RESNET, f"model.sync_batchnorm={setting}")
    tasks = resolve_tasks(config.tasks, open_manifest(config))
    names = list(build_network(config, tasks).state_dict())
    module = make_engine(config).module
    assert {type(norm) for norm in batch_norms(module)} == {kind}
    assert list(module.state_dict()) == names


@pytest.mark.usefixtures("forget_accelerate")
def test_on_a_cpu_batch_statistics_stay_each_rank_s_own(rooms_config):
    assert {type(n) for n in batch_norms(make_engine(rooms_config(RESNET)).module)} == {
        nn.BatchNorm2d
    }


@pytest.mark.usefixtures("forget_accelerate")
@pytest.mark.parametrize(
    ("keeps", "setting", "changed"),
    [(True, "auto", True), (True, "never", False), (None, "auto", False)],
)
def test_weights_are_stored_channels_last_where_they_stay_so(
    rooms_config, monkeypatch, keeps, setting, changed
):
    """On a CPU they never are: the order of sums would be another."""
    if keeps is not None:
        monkeypatch.setattr("trainer.engines.engine._keeps_layout", lambda _: keeps)
    module = make_engine(rooms_config(RESNET, f"model.channels_last={setting}")).module
    kernels = [m.weight for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert any(not kernel.is_contiguous() for kernel in kernels) == changed


@pytest.mark.parametrize(
    ("kind", "sharded", "keeps"),
    [
        (DistributedType.NO, "false", True),
        (DistributedType.MULTI_GPU, "false", True),
        (DistributedType.MULTI_GPU, "true", False),
        (DistributedType.DEEPSPEED, "false", False),
    ],
)
def test_zero_and_fsdp_do_not_keep_the_layout_of_weights(monkeypatch, kind, sharded, keeps):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", sharded)
    gpu = SimpleNamespace(distributed_type=kind, device=torch.device("cuda"))
    assert _keeps_layout(gpu) == keeps
    assert not _keeps_layout(SimpleNamespace(distributed_type=kind, device=torch.device("cpu")))


@pytest.mark.usefixtures("forget_accelerate")
def test_fp16_is_refused_on_a_cpu(rooms_config):
    with pytest.raises(UserError, match=r"run\.precision: fp16 needs a GPU; allowed on the CPU"):
        make_accelerator(rooms_config("run.precision=fp16"))


def scaled_engine(config):
    """Return an engine with a loss scaler, as fp16 has on a GPU, and the scaler."""
    accelerator = make_accelerator(config)
    accelerator.scaler = torch.amp.GradScaler("cpu")
    tasks = resolve_tasks(config.tasks, open_manifest(config))
    return Engine(accelerator, build_network(config, tasks), config), accelerator.scaler


@pytest.mark.usefixtures("forget_accelerate")
@pytest.mark.parametrize("clip", ["null", "1.0"])
def test_a_step_that_the_loss_scaler_skips_is_seen(rooms_config, clip):
    """With a fused optimizer, which skips it by itself."""
    config = rooms_config(f"optim.max_grad_norm={clip}", "optim.skip_nonfinite=1")
    engine, scaler = scaled_engine(config)
    weight = next(p for p in engine.module.parameters() if p.ndim > 1)
    for factor, skipped in ((1.0, False), (1e38, True), (1.0, False)):
        before, scale = weight.detach().clone(), scaler.get_scale()
        with engine.accumulate():
            engine.backward(factor * sum(p.sum() for p in engine.module.parameters()))
        assert engine.step_was_skipped == skipped == weight.equal(before)
        assert scaler.get_scale() == scale * (0.5 if skipped else 1.0)


@pytest.mark.usefixtures("forget_accelerate")
def test_fp16_does_not_wait_for_the_loss_scale(rooms_config):
    """The scaler skips a bad step on the device; only `skip_nonfinite` must know of it."""
    config = rooms_config("optim.max_grad_norm=1.0")
    engine, scaler = scaled_engine(config)
    weight = next(p for p in engine.module.parameters() if p.ndim > 1)
    for factor, skipped in ((1.0, False), (1e38, True), (1.0, False)):
        before, scale = weight.detach().clone(), scaler.get_scale()
        with Waits() as waits, engine.accumulate():
            engine.backward(factor * sum(p.sum() for p in engine.module.parameters()))
        assert not waits.found and not engine.step_was_skipped
        assert weight.equal(before) == skipped
        assert scaler.get_scale() == scale * (0.5 if skipped else 1.0)


@pytest.mark.usefixtures("forget_accelerate")
def test_an_engine_that_is_released_twice_hides_no_error(rooms_config, monkeypatch):
    """The session releases it again where its successor could not be prepared."""
    engine = make_engine(rooms_config())
    deepspeed = property(lambda _: DistributedType.DEEPSPEED)
    monkeypatch.setattr(Accelerator, "distributed_type", deepspeed)
    engine.network.zero_optimization_stage = lambda: 2
    engine.release()
    engine.release()


class _TwoRanks:
    """In place of the accelerator: another rank has zeros everywhere."""

    def __init__(self):
        self.sizes = []

    def reduce(self, values, reduction):
        assert reduction == "mean"
        self.sizes.append(values.numel())
        return values / 2


def test_statistics_are_copied_and_averaged_but_not_where_all_ranks_have_the_same():
    module = nn.Sequential(
        nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3).eval()
    )
    statistics, accelerator = RunningStatistics(module), _TwoRanks()
    at_first = {name: value.clone() for name, value in module.state_dict().items()}
    copied = statistics.copy()
    assert sorted(value.numel() for value in copied.values()) == [2, 12]  # a copy per type
    module(torch.randn(4, 3) + 5)
    moved = {name: value.clone() for name, value in module.state_dict().items()}
    statistics.average(accelerator)
    for name, value in module.state_dict().items():
        averaged = name.startswith(("0.running", "2.running"))
        assert value.equal(moved[name] / 2 if averaged else moved[name]), name
    statistics.restore(copied)
    assert all(value.equal(at_first[name]) for name, value in module.state_dict().items())
    synchronise(module[0])
    statistics.average(accelerator)
    assert accelerator.sizes == [12, 6]
    synchronise(module)
    statistics.average(accelerator)
    assert accelerator.sizes == [12, 6], "nothing is sent"


@pytest.mark.usefixtures("forget_accelerate")
def test_a_global_batch_must_divide_into_micro_batches(rooms_config):
    with pytest.raises(UserError, match=r"global_batch is 8; it must be a multiple .* 1 x 3"):
        make_accelerator(rooms_config("optim.gradient_accumulation_steps=3"))


@pytest.mark.usefixtures("forget_accelerate")
def test_fsdp_of_one_process_is_no_fsdp(rooms_config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    engine = make_engine(rooms_config())
    assert not engine.sharded and engine.zero_stage == 0
    assert type(next(engine.module.parameters())) is nn.Parameter


@pytest.mark.usefixtures("forget_accelerate")
def test_the_older_fsdp_is_refused(rooms_config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UserError, match=r"fsdp_config\.fsdp_version: found 1; allowed: 2"):
        make_accelerator(rooms_config())


@pytest.mark.usefixtures("forget_accelerate")
def test_the_learning_rate_is_scaled_in_every_group(rooms_config):
    engine = make_engine(rooms_config("optim.lr=0.1", "optim.heads_lr=0.3"))
    for factor in (0.5, 0.2):  # of the first rate, not of the last
        engine.set_learning_rate(factor)
        rates = sorted({group["lr"] for group in engine.optimizer.param_groups})
        assert rates == pytest.approx([0.1 * factor, 0.3 * factor])
