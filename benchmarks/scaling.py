"""Compute the traffic of published configurations on 8, 64 and 512 GPUs, and its time.

python benchmarks/scaling.py

The bytes are computed with trainer/planning/traffic.py, the times with the rates assumed below.
Writes benchmarks/results/scaling.json and replaces the tables of docs/scaling.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from communication import ROOT, STAGES
from torch.utils.flop_counter import FlopCounterMode

from model.network import MultiTaskNetwork
from model.subset import subset
from model.tasks.presets import PRESETS
from trainer.builders import build_network
from trainer.config.loading import load_config
from trainer.planning.traffic import traffic

RESULTS = ROOT / "benchmarks" / "results" / "scaling.json"
DOCUMENT = ROOT / "docs" / "scaling.md"
IMAGES_PER_GPU = {"celeba9_k2": 256, "taskonomy5_k3": 24, "taskonomy_full": 8}
GPUS = (8, 64, 512)
GB = 1e9
# Bytes per second of a ring: in a node of 8 GPUs, and between nodes (all adapters of a node).
LINKS = {"NVLink": 450 * GB, "8 x 400 Gbit/s": 400 * GB, "100 Gbit/s": 12.5 * GB}
SUSTAINED = {"fp32": 30e12, "bf16": 300e12}  # operations per second of a GPU


def operations(network: MultiTaskNetwork, size: tuple[int, int]) -> dict[str, float]:
    """Return the operations of training on one image, before and after pruning.

    The backward pass is assumed to take twice the operations of the forward pass.
    """
    tasks, images = range(network.num_tasks), torch.zeros(1, 3, *size, dtype=torch.uint8)

    def forward(heads: list[tuple[int, int]]) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(images, network.select(heads))
        return counter.get_total_flops()

    with torch.no_grad(), FlopCounterMode(display=False) as trunk:
        network.trunk(images.float())
    branches = range(network.num_branches)
    per_branch = [forward([(task, branch) for task in tasks]) for branch in branches]
    # `per_branch` counts the trunk for every branch, but it runs once for all branches.
    repeated = (len(branches) - 1) * trunk.get_total_flops()
    pruned = forward([(task, task % len(branches)) for task in tasks])
    return {"before": 3.0 * (sum(per_branch) - repeated), "after": 3.0 * pruned}


def scale(recipe: str) -> dict[str, Any]:
    """Return the results of a configuration at its published batch per GPU, with all K branches."""
    config = load_config(ROOT / "experiments" / f"{recipe}.yaml")
    tasks, precision = PRESETS[config.tasks.preset or ""], config.run.precision or "fp32"
    full = build_network(config, tasks).eval()
    one_per_task = [(task, task % full.num_branches) for task in range(len(tasks))]
    networks = {"before": full, "after": subset(full, one_per_task)}
    work = operations(full, config.data.image_size)
    batch = IMAGES_PER_GPU[recipe]
    result: dict[str, Any] = {"batch": batch, "global_batch": config.data.global_batch}
    for phase, network in networks.items():
        rows = {
            stage: traffic(
                stage, network, config.optim.gradient_accumulation_steps, bf16=precision == "bf16"
            )
            for stage in STAGES
        }
        result[phase] = {
            "parameters": sum(p.numel() for p in network.parameters()),
            "gflop_per_image": work[phase] / 1e9,
            "compute_ms": 1e3 * batch * work[phase] / SUSTAINED[precision],
            "sent": {s: {str(p): row.sent(p) for p in GPUS} for s, row in rows.items()},
        }
    return result


def link_times(sent: dict[str, float]) -> dict[str, float]:
    """Return the milliseconds of sending the bytes, by number of GPUs and link."""
    in_node, *between_nodes = LINKS
    pairs = [(8, in_node), *((p, link) for link in between_nodes for p in GPUS[1:])]
    return {f"{p}, {link}": 1e3 * sent[str(p)] / LINKS[link] for p, link in pairs}


def recipe_table(name: str, recipe: dict[str, Any]) -> str:
    """Return the traffic and the times of a configuration as Markdown."""
    lines = [f"### {name}, {recipe['batch']} images a GPU", ""]
    for phase in ("before", "after"):
        result = recipe[phase]
        columns = [f"MB sent at {p}" for p in GPUS] + [
            f"ms at {key}" for key in link_times(result["sent"]["ddp"])
        ]
        lines += [
            f"{phase.capitalize()} pruning: {result['parameters'] / 1e6:.2f} M parameters, "
            f"{result['gflop_per_image']:.1f} Gflop an image, {result['compute_ms']:.1f} ms of "
            "arithmetic a step.",
            "",
            f"| stage | {' | '.join(columns)} | GPUs at most |",
            "|---" * (len(columns) + 2) + "|",
        ]
        for stage, sent in result["sent"].items():
            times = link_times(sent)
            cells = [f"{sent[str(p)] / 1e6:.1f}" for p in GPUS]
            cells += [f"{value:.2f}" for value in times.values()]
            # At this number of GPUs, computing and sending the global batch take the same time.
            work = result["compute_ms"] * recipe["global_batch"] / recipe["batch"]
            limits = [work / times[f"512, {link}"] for link in list(LINKS)[1:]]
            # One node of 8 needs no link between nodes; each GPU needs at least one image.
            max_gpus = [min(max(int(limit), GPUS[0]), recipe["global_batch"]) for limit in limits]
            lines.append(f"| {stage} | {' | '.join(cells)} | {max_gpus[0]}, {max_gpus[1]} |")
        lines.append("")
    return "\n".join(lines)


def write_tables(results: dict[str, Any], document: Path) -> None:
    """Replace the text after the heading `## Tables`."""
    head, heading, _ = document.read_text().partition("## Tables\n")
    tables = "\n".join(recipe_table(name, recipe) for name, recipe in results["recipes"].items())
    document.write_text(f"{head}{heading}\n{tables}")


def main() -> int:
    """Compute the results of all configurations, and write results and tables."""
    results = {
        "assumed": {"links": LINKS, "sustained": SUSTAINED},
        "recipes": {name: scale(name) for name in IMAGES_PER_GPU},
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    write_tables(results, DOCUMENT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
