import os

import pytest
import torch
import yaml

from trainer.engines import device
from trainer.engines.device import (
    chosen_precision,
    describe_device,
    offload_threads,
    runs_on_cpu,
    set_arithmetic,
)
from trainer.errors import UserError
from trainer.launch_files import find_launch_files

LAUNCHED = [
    {"WORLD_SIZE": "2"},
    {"ACCELERATE_USE_DEEPSPEED": "true"},
    {"ACCELERATE_USE_FSDP": "true"},
]
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "WORLD_SIZE", "ACCELERATE_USE_CPU",
    "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_MIXED_PRECISION",
    "CUBLAS_WORKSPACE_CONFIG", "OMP_NUM_THREADS", "LOCAL_WORLD_SIZE",
)  # fmt: skip


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A process that no launcher has started; say how many GPUs its machine has."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)

    def gpus(number):
        hidden = lambda: os.environ.get("CUDA_VISIBLE_DEVICES", "0")[:1] in ("", "-")  # noqa: E731
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0 and not hidden())

    gpus(0)
    return gpus


@pytest.mark.parametrize("variables", LAUNCHED, ids=lambda v: next(iter(v)))
def test_a_launch_file_for_gpus_is_refused_without_one(rooms_config, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        runs_on_cpu(rooms_config())
    assert str(caught.value).startswith("run.device: the launch file asks for GPUs, and ")
    assert "choose a launch file whose name ends in _cpu, or run.device=cpu" in str(caught.value)
    assert runs_on_cpu(rooms_config("run.device=cpu"))


@pytest.mark.parametrize(
    ("cuda", "driver", "message"),
    [
        (None, None, "was built without CUDA"),
        ("13.0", None, "no NVIDIA driver is loaded"),
        ("13.0", "NVRM version: NVIDIA Kernel Module  570.86.15  Thu", "CUDA finds none"),
    ],
)  # fmt: skip
def test_the_message_says_why_there_is_none(
    rooms_config, monkeypatch, tmp_path, cuda, driver, message
):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(device, "_DRIVER", tmp_path / "version")
    if driver is not None:
        (tmp_path / "version").write_text(driver)
    with pytest.raises(UserError, match=f"run.device: it asks for GPUs, and .*{message}"):
        runs_on_cpu(rooms_config("run.device=cuda"))


def test_gpus_that_are_hidden_are_not_asked_for(rooms_config, monkeypatch, machine):
    machine(8)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not runs_on_cpu(rooms_config())
    for hidden in ("", "-1", "-1,-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert runs_on_cpu(rooms_config())
        with pytest.raises(UserError, match="the launch file or CUDA_VISIBLE_DEVICES hides them"):
            runs_on_cpu(rooms_config("run.device=cuda"))


def test_on_a_machine_with_gpus_the_cpu_can_be_chosen(rooms_config, machine):
    machine(8)
    assert not runs_on_cpu(rooms_config()) and "DS_ACCELERATOR" not in os.environ
    assert runs_on_cpu(rooms_config("run.device=cpu"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "-1" and os.environ["DS_ACCELERATOR"] == "cpu"


def test_one_process_without_a_launch_file_takes_what_is_there(rooms_config, machine):
    assert runs_on_cpu(rooms_config())
    machine(1)
    assert not runs_on_cpu(rooms_config())


def test_launch_files_for_the_cpu_hide_all_gpus():
    for name, path in find_launch_files().items():
        content = yaml.safe_load(path.read_text())
        hides = set(content.get("gpu_ids", "all").split(",")) == {"-1"}
        assert hides == (name == "cpu" or name.endswith("_cpu")), name


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_a_precision_of_gpus_is_refused_on_the_cpu(rooms_config, precision):
    message = rf"run\.precision: {precision} needs a GPU; allowed on the CPU: fp32, bf16"
    with pytest.raises(UserError, match=message):
        runs_on_cpu(rooms_config(f"run.precision={precision}"))


def test_the_launch_file_names_the_precision_that_the_configuration_leaves_open(
    rooms_config, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert chosen_precision(rooms_config("run.precision=null")) == "bf16"
    assert chosen_precision(rooms_config("run.precision=fp32")) == "fp32"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(UserError, match="mixed_precision: found fp8; allowed are no, bf16, fp16"):
        chosen_precision(rooms_config("run.precision=null"))


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize(("precision", "exact"), [("fp32", True), ("tf32", False), ("bf16", False)])
def test_products_of_fp32_numbers_are_exact_in_fp32_only(rooms_config, precision, exact):
    set_arithmetic(rooms_config(f"run.precision={precision}"))
    assert torch.get_float32_matmul_precision() == ("highest" if exact else "high")
    assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == (not exact)


@pytest.mark.usefixtures("arithmetic")
def test_algorithms_are_deterministic_if_asked_for(rooms_config):
    set_arithmetic(rooms_config("run.deterministic=true"))
    assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    set_arithmetic(rooms_config())
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_log_says_what_the_run_is_on(rooms_config):
    text = describe_device(rooms_config("run.precision=bf16"), torch.device("cpu"))
    assert text == f"the CPU with {torch.get_num_threads()} thread(s), bf16"


@pytest.mark.parametrize(
    ("processes", "workers", "threads"),
    [("8", 2, 14), ("8", 0, 16), ("8", 12, 8), ("1", 4, 124), ("200", 4, 1)],
)
@pytest.mark.parametrize("launcher", [{}, {"OMP_NUM_THREADS": "1"}])
def test_offloaded_moments_are_updated_by_a_process_s_part_of_the_cores(
    monkeypatch, processes, workers, threads, launcher
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(128))
    for name, value in {"LOCAL_WORLD_SIZE": processes, **launcher}.items():
        monkeypatch.setenv(name, value)
    assert offload_threads(workers) == threads


def test_the_threads_that_a_user_has_chosen_are_kept(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert offload_threads(0) == torch.get_num_threads()
