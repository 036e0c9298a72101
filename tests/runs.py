"""Folders of finished runs that nobody has trained, with every number known."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from model.grouping.paired_losses import PREFIX, PairedLosses
from model.tasks.spec import TaskSpec
from trainer.builders import build_network
from trainer.checkpoints.checkpoint import Checkpoint, Progress, save_checkpoint
from trainer.checkpoints.state import NamedState
from trainer.config.config import Config
from trainer.config.loading import parse_config

STEPS, EVERY = 60, 5
FIRMNESS, AGREEMENT = 0.9, 0.4  # of every task, of all groups


def run_config(out: Path, branches: int, seed: int = 0, recipe: str = "evidence") -> Config:
    """A configuration of a run without data."""
    tree = {
        "run": {"out": str(out), "steps": STEPS, "seed": seed},
        "data": {"shards": "none", "image_size": [1, 1], "global_batch": 4},
        "model": {"encoder": {"name": "mlp", "options": {"widths": [2, 2]}}, "branches": branches},
        "grouping": {"recipe": recipe},
        "log": {"every": EVERY, "trackers": []},
    }
    return parse_config(tree, "test")


def write_run(
    out: Path,
    tasks: Sequence[TaskSpec],
    branches: int,
    *,
    seed: int = 0,
    recipe: str = "evidence",
    errors: Sequence[float] | None = None,
    recorded: bool = True,
) -> Path:
    """Write a run in which task n goes to branch n modulo K, its last heads in step 40.

    Args:
        errors: Primary metric of each task in the last evaluation; else 0.1.
        recorded: Whether it has a `grouping.jsonl`, with affinity 0.8 within groups and 0.2 else,
            co-assignment 0.95 and 0.05; and evidence, see `_evidence`.
    """
    config = run_config(out, branches, seed, recipe)
    out.mkdir(parents=True)
    (out / "config.yaml").write_text(config.to_yaml())
    errors = [0.1] * len(tasks) if errors is None else list(errors)
    off = [[n, k] for n in range(len(tasks)) for k in range(branches) if k != n % branches]
    records = []
    for step in range(EVERY, STEPS + 1, EVERY):
        heads = len(tasks) * branches if step <= 40 else len(tasks)
        values = {"loss": 1 / step, "temperature": 0.1, "heads": heads, "branches": branches}
        losses = {task.name: 1 / (step + n) for n, task in enumerate(tasks)}
        records.append({"step": step, "kind": "train", **values, "lr": 1e-3, "losses": losses})
        if step == 40:
            records.append({"step": step, "kind": "prune", "off": off, "heads": len(tasks)})
        if step % 20 == 0:
            metrics = {
                task.name: {"mae" if task.kind == "regression" else "error": error * 60 / step}
                for task, error in zip(tasks, errors, strict=True)
            }
            records.append({"step": step, "kind": "eval", "metrics": metrics})
    _write_lines(out / "metrics.jsonl", records)
    _write_lines(out / "timing.jsonl", [_timing(step) for step in range(EVERY, STEPS + 1, EVERY)])
    if recorded:
        _write_lines(out / "grouping.jsonl", list(_grouping(len(tasks), branches)))
    _write_checkpoint(out, config, tuple(tasks), recorded)
    return out


def probability_at(step: int, branches: int) -> float:
    """The probability of a task's own branch after a step; the others share the rest."""
    return 1 / branches + (1 - 1 / branches) * min(1.0, step / 40)


def _grouping(num_tasks: int, branches: int):
    own = np.arange(num_tasks) % branches
    same = own[:, None] == own[None, :]
    for kind, within, between in (("affinity", 0.8, 0.2), ("co_assignment", 0.95, 0.05)):
        values = np.where(same, within, between)
        rows = [row[: n + 1].tolist() for n, row in enumerate(values)]
        yield {"step": 7, "kind": kind, kind: rows}
    for step in range(EVERY, STEPS + 1, EVERY):
        high = probability_at(step, branches)
        values = np.full((num_tasks, branches), (1 - high) / max(1, branches - 1))
        values[np.arange(num_tasks), own] = high
        rows = values.round(3).tolist()
        yield {"step": step, "kind": "probabilities", "probabilities": rows}


def _timing(step: int) -> dict:
    part = {"mean": 0.01, "max": 0.02, "max_rank": 0}
    return {
        "step": step, "kind": "steps", "hours": step / 3600, "step_seconds": 0.5,
        "samples_per_second": 8.0, "data_seconds": part, "share_of_peak": None,
        "process_gib": {**part, "max": 1.5}, "device_gib": {**part, "max": 0.0},
    }  # fmt: skip


def _evidence(own: torch.Tensor, branches: int) -> dict[str, torch.Tensor]:
    """Evidence as a checkpoint has it: the loss on a task's branch is 0.6, and 0.8 on the others.

    The margin is thus about 25 %. The differences of every second task vary by 0.1 from step to
    step, those of the others by 2: of these one cannot say that the branch is better.
    """
    losses = PairedLosses(len(own), branches, torch.device("cpu"))
    noise = torch.tensor([0.1, 2.0])[torch.arange(len(own)) % 2]
    alive = torch.ones(len(own), branches, dtype=torch.bool)
    for step in range(2 * STEPS):
        row = (0.8 + (-1) ** step * noise)[:, None].repeat(1, branches)
        row[torch.arange(len(own)), own] = 0.6
        losses.add(row, torch.ones(len(own)), alive)
    firmness = torch.tensor([*(len(own) * [FIRMNESS]), AGREEMENT])
    return {"firmness": firmness, **{PREFIX + n: v for n, v in losses.tensors().items()}}


def _write_checkpoint(
    out: Path, config: Config, tasks: tuple[TaskSpec, ...], recorded: bool
) -> None:
    network = build_network(config, tasks)
    own = torch.arange(len(tasks)) % config.model.branches
    alive = torch.nn.functional.one_hot(own, config.model.branches).bool()
    progress = Progress(
        STEPS, STEPS, 0, network.config(), "digest", 0, {}, dataset="none (0 samples)"
    )
    state = NamedState(network.state_dict(), {"exp_avg": {}, "exp_avg_sq": {}}, STEPS)
    grouping = {"logits": torch.zeros(alive.shape), "alive": alive}
    if recorded:
        grouping |= _evidence(own, config.model.branches)
    save_checkpoint(out / "checkpoints", Checkpoint(progress, state, grouping), keep_last=1)


def _write_lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
