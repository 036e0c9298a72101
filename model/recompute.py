"""Activation checkpointing of a module, which may have running statistics."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.compilation import Run, call


def recomputed(module: nn.Module, inputs: Tensor, run: Run = call) -> Tensor:
    """Return the module's output; the backward pass computes its activations again.

    The second forward pass leaves the running statistics as they are.

    Args:
        run: How both passes compute the output.
    """
    return checkpoint(
        run,
        module,
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
