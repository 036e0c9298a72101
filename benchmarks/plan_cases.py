"""The cases of `benchmarks/plan.py`: networks, data and engines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_pipelines.reading.collate import Batch
from model.tasks.presets import PRESETS
from model.tasks.spec import TaskSpec
from trainer.config.config import Config
from trainer.config.loading import parse_config
from trainer.planning.step_cost import empty_batch

NUM_STEPS = 400
Case = tuple[str, str, str, int]  # model, engine, precision, micro-batches of a step
CASES: tuple[Case, ...] = (
    ("mlp", "cpu", "fp32", 1),
    ("residual64", "cpu", "fp32", 1),
    ("digits", "cpu", "fp32", 1),
    ("dense", "cpu", "fp32", 1),
    ("dense", "cpu", "fp32", 2),
    ("mlp", "ddp_cpu", "fp32", 1),
    ("mlp", "zero1_cpu", "fp32", 1),
    ("mlp", "zero2_cpu", "fp32", 1),
    ("mlp", "zero2_cpu", "bf16", 2),
    ("mlp", "zero3_cpu", "fp32", 1),
    ("mlp", "fsdp2_cpu", "fp32", 1),
    ("dense", "zero2_cpu", "fp32", 1),
    ("dense", "zero3_cpu", "fp32", 1),
)

DIGITS = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [32, 64, 96],
    "depths": [1, 1, 1],
    "layer_type": "basic",
}
SMALL = {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [32], "depths": [1]}
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"encoder": {"name": "mlp", "options": {"widths": [1024, 2048, 1024]}}, "branches": 3},
    "residual64": {"encoder": {"name": "residual64"}, "branches": 2, "branch_init": "copies"},
    "digits": {"encoder": {"name": "backbone", "options": DIGITS}, "branches": 2},
    "dense": {
        "encoder": {"name": "backbone", "options": {**SMALL, "layer_type": "basic"}},
        "branches": 3,
        "dense_widths": [16],
    },
}
TASKS: dict[str, tuple[TaskSpec, ...]] = {
    "mlp": tuple(TaskSpec(f"task{number}", "binary") for number in range(60)),
    "residual64": PRESETS["celeba9"],
    "digits": tuple(TaskSpec(f"task{n}", "multiclass", channels=10) for n in range(24)),
    "dense": PRESETS["taskonomy5"],
}
SIZES = {"mlp": 1, "residual64": 64, "digits": 64, "dense": 64}
BATCHES = {"mlp": 128, "residual64": 64, "digits": 64, "dense": 16}


def case_config(model: str, precision: str, accumulation: int = 1) -> Config:
    """Return the configuration of a case."""
    tree = {
        "run": {"out": "unused", "steps": NUM_STEPS, "precision": precision, "seed": 1},
        "data": {
            "shards": "unused",
            "image_size": [SIZES[model]] * 2,
            "global_batch": BATCHES[model],
        },
        "model": MODELS[model],
        "optim": {"gradient_accumulation_steps": accumulation},
        "log": {"trackers": [], "progress": False},
    }
    return parse_config(tree, model)


class MadeUpData:
    """`trainer.run_data.RunData` whose batches are zeros."""

    train_samples: int | None = None
    eval_samples = 1
    digest = dataset = "made up"

    def __init__(self, model: str, config: Config, processes: int) -> None:
        self.tasks = TASKS[model]
        self._size = (
            config.data.global_batch // config.optim.gradient_accumulation_steps // processes
        )
        channels = MODELS[model]["encoder"].get("options", {}).get("widths", [3])[0]
        self._shape = (channels, *config.data.image_size)

    def steps_per_epoch(self) -> int:
        """Return an arbitrary number: these data have no epochs."""
        return 1000

    def train_batches(self, start_step: int, end_step: int, **_: int) -> Iterator[Batch]:
        """Yield micro-batches of zeros, each in newly allocated memory."""
        for _step in range(start_step, end_step):
            yield empty_batch(self.tasks, self._size, self._shape)

    def eval_batches(self, **_: int) -> list[Batch]:
        """Return no batches, because the cases evaluate nothing."""
        return []
