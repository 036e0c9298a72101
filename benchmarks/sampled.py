"""Measure the effect of sampled heads on planted problems and on the variance of gradients.

python benchmarks/sampled.py [--quick]

Writes docs/results/sampled.json and sampled.md; the exit code is 1 if a claim does not hold.
Without --quick it takes about twenty minutes on one core.

Legend: N tasks, K branches.
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
    (200, 8, 8, "evidence", None, 2, 0),
    (200, 8, 8, "evidence", 2, 2, 0),
    (200, 8, 8, "evidence", 1, 2, 0),
    (200, 8, 8, "affinity", None, 2, 0),
    (200, 8, 8, "affinity", 2, 2, 0),
    (200, 8, 8, "affinity", 1, 2, 0),
    (60, 3, 3, "evidence", None, 3, 100),
    (60, 3, 3, "evidence", 2, 3, 100),
    (60, 3, 3, "evidence", 1, 3, 100),
    (60, 3, 3, "affinity", None, 3, 100),
    (60, 3, 3, "affinity", 2, 3, 100),
    (60, 3, 3, "affinity", 1, 3, 100),
    (60, 3, 3, "published", None, 3, 100),
    (60, 3, 3, "published", 2, 3, 100),
)
LIMITED = ("evidence", "affinity")
MIN_ARI, MAX_RATIO = 0.90, 1.10  # limits of these with two sampled heads
VARIANCE = ((60, 3, 2), (200, 8, 2), (200, 8, 1))  # tasks, branches (and groups), sampled heads
STEPS, BATCH, NUM_SAMPLES = 400, 256, 300


def quality(quick: bool) -> list[dict[str, Any]]:
    """Train the recipes of all rows, or only the first of the small problems."""
    rows = []
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
            del values["seconds"]  # not claimed
        rows.append({**shape, "sampled": size, **record})
        logger.warning("%s", _line(rows[-1]))
    return rows


def variance(tasks: int, branches: int, size: int) -> dict[str, Any]:
    """Return the relative variance of the gradients over head samples, after 400 training steps.

    All numbers are mean squared deviations from the gradient of all heads on the same batch,
    divided by the square of that gradient; `batches` is the variance over batches instead of head
    samples.
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
            variances = _variances(session, problem)
    return {"tasks": tasks, "branches": branches, "sampled": size, **variances}


def _variances(session: Session, problem: PlantedProblem) -> dict[str, float]:
    learner, step = session.learner, session.step
    candidates = [learner.sample_heads(step + n) for n in range(NUM_SAMPLES)]
    samples = [sample for sample in candidates if sample is not None]
    losses = _losses(session, problem, STEPS)
    per_task = torch.ones(len(session.tasks))

    def logits_gradient(head_losses: Tensor) -> Tensor:
        return learner.grouping.logit_gradient(learner.weights(step, 1), head_losses).flatten()

    def with_baseline(head_sample: HeadSample) -> Tensor:
        return logits_gradient(head_sample.losses(losses.detach(), per_task))

    def without_baseline(head_sample: HeadSample) -> Tensor:
        return logits_gradient(losses.detach() * head_sample.factor)

    z = learner.weights(step, 1).detach()
    full = _weights_gradient(session, losses, z)
    sampled = (_weights_gradient(session, losses, sample.weights(z)) for sample in samples[:100])
    batches = (
        _weights_gradient(session, _losses(session, problem, STEPS + 1 + n), z) for n in range(100)
    )
    of_all_heads = logits_gradient(losses)
    return {
        "logits_without_baseline": _relative_variance(map(without_baseline, samples), of_all_heads),
        "logits_with_baseline": _relative_variance(map(with_baseline, samples), of_all_heads),
        "weights": _relative_variance(sampled, full),
        "batches": _relative_variance(batches, full),
    }


def _losses(session: Session, problem: PlantedProblem, number: int) -> Tensor:
    """Return the losses [N,K] of all heads on a batch."""
    module, batch = session.engine.module, problem.batch(number, BATCH)
    targets = module.labels.targets(batch.scalars, batch.dense, batch.valid_rows)
    return module(batch.images, module.select(module.heads), targets)["losses"] / BATCH


def _weights_gradient(session: Session, losses: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient of the objective with respect to the parameters of the branches."""
    parameters = list(session.engine.module.branches.parameters())
    gradients = torch.autograd.grad((weights * losses).sum(), parameters, retain_graph=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def _relative_variance(gradients: Iterable[Tensor], expected: Tensor) -> float:
    """Return the mean squared deviation from the expected gradient, divided by its square."""
    squares = [float((value - expected).square().sum()) for value in gradients]
    return sum(squares) / len(squares) / float(expected.square().sum())


def faults(rows: list[dict[str, Any]], variances: list[dict[str, Any]]) -> list[str]:
    """Return the claims that do not hold."""
    failed = []
    for row in rows:
        if row["recipe"] not in LIMITED or row["sampled"] != 2:
            continue
        mean, shape = row["mean"], (row["tasks"], row["branches"])
        if mean["ari"] < MIN_ARI or mean["ratio"] > MAX_RATIO:
            failed.append(f"{shape}: ari {mean['ari']:.3f}, ratio {mean['ratio']:.3f}")
    worse = (r for r in variances if r["logits_with_baseline"] >= r["logits_without_baseline"])
    return failed + [f"no less variance with the baseline: {row}" for row in worse]


def _line(row: dict[str, Any]) -> str:
    mean = row["mean"]
    return (
        f"| {row['tasks']} | {row['branches']} | {row['recipe']} | {row['sampled'] or 'all'} "
        f"| {len(row['seeds'])} | {mean['error']:.4f} | {mean['true_error']:.4f} "
        f"| {mean['ratio']:.3f} | {mean['ari']:.3f} |"
    )


def report(rows: list[dict[str, Any]], variances: list[dict[str, Any]]) -> str:
    """Return both tables as Markdown."""
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
    for row in variances:
        cells = " | ".join(f"{row[name]:,.{2 if row[name] < 10 else 0}f}" for name in names)
        lines.append(f"| {row['tasks']} | {row['branches']} | {row['sampled']} | {cells} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, write the results and return 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed of the small problems")
    quick = parser.parse_args().quick
    logging.disable(logging.INFO)
    torch.set_num_threads(1)  # threads do not speed up small matrices
    variances = [variance(*row) for row in VARIANCE]
    rows = quality(quick)
    text = report(rows, variances)
    sys.stdout.write(f"{text}\n")
    if not quick:
        OUT.mkdir(parents=True, exist_ok=True)
        machine = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"
        record = {"machine": machine, "rows": rows, "variance": variances}
        (OUT / "sampled.json").write_text(f"{json.dumps(record, indent=1)}\n")
        (OUT / "sampled.md").write_text(
            "# Sampled heads\n\nMade by `python benchmarks/sampled.py`; 2,000 steps of 256 samples "
            f"of planted problems, means over the problems.\n\n{text}\n"
        )
    failed = faults(rows, variances)
    for line in failed:
        sys.stderr.write(f"does not hold: {line}\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
