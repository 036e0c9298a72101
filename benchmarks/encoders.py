"""Measure parameters, memory and time of encoders, undivided and with K branches.

python benchmarks/encoders.py

A training step (forward and backward pass, without optimizer) of encoders with random weights, on
one thread. Writes docs/results/encoders.json and encoders.md; takes about a minute on a free core.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from model.encoders import Encoder, build_encoder
from trainer.config.model import DEFAULT_ENCODER

OUT = Path(__file__).resolve().parent.parent / "docs" / "results"
SIZE, BATCH, BRANCHES, REPEATS = (128, 128), 4, 4, 3
# Name and options of an encoder, and the trunk depth at which its last stages are the branches.
ENCODERS: tuple[tuple[str, str, Mapping[str, Any], int], ...] = (
    ("ResNet-18 (default)", DEFAULT_ENCODER.name, DEFAULT_ENCODER.options, 4),
    ("mobilenetv3_large_100", "timm", {"model": "mobilenetv3_large_100"}, 6),
    ("efficientnet_b0", "timm", {"model": "efficientnet_b0"}, 6),
    ("regnety_016", "timm", {"model": "regnety_016"}, 3),
    ("resnet50", "timm", {"model": "resnet50"}, 4),
    ("convnext_atto", "timm", {"model": "convnext_atto"}, 4),
    ("convnext_nano", "timm", {"model": "convnext_nano"}, 4),
)


def count(encoder: Encoder) -> int:
    """Return the parameters of trunk and branches."""
    return sum(p.numel() for part in (encoder.trunk, *encoder.branches) for p in part.parameters())


def step(encoder: Encoder, images: Tensor) -> None:
    """Run all branches forward and backward."""
    shared = encoder.trunk(images)
    sum(branch(shared).square().mean() for branch in encoder.branches).backward()


def kept_bytes(encoder: Encoder, images: Tensor) -> int:
    """Return the bytes that the forward pass keeps for the backward pass, without parameters."""
    weights = {
        p.untyped_storage().data_ptr()
        for part in (encoder.trunk, *encoder.branches)
        for p in part.parameters()
    }
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        shared = encoder.trunk(images)
        outputs = [branch(shared) for branch in encoder.branches]
        total = sum(sizes.values())
    del outputs
    return total


def measure(name: str, options: Mapping[str, Any], branches: int, depth: int) -> dict[str, float]:
    """Return millions of parameters, MB kept and milliseconds of a step, of one image."""
    encoder = build_encoder(
        name, branches, image_size=SIZE, trunk_depth=depth, options=dict(options)
    )
    images = torch.randn(BATCH, 3, *SIZE).to(memory_format=torch.channels_last)
    kept = kept_bytes(encoder, images)
    seconds = []
    for _ in range(1 + REPEATS):  # the first one allocates
        start = time.process_time()
        step(encoder, images)
        seconds.append(time.process_time() - start)
    return {
        "parameters_m": count(encoder) / 1e6,
        "kept_mb": kept / BATCH / 1e6,
        "ms": min(seconds[1:]) / BATCH * 1e3,
    }


def table(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return the results as Markdown."""
    lines = [
        "# Encoders: parameters, memory, time",
        "",
        f"`python benchmarks/encoders.py`, {SIZE[0]} x {SIZE[1]} pixels, fp32, one thread of "
        f"{platform.machine()}, torch {torch.__version__}.",
        "Memory is what the forward pass keeps for the backward pass; time is processor time of "
        "both.",
        "All but the parameters are for one image. *Alone* is the encoder with one branch, *all "
        "branched* K = 4 branches",
        "without a trunk, *last part branched* K = 4 branches of the last stage (mobilenetv3, "
        "efficientnet and regnety:",
        "two stages) behind a trunk of the others.",
        "",
        "| encoder | alone: M parameters | MB | ms | all branched: M | MB | ms | last part "
        "branched: M | MB | ms |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, cases in rows.items():
        cells = [
            f"{case['parameters_m']:.1f} | {case['kept_mb']:.0f} | {case['ms']:.0f}"
            for case in cases.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all encoders and write the results."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = {}
    for label, name, options, depth in ENCODERS:
        rows[label] = {
            "alone": measure(name, options, 1, 0),
            "all_branched": measure(name, options, BRANCHES, 0),
            "last_branched": measure(name, options, BRANCHES, depth),
        }
        print(label, json.dumps(rows[label]), flush=True)
    (OUT / "encoders.json").write_text(json.dumps(rows, indent=2) + "\n")
    (OUT / "encoders.md").write_text(table(rows))


if __name__ == "__main__":
    main()
