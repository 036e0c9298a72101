"""A lower bound of a step's time: its arithmetic and memory traffic at this machine's rates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Timer = Callable[[Callable[[], Tensor], torch.device], float]  # seconds that a function takes

_SIDE = 2048  # rows and columns of the matrices that are multiplied
_COPY_BYTES = 2**28
_REPEATS = 5
_FLOAT_BYTES = 4
# Passes over an fp32 weight: forward and backward pass read it and the gradient is written; Adam
# reads weight, gradient and two moments, and writes all but the gradient.
_PASSES_OF_GRADIENT, _PASSES_OF_ADAM = 3, 7


@dataclass(frozen=True)
class Rates:
    """Highest rates of a machine.

    Attributes:
        flops: Operations per second in products.
        traffic: Bytes per second in copies, read and written bytes together.
    """

    flops: float
    traffic: float

    def floor_ms(self, flops: int, weights: int, *, optimizer: bool) -> float:
        """Return a lower bound of a step's milliseconds.

        Forward and backward pass take the longer of the times of their arithmetic and of the
        traffic of the weights; the traffic of the optimizer is added.

        Args:
            flops: Operations of forward and backward pass.
            weights: Number of trained parameters, in fp32.
            optimizer: Whether the step includes Adam.
        """
        one_pass = _FLOAT_BYTES * weights / self.traffic
        seconds = max(flops / self.flops, _PASSES_OF_GRADIENT * one_pass)
        if optimizer:
            seconds += _PASSES_OF_ADAM * one_pass
        return seconds * 1e3


def timed(run: Callable[[], Tensor], device: torch.device) -> float:
    """Return the seconds that a function takes, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure_rates(device: torch.device, dtype: torch.dtype, timer: Timer = timed) -> Rates:
    """Measure the machine.

    Args:
        dtype: Type in which products are computed.
        timer: Measures the seconds of a function.
    """
    return Rates(_matmul_rate(device, dtype, timer), _copy_rate(device, timer))


def _matmul_rate(device: torch.device, dtype: torch.dtype, timer: Timer) -> float:
    """Return operations per second, of a matrix product or a convolution, whichever is faster."""
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
    """Return bytes per second, read and written bytes together."""
    source = torch.zeros(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * _COPY_BYTES / _least_seconds(lambda: target.copy_(source), device, timer)


def _least_seconds(run: Callable[[], Tensor], device: torch.device, timer: Timer) -> float:
    run()
    return min(timer(run, device) for _ in range(_REPEATS))
