"""Where the time of a step goes on every rank, and which rank holds up the others.

Legend: R ranks, F numbers of a rank.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.profiler import record_function

_GIB = 2**30
_STATM = Path("/proc/self/statm")

Item = TypeVar("Item")


@dataclass(frozen=True)
class RankTimes:
    """Means over the steps since the last look, on one rank.

    Attributes:
        step_seconds: From asking for data to the end of the step.
        data_seconds: Of these, in which the loader had nothing ready.
        forward_seconds: Of these, in the forward passes and losses. Under ZeRO 3 and FSDP the ranks
            exchange weights there, and it holds waiting too.
        process_gib: Resident memory of the process, without its loader's workers.
        device_gib: The most that was allocated on the GPU since the start; 0 without one.
    """

    step_seconds: float
    data_seconds: float
    forward_seconds: float
    process_gib: float
    device_gib: float


class StepTimer:
    """Takes the times of this process's steps, without waiting for the device.

    Args:
        device: That the steps run on. On a GPU the forward pass is timed by events, which are read
            in `take`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps = 0
        self._step = self._data = self._forward = 0.0
        self._started = self._waited = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def next_step(self, batches: Iterator[Item], count: int) -> list[Item]:
        """Begin a step with its micro-batches, fewer than `count` at the end of the data."""
        self._started = time.perf_counter()
        with record_function("wait for data"):
            found = list(islice(batches, count))
        self._waited = time.perf_counter() - self._started
        return found

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Time a forward pass of the step."""
        with record_function("forward"):
            if self._device.type != "cuda":
                start = time.perf_counter()
                yield
                self._forward += time.perf_counter() - start
                return
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))

    def end_step(self) -> None:
        """End a step: what follows until the next one begins belongs to none."""
        self._step += time.perf_counter() - self._started
        self._data += self._waited
        self._steps += 1

    def take(self) -> RankTimes:
        """The means since the last call, which must lie at least one step back.

        On a GPU the work of these steps must be done.
        """
        assert self._steps, "a step has ended"
        self._forward += sum(begin.elapsed_time(end) for begin, end in self._events) / 1e3
        sums = (self._step, self._data, self._forward)
        step, data, forward = (total / self._steps for total in sums)
        times = RankTimes(step, data, forward, *_memory(self._device))
        self._steps, self._step, self._data, self._forward = 0, 0.0, 0.0, 0.0
        self._events.clear()
        return times


def gather_times(accelerator: Accelerator, times: RankTimes) -> Tensor:
    """The times of all ranks [R,F] on the CPU; every rank must call it."""
    own = torch.tensor([astuple(times)], device=accelerator.device)  # [1,F]
    return accelerator.gather(own).cpu()


def summarize(times: Tensor, hosts: Sequence[str]) -> dict[str, Any]:
    """What is recorded of the times of all ranks.

    Args:
        times: From `gather_times`.
        hosts: The name of every rank's machine.

    Returns:
        `step_seconds`, the most of all ranks: they wait for each other in every step, and for what
        the main process writes down between two of them. Of the other numbers of `RankTimes`
        the mean, the maximum and the rank of that. As `slowest` the rank that spent most time of
        its own in waiting for data and in forward passes, beside the median of the others; None
        for a single rank.
    """
    columns = dict(zip((field.name for field in fields(RankTimes)), times.unbind(1), strict=True))
    summary: dict[str, Any] = {"step_seconds": rounded(columns.pop("step_seconds").max().item())}
    for name, values in columns.items():
        summary[name] = {
            "mean": rounded(values.mean().item()),
            "max": rounded(values.max().item()),
            "max_rank": int(values.argmax()),
        }
    own = columns["data_seconds"] + columns["forward_seconds"]
    rank = int(own.argmax())
    others = torch.cat([own[:rank], own[rank + 1 :]])
    summary["slowest"] = None
    if len(others):
        summary["slowest"] = {
            "rank": rank,
            "host": hosts[rank],
            "own_seconds": rounded(own[rank].item()),
            "others_own_seconds": rounded(others.median().item()),
        }
    return summary


def rounded(value: float) -> float:
    """Six digits: enough for a clock, and short in a file that grows for weeks."""
    return float(f"{value:.6g}")


def _memory(device: torch.device) -> tuple[float, float]:
    """Resident memory of the process and peak of what is allocated on the GPU, GiB."""
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return _resident_bytes() / _GIB, on_device / _GIB


def _resident_bytes() -> int:
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
