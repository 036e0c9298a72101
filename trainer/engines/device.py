"""The device of a run, and how exact its arithmetic is there."""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from trainer.config.config import Config
from trainer.config.run import Precision
from trainer.errors import UserError

# The type in which autocast computes; the other precisions have no autocast.
LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}
_ON_GPUS_ONLY = ("fp16", "tf32")
_DRIVER = Path("/proc/driver/nvidia/version")
_HIDDEN = ("", "-1")  # as the first entry of CUDA_VISIBLE_DEVICES


def chosen_precision(config: Config) -> Precision:
    """Return `run.precision`, or else the precision of the launch file.

    Raises:
        UserError: The launch file has another one, such as fp8.
    """
    if config.run.precision is not None:
        return config.run.precision
    found = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    allowed: dict[str, Precision] = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}
    if found not in allowed:
        raise UserError(f"mixed_precision: found {found}; allowed are {', '.join(allowed)}")
    return allowed[found]


def runs_on_cpu(config: Config) -> bool:
    """Decide once per process, before it uses a GPU, whether the run is on the CPU.

    It is with `run.device=cpu`, with a launch file that hides all GPUs, as `cpu` and those that end
    in `_cpu` do, and in a single process on a machine without a GPU.

    Raises:
        UserError: GPUs are asked for and none can be used, or the precision needs one.
    """
    if config.run.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed decides by itself
    on_cpu = config.run.device == "cpu" or _gpus_are_hidden() or not torch.cuda.is_available()
    if on_cpu and _asks_for_gpus(config):
        raise UserError(
            f"run.device: {_what_asks(config)} asks for GPUs, and {_why_there_is_none()}; to train "
            "on the CPU choose a launch file whose name ends in _cpu, or run.device=cpu"
        )
    if on_cpu:
        check_precision(chosen_precision(config))
    return on_cpu


def check_precision(precision: Precision) -> None:
    """Check that a precision can be used on the CPU.

    Raises:
        UserError: It needs a GPU.
    """
    if precision in _ON_GPUS_ONLY:
        raise UserError(f"run.precision: {precision} needs a GPU; allowed on the CPU: fp32, bf16")


def autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    """Return the autocast context of a precision; fp32 and tf32 have none."""
    if precision not in LOW_PRECISION:
        return nullcontext()
    return torch.autocast(device, LOW_PRECISION[precision])


def set_arithmetic(config: Config) -> None:
    """Set, for this process, how exact products of fp32 numbers are, and which algorithms are used.

    In `fp32` all products are exact to fp32. In the other precisions products that stay in fp32 use
    TF32, whose products have the mantissa of fp16; by torch's defaults convolutions would use it
    and matrix products would not. `run.deterministic` takes the algorithms that give equal results
    for equal input, and raises an error where torch has none.
    """
    exact = chosen_precision(config) == "fp32"
    # The newer `fp32_precision` cannot be mixed with these, which torch's compiler reads (2.13).
    torch.set_float32_matmul_precision("highest" if exact else "high")
    torch.backends.cudnn.allow_tf32 = not exact
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by the first product
    torch.use_deterministic_algorithms(config.run.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = config.run.deterministic
    torch.backends.cudnn.benchmark = config.run.cudnn_benchmark


def offload_threads(workers: int) -> int:
    """Return the threads with which this process updates weights and moments that are on the CPU.

    These are the cores of the node divided by its processes, less one for each reading process, but
    at least half. A value of `OMP_NUM_THREADS` is kept, except 1: `accelerate launch` 1.15 and
    torchrun 2.13 set it to 1 where the user has not set it.

    Args:
        workers: Reading processes of this process.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    if threads != "1":
        return torch.get_num_threads()  # which torch has read from it
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, cores // 2, cores - workers)


def describe_device(config: Config, device: torch.device) -> str:
    """Return what this process computes on, and how, in one line."""
    precision = chosen_precision(config)
    if device.type == "cpu":
        return f"the CPU with {torch.get_num_threads()} thread(s), {precision}"
    driver = _driver_version() or "unknown"
    name = torch.cuda.get_device_name(device)
    return f"{device}, {name}, driver {driver}, CUDA {torch.version.cuda}, {precision}"


def _asks_for_gpus(config: Config) -> bool:
    if config.run.device != "auto":
        return config.run.device == "cuda"
    return not _gpus_are_hidden() and (
        int(os.environ.get("WORLD_SIZE", "1")) > 1
        or _is_set("ACCELERATE_USE_DEEPSPEED")
        or _is_set("ACCELERATE_USE_FSDP")
    )


def _gpus_are_hidden() -> bool:
    """Return whether the launch file, or the caller, lets no process see a GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return _is_set("ACCELERATE_USE_CPU") or (
        visible is not None and visible.split(",")[0].strip() in _HIDDEN
    )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


def _what_asks(config: Config) -> str:
    return "it" if config.run.device == "cuda" else "the launch file"


def _why_there_is_none() -> str:
    if _gpus_are_hidden():
        return "the launch file or CUDA_VISIBLE_DEVICES hides them"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    if _driver_version() is None:
        return "no NVIDIA driver is loaded"
    return "CUDA finds none (does `nvidia-smi` list one?)"


def _driver_version() -> str | None:
    """Return the version of NVIDIA's kernel module; None where it is not loaded."""
    try:
        text = _DRIVER.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return None if found is None else found.group()
