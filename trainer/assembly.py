"""Makes the parts of a session: as new, from a checkpoint, or for another phase."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from model.init_from import init_from
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec
from trainer.build import build_grouping, build_network
from trainer.checkpoints.checkpoint import Checkpoint
from trainer.checkpoints.state import NamedState, load_weights, write_moments
from trainer.config.config import Config
from trainer.engines.engine import Engine
from trainer.engines.plateau import Plateau
from trainer.errors import UserError
from trainer.phases import Phase, freeze, phase_lr
from trainer.recipes.affinity import AffinityGroups
from trainer.recipes.groups import Groups, heads_of_groups
from trainer.recipes.learner import GroupLearner
from trainer.recipes.published import PublishedGroups
from trainer.run_data import RunData


def build_learner(
    config: Config,
    accelerator: Accelerator,
    tasks: tuple[TaskSpec, ...],
    steps: int,
    groups: Groups | None,
    checkpoint: Checkpoint | None,
) -> GroupLearner:
    """What learns the grouping, as new or as the checkpoint has it.

    Raises:
        UserError: The checkpoint has other groups than those given.
    """
    grouping = build_grouping(config, len(tasks), groups)
    kind = AffinityGroups if config.grouping.recipe == "default" else PublishedGroups
    place = (accelerator.device, accelerator.process_index)
    learner: GroupLearner = kind(grouping, config, steps, *place)
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
    """The engine of a phase, as new or as the checkpoint has it.

    Raises:
        UserError: The network cannot be built or started as configured.
    """
    if checkpoint is None:
        module = build_network(config, tasks, groups)
        if config.model.start:
            try:
                init_from(module, config.model.start)
            except ValueError as error:
                raise UserError(str(error)) from None
        return Engine(accelerator, module, config)
    progress = checkpoint.progress
    module = MultiTaskNetwork.from_config(progress.network)
    engine = prepare_engine(accelerator, module, config, phase, checkpoint.state)
    if engine.scaler is not None and progress.loss_scale:
        engine.scaler.load_state_dict(progress.loss_scale)
    return engine


def prepare_engine(
    accelerator: Accelerator,
    module: MultiTaskNetwork,
    config: Config,
    phase: Phase,
    state: NamedState,
) -> Engine:
    """An engine of a network with this state, which trains what the phase trains."""
    load_weights(module, state)
    engine = Engine(accelerator, module, config, freeze(module, phase, config.finetune))
    write_moments(engine, state)
    return engine


def build_plateau(
    config: Config,
    data: RunData,
    phase: Phase,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
) -> Plateau | None:
    """What the learning rate of a phase follows in the schedule `plateau`, None in others."""
    if config.optim.schedule != "plateau":
        return None
    steps = data.steps_per_epoch()
    plateau = Plateau(config.optim, phase_lr(config, phase), steps, device)
    if checkpoint is not None:
        plateau.load(checkpoint.progress.plateau)
    return plateau
