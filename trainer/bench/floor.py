"""Compute a lower bound of a step's time from its operations and memory traffic."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Timer = Callable[[Callable[[], Tensor], torch.device], float]  # return a function's seconds

_SIDE = 2048  # rows and columns of the matrices that are multiplied
_COPY_BYTES = 2**28
_REPEATS = 5
_FLOAT_BYTES = 4
# Accesses to each fp32 weight: the forward and the backward pass read it, the backward pass writes
# its gradient; Adam reads weight, gradient and two moments, and writes all but the gradient.
_PASSES_OF_GRADIENT, _PASSES_OF_ADAM = 3, 7


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
    """Return the seconds of a function, including its work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure_rates(device: torch.device, dtype: torch.dtype, timer: Timer = timed) -> Rates:
    """Measure the peak rates of the machine.

    Args:
        device: Device to measure.
        dtype: Type of matrix products and convolutions.
        timer: Function that measures the seconds of a function.
    """
    return Rates(_matmul_rate(device, dtype, timer), _copy_rate(device, timer))


def _matmul_rate(device: torch.device, dtype: torch.dtype, timer: Timer) -> float:
    """Return the operations per second of a matrix product or a convolution, the higher rate."""
    square = torch.randn(_SIDE, _SIDE, device=device, dtype=dtype)
    kernel = torch.randn(64, 64, 3, 3, device=device, dtype=dtype)
    maps = torch.randn(64, 64, 32, 32, device=device, dtype=dtype)
    maps = maps.contiguous(memory_format=torch.channels_last)
    convolved = 2 * maps.numel() * kernel[0].numel()
    return max(
        2 * _SIDE**3 / _least_seconds(lambda: square @ square, device, timer),
        convolved / _least_seconds(lambda: F.conv2d(maps, kernel, padding=1), device, timer),
    )


def _copy_rate(device: torch.device, timer: Timer) -> float:
    """Return the bytes per second of a copy, the sum of read and written bytes."""
    source = torch.zeros(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * _COPY_BYTES / _least_seconds(lambda: target.copy_(source), device, timer)


def _least_seconds(run: Callable[[], Tensor], device: torch.device, timer: Timer) -> float:
    run()
    return min(timer(run, device) for _ in range(_REPEATS))
