"""Compute a lower bound of a step's time from its operations and memory traffic."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Timer = Callable[[Callable[[], Tensor], torch.device], float]  # return a function's seconds

_REPEATS = 5
_FLOAT_BYTES = 4
# Accesses to each fp32 weight: the forward and the backward pass read it, the backward pass writes
# its gradient; Adam reads weight, gradient and two moments, and writes all but the gradient.
_PASSES_OF_GRADIENT, _PASSES_OF_ADAM = 3, 7


@dataclass(frozen=True)
class _Work:
    """The work of which the rates are measured, large enough that its start does not count.

    Attributes:
        side: Rows and columns of the matrices that are multiplied.
        maps: Shape [B,C,H,W] of the maps that are convolved, from C to C channels.
        copied: Bytes that are copied.
    """

    side: int
    maps: tuple[int, int, int, int]
    copied: int


_ON_CPU = _Work(2048, (64, 64, 32, 32), 2**28)
# The fastest GPUs take milliseconds for the 1.1 and 1.2 TFLOP of a product and a convolution, and
# their caches hold some 100 MB of the copy. In fp32 it takes 3 GB of memory.
_ON_GPU = _Work(8192, (256, 256, 64, 64), 2**30)


@dataclass(frozen=True)
class Rates:
    """Peak rates of a machine.

    Attributes:
        flops: Operations per second of matrix products or convolutions.
        traffic: Bytes per second of copies, the sum of read and written bytes.
    """

    flops: float
    traffic: float

    def floor_ms(self, flops: int, weights: int, *, optimizer: bool) -> float:
        """Return a lower bound of a step's milliseconds.

        The bound is the maximum of the time of the operations and the time of the weights' memory
        traffic, plus the time of the optimizer's memory traffic.

        Args:
            flops: Operations of the forward and backward pass.
            weights: Number of trained parameters, in fp32.
            optimizer: Whether the step includes Adam.
        """
        one_pass = _FLOAT_BYTES * weights / self.traffic
        seconds = max(flops / self.flops, _PASSES_OF_GRADIENT * one_pass)
        if optimizer:
            seconds += _PASSES_OF_ADAM * one_pass
        return seconds * 1e3


def timed(run: Callable[[], Tensor], device: torch.device) -> float:
    """Return the seconds of a function, on a GPU those from the start to the end of its work."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    torch.cuda.synchronize(device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def measure_rates(device: torch.device, dtype: torch.dtype, timer: Timer = timed) -> Rates:
    """Measure the peak rates of the machine.

    Args:
        device: Device to measure.
        dtype: Type of matrix products and convolutions.
        timer: Function that measures the seconds of a function.
    """
    return Rates(_matmul_rate(device, dtype, timer), _copy_rate(device, timer))


def _work(device: torch.device) -> _Work:
    return _ON_CPU if device.type == "cpu" else _ON_GPU


def _matmul_rate(device: torch.device, dtype: torch.dtype, timer: Timer) -> float:
    """Return the operations per second of a matrix product or a convolution, the higher rate."""
    work = _work(device)
    channels = work.maps[1]
    square = torch.randn(work.side, work.side, device=device, dtype=dtype)
    kernel = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
    maps = torch.randn(work.maps, device=device, dtype=dtype)
    maps = maps.contiguous(memory_format=torch.channels_last)
    convolved = 2 * maps.numel() * kernel[0].numel()
    return max(
        2 * work.side**3 / _least_seconds(lambda: square @ square, device, timer),
        convolved / _least_seconds(lambda: F.conv2d(maps, kernel, padding=1), device, timer),
    )


def _copy_rate(device: torch.device, timer: Timer) -> float:
    """Return the bytes per second of a copy, the sum of read and written bytes."""
    copied = _work(device).copied
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * copied / _least_seconds(lambda: target.copy_(source), device, timer)


def _least_seconds(run: Callable[[], Tensor], device: torch.device, timer: Timer) -> float:
    run()
    return min(timer(run, device) for _ in range(_REPEATS))
