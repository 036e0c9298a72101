import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from trainer.planning import cuda_autocast
from trainer.planning.cuda_autocast import cuda_lists

BF16, FP32 = torch.bfloat16, torch.float32
# What the header lists with a signature of its own, or autocast_mode.cpp adds.
FP32_ELSEWHERE = {"norm.Scalar", "norm.ScalarOpt_dim", "binary_cross_entropy"}
LOW_ELSEWHERE = {"cudnn_convolution", "cudnn_convolution_transpose"}


def listed_by_torch(name):
    header = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
    (body,) = re.findall(
        rf"#define AT_FORALL_{name}\(_\)(.*?)\n\n", header.read_text(), flags=re.DOTALL
    )
    return {found.replace(", ", ".") for found in re.findall(r"_\(([\w, ]+)\)", body)}


def test_the_lists_are_those_of_the_installed_torch():
    low, highest = listed_by_torch("LOWER_PRECISION_FP"), listed_by_torch("PROMOTE")
    fp32, typed = listed_by_torch("FP32"), listed_by_torch("FP32_SET_OPT_DTYPE")
    assert low | LOW_ELSEWHERE == cuda_autocast._LOW_PRECISION
    assert highest == cuda_autocast._HIGHEST_OF_INPUTS
    every = cuda_autocast._operators("AutocastCUDA")
    assert every == low | LOW_ELSEWHERE | highest | fp32 | typed | FP32_ELSEWHERE
    assert typed == {name for name in every if takes_dtype(name)}
    kept = every & cuda_autocast._operators("AutocastCPU") & cuda_autocast._LOW_PRECISION
    assert {"conv2d", "linear", "matmul", "bmm", "scaled_dot_product_attention"} <= kept


def takes_dtype(name):
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
    return "dtype" in [argument.name for argument in operator._schema.arguments]


@pytest.fixture
def low():
    return torch.randn(2, 4, 6, 6, dtype=BF16, requires_grad=True)


# name: the call, its type on the CPU, and on CUDA
CALLS = {
    "group_norm": (lambda x: F.group_norm(x, 2), BF16, FP32),
    "layer_norm": (lambda x: F.layer_norm(x, (6,)), BF16, FP32),
    "batch_norm": (
        lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4), training=True), BF16, BF16,
    ),
    "interpolate": (lambda x: F.interpolate(x, (9, 9), mode="bilinear"), BF16, FP32),
    "softmax": (lambda x: x.softmax(1), BF16, FP32),
    "softmax of a type": (lambda x: x.softmax(1, dtype=BF16), BF16, BF16),
    "sum": (lambda x: x.sum(), BF16, FP32),
    "sum of integers": (lambda x: x.long().sum(), torch.int64, torch.int64),
    "mean": (lambda x: x.mean(), BF16, BF16),
    "vector_norm": (lambda x: torch.linalg.vector_norm(x, dim=(2, 3)), BF16, FP32),
    "exp": (lambda x: x.exp(), BF16, FP32),
    "gelu": (F.gelu, BF16, BF16),
    "reflection": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), FP32, BF16),
    "grid_sample": (
        lambda x: F.grid_sample(x, torch.zeros(2, 3, 3, 2, dtype=BF16), align_corners=True),
        FP32, BF16,
    ),
    "einsum": (lambda x: torch.einsum("abcd,abce->de", x, x.float()), BF16, BF16),
    "conv2d": (lambda x: F.conv2d(x.float(), torch.zeros(3, 4, 3, 3)), BF16, BF16),
    "cross_entropy": (
        lambda x: F.cross_entropy(x, torch.zeros(2, 6, 6, dtype=torch.long)), FP32, FP32,
    ),
    "l1_loss": (lambda x: F.l1_loss(x, x), FP32, FP32),
    "fp64": (lambda x: F.layer_norm(x.double(), (6,)), torch.float64, torch.float64),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_the_type_of_a_result(name, low):
    call, on_cpu, on_cuda = CALLS[name]
    with cuda_lists(), torch.autocast("cpu", BF16):
        found = call(low)
        assert found.dtype == on_cuda
        if found.is_floating_point():
            found.float().sum().backward()
            assert low.grad is not None and low.grad.dtype == BF16
    with torch.autocast("cpu", BF16):
        assert call(low.detach()).dtype == on_cpu, "the CPU's own lists hold again"


def test_what_autocast_does_not_cover_stays_as_it_is(low):
    with cuda_lists():
        assert F.layer_norm(low, (6,)).dtype == BF16


def test_a_sum_makes_no_copy_of_its_input_in_fp32(low):
    calls = []

    class Calls(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func)
            return func(*args, **(kwargs or {}))

    with cuda_lists(), torch.autocast("cpu", BF16), Calls():
        low.sum()
    assert torch.ops.aten._to_copy.default not in calls, calls
