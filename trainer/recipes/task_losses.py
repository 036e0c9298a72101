"""The losses of all tasks on one batch, as a function of the parameters that the tasks share.

Legend: N tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call

from data_pipelines.reading.collate import Batch
from trainer.errors import UserError
from trainer.recipes.observed_run import ObservedRun

if TYPE_CHECKING:
    from accelerate import Accelerator


class TaskLosses:
    """The losses [N] of a batch over all ranks; the network, its buffers and `.grad` stay as is.

    Attributes:
        shared: Copies of the encoder's parameters as leaves, which share their memory.
        labelled: Which tasks have a label in the batch of any rank, bool [N].
    """

    def __init__(self, run: ObservedRun, batch: Batch) -> None:
        self._run, self._images = run, batch.images
        module = run.engine.module
        named = {name: p.detach() for name, p in module.named_parameters()}
        self._heads = {name: p for name, p in named.items() if name.startswith("stacked_heads.")}
        self._names = [name for name in named if name not in self._heads]
        self.shared = [named[name].requires_grad_() for name in self._names]
        self._targets = module.labels.targets(batch.scalars, batch.dense, batch.valid_rows)
        counts = run.engine.sum_over_ranks(module.labels.label_counts(self._targets))
        self.labelled = counts > 0
        inverse = 1.0 / counts.clamp_min(1e-12)
        self._inverse_label_count = torch.where(self.labelled, inverse, 0.0)

    def local(self, shared: Sequence[Tensor]) -> Tensor:
        """Return this rank's addends [N] to the losses with these values of the shared parameters.

        Every call has the same dropout masks, so that only the parameters make a difference.
        """
        run = self._run
        torch.manual_seed(run.step)
        module = run.engine.module
        values = dict(zip(self._names, shared, strict=True))
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        arguments = (self._images, run.selection, self._targets)
        state = {**values, **self._heads, **buffers}
        output = functional_call(module, state, arguments, {"compiled": False})
        return output["losses"].sum(dim=1) * self._inverse_label_count

    def gradient(self, losses: Tensor, task: int) -> list[Tensor]:
        """Return this rank's addend to the gradient of a task's loss in every shared parameter.

        Args:
            losses: From `local(shared)`; its graph is kept.
        """
        gradients = torch.autograd.grad(
            losses[task], self.shared, retain_graph=True, materialize_grads=True
        )
        return list(gradients)


def check_engine(accelerator: Accelerator, recipe: str) -> None:
    """Refuse engines that do not hold whole parameters and gradients on every rank.

    Raises:
        UserError: Under ZeRO 2 and 3.
    """
    from accelerate.utils import DistributedType

    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return
    stage = accelerator.deepspeed_plugin.zero_stage
    if stage > 1:
        raise UserError(
            f"grouping.recipe: {recipe!r} looks at whole gradients, which ZeRO {stage} does not "
            "keep; allowed: one process, DDP, ZeRO 1 (or search with one of these and train with "
            "recipe 'fixed')"
        )
