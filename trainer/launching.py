"""Start a training on this machine: in this process, or several by accelerate's launcher.

`dmtg train` chooses the engine and the number of processes, which its options can set.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines.reading.order import default_num_streams
from dmtg.yaml_text import YamlError, read_yaml
from trainer.errors import FAILED, INTERRUPTED, STOPPED, UserError
from trainer.launch_files import TRAIN_SCRIPT, find_launch_files
from trainer.start import LAUNCH_OPTIONS

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from trainer.config.config import Config

# Seconds that the processes may take to save after Ctrl-C; the launcher's default is 30.
_SAVE_SECONDS = "600"
_SIGNALS = "SIGUSR1,SIGTERM,SIGINT,SIGHUP,SIGQUIT"  # that the launcher forwards
_ALONE = ("NO", "MULTI_GPU")  # engines that are none in a single process


@dataclass(frozen=True)
class LaunchPlan:
    """How a training is started.

    Attributes:
        processes: Number of processes.
        file: Launch file; None trains in this process.
        on_cpu: Whether this process hides all GPUs, where it trains itself.
        precision: Of a training in this process without `run.precision`.
        reason: What was chosen and why, in one line.
    """

    processes: int
    file: Path | None = None
    on_cpu: bool = False
    precision: str | None = None
    reason: str = ""


def plan_launch(config: Config, engine: str | None, processes: int | None) -> LaunchPlan:
    """Choose how to train on this machine.

    Without options all GPUs are used as far as the global batch divides among them, and one process
    on a machine without GPUs.

    Args:
        config: Of the run.
        engine: Name of an installed launch file, such as `zero2`, or the path of another one.
        processes: Number of processes.

    Raises:
        UserError: The engine is unknown, or the machine or the global batch does not fit.
    """
    if "WORLD_SIZE" in os.environ:  # a launcher has started this process already
        return LaunchPlan(1)
    gpus = 0 if config.run.device == "cpu" else _num_gpus()
    if engine is None:
        return _plan_engine(config, gpus, processes)
    file = _launch_file(engine)
    settings = _settings(file)
    on_cpu = _hides_gpus(settings)
    if not on_cpu and not gpus:
        raise UserError(
            f"--engine: {engine} trains on GPUs, and this machine has none that is free"
        )
    if processes is None:
        processes = int(settings.get("num_processes", 1)) if on_cpu else _fitting(config, gpus)
    _check_processes(config, processes)
    if processes == 1 and settings.get("distributed_type") in _ALONE:
        return LaunchPlan(1, on_cpu=on_cpu, precision=None if on_cpu else _precision(settings))
    return LaunchPlan(processes, file)


def _plan_engine(config: Config, gpus: int, processes: int | None) -> LaunchPlan:
    files = find_launch_files()
    if processes is None:
        processes = max(1, _fitting(config, gpus))
        reason = f"{processes} of {gpus} GPUs" if processes < gpus else ""
        if reason:
            reason += ", among which data.global_batch and data.num_streams divide"
    else:
        _check_processes(config, processes)
        reason = ""
    if processes == 1:
        precision = _precision(_settings(files["ddp"])) if gpus else None
        return LaunchPlan(1, precision=precision, reason=reason)
    if gpus and processes > gpus:
        raise UserError(
            f"--processes: found {processes}; a process uses one GPU, and this machine has {gpus}; "
            "--engine ddp_cpu trains on the CPU"
        )
    return LaunchPlan(processes, files["ddp" if gpus else "ddp_cpu"], reason=reason)


def _fitting(config: Config, gpus: int) -> int:
    """Return the largest number of processes, at most one for each GPU, that can share a step."""
    return next((n for n in range(gpus, 1, -1) if not _misfit(config, n)), min(1, gpus))


def _misfit(config: Config, processes: int) -> str | None:
    """Return why the samples of a step do not divide among processes; None if they do."""
    accumulation = config.optim.gradient_accumulation_steps
    if config.data.global_batch % (processes * accumulation):
        return (
            f"data.global_batch, {config.data.global_batch}, is no multiple of processes x "
            f"optim.gradient_accumulation_steps = {processes} x {accumulation}"
        )
    streams = config.data.num_streams or default_num_streams(config.data.global_batch)
    if streams % processes:
        return f"data.num_streams, {streams}, is no multiple of it"
    return None


def _check_processes(config: Config, processes: int) -> None:
    misfit = _misfit(config, processes)
    if misfit is not None:
        raise UserError(f"--processes: found {processes}; {misfit}")


def _launch_file(engine: str) -> Path:
    files = find_launch_files()
    if engine in files:
        return files[engine]
    if Path(engine).is_file():
        return Path(engine)
    raise UserError(
        f"--engine: found {engine!r}; allowed: {', '.join(files)}, or the path of a launch file"
    )


def _settings(file: Path) -> dict[str, Any]:
    try:
        settings = read_yaml(file)
    except (YamlError, OSError) as error:
        raise UserError(f"--engine: {file}: {error}") from None
    if not isinstance(settings, dict):
        raise UserError(f"--engine: {file} holds no mapping, as a launch file of accelerate does")
    return settings


def _hides_gpus(settings: dict[str, Any]) -> bool:
    return str(settings.get("gpu_ids", "")).startswith("-1") or settings.get("use_cpu") is True


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _precision(settings: dict[str, Any]) -> str | None:
    """Return the precision of a launch file, as far as the GPU has it."""
    import torch

    precision = str(settings.get("mixed_precision", "no"))
    return precision if precision != "bf16" or torch.cuda.is_bf16_supported() else None


def prepare_process(plan: LaunchPlan) -> None:
    """Set what a launch file sets, for a training in this process."""
    if plan.on_cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    if plan.precision is not None:
        os.environ.setdefault("ACCELERATE_MIXED_PRECISION", plan.precision)


def launch(
    plan: LaunchPlan, source: Path, overrides: Sequence[str], options: Sequence[str], out: Path
) -> int:
    """Train in several processes and return the exit code; their errors are printed by them.

    Args:
        plan: With a launch file.
        source: YAML file of the run.
        overrides: `section.key=value` texts.
        options: Those of `dmtg train`, for the command that continues the run.
        out: Folder of the run.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    assert plan.file is not None, "the plan is for several processes"
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", _SIGNALS)
    os.environ.setdefault("PET_SHUTDOWN_TIMEOUT", _SAVE_SECONDS)
    os.environ[LAUNCH_OPTIONS] = shlex.join(options)
    if _hides_gpus(_settings(plan.file)):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns in each process
    # The processes have explained their errors; the launcher would describe them once more.
    logging.disable(logging.ERROR)
    arguments = launch_command_parser().parse_args(
        [
            *("--config_file", str(plan.file), "--num_processes", str(plan.processes)),
            *("--main_process_port", "0", str(TRAIN_SCRIPT), "--config", str(source), *overrides),
        ]
    )
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        return _exit_code(error)
    except SignalException as stop:
        return _code_of_stop(stop.sigval, out)
    except KeyboardInterrupt:
        return INTERRUPTED
    except ValueError as error:  # a launch file that accelerate refuses
        raise UserError(f"--engine: {plan.file}: {error}") from None
    return 0


def _exit_code(error: ChildFailedError) -> int:
    """Return the exit code of the process that failed first; 1 for one that was killed."""
    codes = [failure.exitcode for failure in error.failures.values()]
    first = error.get_first_failure()[1].exitcode
    return first if first > 0 else next((code for code in codes if code > 0), FAILED)


def _code_of_stop(number: signal.Signals, out: Path) -> int:
    """Return the exit code after a signal to the launcher, 0 if the run has saved."""
    from trainer.monitoring.status import read_status

    if number == signal.SIGINT:
        return INTERRUPTED
    try:
        state = read_status(out)["state"]
    except UserError:
        state = "unknown"
    return 0 if state in ("preempted", "finished") else STOPPED + number
