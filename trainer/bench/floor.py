"""How fast a step could be at best: its arithmetic and its traffic at the speed of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDE = 2048  # of the matrices that are multiplied
_COPY_BYTES = 2**28
_REPEATS = 5
_FLOAT_BYTES = 4
# Passes over an fp32 weight: forward and backward pass read it and the gradient is written; Adam
# reads weight, gradient and two moments, and writes all but the gradient.
_PASSES_OF_GRADIENT, _PASSES_OF_ADAM = 3, 7


@dataclass(frozen=True)
class Rates:
    """What the machine can do at best.

    Attributes:
        flops: Operations per second in products.
        traffic: Bytes per second in copying, those read and those written.
    """

    flops: float
    traffic: float

    def floor_ms(self, flops: int, weights: int, *, optimizer: bool) -> float:
        """The least milliseconds of a step.

        Forward and backward pass take as long as their arithmetic or as the traffic of the weights,
        whichever is more; the traffic of the optimizer comes on top.

        Args:
            flops: Of forward and backward pass.
            weights: Trained parameters, in fp32.
            optimizer: Whether the step has Adam in it.
        """
        one_pass = _FLOAT_BYTES * weights / self.traffic
        seconds = max(flops / self.flops, _PASSES_OF_GRADIENT * one_pass)
        if optimizer:
            seconds += _PASSES_OF_ADAM * one_pass
        return seconds * 1e3


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measure the machine.

    Args:
        dtype: In which products are computed.
    """
    return Rates(_matmul_rate(device, dtype), _copy_rate(device))


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second: a convolution is a product too, by a library that may be faster."""
    square = torch.randn(_SIDE, _SIDE, device=device, dtype=dtype)
    kernel = torch.randn(64, 64, 3, 3, device=device, dtype=dtype)
    maps = torch.randn(64, 64, 32, 32, device=device, dtype=dtype)
    maps = maps.contiguous(memory_format=torch.channels_last)
    convolved = 2 * maps.numel() * kernel[0].numel()
    return max(
        2 * _SIDE**3 / _least_seconds(lambda: square @ square, device),
        convolved / _least_seconds(lambda: F.conv2d(maps, kernel, padding=1), device),
    )


def _copy_rate(device: torch.device) -> float:
    """Bytes per second, those read and those written."""
    source = torch.zeros(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * _COPY_BYTES / _least_seconds(lambda: target.copy_(source), device)


def _least_seconds(run: Callable[[], Tensor], device: torch.device) -> float:
    run()
    return min(timed(run, device) for _ in range(_REPEATS))


def timed(run: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds that a function takes, with the device's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
