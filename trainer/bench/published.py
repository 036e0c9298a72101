"""The published step on a case of `dmtg bench step`, with the weights of this project's network.

Legend: N tasks, K branches.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.encoders import build_encoder
from model.heads.deconv import WIDTHS
from model.network import IMAGE_MEAN, IMAGE_STD, MultiTaskNetwork
from trainer.bench.case import TAU, Features, Step, StepCase, feature_shape
from trainer.bench.naive import DenseHead, LinearHead, NaiveNetwork, NaiveTrainer, Residual64

LR = 1e-3


def naive_step(
    case: StepCase, network: MultiTaskNetwork | None = None
) -> tuple[Step, NaiveNetwork]:
    """Return the published step on the case, and the network it trains.

    Args:
        network: Network whose weights are copied; without it they are random.
    """
    torch.manual_seed(0)
    encoders = [_encoder(case) for _ in range(case.branches)]
    with torch.no_grad():
        shape = encoders[0](torch.zeros(2, 3, case.size, case.size)).shape
    heads = [[_head(case, shape) for _ in range(case.branches)] for _ in range(case.tasks)]
    published = NaiveNetwork(encoders, heads)
    if network is not None:
        _copy_weights(published, network)
    published.to(case.device)
    linear = case.heads == "linear"
    loss_of = F.binary_cross_entropy_with_logits if linear else F.l1_loss
    trainer = NaiveTrainer(published, loss_of, None if case.encoder == "none" else LR)
    return _repeated(case, trainer), published


def _repeated(case: StepCase, trainer: NaiveTrainer) -> Step:
    batch = case.data()
    labels = list(batch.labels.values())
    mean, std = (
        255 * torch.tensor(values, device=case.device).view(-1, 1, 1)
        for values in (IMAGE_MEAN, IMAGE_STD)
    )
    number = 0

    def step() -> Tensor:
        nonlocal number
        images = (batch.images.float() - mean) / std
        losses = trainer.step(images, labels, case.noise(number), TAU)
        number += case.encoder != "none"
        return torch.stack(losses).view(case.tasks, case.branches)

    return step


def _encoder(case: StepCase) -> nn.Module:
    if case.encoder == "none":
        return Features(*feature_shape(case))
    if case.encoder == "residual64":
        return Residual64()
    return build_encoder(case.encoder, 1, image_size=(case.size, case.size)).branches[0]


def _head(case: StepCase, shape: torch.Size) -> nn.Module:
    if case.heads == "linear":
        return LinearHead(shape[1:].numel())
    return DenseHead(shape[1], (case.size, case.size))


@torch.no_grad()
def _copy_weights(published: NaiveNetwork, network: MultiTaskNetwork) -> None:
    """Copy the parameters; both encoders hold them in the same order under different names."""
    for encoder, original in zip(published.encoders, network.branches, strict=True):
        for target, value in zip(encoder.parameters(), original.parameters(), strict=True):
            target.copy_(value)
    (stack,) = network.stacked_heads.values()
    parameters = dict(stack.named_parameters())
    for row, (task, branch) in enumerate(network.heads):
        head = {name: value[row] for name, value in parameters.items()}
        targets = published.head(task, branch).parameters()
        for target, name in zip(targets, _names(head), strict=True):
            target.copy_(head[name])


def _names(head: Mapping[str, Tensor]) -> list[str]:
    """Return the names of a head's parameters in the order of the published head's."""
    names: list[str] = []
    if len(head) > 2:
        for stage in range(len(WIDTHS)):
            for layer in (f"up{stage}", f"conv{stage}"):
                if f"weight_{layer}" in head:
                    names += [f"{n}_{layer}" for n in ("weight", "bias", "gain", "shift")]
    return [*names, "weight", "bias"]
