"""What `dmtg train` starts on which machine."""

import pytest

from trainer import launching
from trainer.errors import UserError
from trainer.launch_files import launch_file
from trainer.launching import plan_launch


@pytest.fixture
def plan(rooms_config, monkeypatch):
    """Plan a launch on a machine with so many GPUs."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def make(*overrides, gpus=0, engine=None, processes=None):
        monkeypatch.setattr(launching, "_num_gpus", lambda: gpus)
        monkeypatch.setattr(launching, "_precision", lambda settings: settings["mixed_precision"])
        return plan_launch(rooms_config(*overrides), engine, processes)

    return make


@pytest.mark.parametrize(
    ("gpus", "overrides", "processes", "engine"),
    [
        (0, (), 1, None),
        (1, (), 1, None),
        (2, (), 2, "ddp"),
        (8, (), 8, "ddp"),
        (6, (), 4, "ddp"),  # the global batch is 8
        (8, ("data.global_batch=12",), 4, "ddp"),  # in 4 streams
        (4, ("optim.gradient_accumulation_steps=4",), 2, "ddp"),
        (8, ("data.global_batch=7",), 1, None),
        (8, ("run.device=cpu",), 1, None),
    ],
)
def test_without_options_all_gpus_that_fit_are_used(gpus, overrides, processes, engine, plan):
    found = plan(*overrides, gpus=gpus)
    assert found.processes == processes
    assert found.file == (None if engine is None else launch_file(engine))
    used = 0 if "run.device=cpu" in overrides else gpus
    assert bool(found.reason) == (processes < used), found.reason


@pytest.mark.parametrize(
    ("gpus", "options", "processes", "engine"),
    [
        (0, {"processes": 2}, 2, "ddp_cpu"),
        (0, {"processes": 1}, 1, None),
        (4, {"processes": 2}, 2, "ddp"),
        (0, {"engine": "zero2_cpu"}, 2, "zero2_cpu"),
        (0, {"engine": "fsdp2_cpu", "processes": 4}, 4, "fsdp2_cpu"),
        (4, {"engine": "ddp_cpu"}, 2, "ddp_cpu"),
        (4, {"engine": "cpu"}, 1, None),
        (8, {"engine": "zero3"}, 8, "zero3"),
        (1, {"engine": "zero3"}, 1, "zero3"),
        (4, {"engine": "ddp", "processes": 1}, 1, None),
    ],
)
def test_options(gpus, options, processes, engine, plan):
    found = plan(gpus=gpus, **options)
    assert found.processes == processes
    assert found.file == (None if engine is None else launch_file(engine))
    assert found.on_cpu == (options.get("engine") == "cpu")


def test_one_gpu_trains_in_the_precision_of_the_launch_files(plan):
    assert plan(gpus=1).precision == plan(gpus=4, engine="ddp", processes=1).precision == "bf16"
    assert plan(gpus=0).precision is None and plan(gpus=4, engine="cpu").precision is None


@pytest.mark.parametrize(
    ("gpus", "options", "message"),
    [
        (0, {"engine": "zero2"}, "--engine: zero2 trains on GPUs, and this machine has none"),
        (0, {"engine": "zero9"}, "--engine: found 'zero9'; allowed: cpu, ddp, ddp_cpu, fsdp2"),
        (0, {"processes": 3}, "--processes: found 3; data.global_batch, 8, is no multiple of"),
        (
            2,
            {"processes": 4},
            "found 4; a process uses one GPU, and this machine has 2",
        ),
    ],
)
def test_what_cannot_be(gpus, options, message, plan):
    with pytest.raises(UserError) as error:
        plan(gpus=gpus, **options)
    assert message in str(error.value)


def test_a_launch_file_of_ones_own(plan, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("distributed_type: MULTI_GPU\ngpu_ids: '-1,-1'\nnum_processes: 4\n")
    assert (plan(engine=str(path)).file, plan(engine=str(path)).processes) == (path, 4)
    path.write_text("- no\n")
    with pytest.raises(UserError, match="holds no mapping"):
        plan(engine=str(path))


def test_a_process_of_a_launcher_starts_no_other(plan, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert plan(gpus=8).file is None
