"""Count the memory and the operations of a training step without executing it.

The step runs on fake tensors, which have shapes and types but no storage. The count includes the
results of operations; cuDNN's workspaces are estimated separately.

Legend: N tasks, K branches, B batch, C channels, H, W image size.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data_pipelines.reading.collate import Batch
from model.encoders.pooled_stem import PooledStem
from model.heads.layout import Head
from model.kinds.kind import get_kind
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec
from trainer.engines.device import LOW_PRECISION, autocast
from trainer.monitoring.flops import flop_counter
from trainer.planning.cuda_autocast import cuda_lists

_CONVOLUTION = torch.ops.aten.convolution.default
_CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward.default


@dataclass(frozen=True)
class StepCost:
    """The cost of one micro-batch in bytes and operations, without weights and buffers.

    Attributes:
        batch: Images and labels.
        targets: The labels, scaled and masked.
        activations: Tensors that the forward pass stores for the backward pass, without targets.
        copies: Copies of weights in lower precision that autocast makes; part of `activations`.
        peak: Peak of allocated bytes, batch included, if every gradient of a parameter is freed
            as soon as it is computed.
        peak_with_gradients: The same peak if these gradients are kept.
        flops: Operations of the forward and backward pass; a multiply-add counts as two.
        workspaces: Estimate of what cuDNN's workspaces add to the peaks; 0 on a CPU.
    """

    batch: int
    targets: int
    activations: int
    copies: int
    peak: int
    peak_with_gradients: int
    flops: int
    workspaces: int = 0


class AllocationTracker(TorchDispatchMode):
    """Tracks the bytes of all tensors that operations return inside its context.

    `torch.distributed._tools.mem_tracker.MemTracker` computes the same peaks and much more, but
    its time grows with modules times operations: half a minute for a network of 200 layers.

    Args:
        parameters: Parameters whose gradients are counted separately.

    Attributes:
        alive: Currently allocated bytes.
        copies: Currently allocated bytes of parameters in another precision.
        peak: Peak of allocated bytes without complete gradients of the parameters.
        peak_with_gradients: Peak of allocated bytes.
        peak_in_convolutions: `peak` over the convolutions alone, each with a workspace that holds
            copies of its input, weight and output. cuDNN needs these to change their layout; most
            of its other algorithms need less, and none is bound to.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.alive = self.copies = self.peak = self.peak_with_gradients = 0
        self.peak_in_convolutions = 0
        self._gradients = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._weight_keys = set()
        for parameter in parameters:
            self._weight_keys.add(parameter.untyped_storage()._cdata)
            parameter.register_post_accumulate_grad_hook(self._count_gradient)

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - operators have no common type
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - the result of any operator
        result = func(*args, **(kwargs or {}))
        sizes = [self.add(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        is_cast = func is torch.ops.aten._to_copy.default
        if is_cast and args[0].untyped_storage()._cdata in self._weight_keys:
            self.copies += sum(sizes)
        if func is _CONVOLUTION:
            self._count_workspace(*args[:2], result)
        elif func is _CONVOLUTION_BACKWARD:
            self._count_workspace(*args[:3])
        return result

    def _count_workspace(self, *tensors: Tensor) -> None:
        workspace = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        with_workspace = self.alive - self._gradients + workspace
        self.peak_in_convolutions = max(self.peak_in_convolutions, with_workspace)

    def add(self, tensor: Tensor) -> int:
        """Count the storage of a tensor once; return the bytes that it adds."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages or key in self._weight_keys:
            return 0

        def subtract(_: object) -> None:
            del self._storages[key]
            self.alive -= size

        self._storages[key] = weakref.ref(storage, subtract)
        self.alive += size
        self.peak_with_gradients = max(self.peak_with_gradients, self.alive)
        self.peak = max(self.peak, self.alive - self._gradients)
        return size

    def _count_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._gradients += parameter.grad.untyped_storage().nbytes()


def empty_batch(tasks: Sequence[TaskSpec], size: int, image_shape: tuple[int, int, int]) -> Batch:
    """Return a batch of zeros with every label, in the types that shards store.

    Args:
        tasks: Tasks of the labels.
        size: Number of samples B.
        image_shape: (C, H, W); images are uint8 if C is 3, otherwise float32.
    """
    channels, *pixels = image_shape
    scalar = [task for task in tasks if not task.dense]
    dense = [task for task in tasks if task.dense]
    return Batch(
        tasks=tuple(task.name for task in tasks),
        scalar_tasks=tuple(task.name for task in scalar),
        images=torch.zeros(
            size, channels, *pixels, dtype=torch.uint8 if channels == 3 else torch.float32
        ),
        scalars=torch.zeros(len(scalar), size),
        dense={
            task.name: torch.zeros(
                size,
                get_kind(task.kind).stored_channels(task),
                *pixels,
                dtype=get_kind(task.kind).stored_dtype,
            )
            for task in dense
        },
        valid_rows=torch.ones(len(tasks), size, dtype=torch.bool),
        keys=("",) * size,
    )


def step_cost(
    network: MultiTaskNetwork,
    heads: Sequence[Head],
    micro_batch: int,
    precision: str,
    *,
    gradient_statistics: bool = False,
    device: str = "cpu",
) -> StepCost:
    """Return the cost of the forward and backward pass of one micro-batch.

    Args:
        network: Network, which may be on the device `meta`.
        heads: Heads that the step computes.
        micro_batch: Number of samples B.
        precision: fp32, tf32, bf16 or fp16.
        gradient_statistics: Whether the step computes gradient statistics.
        device: cpu or cuda; on cuda some layers store more for the backward pass, and autocast
            computes more operators in fp32.
    """
    with torch.device("meta"):
        without_storage = MultiTaskNetwork.from_config(network.config())
    image_shape = (len(network.image_mean), *network.image_size)
    counter = flop_counter()
    low_on_gpu = device == "cuda" and precision in LOW_PRECISION
    lists = cuda_lists() if low_on_gpu else nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True), counter:
        copy = without_storage.to_empty(device="cpu")
        copy.activation_checkpointing = network.activation_checkpointing
        for module in copy.modules():
            if isinstance(module, PooledStem):
                module.in_parts = device == "cpu"
        # All tensors of the step are created in this mode, so that all of them are fake.
        selection = copy.select(heads)
        tracker = AllocationTracker(copy.parameters())
        batch = empty_batch(network.tasks, micro_batch, image_shape)
        tensors = (batch.images, batch.scalars, batch.valid_rows, *batch.dense.values())
        batch_bytes = sum(tracker.add(tensor) for tensor in tensors)
        with tracker:
            targets = copy.labels.targets(batch.scalars, batch.dense, batch.valid_rows)
            bytes_before = tracker.alive
            with lists:  # branches that are recomputed enter autocast again in the backward pass
                with autocast(precision, "cpu"):
                    losses = copy(
                        batch.images, selection, targets, gradient_statistics=gradient_statistics
                    )["losses"]
                objective = (torch.ones_like(losses) * losses).sum()
                activations, copies = tracker.alive - bytes_before, tracker.copies
                objective.backward()
    return StepCost(
        batch=batch_bytes,
        targets=bytes_before - batch_bytes,
        activations=activations,
        copies=copies,
        peak=tracker.peak,
        peak_with_gradients=tracker.peak_with_gradients,
        flops=counter.get_total_flops(),
        workspaces=max(0, tracker.peak_in_convolutions - tracker.peak) if device == "cuda" else 0,
    )
