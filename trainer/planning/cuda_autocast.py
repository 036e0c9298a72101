"""Follow CUDA's autocast lists on tensors of the CPU, to plan the memory of a GPU without one.

On a GPU autocast computes more operators in fp32 than on a CPU, among them group and layer
normalisation and interpolation, whose inputs in fp32 are stored for the backward pass. Fake tensors
of a GPU would use these lists themselves, but a build of torch without CUDA cannot differentiate
them (torch 2.13: only a build with CUDA gets the device guard that `FakeTensorMode` installs).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.library import _scoped_library, fallthrough_kernel
from torch.utils._pytree import tree_leaves, tree_map

# Of the operators with a kernel for CUDA's autocast, those that compute in low precision and those
# that compute in the highest precision of their inputs (torch 2.13, ATen/autocast_mode.h, and the
# cuDNN convolutions of autocast_mode.cpp); binary_cross_entropy is refused there, all others
# compute in fp32.
_LOW_PRECISION = {
    "_convolution", "_convolution.deprecated", "conv1d", "conv2d", "conv3d", "conv_tbc",
    "conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input", "convolution",
    "cudnn_convolution", "cudnn_convolution_transpose", "prelu", "addmm", "addmv", "addr", "matmul",
    "einsum", "mm", "mv", "linalg_vecdot", "linear", "addbmm", "baddbmm", "bmm", "chain_matmul",
    "linalg_multi_dot", "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "lstm_cell", "gru_cell",
    "rnn_tanh_cell", "rnn_relu_cell", "_scaled_dot_product_flash_attention",
    "scaled_dot_product_attention",
}  # fmt: skip
_HIGHEST_OF_INPUTS = {
    "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler", "index_put",
    "tensordot", "scatter_add",
}  # fmt: skip
_KEY = "AutocastCPU"


@contextmanager
def cuda_lists() -> Iterator[None]:
    """Context in which `torch.autocast("cpu", ...)` follows the lists of CUDA.

    Meanwhile the kernels that autocast has on the CPU are replaced for the whole process. Those of
    products and convolutions remain: they are the same, and cast a weight only once.
    """
    on_cpu, on_cuda = _operators(_KEY), _operators("AutocastCUDA")
    with _scoped_library("aten", "IMPL") as library, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        for name in on_cpu - on_cuda:
            library.impl(name, fallthrough_kernel, _KEY)
        for name in on_cuda - (on_cpu & _LOW_PRECISION):
            library.impl(name, _kernel(name), _KEY)
        yield


def _operators(key: str) -> set[str]:
    """Return the names, without `aten::`, of the operators with a kernel for a dispatch key."""
    registered = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    return {name.removeprefix("aten::") for name in registered if name.startswith("aten::")}


def _kernel(name: str) -> Callable[..., Any]:
    """Return the autocast kernel of an operator: cast its inputs, then call it without autocast."""
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
    # CUDA's autocast does not cast the input of a sum or softmax: it sets the type of the result.
    arguments = [argument.name for argument in operator._schema.arguments]
    dtype_position = arguments.index("dtype") if "dtype" in arguments else None

    def kernel(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - of any operator
        with torch.autocast("cpu", enabled=False):
            if dtype_position is not None:
                is_given = len(args) > dtype_position or kwargs.get("dtype") is not None
                if _is_cast(args[0]) and not is_given:
                    kwargs = {**kwargs, "dtype": torch.float32}
                return operator(*args, **kwargs)
            dtype = _dtype(name, [args, kwargs])

            def cast(value: Any) -> Any:  # noqa: ANN401 - of any argument
                return value.to(dtype) if _is_cast(value) else value

            return operator(*tree_map(cast, args), **tree_map(cast, kwargs))

    return kernel


def _dtype(name: str, inputs: object) -> torch.dtype:
    """Return the type in which CUDA's autocast computes an operator."""
    low = torch.get_autocast_dtype("cpu")
    if name in _LOW_PRECISION:
        return low
    if name in _HIGHEST_OF_INPUTS:
        types = {leaf.dtype for leaf in tree_leaves(inputs) if _is_cast(leaf)}
        return low if types <= {low} else torch.float32
    return torch.float32


def _is_cast(value: object) -> bool:
    """Return whether autocast casts a value: tensors of any floating-point type but fp64."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
