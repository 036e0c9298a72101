"""The whole model: images through a trunk and K branches to the heads of N tasks.

Legend: N tasks, K branches, B batch, C channels, D features, H, W image size, h, w feature size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from model.encoders import Encoder, build_encoder
from model.freezing import Freezable
from model.gradient_scale import scale_gradient
from model.grouping.gradient_statistics import ActivationHook, GradientStatistics, branch_statistics
from model.grouping.head_sampling import HeadSample
from model.heads.head_losses import Predictions, head_losses
from model.heads.layout import Head, HeadLayout, HeadSelection
from model.heads.stack import build_stacked_heads
from model.labels import TaskLabels
from model.recompute import call, recomputed
from model.subset import Cuttable
from model.tasks.spec import TaskSpec
from model.tasks.targets import Targets

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


class MultiTaskNetwork(Freezable, TaskLabels, Cuttable):
    """A trunk, K branches and the heads that exist.

    Args:
        tasks: The N tasks.
        encoder: Trunk and branches; the network takes them over.
        image_size: H and W.
        heads: Pairs (task, branch); None means all N*K.
        dense_widths: Channels of the stages of a decoder that takes them, such as `resize`.
        decoder: Of the dense tasks, see `build_stacked_heads`.
        gradient_scale: Factors of the gradients into the trunk and into each branch, see
            `gradient_factors`; a subset keeps them.
        image_mean: Per channel of an image scaled to 0..1; None means ImageNet's for pictures,
            and for anything else that the values are taken as they are.
        image_std: See `image_mean`.
        decoder_options: Other keywords of the decoder.

    Attributes:
        heads: The heads, sorted by signature, branch and task.
        checkpoint_branches: Whether a training pass keeps of a branch only what goes in and comes
            out; the backward pass computes the rest again.

    Raises:
        ValueError: If there are no tasks, two of one name, a head that cannot be, a task without
            a head, or an unknown decoder.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        tasks: Sequence[TaskSpec],
        encoder: Encoder,
        image_size: tuple[int, int],
        heads: Iterable[Head] | None = None,
        dense_widths: Sequence[int] = (32, 16),
        decoder: str = "resize",
        gradient_scale: Sequence[float] = (1.0, 1.0),
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        decoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        layout = HeadLayout(tasks, len(encoder.branches), heads)
        super().__init__(tasks, layout.members, image_size)
        self._layout = layout
        pictures = encoder.in_channels == len(IMAGE_MEAN)
        if image_mean is None:
            image_mean = IMAGE_MEAN if pictures else [0.0] * encoder.in_channels
        if image_std is None:
            image_std = IMAGE_STD if pictures else [1 / 255] * encoder.in_channels
        self.heads = layout.heads
        self.num_branches = layout.num_branches
        self._config = {
            "image_size": list(image_size),
            "dense_widths": list(dense_widths),
            "decoder": decoder,
            "decoder_options": dict(decoder_options or {}),
            "gradient_scale": list(gradient_scale),
            "image_mean": list(image_mean),
            "image_std": list(image_std),
            "encoder": encoder.config,
        }
        for name, values in (("image_mean", image_mean), ("image_std", image_std)):
            levels = 255 * torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, levels, persistent=False)
        self.trunk = encoder.trunk
        self.branches = nn.ModuleList(encoder.branches)
        self._pool = encoder.pool
        self._gradient_scale = tuple(gradient_scale)
        self.checkpoint_branches = False
        self.stacked_heads = nn.ModuleDict(
            {
                name: build_stacked_heads(
                    self.stack_spec(name),
                    len(rows),
                    encoder,
                    self.image_size,
                    decoder,
                    dense_widths,
                    decoder_options,
                )
                for name, rows in layout.rows.items()
            }
        )
        if encoder.init == "copies":
            self._equalise_branches()

    @torch.no_grad()
    def _equalise_branches(self) -> None:
        """Make the heads of a task copies of its first one."""
        for name, rows in self._layout.rows.items():
            first: dict[int, int] = {}
            source = torch.tensor([first.setdefault(task, row) for (task, _), row in rows.items()])
            for parameter in self.stacked_heads[name].parameters():
                parameter.copy_(parameter.index_select(0, source))

    def compile_parts(self) -> None:
        """Compile trunk and branches when they first run; the names of the state stay."""
        for part in (self.trunk, *self.branches):
            part.compile()

    def select(self, heads: Iterable[Head]) -> HeadSelection:
        """Select for computation some heads; make a new selection after moving to another device.

        Raises:
            ValueError: If a head does not exist.
        """
        return self._layout.select(heads, self.image_mean.device)

    def select_sample(self, head_sample: HeadSample) -> HeadSelection:
        """Select for computation the heads of one step, as `selection` does.

        Raises:
            ValueError: If a head does not exist.
        """
        return self._layout.select_matrix(
            head_sample.chosen, self.image_mean.device, head_sample.branches
        )

    def forward(
        self,
        images: Tensor,
        selection: HeadSelection,
        targets: Mapping[str, Targets] | None = None,
        *,
        per_sample: bool = False,
        gradient_statistics: bool = False,
    ) -> Tensor | dict[str, Tensor] | tuple[Tensor, GradientStatistics]:
        """Compute the heads of the selection.

        Args:
            images: uint8 [B,3,H,W]; floats of as many channels as the encoder takes where that is
                not made for pictures.
            selection: From `select` or `select_sample`; without targets one head for every task.
            targets: From `targets`.
            per_sample: Whether losses are kept apart by sample.
            gradient_statistics: Whether to return the gradient statistics too, with residuals in
                the order of `residual_tasks`.

        Returns:
            With targets the sums of the sample losses, fp32 [N,K] (or all of them [N,K,B]), zero
            where there is no head in the selection, and the gradient statistics if they are asked
            for; else per task its prediction, fp32 [B,C] or [B,C,H,W].

        Raises:
            ValueError: If the images have another size or the selection does not fit.
        """
        image_shape = (len(self.image_mean), *self.image_size)
        if images.shape[1:] != image_shape:
            expected = ", ".join(map(str, image_shape))
            raise ValueError(f"images have shape {tuple(images.shape)}, must be (B, {expected})")
        hook = ActivationHook(self.branches)
        with hook if gradient_statistics else nullcontext():
            maps = self._feature_maps(images, selection, hooked=gradient_statistics)
        predictions = {
            name: self.stacked_heads[name](
                maps if self.stack_spec(name).dense else self._pooled(maps), own.heads
            )
            for name, own in selection.stacked_heads.items()
        }
        if targets is None:
            return self._one_per_task(predictions, selection)
        loss_of = {name: self.stack_spec(name).loss for name in selection.stacked_heads}
        shape = (self.num_tasks, self.num_branches)
        losses = head_losses(loss_of, predictions, selection, targets, shape, per_sample=per_sample)
        for index in selection.idle:  # engines want a gradient of every branch, on all ranks alike
            idle = maps[index]
            assert idle is not None, "a selection's branches are computed"
            nothing = (0.0 * idle).nan_to_num(0.0, 0.0, 0.0)  # also where it has overflowed
            losses = losses + nothing.sum(dtype=torch.float32)
        if not gradient_statistics:
            return losses
        return losses, branch_statistics(loss_of, predictions, targets, selection, hook)

    def _feature_maps(
        self, images: Tensor, selection: HeadSelection, *, hooked: bool
    ) -> list[Tensor | None]:
        """Return per branch its map [B,C,h,w], or None where the selection does not need it.

        What is compiled knows nothing of a hook, so that hooked branches run as they are written.
        """
        inputs = (images.float() - self.image_mean) / self.image_std
        shared = self.trunk(_channels_last(inputs))
        into_trunk, into_branch = self._gradient_scale
        shared = scale_gradient(shared, into_trunk)
        run = recomputed if self.checkpoint_branches and self.training else call
        return [
            scale_gradient(run(branch, shared, compiled=not hooked), into_branch)
            if index in selection.branches
            else None
            for index, branch in enumerate(self.branches)
        ]

    def _pooled(self, maps: list[Tensor | None]) -> list[Tensor | None]:
        """Return per branch the feature vectors [B,D] of the linear heads."""
        if self._pool == "flatten":
            return [None if m is None else _flattened(m) for m in maps]
        return [None if m is None else m.mean(dim=(2, 3)) for m in maps]

    def _one_per_task(
        self, predictions: Predictions, selection: HeadSelection
    ) -> dict[str, Tensor]:
        if sorted(task for task, _ in selection.heads) != list(range(self.num_tasks)):
            raise ValueError(
                f"selection holds {len(selection.heads)} heads, must hold one for each of "
                f"{self.num_tasks} tasks where no targets are given"
            )
        flat = [
            row.float()
            for name in selection.stacked_heads
            for prediction in predictions[name]
            if prediction is not None
            for row in prediction
        ]
        found = {task: row for (task, _), row in zip(selection.heads, flat, strict=True)}
        return {self.tasks[task].name: found[task] for task in range(self.num_tasks)}

    def config(self) -> dict[str, Any]:
        """Return a description that JSON can hold, to rebuild the network without weights."""
        return {
            **self._config,
            "tasks": [task.to_dict() for task in self.tasks],
            "num_branches": self.num_branches,
            "heads": [list(head) for head in self.heads],
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the network that `config` described, with new random weights."""
        arguments = dict(config)
        encoder = build_encoder(
            **arguments.pop("encoder"), num_branches=arguments.pop("num_branches")
        )
        arguments["tasks"] = [TaskSpec.from_dict(task) for task in arguments["tasks"]]
        return cls(encoder=encoder, **arguments)


def _flattened(maps: Tensor) -> Tensor:
    if maps.requires_grad:
        # The gradient would come in torch's first layout, for which pooling has slow kernels.
        maps.register_hook(_channels_last)
    return maps.flatten(1)


def _channels_last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)
