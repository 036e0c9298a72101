"""Batches of tensors; all scalar labels share one tensor."""
# Shapes: B batch, N tasks, N_s scalar tasks, C channels, H, W.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from data_pipelines.errors import DataError
from data_pipelines.reading.fields import Label
from data_pipelines.reading.samples import Sample


@dataclass(frozen=True, eq=False)
class Batch:
    """Images and labels of several samples.

    Attributes:
        tasks: Task of each row of `valid_rows`.
        scalar_tasks: Task of each row of `scalars`.
        images: Images with values from 0 to 255.
        scalars: Class ids, 0/1 or values in stored units; 0 where invalid.
        dense: Dense labels by task in the stored dtype; 0 where missing.
        valid_rows: Whether the sample has the label.
        keys: Names of the samples; empty for a filler or a replaced sample.
        damage: The error of each damaged sample that was replaced.
    """

    tasks: tuple[str, ...]
    scalar_tasks: tuple[str, ...]
    images: Tensor  # [B,3,H,W] uint8
    scalars: Tensor  # [N_s,B] float32
    dense: dict[str, Tensor]  # each [B,C,H,W]
    valid_rows: Tensor  # [N,B] bool
    keys: tuple[str, ...]
    damage: tuple[str, ...] = ()

    @property
    def labels(self) -> dict[str, Tensor]:
        """Labels by task: [B] for scalar tasks, [B,C,H,W] for dense ones."""
        return dict(zip(self.scalar_tasks, self.scalars.unbind(), strict=True)) | self.dense

    @property
    def valid(self) -> dict[str, Tensor]:
        """Whether the sample has the label, by task: [B]."""
        return dict(zip(self.tasks, self.valid_rows.unbind(), strict=True))

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """Return the batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; the DataLoader calls it with `pin_memory`."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            images=function(self.images),
            scalars=function(self.scalars),
            dense={task: function(tensor) for task, tensor in self.dense.items()},
            valid_rows=function(self.valid_rows),
        )


class Collate:
    """Stack samples to a batch.

    Args:
        labels: The dataset's labels, one per task.
    """

    def __init__(self, labels: Sequence[Label]) -> None:
        self.tasks = tuple(label.task for label in labels)
        self.scalar_tasks = tuple(label.task for label in labels if label.field.is_scalar)
        self.dense_labels = tuple(label for label in labels if not label.field.is_scalar)

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Return the batch of the samples.

        Raises:
            DataError: Samples store one field in different dtypes.
        """
        return Batch(
            tasks=self.tasks,
            scalar_tasks=self.scalar_tasks,
            images=torch.from_numpy(np.stack([sample.image for sample in samples])).contiguous(),
            scalars=torch.from_numpy(np.stack([s.scalars for s in samples], axis=1)),
            dense={label.task: _stack_dense(label, samples) for label in self.dense_labels},
            valid_rows=torch.from_numpy(np.stack([s.valid for s in samples], axis=1)),
            keys=tuple(sample.key for sample in samples),
            damage=tuple(sample.damage for sample in samples if sample.damage),
        )


def _stack_dense(label: Label, samples: Sequence[Sample]) -> Tensor:
    pictures = {n: s.dense[label.task] for n, s in enumerate(samples) if label.task in s.dense}
    dtypes = {picture.dtype for picture in pictures.values()}
    if len(dtypes) > 1:
        first = {p.dtype: samples[number].key for number, p in reversed(pictures.items())}
        named = ", ".join(f"{dtype} in sample {key}" for dtype, key in first.items())
        raise DataError(
            f"field {label.request.field}: one dtype is needed, found {named}; `dtype` in the "
            "manifest's field tells which is wrong"
        )
    size = samples[0].image.shape[1:]
    stacked = np.zeros((len(samples), label.channels, *size), dtypes.pop() if dtypes else np.uint8)
    for number, picture in pictures.items():
        stacked[number] = picture
    return torch.from_numpy(stacked)
