"""What a run would need before it is started: parameters, memory and time under every engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from data_pipelines.errors import DataError
from data_pipelines.shards.manifest import Field, Manifest
from model.heads.layout import Head
from model.network import MultiTaskNetwork
from model.subset import subset
from model.tasks.spec import TaskSpec
from trainer.builders import build_network
from trainer.config.config import Config
from trainer.errors import UserError
from trainer.planning.memory import ENGINES
from trainer.planning.stages import HEADROOM, Machine, Planner, Stage
from trainer.planning.step_time import StepTime
from trainer.recipes.given import given_groups
from trainer.recipes.learner import recipe_of, sampled_heads
from trainer.run_data import open_data, open_shards
from trainer.tasks import resolve_tasks


@dataclass(frozen=True)
class Forecast:
    """What a run would need.

    Attributes:
        micro_batch: Samples of a process in a forward pass.
        precision: Of the arithmetic: that of the launch files unless `run.precision` says else.
        samples: Of an epoch; None where they are not known.
        stages: `before` and `after` pruning.
        fits: Engines under which the run fits on the GPUs.
        cheapest: The fastest of these; among equals the simplest.
        advice: What would help if none fits.
        notes: What had to be assumed.
    """

    micro_batch: int
    precision: str
    samples: int | None
    stages: dict[str, Stage]
    fits: tuple[str, ...]
    cheapest: str | None
    advice: tuple[str, ...]
    notes: tuple[str, ...]


def forecast(config: Config, machine: Machine, samples: int | None = None) -> Forecast:
    """Plan a run.

    Args:
        samples: Of an epoch; None takes those of the manifest, if there is one.

    Raises:
        UserError: The global batch does not divide, or the tasks are not known without the shards.
    """
    micro_batch = _micro_batch(config, machine.gpus)
    tasks, found = _tasks(config)
    samples = samples or found
    precision = config.run.precision or "bf16"
    groups = given_groups(config, [task.name for task in tasks])
    # Without storage, unless weights are read from a file.
    with torch.device("meta" if config.model.encoder.pretrained is None else "cpu"):
        network = build_network(config, tasks, groups)
        network.activation_checkpointing = config.model.activation_checkpointing
        spread = [(task, task % network.num_branches) for task in range(network.num_tasks)]
        pruned = network if groups else subset(network, spread)
    pruned.activation_checkpointing = network.activation_checkpointing
    planner = Planner(config, machine, micro_batch, precision, samples)
    computed = network.heads if groups else _computed(config, network)
    gradient_statistics = recipe_of(config).collects_gradient_statistics
    stages = {
        "before": planner.stage(network, computed, gradient_statistics=gradient_statistics),
        "after": planner.stage(pruned, pruned.heads, gradient_statistics=False),
    }
    fits = tuple(e for e in ENGINES if stages["before"].memory[e].total <= machine.usable)
    advice: tuple[str, ...] = ()
    if not fits:
        advice = planner.advice(network, computed, gradient_statistics=gradient_statistics)
    return Forecast(
        micro_batch,
        precision,
        samples,
        stages,
        fits,
        _cheapest(fits, stages["before"].time),
        advice,
        _notes(config, machine, samples),
    )


def _micro_batch(config: Config, gpus: int) -> int:
    batch, accumulation = config.data.global_batch, config.optim.gradient_accumulation_steps
    if batch % (gpus * accumulation):
        raise UserError(
            f"data.global_batch is {batch}; it must be a multiple of --gpus x "
            f"optim.gradient_accumulation_steps = {gpus} x {accumulation}"
        )
    return batch // (gpus * accumulation)


def _tasks(config: Config) -> tuple[tuple[TaskSpec, ...], int | None]:
    """The tasks and the samples of an epoch, as far as the data can be read."""
    if config.data.shards is None:
        data = open_data(config)
        return data.tasks, data.train_samples
    try:
        manifest = Manifest.load(open_shards(config))
    except DataError as error:
        if config.tasks.preset is None and config.tasks.names is None:
            raise UserError(
                f"data.shards: {error}; without shards the tasks must be given by tasks.preset, or "
                "by tasks.names with a tasks.define for each"
            ) from None
        image = Field(member="rgb.png", kind="image")
        none = Manifest(dataset="no shards", fields={"rgb": image}, splits={})
        return resolve_tasks(config.tasks, none), None
    tasks = resolve_tasks(config.tasks, manifest)
    endless = config.data.tar_urls is not None
    return tasks, None if endless else manifest.split(config.data.train_split).num_samples


def _computed(config: Config, network: MultiTaskNetwork) -> Sequence[Head]:
    """The heads that a step computes while the groups are learned."""
    sampled, branches = sampled_heads(config), network.num_branches
    if sampled is None or sampled >= branches:
        return network.heads
    tasks = range(network.num_tasks)
    return [(task, (task + number) % branches) for task in tasks for number in range(sampled)]


def _cheapest(fits: Sequence[str], times: dict[str, StepTime]) -> str | None:
    """The first engine that is within a hundredth of the fastest."""
    if not fits:
        return None
    least = min(times[engine].total for engine in fits)
    return next(engine for engine in fits if times[engine].total <= 1.01 * least)


def _notes(config: Config, machine: Machine, samples: int | None) -> tuple[str, ...]:
    notes = [
        f"{HEADROOM:.0%} of a GPU are left for its context, workspaces and fragmentation",
        f"messages at {machine.ring:g} GB/s"
        + (", give --link for another speed" if machine.link is None else ""),
    ]
    if machine.tflops is None:
        device = "GPU" if torch.cuda.is_available() else "CPU"
        notes.append(f"arithmetic as fast as on this machine's {device}, where it was measured")
    else:
        notes.append(
            f"arithmetic at {machine.tflops:g} TFLOP/s, the update of the weights included"
        )
    if samples is None:
        notes.append("the length of an epoch is not known without the shards, give --samples")
    if config.model.compile:
        notes.append("time and memory are those without torch.compile")
    notes.append("after pruning every branch is taken to keep a task")
    return tuple(notes)
