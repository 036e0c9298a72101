"""Compiled code for the parts of a network, one graph for all parts of one structure."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[nn.Module, Tensor], Tensor]  # return a module's output


def call(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return the module's output."""
    return module(inputs)


def compiled_call(mode: str | None = None, **options: Any) -> Run:  # noqa: ANN401
    """Return a function that computes a module's output by compiled code.

    The module is an argument of the function that is compiled, and its parameters are inputs of the
    graph. So modules of one structure share a graph, also those of later networks, and the graph
    keeps none of them. Hooks of the module itself, such as those of FSDP2, run outside of it.

    `nn.Module.compile` compiles `Module._call_impl` (torch 2.13, `_dynamo/eval_frame.py`), which is
    torch's own code and not traced: of an `nn.Sequential` it compiles only those parts whose
    classes are defined elsewhere, each by itself.

    Args:
        mode: As `torch.compile` takes it.
        options: Other keywords of `torch.compile`.
    """
    compiled = torch.compile(_forward, mode=mode, **options)

    def run(module: nn.Module, inputs: Tensor) -> Tensor:
        # A function that is traced without an operation, as for the identity, is not compiled for
        # any later argument either (torch 2.13).
        if "forward" in vars(module) or not any(True for _ in module.parameters()):
            return module(inputs)
        if inputs.device.type != "cpu" and not _aligned(module):
            return module(inputs)
        module.forward = functools.partial(compiled, module)
        try:
            return module(inputs)
        finally:
            del module.forward

    return run


def _forward(module: nn.Module, inputs: Tensor) -> Tensor:
    return type(module).forward(module, inputs)


def _aligned(module: nn.Module) -> bool:
    """Return whether every parameter starts at a multiple of 16 bytes of its storage.

    Kernels for a GPU may assume it of all modules that share a graph, if it holds for the first of
    them: torch 2.13 does not check parameters again (`get_input_idxs_to_check` in
    `_inductor/compile_fx.py`). ZeRO 1 and 2 put parameters into one storage without gaps.
    """
    return all(p.storage_offset() * p.element_size() % 16 == 0 for p in module.parameters())
