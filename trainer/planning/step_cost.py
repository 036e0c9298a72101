"""What a training step of a network allocates and computes, found without doing either.

The step runs on fake tensors: every operation tells shapes and types, nothing is stored. Counted
is what operations return; what a kernel needs inside, as cuDNN's workspaces, is not.

Legend: N tasks, K branches, B batch, C channels, H, W image size.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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
from trainer.monitoring.flops import flop_counter

LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepCost:
    """Of one micro-batch, in bytes and operations; weights and buffers are not part of it.

    Attributes:
        batch: Images and labels.
        targets: The labels, scaled and masked.
        activations: What forward leaves for backward, beside the targets.
        copies: Copies of weights in lower precision, which autocast makes; part of `activations`.
        peak: Most that is alive at once, batch included, where every gradient of a parameter is
            taken away as soon as it is there.
        peak_with_gradients: The same where these gradients stay.
        flops: Of forward and backward; a multiplication and an addition are two.
    """

    batch: int
    targets: int
    activations: int
    copies: int
    peak: int
    peak_with_gradients: int
    flops: int


class AllocationTracker(TorchDispatchMode):
    """Follows the bytes of all tensors that operations make while it is open.

    `torch.distributed._tools.mem_tracker.MemTracker` finds the same peaks and much more, in a time
    that grows with modules times operations: half a minute for a network of two hundred layers.

    Args:
        parameters: Whose gradients are told apart.

    Attributes:
        alive: Bytes alive now.
        copies: Bytes alive now that are parameters in another precision.
        peak: Most bytes at once without the finished gradients of the parameters.
        peak_with_gradients: Most bytes at once.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.alive = self.copies = self.peak = self.peak_with_gradients = 0
        self._gradients = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._weights = set()
        for parameter in parameters:
            self._weights.add(parameter.untyped_storage()._cdata)
            parameter.register_post_accumulate_grad_hook(self._finish)

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an operator
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever it returns
        result = func(*args, **(kwargs or {}))
        made = [self.add(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in (
            self._weights
        ):
            self.copies += sum(made)
        return result

    def add(self, tensor: Tensor) -> int:
        """Count a tensor unless it is known; returns its bytes if it is new."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in self._weights:
            return 0

        def forget(_: object) -> None:
            del self._known[key]
            self.alive -= size

        self._known[key] = weakref.ref(storage, forget)
        self.alive += size
        self.peak_with_gradients = max(self.peak_with_gradients, self.alive)
        self.peak = max(self.peak, self.alive - self._gradients)
        return size

    def _finish(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._gradients += parameter.grad.untyped_storage().nbytes()


def empty_batch(tasks: Sequence[TaskSpec], size: int, image_shape: tuple[int, int, int]) -> Batch:
    """A batch of `size` samples that have every label, of zeros, in the types that shards store.

    Args:
        image_shape: C, H and W; what has not three channels is in floats.
    """
    channels, *picture = image_shape
    scalar = [task for task in tasks if not task.dense]
    maps = [task for task in tasks if task.dense]
    return Batch(
        tasks=tuple(task.name for task in tasks),
        scalar_tasks=tuple(task.name for task in scalar),
        images=torch.zeros(
            size, channels, *picture, dtype=torch.uint8 if channels == 3 else torch.float32
        ),
        scalars=torch.zeros(len(scalar), size),
        dense={
            task.name: torch.zeros(
                size,
                get_kind(task.kind).stored_channels(task),
                *picture,
                dtype=get_kind(task.kind).stored_dtype,
            )
            for task in maps
        },
        valid_rows=torch.ones(len(tasks), size, dtype=torch.bool),
        keys=("",) * size,
    )


def autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    """The arithmetic of a precision: fp32, bf16 or fp16."""
    if precision not in LOW_PRECISION:
        return nullcontext()
    return torch.autocast(device, LOW_PRECISION[precision])


def step_cost(
    network: MultiTaskNetwork,
    heads: Sequence[Head],
    micro_batch: int,
    precision: str,
    *,
    gradient_statistics: bool = False,
    device: str = "cpu",
) -> StepCost:
    """The cost of forward and backward of one micro-batch, of a copy without storage.

    Args:
        network: May have no storage itself, as on the device `meta`.
        heads: That are computed.
        micro_batch: B.
        precision: fp32, bf16 or fp16.
        gradient_statistics: Whether the network's gradient_statistics are asked for, too.
        device: cpu or cuda, on which some layers keep more.
    """
    with torch.device("meta"):
        bare = MultiTaskNetwork.from_config(network.config())
    image_shape = (len(network.image_mean), *network.image_size)
    counter = flop_counter()
    with FakeTensorMode(allow_non_fake_inputs=True), counter:
        copy = bare.to_empty(device="cpu")
        copy.activation_checkpointing = network.activation_checkpointing
        for module in copy.modules():
            if isinstance(module, PooledStem):
                module.in_parts = device == "cpu"
        # What is fake here must be made here: indices of heads and rows of labels, too.
        selection = copy.select(heads)
        tracker = AllocationTracker(copy.parameters())
        batch = empty_batch(network.tasks, micro_batch, image_shape)
        held = (batch.images, batch.scalars, batch.valid_rows, *batch.dense.values())
        size = sum(tracker.add(tensor) for tensor in held)
        with tracker:
            targets = copy.labels.targets(batch.scalars, batch.dense, batch.valid_rows)
            before = tracker.alive
            with autocast(precision, "cpu"):
                losses = copy(
                    batch.images, selection, targets, gradient_statistics=gradient_statistics
                )["losses"]
            objective = (torch.ones_like(losses) * losses).sum()
            activations, copies = tracker.alive - before, tracker.copies
            objective.backward()
    return StepCost(
        batch=size,
        targets=before - size,
        activations=activations,
        copies=copies,
        peak=tracker.peak,
        peak_with_gradients=tracker.peak_with_gradients,
        flops=counter.get_total_flops(),
    )
