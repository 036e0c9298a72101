"""Train with every method of loss weights: `weighted_runs.py FOLDER ACCUMULATION`."""

import sys
from dataclasses import replace
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState

from data_pipelines.synthetic.planted import PlantedProblem
from trainer.bench.planted import PlantedData, planted_config
from trainer.engines.accelerator import make_accelerator
from trainer.run import train_run

METHODS = {
    "famo": ("loss_weights={method: famo, lr: 0.1}",),
    "uncertainty": ("loss_weights={method: uncertainty, lr: 0.05}",),
    "dwa": ("loss_weights={method: dwa, every: 2}",),
    "given": ("loss_weights={method: given, weights: {task0000: 3.0, task0002: 0.2}}",),
    "sampled": ("loss_weights={method: famo, lr: 0.1}", "grouping.sampled_heads=2"),
}
OPTIONS = ({}, {"pos_weight": 3.0}, {"label_smoothing": 0.2}, {"pos_weight": 0.5})
STEPS, BATCH = 10, 32


def train_all(folder: Path, accumulation: int) -> None:
    """Train the methods one after the other, each in a folder of its name.

    Two processes have the samples of one process with twice as many micro-batches.
    """
    for name, overrides in METHODS.items():
        config = planted_config(
            folder / name, 4, 1, "published", STEPS, BATCH,
            (
                *overrides, "run.precision=fp32", "log.every=1", "pruning.begin=0.2",
                "pruning.end=0.6", "pruning.every=1", "pruning.threshold=0.2", "grouping.lr=0.3",
                "grouping.noise=shared", "finetune.steps=3", "finetune.order=together",
                f"optim.gradient_accumulation_steps={accumulation}", "optim.max_grad_norm=0.5",
            ),
        )  # fmt: skip
        data = PlantedData(PlantedProblem(8, 2, seed=1), config)
        data.tasks = tuple(
            replace(task, loss_options=OPTIONS[number % len(OPTIONS)])
            for number, task in enumerate(data.tasks)
        )
        train_run(config, make_accelerator(config), data)
        for state in (AcceleratorState, GradientState):
            state._reset_state()


if __name__ == "__main__":
    train_all(Path(sys.argv[1]), int(sys.argv[2]))
