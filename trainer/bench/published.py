"""Build the published step of a case of `dmtg bench step`, with this project's weights.

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
    """Return the published step on the case, and the network that it trains.

    Args:
        case: The measured case.
        network: Network whose weights are copied; None initialises random weights.
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
    return _step_of(case, trainer), published


def _step_of(case: StepCase, trainer: NaiveTrainer) -> Step:
    batch = case.data()
    labels = list(batch.labels.values())
    mean, std = (
        255 * torch.tensor(values, device=case.device).view(-1, 1, 1)
        for values in (IMAGE_MEAN, IMAGE_STD)
    )
    steps_done = 0

    def step() -> Tensor:
        nonlocal steps_done
        images = (batch.images.float() - mean) / std
        losses = trainer.step(images, labels, case.noise(steps_done), TAU)
        steps_done += case.encoder != "none"
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
    """Copy the parameters, which have the same order and different names in both encoders."""
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
