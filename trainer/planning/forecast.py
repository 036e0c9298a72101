"""Predict parameters, memory and time of a run under every engine, without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from data_pipelines.errors import DataError
from data_pipelines.shards.manifest import Field, Manifest
from dmtg.plugins import LOSS_WEIGHTINGS
from model.heads.layout import Head
from model.network import MultiTaskNetwork
from model.subset import subset
from model.tasks.spec import TaskSpec
from trainer.builders import build_network
from trainer.class_balance import equally_frequent
from trainer.config.config import Config
from trainer.errors import UserError
from trainer.planning.memory import ENGINES, NCCL_BUFFERS
from trainer.planning.stages import HEADROOM, Machine, Planner, Stage
from trainer.planning.step_time import StepTime
from trainer.recipes.given import given_groups
from trainer.recipes.learner import recipe_of, sampled_heads
from trainer.run_data import open_data, open_shards
from trainer.tasks import resolve_tasks


@dataclass(frozen=True)
class Forecast:
    """The predicted cost of a run.

    Attributes:
        micro_batch: Samples per process in a forward pass.
        precision: Precision of the computation: `run.precision`, or else that of the launch files.
        samples: Samples of an epoch; None if unknown.
        stages: The run `before` and `after` pruning.
        fits: Engines under which the run fits on the GPUs.
        cheapest: The fastest of these engines; among equally fast ones the simplest.
        advice: Changes of the configuration that would make the run fit, if no engine fits.
        notes: Assumptions of the prediction.
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
    """Predict parameters, memory and time of a run.

    Args:
        config: Configuration of the run.
        machine: GPUs and their connection.
        samples: Samples of an epoch; None uses the number in the manifest, if there is a manifest.

    Raises:
        UserError: The global batch is not divisible by processes and micro-batches, or the tasks
            are unknown without the shards.
    """
    micro_batch = _micro_batch(config, machine.gpus)
    tasks, epoch_samples = _tasks(config)
    samples = samples or epoch_samples
    precision = config.run.precision or "bf16"
    groups = given_groups(config, [task.name for task in tasks])
    # The device `meta` allocates no storage; weights from a file need storage.
    with torch.device("cpu" if isinstance(config.model.encoder.pretrained, str) else "meta"):
        network = build_network(config, tasks, groups)
        network.activation_checkpointing = config.model.activation_checkpointing
        # One head for each task, and tasks on every branch: the largest network after pruning.
        one_per_task = [(task, task % network.num_branches) for task in range(network.num_tasks)]
        pruned = network if groups else subset(network, one_per_task)
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
        _notes(config, machine, samples, micro_batch, stages),
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
    """Return the tasks, and the samples of an epoch; None if these are unknown."""
    if config.data.shards is None:
        data = open_data(config)
        return equally_frequent(data.tasks), data.train_samples
    try:
        manifest = Manifest.load(open_shards(config))
    except DataError as error:
        if config.tasks.preset is None and config.tasks.names is None:
            raise UserError(
                f"data.shards: {error}; without shards the tasks must be given by tasks.preset, or "
                "by tasks.names with a tasks.define for each"
            ) from None
        image = Field(member="rgb.png", kind="image")
        without_labels = Manifest(dataset="no shards", fields={"rgb": image}, splits={})
        return equally_frequent(resolve_tasks(config.tasks, without_labels)), None
    tasks = equally_frequent(resolve_tasks(config.tasks, manifest))
    endless = config.data.tar_urls is not None
    return tasks, None if endless else manifest.split(config.data.train_split).num_samples


def _computed(config: Config, network: MultiTaskNetwork) -> Sequence[Head]:
    """Return the heads that a step computes while the grouping is learned."""
    sampled, branches = sampled_heads(config), network.num_branches
    if sampled is None or sampled >= branches:
        return network.heads
    tasks = range(network.num_tasks)
    return [(task, (task + offset) % branches) for task in tasks for offset in range(sampled)]


def _cheapest(fits: Sequence[str], times: dict[str, StepTime]) -> str | None:
    """Return the first engine whose step takes at most 1 % longer than the fastest."""
    if not fits:
        return None
    fastest = min(times[engine].total for engine in fits)
    return next(engine for engine in fits if times[engine].total <= 1.01 * fastest)


def _notes(
    config: Config,
    machine: Machine,
    samples: int | None,
    micro_batch: int,
    stages: dict[str, Stage],
) -> tuple[str, ...]:
    notes = [
        f"{HEADROOM:.0%} of a GPU are left for its context, cuBLAS's workspaces and fragmentation",
        "estimates: cuDNN's workspaces, by what copies of the input, weight and output of each "
        "convolution add to the peak; NCCL's buffers, by "
        f"{NCCL_BUFFERS / 2**20:g} MiB for a communicator",
        f"messages at {machine.ring:g} GB/s"
        + (", give --link for another speed" if machine.link is None else ""),
    ]
    if machine.tflops is None:
        device = "GPU" if torch.cuda.is_available() else "CPU"
        notes.append(f"arithmetic as fast as on this machine's {device}, where it was measured")
        notes += [
            f"{micro_batch} samples do not fit into the memory of this machine's {device}: the "
            f"time {name} pruning is inferred from passes of {stage.measured.largest}"
            for name, stage in stages.items()
            if stage.measured is not None and stage.measured.largest is not None
        ]
    else:
        notes.append(
            f"arithmetic at {machine.tflops:g} TFLOP/s, the update of the weights included"
        )
    if samples is None:
        notes.append("the length of an epoch is not known without the shards, give --samples")
    if config.model.compile:
        notes.append("time and memory are those without torch.compile")
    method = config.loss_weights.method
    if LOSS_WEIGHTINGS[method].compares_losses:
        accumulates = config.optim.gradient_accumulation_steps > 1
        passes = "2 forward passes" if accumulates else "1 forward pass"
        notes.append(f"without the {passes} that loss_weights {method} adds to each step")
    notes.append("after pruning every branch is taken to keep a task")
    return tuple(notes)
