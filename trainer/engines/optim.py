"""Optimizers: parameter groups of the network, and the small optimizer of the logits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from trainer.config.optim import OptimSection

MOMENTS = ("exp_avg", "exp_avg_sq")  # the state of Adam and AdamW per parameter, besides the step


def build_optimizer(
    network: nn.Module, section: OptimSection, undecayed: Collection[str] = ()
) -> torch.optim.Optimizer:
    """Adam or AdamW over the groups `encoder` and `heads`, each with and without weight decay.

    Biases, normalisation parameters and those whose names start with one of `undecayed` are not
    decayed. Every trainable parameter is in exactly one group.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "heads" if name.startswith("stacked_heads.") else "encoder"
        leaf = name.rpartition(".")[2]
        normalises = "norm" in name or leaf.startswith(("gain", "shift"))
        decayed = not (
            normalises
            or leaf.startswith("bias")
            or parameter.ndim <= 1
            or name.startswith(tuple(undecayed))
        )
        lr = section.heads_lr if part == "heads" and section.heads_lr else section.lr
        group = groups.setdefault(
            part if decayed else f"{part}_no_decay",
            {"params": [], "lr": lr, "weight_decay": section.weight_decay if decayed else 0.0},
        )
        group["params"].append(parameter)
    for name, group in groups.items():
        group["name"] = name
    kind = torch.optim.Adam if section.name == "adam" else torch.optim.AdamW
    optimizer = kind(list(groups.values()), lr=section.lr, betas=section.betas, fused=True)
    check_groups(network, optimizer)
    return optimizer


def check_groups(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Check that every trainable parameter is in exactly one group, and nothing else is.

    Raises:
        ValueError: Naming those that are not.
    """
    names = {id(p): name for name, p in network.named_parameters() if p.requires_grad}
    grouped = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    wrong = [name for key, name in names.items() if grouped[key] != 1]
    strange = len(grouped.keys() - names.keys())
    if wrong or strange:
        raise ValueError(
            f"optimizer: {wrong} are in no group or in several, {strange} parameters of its groups "
            "are not trained by the network; every trainable one must be in exactly one group"
        )


def logits_optimizer(logits: nn.Parameter, section: OptimSection, lr: float) -> torch.optim.Adam:
    """Adam for the logits [N,K], which stay outside the engine in fp32."""
    return torch.optim.Adam([logits], lr=lr, betas=section.betas)


def base_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the torch optimizer inside accelerate's and DeepSpeed's wrappers."""
    while (inner := getattr(optimizer, "optimizer", None)) is not None:
        optimizer = inner
    return optimizer
