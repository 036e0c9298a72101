"""Activation checkpointing of a module, which may also be compiled or have running statistics."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def call(module: nn.Module, inputs: Tensor, *, compiled: bool = True) -> Tensor:
    """Return the module's output, by its compiled code or without it."""
    return module(inputs) if compiled else module._call_impl(inputs)


def recomputed(module: nn.Module, inputs: Tensor, *, compiled: bool = True) -> Tensor:
    """Return the module's output; the backward pass computes its activations again.

    The second forward pass leaves the running statistics as they are.
    """
    return checkpoint(
        functools.partial(call, module, compiled=compiled),
        inputs,
        use_reentrant=False,
        context_fn=functools.partial(_contexts, module),
        # ZeRO 3 frees a weight after its use: a saved tensor then has another shape than before.
        determinism_check="none",
    )


def _contexts(
    module: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _unchanged_buffers(module)


@contextmanager
def _unchanged_buffers(module: nn.Module) -> Iterator[None]:
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)
