"""Nothing on a GPU waits for it: copies to it, the next batch, and synchronised batch norms."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from data_pipelines.reading.collate import Batch
from data_pipelines.reading.transfer import on_device
from model.sync_batch_norm import _Normalise
from model.transfer import copy_to_device

pytestmark = pytest.mark.gpu(emulated=False)
DEVICE = torch.device("cuda")


@pytest.fixture
def no_waits() -> Iterator[None]:
    torch.ones(1, device=DEVICE)  # the context is made
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def alone(tmp_path) -> Iterator[None]:
    """A group of this process, with the collectives of a GPU."""
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    dist.all_reduce(torch.ones(1, device=DEVICE))
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("no_waits")
def test_copies_do_not_wait():
    with pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones(3).to(DEVICE)
    copied = [copy_to_device(torch.full((1000,), float(n)), DEVICE) for n in range(100)]
    torch.cuda.set_sync_debug_mode("default")
    assert [float(values.sum()) for values in copied] == [1000.0 * n for n in range(100)]


def batch(number):
    return Batch(
        tasks=("a", "b"), scalar_tasks=("a",),
        images=torch.full((16, 3, 256, 256), number, dtype=torch.uint8),
        scalars=torch.full((1, 16), float(number)), dense={"b": torch.full((16, 1, 8, 8), number)},
        valid_rows=torch.ones(2, 16, dtype=torch.bool), keys=("x",) * 16,
    )  # fmt: skip


@pytest.mark.usefixtures("no_waits")
def test_batches_arrive_whole_while_the_device_works():
    """Their memory is not reused before the work on them is done."""
    factor = torch.rand(4096, 4096, device=DEVICE)
    sums = []
    for moved in on_device((batch(n) for n in range(40)), DEVICE):
        for _ in range(4):
            factor = (factor @ factor).clamp(0, 1)  # the host is far ahead
        parts = (moved.images, moved.scalars, moved.dense["b"])
        sums.append(torch.stack([part.double().mean() for part in parts]))
    torch.cuda.set_sync_debug_mode("default")
    assert [values.tolist() for values in sums] == [[n] * 3 for n in range(40)]


@pytest.mark.usefixtures("alone", "no_waits")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("affine", [True, False])
def test_a_synchronised_norm_is_a_batch_norm_and_does_not_wait(dtype, layout, affine):
    generator = torch.Generator(DEVICE).manual_seed(0)
    options = {"generator": generator, "device": DEVICE}
    maps = (3 + 2 * torch.randn(8, 32, 20, 12, **options)).to(dtype, memory_format=layout)
    gradient = torch.randn(maps.shape, **options).to(dtype, memory_format=layout)
    weight = torch.rand(32, **options).requires_grad_() if affine else None
    bias = torch.rand(32, **options).requires_grad_() if affine else None
    inputs = maps.requires_grad_(), *([weight, bias] if affine else [])
    found, mean, variance, count = _Normalise.apply(maps, weight, bias, 1e-5)
    expected = F.batch_norm(maps, None, None, weight, bias, training=True)
    pairs = zip(
        torch.autograd.grad(found, inputs, gradient),
        torch.autograd.grad(expected, inputs, gradient),
        strict=True,
    )
    torch.cuda.set_sync_debug_mode("default")
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
    torch.testing.assert_close(found, expected, **close)
    assert found.dtype == dtype and found.is_contiguous(memory_format=layout)
    for one, other in pairs:
        torch.testing.assert_close(one, other, **close)
    values = maps.detach().double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(mean.double(), values.mean(dim=1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        variance.double(), values.var(dim=1, correction=0), rtol=1e-3, atol=0
    )
    assert int(count) == 8 * 20 * 12
