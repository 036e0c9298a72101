"""Times of the parts of a step on every rank, and the rank that delays the others.

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
    """Means over the steps since the last report, on one rank.

    Attributes:
        step_seconds: From the request for data to the end of the step.
        data_seconds: Part of it that was spent waiting for the loader.
        forward_seconds: Part of it in the forward passes and losses. Under ZeRO 3 and FSDP it
            includes waiting, because the ranks exchange weights there.
        process_gib: Resident memory of the process, without its loader's workers.
        device_gib: Peak of the memory allocated on the GPU since the start; 0 without a GPU.
    """

    step_seconds: float
    data_seconds: float
    forward_seconds: float
    process_gib: float
    device_gib: float


class StepTimer:
    """Measures the steps of this process, without synchronising with the device.

    Args:
        device: Device of the steps. On a GPU the forward pass is timed by events, which are read
            in `take`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps = 0
        self._step = self._data = self._forward = 0.0
        self._started = self._waited = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def next_step(self, batches: Iterator[Item], count: int) -> list[Item]:
        """Begin a step; return its micro-batches, fewer than `count` at the end of the data."""
        self._started = time.perf_counter()
        with record_function("wait for data"):
            micro_batches = list(islice(batches, count))
        self._waited = time.perf_counter() - self._started
        return micro_batches

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
        """End a step; the time until the next one begins belongs to no step."""
        self._step += time.perf_counter() - self._started
        self._data += self._waited
        self._steps += 1

    def take(self) -> RankTimes:
        """Return the means since the last call; at least one step must have ended since.

        On a GPU the work of these steps must be finished.
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
    """Return the times of all ranks [R,F] on the CPU; every rank must call it."""
    local_times = torch.tensor([astuple(times)], device=accelerator.device)  # [1,F]
    return accelerator.gather(local_times).cpu()


def summarize(times: Tensor, hosts: Sequence[str]) -> dict[str, Any]:
    """Return the record of the times of all ranks.

    Args:
        times: From `gather_times`.
        hosts: The name of every rank's machine.

    Returns:
        `step_seconds`: the maximum over the ranks, which wait for each other in every step and for
        the main process while it writes between two steps. For each other field of `RankTimes`: the
        mean, the maximum and its rank. `slowest`: the rank that spent most time in waiting for data
        and in forward passes, with the median of the other ranks; None for a single rank.
    """
    columns = dict(zip((field.name for field in fields(RankTimes)), times.unbind(1), strict=True))
    summary: dict[str, Any] = {"step_seconds": rounded(columns.pop("step_seconds").max().item())}
    for name, values in columns.items():
        summary[name] = {
            "mean": rounded(values.mean().item()),
            "max": rounded(values.max().item()),
            "max_rank": int(values.argmax()),
        }
    busy = columns["data_seconds"] + columns["forward_seconds"]  # without waiting for other ranks
    rank = int(busy.argmax())
    others = torch.cat([busy[:rank], busy[rank + 1 :]])
    summary["slowest"] = None
    if len(others):
        summary["slowest"] = {
            "rank": rank,
            "host": hosts[rank],
            "own_seconds": rounded(busy[rank].item()),
            "others_own_seconds": rounded(others.median().item()),
        }
    return summary


def rounded(value: float) -> float:
    """Round to six digits, which keeps a file short that grows for weeks."""
    return float(f"{value:.6g}")


def _memory(device: torch.device) -> tuple[float, float]:
    """Return the resident memory of the process and the peak of the GPU's allocator, GiB."""
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return _resident_bytes() / _GIB, on_device / _GIB


def _resident_bytes() -> int:
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
