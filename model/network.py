"""The whole model: images through a trunk and K branches to the heads of N tasks.

Legend: N tasks, K branches, B batch, C channels, D features, H, W image size, h, w feature size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.encoders import Encoder, build_encoder
from model.heads import DenseHeads, LinearHeads
from model.labels import TaskLabels
from model.layout import Head, HeadLayout, Plan, used_branches
from model.losses import sample_losses
from model.targets import Targets
from model.tasks import TaskSpec

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


class MultiTaskNetwork(TaskLabels):
    """A trunk, K branches and the heads that exist.

    Args:
        tasks: The N tasks.
        encoder: Trunk and branches; the network takes them over.
        image_size: H and W.
        heads: Pairs (task, branch); None means all N*K.
        dense_widths: Channels of the stages of a dense decoder.
        image_mean: Per channel of an image scaled to 0..1.
        image_std: See `image_mean`.

    Attributes:
        heads: The heads, sorted by signature, branch and task.

    Raises:
        ValueError: If there are no tasks, two of one name, a head that cannot be, or a task
            without a head.
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
        image_mean: Sequence[float] = IMAGE_MEAN,
        image_std: Sequence[float] = IMAGE_STD,
    ) -> None:
        layout = HeadLayout(tasks, len(encoder.branches), heads)
        super().__init__(tasks, layout.members, image_size)
        self._layout = layout
        self.heads = layout.heads
        self.num_branches = layout.num_branches
        self._config = {
            "image_size": list(image_size),
            "dense_widths": list(dense_widths),
            "image_mean": list(image_mean),
            "image_std": list(image_std),
            "encoder": encoder.config,
        }
        for name, values in (("image_mean", image_mean), ("image_std", image_std)):
            levels = 255 * torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, levels, persistent=False)
        self.trunk = encoder.trunk
        self.branches = nn.ModuleList(encoder.branches)
        self._pool = encoder.pool
        self.banks = nn.ModuleDict(
            {name: self._build_bank(name, encoder, dense_widths) for name in layout.members}
        )
        if encoder.init == "copies":
            self._equalise_branches()

    def _build_bank(self, name: str, encoder: Encoder, dense_widths: Sequence[int]) -> nn.Module:
        num_heads = len(self._layout.rows[name])
        spec = self.bank_spec(name)
        if spec.dense:
            return DenseHeads(
                num_heads, encoder.channels, spec.outputs, dense_widths, self.image_size
            )
        height, width = encoder.spatial
        pixels = height * width if encoder.pool == "flatten" else 1
        return LinearHeads(num_heads, encoder.channels * pixels, spec.outputs)

    @torch.no_grad()
    def _equalise_branches(self) -> None:
        """Make the heads of a task copies of its first one."""
        for name, rows in self._layout.rows.items():
            first: dict[int, int] = {}
            source = torch.tensor([first.setdefault(task, row) for (task, _), row in rows.items()])
            for parameter in self.banks[name].parameters():
                parameter.copy_(parameter.index_select(0, source))

    def plan(self, heads: Iterable[Head]) -> Plan:
        """Plan the computation of some heads; make a new plan after moving to another device.

        Raises:
            ValueError: If a head does not exist.
        """
        return self._layout.plan(heads, self.image_mean.device)

    def forward(
        self, images: Tensor, plan: Plan, targets: Mapping[str, Targets] | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Compute the heads of the plan.

        Args:
            images: uint8 [B,3,H,W].
            plan: From `plan`; without targets it must hold one head for every task.
            targets: From `targets`.

        Returns:
            With targets the sums of the sample losses, fp32 [N,K], zero where there is no head
            in the plan; else per task its prediction, fp32 [B,C] or [B,C,H,W].

        Raises:
            ValueError: If the images have another size or the plan does not fit.
        """
        if images.shape[1:] != (3, *self.image_size):
            raise ValueError(
                f"images have shape {tuple(images.shape)}, "
                f"must be (B, 3, {self.image_size[0]}, {self.image_size[1]})"
            )
        maps = self._feature_maps(images, plan)
        predictions = {
            name: self.banks[name](
                maps if self.bank_spec(name).dense else self._pooled(maps), own.heads
            )
            for name, own in plan.banks.items()
        }
        if targets is None:
            return self._one_per_task(predictions, plan)
        sums = [
            sample_losses(self.bank_spec(name).loss, prediction, targets[name].select(rows))
            for name, own in plan.banks.items()
            for prediction, rows in zip(predictions[name], own.tasks, strict=True)
            if rows is not None
        ]
        matrix = torch.zeros(self.num_tasks * self.num_branches, device=images.device)
        matrix = matrix.index_copy(0, plan.cells, torch.cat([s.sum(dim=1) for s in sums]))
        return matrix.view(self.num_tasks, self.num_branches)

    def _feature_maps(self, images: Tensor, plan: Plan) -> list[Tensor | None]:
        """Return per branch its map [B,C,h,w], or None where the plan does not need it."""
        inputs = (images.float() - self.image_mean) / self.image_std
        shared = self.trunk(inputs.contiguous(memory_format=torch.channels_last))
        return [
            branch(shared) if index in plan.branches else None
            for index, branch in enumerate(self.branches)
        ]

    def _pooled(self, maps: list[Tensor | None]) -> list[Tensor | None]:
        """Return per branch the feature vectors [B,D] of the linear heads."""
        if self._pool == "flatten":
            return [None if m is None else m.flatten(1) for m in maps]
        return [None if m is None else m.mean(dim=(2, 3)) for m in maps]

    def _one_per_task(
        self, predictions: Mapping[str, Sequence[Tensor | None]], plan: Plan
    ) -> dict[str, Tensor]:
        if sorted(task for task, _ in plan.heads) != list(range(self.num_tasks)):
            raise ValueError(
                f"plan holds {len(plan.heads)} heads, must hold one for each of "
                f"{self.num_tasks} tasks where no targets are given"
            )
        flat = [
            row.float()
            for name in plan.banks
            for prediction in predictions[name]
            if prediction is not None
            for row in prediction
        ]
        found = {task: row for (task, _), row in zip(plan.heads, flat, strict=True)}
        return {self.tasks[task].name: found[task] for task in range(self.num_tasks)}

    def subset(self, heads: Iterable[Head]) -> MultiTaskNetwork:
        """Return a new network of these heads and their branches, which are renumbered.

        The weights are copied; `used_branches(heads)` are the old numbers of its branches.
        """
        heads = tuple(heads)
        # Its random weights are overwritten; the caller's random state is to stay as it is.
        with torch.random.fork_rng(devices=[]):
            network = MultiTaskNetwork.from_config(self.subset_config(heads))
        network.load_state_dict(self.subset_state(self.state_dict(), heads))
        return network.to(self.image_mean.device).train(self.training)

    def subset_config(self, heads: Iterable[Head]) -> dict[str, Any]:
        """Return `config()` of what `subset` returns, without a look at the weights."""
        kept = self.plan(heads)
        branches = {old: new for new, old in enumerate(kept.branches)}
        return {
            **self.config(),
            "num_branches": len(branches),
            "heads": [[task, branches[branch]] for task, branch in kept.heads],
        }

    def subset_state(self, state: Mapping[str, Tensor], heads: Iterable[Head]) -> dict[str, Tensor]:
        """Cut tensors kept by parameter name (weights, moments) as `subset` cuts the network.

        Args:
            state: Any of this network's parameters or buffers, by their names.
            heads: As given to `subset`.
        """
        heads = tuple(heads)
        branches = {str(old): str(new) for new, old in enumerate(used_branches(heads))}
        rows = self._layout.kept_rows(heads)
        cut = {}
        for name, tensor in state.items():
            part, _, rest = name.partition(".")
            key, _, attribute = rest.partition(".")
            if part == "banks":
                index = torch.tensor(rows[key], dtype=torch.long, device=tensor.device)
                cut[name] = tensor.index_select(0, index)
            elif part != "branches":
                cut[name] = tensor
            elif key in branches:
                cut[f"branches.{branches[key]}.{attribute}"] = tensor
        return cut

    def config(self) -> dict[str, Any]:
        """Return a description that JSON can hold, to rebuild the network without weights."""
        return {
            **self._config,
            "tasks": [task.to_dict() for task in self.tasks],
            "num_branches": self.num_branches,
            "heads": [list(head) for head in self.heads],
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> MultiTaskNetwork:
        """Build the network that `config` described, with new random weights."""
        arguments = dict(config)
        encoder = build_encoder(
            **arguments.pop("encoder"), num_branches=arguments.pop("num_branches")
        )
        arguments["tasks"] = [TaskSpec.from_dict(task) for task in arguments["tasks"]]
        return cls(encoder=encoder, **arguments)
