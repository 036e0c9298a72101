"""What do sampled heads cost in quality? Planted problems, and the variance of the gradients.

python benchmarks/sampled.py [--quick]

Writes docs/results/sampled.json and sampled.md; the exit code is 1 where a claim does not hold.
Without --quick it takes about ten minutes on one core.

Legend: N tasks, K branches, s sampled heads of a task.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from data_pipelines.synthetic.planted import PlantedProblem
from model.grouping.head_sampling import HeadSample
from trainer.bench.planted import PlantedData, as_json, measure_grouping, planted_config
from trainer.engines.accelerator import make_accelerator
from trainer.session import Session, start_session
from trainer.step import train_step

logger = logging.getLogger("sampled")

OUT = Path(__file__).resolve().parent.parent / "docs" / "results"
# tasks, true groups, branches, recipe, sampled heads (None: all), problems, first seed
ROWS = (
    (200, 8, 8, "affinity", None, 2, 0),
    (200, 8, 8, "affinity", 2, 2, 0),
    (200, 8, 8, "affinity", 1, 2, 0),
    (60, 3, 3, "affinity", None, 3, 100),
    (60, 3, 3, "affinity", 2, 3, 100),
    (60, 3, 3, "affinity", 1, 3, 100),
    (60, 3, 3, "published", None, 3, 100),
    (60, 3, 3, "published", 2, 3, 100),
)
LEAST_ARI, MOST_RATIO = 0.90, 1.10  # of the recipe `affinity` with s=2
VARIANCE = ((60, 3, 2), (200, 8, 2), (200, 8, 1))  # tasks, branches (and groups), sampled heads
STEPS, BATCH, DRAWS = 400, 256, 300


def quality(quick: bool) -> list[dict[str, Any]]:
    """Train all rows, or only the first problem of the small ones."""
    found = []
    for tasks, groups, branches, recipe, size, problems, base in ROWS:
        if quick and tasks > 60:
            continue
        seeds = range(base, base + (1 if quick else problems))
        sampled = () if size is None else (f"grouping.sampled_heads={size}",)
        results = measure_grouping(
            tasks, groups, branches, seeds, recipe, overrides=sampled, progress=False
        )
        shape = {"tasks": tasks, "groups": groups, "branches": branches, "recipe": recipe}
        record = as_json(results)
        for values in (*record["seeds"], record["mean"]):
            del values["seconds"]  # no claim is made of them
        found.append({**shape, "sampled": size, **record})
        logger.warning("%s", _line(found[-1]))
    return found


def variance(tasks: int, branches: int, size: int) -> dict[str, Any]:
    """Spread of the gradients over the choice of heads, in a run of 400 steps with the updates.

    All numbers are mean squared deviations from the gradient of all heads of the same batch, over
    that gradient's square; `batches` is the spread of that gradient over batches.
    """
    problem = PlantedProblem(tasks, branches, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        config = planted_config(
            Path(folder) / "run",
            branches,
            0,
            "published",
            STEPS + 1,
            BATCH,
            (f"grouping.sampled_heads={size}",),
        )
        data = PlantedData(problem, config)
        with start_session(config, make_accelerator(config), data) as session:
            for batch in data.train_batches(0, STEPS, rank=0, world_size=1):
                train_step(session, [batch])
                session.step += 1
            found = _spreads(session, problem)
    return {"tasks": tasks, "branches": branches, "sampled": size, **found}


def _spreads(session: Session, problem: PlantedProblem) -> dict[str, float]:
    learner, step = session.learner, session.step
    draws = [learner.sample_heads(step + n) for n in range(DRAWS)]
    samples = [sample for sample in draws if sample is not None]
    losses = _losses(session, problem, STEPS)
    everything = torch.ones(len(session.tasks))

    def logits_gradient(own: Tensor) -> Tensor:
        return learner.grouping.logit_gradient(learner.weights(step, 1), own).flatten()

    def estimated(head_sample: HeadSample) -> Tensor:
        return logits_gradient(head_sample.losses(losses.detach(), everything))

    def divided(head_sample: HeadSample) -> Tensor:
        return logits_gradient(losses.detach() * head_sample.factor)

    z = learner.weights(step, 1).detach()
    full = _weights_gradient(session, losses, z)
    chosen = (_weights_gradient(session, losses, sample.weights(z)) for sample in samples[:100])
    batches = (
        _weights_gradient(session, _losses(session, problem, STEPS + 1 + n), z) for n in range(100)
    )
    return {
        "logits_without_baseline": _spread(map(divided, samples), logits_gradient(losses)),
        "logits_with_baseline": _spread(map(estimated, samples), logits_gradient(losses)),
        "weights": _spread(chosen, full),
        "batches": _spread(batches, full),
    }


def _losses(session: Session, problem: PlantedProblem, number: int) -> Tensor:
    """The losses [N,K] of all heads on a batch."""
    module, batch = session.engine.module, problem.batch(number, BATCH)
    targets = module.labels.targets(batch.scalars, batch.dense, batch.valid_rows)
    return module(batch.images, module.select(module.heads), targets)["losses"] / BATCH


def _weights_gradient(session: Session, losses: Tensor, weights: Tensor) -> Tensor:
    """The gradient of the objective in the branches' weights."""
    parameters = list(session.engine.module.branches.parameters())
    gradients = torch.autograd.grad((weights * losses).sum(), parameters, retain_graph=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def _spread(found: Iterable[Tensor], expected: Tensor) -> float:
    """The mean squared distance over the squared length of what is expected."""
    squares = [float((value - expected).square().sum()) for value in found]
    return sum(squares) / len(squares) / float(expected.square().sum())


def faults(rows: list[dict[str, Any]], spreads: list[dict[str, Any]]) -> list[str]:
    """The claims that do not hold."""
    wrong = []
    for row in rows:
        if (row["recipe"], row["sampled"]) != ("affinity", 2):
            continue
        mean, shape = row["mean"], (row["tasks"], row["branches"])
        if mean["ari"] < LEAST_ARI or mean["ratio"] > MOST_RATIO:
            wrong.append(f"{shape}: ari {mean['ari']:.3f}, ratio {mean['ratio']:.3f}")
    worse = (r for r in spreads if r["logits_with_baseline"] >= r["logits_without_baseline"])
    return wrong + [f"no less variance with the baseline: {row}" for row in worse]


def _line(row: dict[str, Any]) -> str:
    mean = row["mean"]
    return (
        f"| {row['tasks']} | {row['branches']} | {row['recipe']} | {row['sampled'] or 'all'} "
        f"| {len(row['seeds'])} | {mean['error']:.4f} | {mean['true_error']:.4f} "
        f"| {mean['ratio']:.3f} | {mean['ari']:.3f} |"
    )


def report(rows: list[dict[str, Any]], spreads: list[dict[str, Any]]) -> str:
    """Both tables as Markdown."""
    lines = [
        "| tasks | groups = branches | recipe | heads of a task in a step | problems "
        "| test error | of the true grouping | ratio | adjusted Rand index |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        *map(_line, rows),
        "",
        f"After {STEPS} steps with the published updates, mean squared deviation from the "
        "gradient of all heads on the same batch, over that gradient's square:",
        "",
        "| tasks | branches | heads of a task | logits, no baseline | logits, baseline "
        "| branches' weights | the same, all heads on another batch |",
        "|---|---|---|---|---|---|---|",
    ]
    names = ("logits_without_baseline", "logits_with_baseline", "weights", "batches")
    for row in spreads:
        cells = " | ".join(f"{row[name]:,.{2 if row[name] < 10 else 0}f}" for name in names)
        lines.append(f"| {row['tasks']} | {row['branches']} | {row['sampled']} | {cells} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, write and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed of the small problems")
    quick = parser.parse_args().quick
    logging.disable(logging.INFO)
    torch.set_num_threads(1)  # small matrices gain nothing from threads
    spreads = [variance(*row) for row in VARIANCE]
    rows = quality(quick)
    text = report(rows, spreads)
    sys.stdout.write(f"{text}\n")
    if not quick:
        OUT.mkdir(parents=True, exist_ok=True)
        machine = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"
        record = {"machine": machine, "rows": rows, "variance": spreads}
        (OUT / "sampled.json").write_text(f"{json.dumps(record, indent=1)}\n")
        (OUT / "sampled.md").write_text(
            "# Sampled heads\n\nMade by `python benchmarks/sampled.py`; 2,000 steps of 256 samples "
            f"of planted problems, means over the problems.\n\n{text}\n"
        )
    wrong = faults(rows, spreads)
    for line in wrong:
        sys.stderr.write(f"does not hold: {line}\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
