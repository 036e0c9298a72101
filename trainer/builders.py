"""Builds network, learner and engine: new ones, from a checkpoint, or for another phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from model.common_weights import copy_common_weights
from model.encoders import build_encoder
from model.gradient_scale import gradient_factors
from model.heads.layout import Head
from model.init_from import init_from
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec
from trainer.checkpoints.checkpoint import Checkpoint
from trainer.checkpoints.state import NamedState, load_weights, write_moments
from trainer.config.config import Config
from trainer.config.optim import PlateauSchedule
from trainer.engines.engine import Engine
from trainer.engines.plateau import Plateau
from trainer.errors import UserError
from trainer.loss_weights.weighting import LossWeighting, weighting_of
from trainer.phases import Phase, freeze, phase_lr
from trainer.recipes.groups import Groups, grouping_of_groups, heads_of_groups
from trainer.recipes.learner import GroupLearner, recipe_of
from trainer.run_data import RunData


def build_network(
    config: Config, tasks: tuple[TaskSpec, ...], groups: Groups | None = None
) -> MultiTaskNetwork:
    """Build the network with all K*N heads, or with a branch for each given group.

    The weights are a function of `run.seed`. With `model.paired_init`, those of given groups equal
    the weights of the same branches and heads in the network with all K*N heads.

    Raises:
        UserError: The encoder or the decoder cannot be built as configured.
    """
    network = _build_network(config, tasks, groups)
    if groups is not None and config.model.paired_init:
        copy_common_weights(_build_network(config, tasks, None), network)
    return network


def _build_network(
    config: Config, tasks: tuple[TaskSpec, ...], groups: Groups | None
) -> MultiTaskNetwork:
    torch.manual_seed(config.run.seed)
    section = config.model
    try:
        encoder = build_encoder(
            section.encoder.name,
            section.branches if groups is None else len(groups),
            image_size=config.data.image_size,
            trunk_depth=section.trunk_depth,
            init=section.branch_init,
            options=section.encoder.options,
            pretrained=section.encoder.pretrained,
        )
        return MultiTaskNetwork(
            tasks,
            encoder,
            config.data.image_size,
            heads=None if groups is None else heads_of_groups(groups),
            dense_widths=section.dense_widths,
            decoder=section.decoder,
            decoder_options=section.decoder_options,
            gradient_scale=gradient_factors(
                section.gradient_scale, len(encoder.branches), len(tasks)
            ),
            image_mean=section.image_mean,
            image_std=section.image_std,
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def build_learner(
    config: Config,
    accelerator: Accelerator,
    tasks: tuple[TaskSpec, ...],
    steps: int,
    groups: Groups | None,
    checkpoint: Checkpoint | None,
) -> GroupLearner:
    """Build the learner of the run's recipe, with the state of the checkpoint if there is one.

    Args:
        steps: Of the run until every task has one head, as it was first started.
        groups: Those that the recipe gives; None if it learns them.

    Raises:
        UserError: The checkpoint has other groups than those given.
    """
    recipe = recipe_of(config)
    if groups is None:
        grouping = recipe.new_grouping(config, len(tasks))
    else:
        grouping = grouping_of_groups(groups)
    learner = recipe(grouping, config, steps, accelerator.device, accelerator.process_index)
    if checkpoint is None:
        return learner
    learner.load(checkpoint.grouping, checkpoint.progress.logits_updates)
    if groups is not None and learner.grouping.heads() != heads_of_groups(groups):
        raise UserError(
            f"run.out: {config.run.out} was trained with other groups than recipe "
            f"{config.grouping.recipe!r} gives now"
        )
    return learner


def build_engine(
    config: Config,
    accelerator: Accelerator,
    tasks: tuple[TaskSpec, ...],
    groups: Groups | None,
    phase: Phase,
    checkpoint: Checkpoint | None,
) -> Engine:
    """Build the engine of a phase, with the state of the checkpoint if there is one.

    Raises:
        UserError: The network cannot be built or initialised as configured.
    """
    if checkpoint is None:
        module = build_network(config, tasks, groups)
        if config.model.init_from:
            try:
                init_from(module, config.model.init_from)
            except ValueError as error:
                raise UserError(str(error)) from None
        return Engine(accelerator, module, config)
    progress = checkpoint.progress
    module = MultiTaskNetwork.from_config(progress.network)
    state, loss_scale = checkpoint.state, progress.loss_scale
    return prepare_engine(accelerator, module, config, phase, state, loss_scale)


def prepare_engine(
    accelerator: Accelerator,
    module: MultiTaskNetwork,
    config: Config,
    phase: Phase,
    state: NamedState,
    loss_scale: Mapping[str, Any] | None,
) -> Engine:
    """Return an engine of a network with this state, which trains what the phase trains.

    Args:
        loss_scale: State of the fp16 loss scaler; None or empty for a new one.
    """
    load_weights(module, state)
    engine = Engine(accelerator, module, config, freeze(module, phase, config.finetune))
    write_moments(engine, state)
    if engine.scaler is not None and loss_scale:
        engine.scaler.load_state_dict(dict(loss_scale))
    return engine


def build_plateau(
    config: Config,
    data: RunData,
    phase: Phase,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
) -> Plateau | None:
    """Return what lowers the learning rate of a phase in the schedule `plateau`, None in others."""
    schedule = config.optim.schedule
    if not isinstance(schedule, PlateauSchedule):
        return None
    steps = data.steps_per_epoch()
    plateau = Plateau(schedule, phase_lr(config, phase), steps, device)
    if checkpoint is not None and checkpoint.progress.plateau:  # else it had another schedule
        plateau.load(checkpoint.progress.plateau)
    return plateau


def build_loss_weighting(
    config: Config,
    data: RunData,
    heads: Sequence[Head],
    device: torch.device,
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> LossWeighting:
    """Return what weights the losses of a phase.

    Args:
        heads: Those that are alive and trained in the phase.
        device: Device of the losses.
        tensors: Its state in a checkpoint of this phase; None or empty for a new one.

    Raises:
        UserError: `loss_weights` does not fit the tasks or the data.
    """
    trained = torch.zeros(len(data.tasks), dtype=torch.bool)
    trained[[task for task, _ in heads]] = True
    epoch_steps = None if data.train_samples is None else data.steps_per_epoch()
    weighting = weighting_of(config)(config, data.tasks, trained.to(device), epoch_steps)
    if tensors:
        weighting.load(tensors)
    return weighting
