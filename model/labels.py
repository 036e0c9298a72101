"""From the labels of a batch to targets and label counts.

Legend: N tasks, N_s tasks that are not dense, B batch, C channels, H, W.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from model.heads.layout import HeadLayout
from model.kinds.kind import get_kind
from model.losses.loss import get_loss
from model.tasks.spec import TaskSpec
from model.tasks.targets import TargetBuilder, Targets


class TaskLabels(nn.Module):
    """Turns labels into targets, with the tasks in the order of a network's stacked heads.

    A module because its indices move to the device with the network; it has no parameters and
    nothing of it is saved.

    Args:
        tasks: The N tasks.
        layout: Of the network's heads; all tasks of a stack get one target tensor.
        image_size: H and W of dense labels.
    """

    def __init__(
        self, tasks: Sequence[TaskSpec], layout: HeadLayout, image_size: tuple[int, int]
    ) -> None:
        super().__init__()
        self._tasks = tuple(tasks)
        self._image_size = image_size
        self._members, self._specs = layout.members, layout.specs
        self._builders = {
            name: TargetBuilder([self._tasks[task] for task in members])
            for name, members in self._members.items()
        }
        self._register_label_rows()

    def _register_label_rows(self) -> None:
        """Register as buffers which rows of `valid` and of `scalars` belong to each stack."""
        scalar_tasks = (number for number, task in enumerate(self._tasks) if not task.dense)
        scalar_row = {task: row for row, task in enumerate(scalar_tasks)}
        for name, members in self._members.items():
            self.register_buffer(f"tasks_{name}", torch.tensor(members), persistent=False)
            if not self._specs[name].dense:
                rows = torch.tensor([scalar_row[task] for task in members])
                self.register_buffer(f"scalars_{name}", rows, persistent=False)

    @torch.no_grad()
    def targets(
        self, scalars: Tensor, dense: Mapping[str, Tensor], valid: Tensor
    ) -> dict[str, Targets]:
        """Turn raw labels into targets, per stack.

        Args:
            scalars: fp32 [N_s,B], the rows being the tasks that are not dense, in task order.
            dense: Per dense task [B,C,H,W] of any dtype.
            valid: Which samples have a label, bool [N,B].

        Raises:
            ValueError: If dense labels have another shape.
        """
        targets = {}
        for name, members in self._members.items():
            raw: Tensor | list[Tensor]
            if self._specs[name].dense:
                raw = [self._checked(dense[self._tasks[task].name], task) for task in members]
            else:
                raw = scalars.index_select(0, self.get_buffer(f"scalars_{name}"))
            labelled = valid.index_select(0, self.get_buffer(f"tasks_{name}"))
            targets[name] = self._builders[name](raw, labelled)
        return targets

    def _checked(self, labels: Tensor, task: int) -> Tensor:
        spec = self._tasks[task]
        channels = get_kind(spec.kind).stored_channels(spec)
        if labels.shape[1:] != (channels, *self._image_size):
            raise ValueError(
                f"labels of task {spec.name!r} have shape {tuple(labels.shape)}, "
                f"must be (B, {channels}, {self._image_size[0]}, {self._image_size[1]})"
            )
        return labels

    def label_counts(self, targets: Mapping[str, Targets]) -> Tensor:
        """Return per task what its summed losses are divided by for their mean, fp32 [N].

        That is the number of its labelled samples, or of its labelled pixels, as its loss counts.
        """
        tasks = [self.get_buffer(f"tasks_{name}") for name in targets]
        counts = [
            get_loss(self._specs[name].loss).sample_weights(target).sum(dim=1)
            for name, target in targets.items()
        ]
        total = torch.zeros(len(self._tasks), device=counts[0].device)
        return total.index_copy(0, torch.cat(tasks), torch.cat(counts))

    @property
    def residual_tasks(self) -> Tensor:
        """Return the task of every residual of the gradient statistics, long [R]."""
        return torch.cat(
            [
                self.get_buffer(f"tasks_{name}").repeat_interleave(self._specs[name].outputs)
                for name in self._members
            ]
        )

    def by_task(self, targets: Mapping[str, Targets]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return per task its target [B,...] and mask, as `model.metrics` takes them."""
        return {
            self._tasks[task].name: (stacked.target[row], stacked.mask[row])
            for name, stacked in targets.items()
            for row, task in enumerate(self._members[name])
        }
