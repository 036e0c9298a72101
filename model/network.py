"""The whole model: images through a trunk and K branches to the heads of N tasks.

Legend: N tasks, K branches, B batch, C channels, D features, H, W image size, h, w feature size.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from typing_extensions import Self

from model.compilation import Run, call, compiled_call
from model.encoders import Encoder, build_encoder
from model.freezing import FrozenParts
from model.gradient_scale import scale_gradient
from model.grouping.gradient_statistics import ActivationHook, GradientStatistics, branch_statistics
from model.grouping.head_sampling import HeadSample
from model.heads.head_losses import Predictions, head_losses
from model.heads.layout import Head, HeadLayout, HeadSelection
from model.heads.stack import build_stacked_heads
from model.labels import TaskLabels
from model.network_config import check_config
from model.recompute import recomputed
from model.tasks.spec import TaskSpec
from model.tasks.targets import Targets

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


class NetworkOutput(TypedDict, total=False):
    """What a forward pass returns: without targets `predictions` only, with targets the others.

    At run time this is a plain dict. DDP, DeepSpeed, FSDP2 and accelerate look for the tensors of
    an output in dicts, lists and tuples only.

    Attributes:
        predictions: Per task its prediction, fp32 [B,C] or [B,C,H,W].
        losses: The sums of the sample losses of every head, fp32 [N,K], or all of them [N,K,B];
            zero where the selection has no head.
        gradient_statistics: As `branch_statistics` returns them, if they were asked for, with
            residuals in the order of `TaskLabels.residual_tasks`.
    """

    predictions: dict[str, Tensor]
    losses: Tensor
    gradient_statistics: GradientStatistics


class MultiTaskNetwork(nn.Module):
    """A trunk, K branches and the heads that exist.

    Args:
        tasks: The N tasks.
        encoder: Trunk and branches; the network takes them over.
        image_size: H and W.
        heads: Pairs (task, branch); None means all N*K.
        dense_widths: Channels of the stages of a decoder that takes them, such as `resize`.
        decoder: Of the dense tasks, see `build_stacked_heads`.
        gradient_scale: Factors of the gradients into the trunk and into each branch in training
            mode, see `gradient_factors`; a subset keeps them.
        image_mean: Per channel of an image scaled to 0..1. None means the encoder's, else
            ImageNet's for images of three channels; other inputs are then used as they are.
        image_std: See `image_mean`.
        decoder_options: Other keywords of the decoder.

    Attributes:
        tasks: The N tasks.
        layout: Which stack and row holds each head.
        labels: Turns the labels of a batch into targets.
        feature_shape: Shape [C,h,w] of a branch's feature map.
        activation_checkpointing: Whether a training pass keeps only the input and output of a
            branch, and the backward pass computes the rest again.

    Raises:
        ValueError: If there are no tasks, two of one name, a head that is out of range, a task
            without a head, or an unknown decoder.
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
        super().__init__()
        self.tasks = tuple(tasks)
        self.image_size = (image_size[0], image_size[1])
        self.layout = HeadLayout(self.tasks, len(encoder.branches), heads)
        self.labels = TaskLabels(self.tasks, self.layout, self.image_size)
        mean, std = _normalisation(
            encoder.in_channels,
            encoder.image_mean if image_mean is None else image_mean,
            encoder.image_std if image_std is None else image_std,
        )
        if len(gradient_scale) != 2:
            raise ValueError(
                f"gradient_scale is {list(gradient_scale)!r}, must be two numbers: into the trunk, "
                "into each branch"
            )
        self._config = {
            "image_size": list(image_size),
            "dense_widths": list(dense_widths),
            "decoder": decoder,
            "decoder_options": dict(decoder_options or {}),
            "gradient_scale": list(gradient_scale),
            "image_mean": mean,
            "image_std": std,
            "encoder": encoder.config,
        }
        self._register_normalisation(mean, std)
        self.trunk = encoder.trunk
        self.branches = nn.ModuleList(encoder.branches)
        self.activation_checkpointing = False
        self._compiled_call: Run | None = None
        self.feature_shape = (encoder.channels, *encoder.spatial)
        self._pool = encoder.pool
        self._gradient_scale = tuple(gradient_scale)
        self._frozen = FrozenParts()
        self.stacked_heads = nn.ModuleDict()
        for name, rows in self.layout.rows.items():
            self.stacked_heads[name] = build_stacked_heads(
                self.layout.specs[name],
                len(rows),
                encoder,
                self.image_size,
                decoder,
                dense_widths,
                decoder_options,
            )
        if encoder.init == "copies":
            self._equalise_branches()

    def _register_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Register mean and deviation of every channel, in the levels 0..255 of an image."""
        for name, values in (("image_mean", mean), ("image_std", std)):
            levels = 255 * torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, levels, persistent=False)

    @property
    def num_tasks(self) -> int:
        """N."""
        return len(self.tasks)

    @property
    def num_branches(self) -> int:
        """K."""
        return len(self.branches)

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads (task, branch), sorted by signature, branch and task."""
        return self.layout.heads

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.image_mean.device

    @torch.no_grad()
    def _equalise_branches(self) -> None:
        """Copy the first head of every task to its others."""
        for name, rows in self.layout.rows.items():
            first: dict[int, int] = {}
            source = torch.tensor([first.setdefault(task, row) for (task, _), row in rows.items()])
            for parameter in self.stacked_heads[name].parameters():
                parameter.copy_(parameter.index_select(0, source))

    def compile_parts(self, mode: str | None = None, **options: Any) -> None:  # noqa: ANN401
        """Compile trunk and branches when they first run in training; the state keeps its names.

        Args:
            mode: See `compiled_call`.
            options: See `compiled_call`.
        """
        self._compiled_call = compiled_call(mode, **options)

    def freeze(self, parts: Iterable[nn.Module]) -> None:
        """Freeze these parts and no others: no gradients, and evaluation mode in every mode."""
        self._frozen = FrozenParts(parts)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all parts that are not frozen."""
        super().train(mode)
        self._frozen.eval()
        return self

    def select(self, heads: Iterable[Head]) -> HeadSelection:
        """Select some heads for computation; a selection holds for the device of the network.

        Raises:
            ValueError: If a head does not exist.
        """
        return self.layout.select(heads, self.device)

    def select_sample(self, head_sample: HeadSample) -> HeadSelection:
        """Select the heads of a step for computation, as `select` does.

        Raises:
            ValueError: If a head does not exist.
        """
        return self.layout.select_matrix(head_sample.chosen, self.device, head_sample.branches)

    def forward(
        self,
        images: Tensor,
        selection: HeadSelection,
        targets: Mapping[str, Targets] | None = None,
        *,
        per_sample: bool = False,
        gradient_statistics: bool = False,
        compiled: bool = True,
    ) -> NetworkOutput:
        """Compute the heads of the selection.

        Args:
            images: uint8 [B,3,H,W]; floats of as many channels as the encoder takes where that is
                not made for images of three channels.
            selection: From `select` or `select_sample`; without targets one head for every task.
            targets: From `labels.targets`.
            per_sample: Whether the losses of a head are returned for every sample.
            gradient_statistics: Whether to return the gradient statistics, too.
            compiled: Whether to use the code of `compile_parts`; for weights and buffers at other
                addresses, CUDA graphs would be recorded anew.

        Raises:
            ValueError: If the images have another size or the selection does not fit.
        """
        self._check_images(images)
        hook = ActivationHook(self.branches)
        with hook if gradient_statistics else nullcontext():
            maps = self._feature_maps(
                images, selection, hooked=gradient_statistics, compiled=compiled
            )
        predictions = {
            name: self.stacked_heads[name](
                maps if self.layout.specs[name].dense else self._pooled(maps), stack.heads
            )
            for name, stack in selection.stacked_heads.items()
        }
        if targets is None:
            return {"predictions": self._one_per_task(predictions, selection)}
        loss_of = {name: self.layout.specs[name].loss for name in selection.stacked_heads}
        shape = (self.num_tasks, self.num_branches)
        losses = head_losses(loss_of, predictions, selection, targets, shape, per_sample=per_sample)
        output: NetworkOutput = {"losses": _with_idle_branches(losses, maps, selection)}
        if gradient_statistics:
            output["gradient_statistics"] = branch_statistics(
                loss_of, predictions, targets, selection, hook
            )
        return output

    def _check_images(self, images: Tensor) -> None:
        image_shape = (len(self.image_mean), *self.image_size)
        if images.shape[1:] != image_shape:
            expected = ", ".join(map(str, image_shape))
            raise ValueError(f"images have shape {tuple(images.shape)}, must be (B, {expected})")

    def _feature_maps(
        self, images: Tensor, selection: HeadSelection, *, hooked: bool, compiled: bool
    ) -> list[Tensor | None]:
        """Return per branch its map [B,C,h,w], or None where the selection does not need it.

        A pass without gradients runs uncompiled: it would need graphs of its own. So do hooked
        branches, because the hooks change from step to step.
        """
        run: Run = call
        compiled = compiled and self.training and torch.is_grad_enabled()
        if self._compiled_call is not None and compiled:
            run = self._compiled_call
        inputs = (images.float() - self.image_mean) / self.image_std
        shared = run(self.trunk, _channels_last(inputs))
        # Gradients of a model that is in use, such as those in its images, are the true ones.
        into_trunk, into_branch = self._gradient_scale if self.training else (1.0, 1.0)
        shared = scale_gradient(shared, into_trunk)
        run = call if hooked else run
        if self.activation_checkpointing and self.training:
            run = functools.partial(recomputed, run=run)
        return [
            scale_gradient(run(branch, shared), into_branch)
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
        by_task = {task: row for (task, _), row in zip(selection.heads, flat, strict=True)}
        return {self.tasks[task].name: by_task[task] for task in range(self.num_tasks)}

    def config(self) -> dict[str, Any]:
        """Return a description that JSON can hold and `from_config` builds the network from."""
        return {
            **self._config,
            "tasks": [task.to_dict() for task in self.tasks],
            "num_branches": self.num_branches,
            "heads": [list(head) for head in self.heads],
        }

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        *,
        feature_shape: tuple[int, int, int] | None = None,
        shared_branches: bool = False,
    ) -> Self:
        """Build the network that `config` describes, with new random weights.

        Args:
            config: See the method `config`; nothing in it can name weights or code to load.
            feature_shape: If it is known, see `build_encoder`.
            shared_branches: Whether all branches are one module, which is enough for shapes.

        Raises:
            ValueError: If an entry is not allowed, or out of the bounds of `model.bounds`.
        """
        check_config(config)
        arguments = dict(config)
        described, num_branches = arguments.pop("encoder"), arguments.pop("num_branches")
        encoder = build_encoder(
            **described,
            num_branches=1 if shared_branches else num_branches,
            feature_shape=feature_shape,
        )
        if shared_branches:
            encoder.branches *= num_branches
        arguments["tasks"] = [TaskSpec.from_dict(task) for task in arguments["tasks"]]
        return cls(encoder=encoder, **arguments)


def _normalisation(
    channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[list[float], list[float]]:
    """Return mean and deviation of every channel of images scaled to 0..1.

    Raises:
        ValueError: There are more or fewer of them than channels.
    """
    pictures = channels == len(IMAGE_MEAN)
    if mean is None:
        mean = IMAGE_MEAN if pictures else [0.0] * channels
    if std is None:
        std = IMAGE_STD if pictures else [1 / 255] * channels
    for name, values in (("image_mean", mean), ("image_std", std)):
        if len(values) != channels:
            raise ValueError(f"{name} is {list(values)!r}, must have {channels} numbers")
    return list(mean), list(std)


def _with_idle_branches(
    losses: Tensor, maps: Sequence[Tensor | None], selection: HeadSelection
) -> Tensor:
    """Return the losses, with a gradient of zero for branches that no selected head needs.

    Engines need a gradient of every branch, of the same ones on all ranks.
    """
    for index in selection.idle:
        idle = maps[index]
        assert idle is not None, "the branches of a selection are computed"
        nothing = (0.0 * idle).nan_to_num(0.0, 0.0, 0.0)  # zero times an overflow is NaN
        losses = losses + nothing.sum(dtype=torch.float32)
    return losses


def _flattened(maps: Tensor) -> Tensor:
    if maps.requires_grad:
        # The gradient would arrive in contiguous layout, for which pooling has slow kernels.
        maps.register_hook(_channels_last)
    return maps.flatten(1)


def _channels_last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)
