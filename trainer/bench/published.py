"""The published step on a case of `dmtg bench step`, with the weights of this project's network.

Legend: N tasks, K branches.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.encoders import build_encoder
from model.heads.deconv import WIDTHS
from model.network import IMAGE_MEAN, IMAGE_STD, MultiTaskNetwork
from trainer.bench.case import TAU, Features, Step, StepCase, feature_shape
from trainer.errors import UserError

NAIVE = Path(__file__).resolve().parents[2] / "benchmarks" / "naive.py"
LR = 1e-3


def load_naive(path: Path = NAIVE) -> Any:  # noqa: ANN401 - a module
    """The module `benchmarks/naive.py`, which is not installed with this one.

    Raises:
        UserError: It is not there.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: `dmtg bench step` needs a checkout of the project")
    if "naive" not in sys.modules:
        spec = importlib.util.spec_from_file_location("naive", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules["naive"] = module
    return sys.modules["naive"]


def naive_step(case: StepCase, network: MultiTaskNetwork | None = None) -> tuple[Step, nn.Module]:
    """The published step on the case, and the network it trains.

    Args:
        network: Whose weights it starts with; random ones without.

    Raises:
        UserError: The published step is missing.
    """
    naive = load_naive()
    torch.manual_seed(0)
    encoders = [_encoder(naive, case) for _ in range(case.branches)]
    with torch.no_grad():
        shape = encoders[0](torch.zeros(2, 3, case.size, case.size)).shape
    heads = [[_head(naive, case, shape) for _ in range(case.branches)] for _ in range(case.tasks)]
    published = naive.NaiveNetwork(encoders, heads)
    if network is not None:
        _copy_weights(published, network)
    published.to(case.device)
    linear = case.heads == "linear"
    loss_of = F.binary_cross_entropy_with_logits if linear else F.l1_loss
    trainer = naive.NaiveTrainer(published, loss_of, None if case.encoder == "none" else LR)
    return _repeated(case, trainer), published


def _repeated(case: StepCase, trainer: Any) -> Step:  # noqa: ANN401 - of a module without types
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


def _encoder(naive: Any, case: StepCase) -> nn.Module:  # noqa: ANN401 - a module
    if case.encoder == "none":
        return Features(*feature_shape(case))
    if case.encoder == "residual64":
        return naive.Residual64()
    return build_encoder(case.encoder, 1, image_size=(case.size, case.size)).branches[0]


def _head(naive: Any, case: StepCase, shape: torch.Size) -> nn.Module:  # noqa: ANN401 - a module
    if case.heads == "linear":
        return naive.LinearHead(shape[1:].numel())
    return naive.DenseHead(shape[1], (case.size, case.size))


@torch.no_grad()
def _copy_weights(published: Any, network: MultiTaskNetwork) -> None:  # noqa: ANN401
    """Copy the parameters; both encoders name them differently, but in the same order."""
    for encoder, original in zip(published.encoders, network.branches, strict=True):
        for target, value in zip(encoder.parameters(), original.parameters(), strict=True):
            target.copy_(value)
    (stack,) = network.stacked_heads.values()
    parameters = dict(stack.named_parameters())
    for row, (task, branch) in enumerate(network.heads):
        own = {name: value[row] for name, value in parameters.items()}
        for target, name in zip(
            published.heads[task][branch].parameters(), _names(own), strict=True
        ):
            target.copy_(own[name])


def _names(own: Mapping[str, Tensor]) -> list[str]:
    """Names of a head's parameters in the order of the published head's."""
    names: list[str] = []
    if len(own) > 2:
        for stage in range(len(WIDTHS)):
            for layer in (f"up{stage}", f"conv{stage}"):
                if f"weight_{layer}" in own:
                    names += [f"{n}_{layer}" for n in ("weight", "bias", "gain", "shift")]
    return [*names, "weight", "bias"]
