"""Measure how well the recipes recover the true groups of planted problems of several sizes.

python benchmarks/grouping.py [--quick]

Writes docs/results/planted.json, planted.md and planted.png; the exit code is 1 if a claim does not
hold. Without --quick it takes about twenty minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib.pyplot as plt
import torch

from trainer.bench.planted import as_json, measure_grouping
from trainer.config.grouping import DEFAULT_RECIPE

OUT = Path(__file__).resolve().parent.parent / "docs" / "results"
# tasks, true groups, branches, recipe, seeds, first seed
ROWS = (
    (60, 3, 3, "evidence", 10, 100),
    (60, 3, 3, "affinity", 10, 100),
    (60, 3, 3, "published", 10, 100),
    (60, 3, 3, "random", 5, 100),
    (60, 3, 3, "multitask", 5, 100),
    (200, 8, 8, "evidence", 3, 0),
    (200, 8, 8, "affinity", 3, 0),
    (200, 8, 8, "published", 3, 0),
    (200, 8, 8, "random", 3, 0),
    (60, 3, 8, "evidence", 5, 0),
    (60, 3, 8, "affinity", 5, 0),
    (1000, 16, 16, "evidence", 1, 0),
)
# (tasks, branches): minimum adjusted Rand index, maximum error ratio (None: not claimed)
CLAIMS = {(60, 3): (0.95, 1.05), (200, 8): (0.90, 1.10), (1000, 16): (0.85, None)}
SURPLUS = (60, 8)  # more branches than groups: extra branches must not increase the error
STEP_COST = 1.10  # maximum time of the default recipe / time of the published recipe


def measure(quick: bool) -> list[dict[str, Any]]:
    """Train the recipes of all rows, or only the first seed of the small problems."""
    rows = []
    for tasks, groups, branches, recipe, seeds, base in ROWS:
        if quick and tasks > 60:
            continue
        seed_range = range(base, base + (1 if quick else seeds))
        results = as_json(measure_grouping(tasks, groups, branches, seed_range, recipe))
        shape = {"tasks": tasks, "groups": groups, "branches": branches, "recipe": recipe}
        rows.append({**shape, **results})
    return rows


def faults(rows: list[dict[str, Any]]) -> list[str]:
    """Return the claims that do not hold."""
    failed = []
    seconds = {(r["tasks"], r["branches"], r["recipe"]): r["mean"]["seconds"] for r in rows}
    for row in (row for row in rows if row["recipe"] == DEFAULT_RECIPE):
        shape, mean = (row["tasks"], row["branches"]), row["mean"]
        min_ari, max_ratio = CLAIMS.get(shape, (0.0, 1.05 if shape == SURPLUS else None))
        if mean["ari"] < min_ari or (max_ratio is not None and mean["ratio"] > max_ratio):
            failed.append(f"{shape}: ari {mean['ari']:.3f}, ratio {mean['ratio']:.3f}")
        published = seconds.get((*shape, "published"))
        if published is not None and mean["seconds"] > STEP_COST * published:
            failed.append(f"{shape}: {mean['seconds']:.1f} s against {published:.1f} s published")
    return failed


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| tasks | groups | branches | recipe | problems | test error | of the true grouping "
        "| ratio | adjusted Rand index | branches left | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mean = row["mean"]
        shape = f"| {row['tasks']} | {row['groups']} | {row['branches']} | {row['recipe']} "
        lines.append(
            f"{shape}| {len(row['seeds'])} | {mean['error']:.4f} | {mean['true_error']:.4f} "
            f"| {mean['ratio']:.3f} | {mean['ari']:.3f} | {mean['branches']:.1f} "
            f"| {mean['seconds']:.1f} |"
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot the error ratio and the adjusted Rand index of every problem."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.2))
    names = [f"{r['recipe']}\nN={r['tasks']} K={r['branches']}" for r in rows]
    for axis, key, title in (
        (axes[0], "ratio", "test error / that of the true grouping"),
        (axes[1], "ari", "adjusted Rand index against the truth"),
    ):
        for place, row in enumerate(rows):
            values = [seed[key] for seed in row["seeds"]]
            axis.plot([place] * len(values), values, "o", alpha=0.6)
        axis.axhline(1.0, color="grey", linewidth=0.8, linestyle=":")
        axis.set_xticks(range(len(rows)), names, fontsize=7)
        axis.set_title(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> int:
    """Measure, write the results and return 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed of the small problems")
    quick = parser.parse_args().quick
    logging.disable(logging.INFO)
    plt.switch_backend("Agg")
    torch.set_num_threads(1)  # threads do not speed up small matrices
    rows = measure(quick)
    text = (
        "# Planted problems\n\nMade by `python benchmarks/grouping.py`; 2,000 steps of 256 "
        "samples, means over the problems, which `data_pipelines/synthetic/planted.py` describes."
        "\n\n"
        f"{table(rows)}\n\n![planted problems](planted.png)\n"
    )
    sys.stdout.write(f"{table(rows)}\n")
    if not quick:
        OUT.mkdir(parents=True, exist_ok=True)
        machine = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"
        record = json.dumps({"machine": machine, "rows": rows}, indent=1)
        (OUT / "planted.json").write_text(f"{record}\n")
        (OUT / "planted.md").write_text(text)
        draw(rows, OUT / "planted.png")
    failed = faults(rows)
    for line in failed:
        sys.stderr.write(f"claim does not hold: {line}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
