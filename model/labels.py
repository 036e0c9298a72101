"""The label side of a network: from the labels of a batch to targets and loss weights.

Legend: N tasks, N_s tasks that are not dense, B batch, C channels, H, W.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from model.kinds.kind import get_kind
from model.losses.loss import get_loss
from model.tasks.spec import TaskSpec
from model.tasks.targets import TargetBuilder, Targets


class TaskLabels(nn.Module):
    """The tasks of a network, which share stacked heads, and their labels.

    Args:
        tasks: The N tasks.
        members: Per stack the tasks of one signature.
        image_size: H and W.
    """

    def __init__(
        self,
        tasks: Sequence[TaskSpec],
        members: Mapping[str, Sequence[int]],
        image_size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.num_tasks = len(self.tasks)
        self.image_size = (image_size[0], image_size[1])
        self._members = members
        self._builders = {
            name: TargetBuilder([self.tasks[task] for task in own]) for name, own in members.items()
        }
        self._register_label_rows()

    def stack_spec(self, name: str) -> TaskSpec:
        """Return a task of the stack; all of them agree in kind, outputs and loss."""
        return self.tasks[self._members[name][0]]

    def _register_label_rows(self) -> None:
        """Keep on the device which rows of `valid` and of `scalars` belong to each stack."""
        scalar_row = {
            task: row
            for row, task in enumerate(t for t in range(self.num_tasks) if not self.tasks[t].dense)
        }
        for name, members in self._members.items():
            self.register_buffer(f"tasks_{name}", torch.tensor(members), persistent=False)
            if not self.stack_spec(name).dense:
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
            if self.stack_spec(name).dense:
                raw = [self._checked(dense[self.tasks[task].name], task) for task in members]
            else:
                raw = scalars.index_select(0, self.get_buffer(f"scalars_{name}"))
            own_valid = valid.index_select(0, self.get_buffer(f"tasks_{name}"))
            targets[name] = self._builders[name](raw, own_valid)
        return targets

    def _checked(self, labels: Tensor, task: int) -> Tensor:
        spec = self.tasks[task]
        channels = get_kind(spec.kind).stored_channels(spec)
        if labels.shape[1:] != (channels, *self.image_size):
            raise ValueError(
                f"labels of task {spec.name!r} have shape {tuple(labels.shape)}, "
                f"must be (B, {channels}, {self.image_size[0]}, {self.image_size[1]})"
            )
        return labels

    def weights(self, targets: Mapping[str, Targets]) -> Tensor:
        """Return per task the sum of its samples' loss weights, fp32 [N]."""
        tasks = [self.get_buffer(f"tasks_{name}") for name in targets]
        sums = [
            get_loss(self.stack_spec(name).loss).sample_weights(own).sum(dim=1)
            for name, own in targets.items()
        ]
        total = torch.zeros(self.num_tasks, device=sums[0].device)
        return total.index_copy(0, torch.cat(tasks), torch.cat(sums))

    @property
    def residual_tasks(self) -> Tensor:
        """The task of every residual of the gradient statistics, long [R]; ordered by task."""
        return torch.cat(
            [
                self.get_buffer(f"tasks_{name}").repeat_interleave(self.stack_spec(name).outputs)
                for name in self._members
            ]
        )

    def by_task(self, targets: Mapping[str, Targets]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return per task its target [B,...] and mask, as `model.metrics` takes them."""
        return {
            self.tasks[task].name: (own.target[row], own.mask[row])
            for name, own in targets.items()
            for row, task in enumerate(self._members[name])
        }
