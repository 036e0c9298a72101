"""A run in memory: started fresh or continued from its newest checkpoint, saved, made smaller."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from accelerate import Accelerator

from data_pipelines.manifest import Manifest
from model.layout import Plan
from model.network import MultiTaskNetwork
from model.tasks import TaskSpec
from trainer.build import (
    build_eval_loader,
    build_grouping,
    build_network,
    build_train_loader,
    num_steps,
    open_manifest,
    resolve_tasks,
)
from trainer.checkpointing import (
    Checkpoint,
    Progress,
    check_fits,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from trainer.config import Config
from trainer.engine import Engine
from trainer.faults import FaultCounter
from trainer.groups import GroupLearner
from trainer.logs import RunLog
from trainer.run_folder import RunFolder
from trainer.state import NamedState, load_weights, read_state, write_moments

logger = logging.getLogger(__name__)


@dataclass
class Session:
    """Everything that the loop works on.

    Attributes:
        step: Optimizer steps done.
        num_steps: Optimizer steps of the whole run.
        plan: How the engine's network computes the heads that are alive.
    """

    config: Config
    folder: RunFolder
    accelerator: Accelerator
    manifest: Manifest
    tasks: tuple[TaskSpec, ...]
    engine: Engine
    learner: GroupLearner
    log: RunLog
    faults: FaultCounter
    step: int
    num_steps: int
    plan: Plan

    def refresh_plan(self) -> None:
        """Lay out the live heads anew, after some were switched off."""
        self.plan = self.engine.module.plan(self.learner.grouping.heads())


def start_session(config: Config, accelerator: Accelerator) -> Session:
    """Build the run, or continue it if its folder holds a checkpoint.

    Raises:
        UserError, DataError: Data, tasks, folder or checkpoint cannot be used.
    """
    folder = RunFolder(config.run.out)
    manifest = open_manifest(config)
    tasks = resolve_tasks(config.tasks, manifest)
    folder.check(config)
    newest = newest_checkpoint(folder.checkpoints)
    checkpoint = load_checkpoint(newest) if newest is not None else None
    if newest is not None and checkpoint is not None:
        check_fits(checkpoint, [task.to_dict() for task in tasks], manifest.digest(), newest)
        logger.info("continuing from %s", newest)
    _check_loaders(config, accelerator, manifest, tasks)
    steps = num_steps(config, manifest)
    engine, learner = _build(config, accelerator, tasks, steps, checkpoint)
    accelerator.wait_for_everyone()  # no rank may find what rank 0 writes from here on
    if accelerator.is_main_process:
        folder.create(config)
    log = RunLog(
        folder,
        config.log,
        main=accelerator.is_main_process,
        start_step=checkpoint.progress.step if checkpoint else 0,
        num_steps=steps,
        metrics_bytes=checkpoint.progress.metrics_bytes if checkpoint else 0,
    )
    return Session(
        config,
        folder,
        accelerator,
        manifest,
        tasks,
        engine,
        learner,
        log,
        FaultCounter(
            accelerator,
            config.data,
            None if config.data.stream else manifest.split(config.data.train_split).num_samples,
            checkpoint.progress.replaced if checkpoint else 0,
        ),
        checkpoint.progress.step if checkpoint else 0,
        steps,
        engine.module.plan(learner.grouping.heads()),
    )


def _check_loaders(
    config: Config, accelerator: Accelerator, manifest: Manifest, tasks: tuple[TaskSpec, ...]
) -> None:
    """Make both loaders once: what is wrong with them is to be known before anything is written."""
    place = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    if config.data.stream is None:  # a stream is not looked at before it is read
        build_train_loader(config, manifest, tasks, start_step=0, **place)
    build_eval_loader(config, manifest, tasks, **place)


def _build(
    config: Config,
    accelerator: Accelerator,
    tasks: tuple[TaskSpec, ...],
    steps: int,
    checkpoint: Checkpoint | None,
) -> tuple[Engine, GroupLearner]:
    grouping = build_grouping(config, len(tasks))
    learner = GroupLearner(grouping, config, steps, accelerator.device, accelerator.process_index)
    if checkpoint is None:
        return Engine(accelerator, build_network(config, tasks), config), learner
    progress = checkpoint.progress
    module = MultiTaskNetwork.from_config(progress.network)
    engine = _prepare(accelerator, module, config, checkpoint.state)
    if engine.scaler is not None and progress.loss_scale:
        engine.scaler.load_state_dict(progress.loss_scale)
    learner.load(checkpoint.grouping, progress.logits_updates)
    return engine, learner


def _prepare(
    accelerator: Accelerator, module: MultiTaskNetwork, config: Config, state: NamedState
) -> Engine:
    load_weights(module, state)
    engine = Engine(accelerator, module, config)
    write_moments(engine, state)
    return engine


def save_session(session: Session) -> None:
    """Write a checkpoint; every rank must call it."""
    state = read_state(session.engine)
    if session.accelerator.is_main_process:
        scaler = session.engine.scaler
        progress = Progress(
            step=session.step,
            optimizer_step=state.optimizer_step,
            logits_updates=session.learner.updates,
            network=session.engine.module.config(),
            data=session.manifest.digest(),
            metrics_bytes=session.log.metrics_bytes,
            loss_scale=scaler.state_dict() if scaler is not None else {},
            replaced=session.faults.total,
        )
        save_checkpoint(
            session.folder.checkpoints,
            progress,
            state,
            session.learner.tensors(),
            keep_last=session.config.run.keep_last,
        )
    session.accelerator.wait_for_everyone()


def compact(session: Session) -> tuple[int, ...]:
    """Rebuild network, optimizer and grouping with the live heads only; every rank must call it.

    Weights and moments of what is kept are carried over exactly.

    Returns:
        The branches that were kept, by their old numbers.
    """
    old, heads = session.engine, session.learner.grouping.heads()
    state = read_state(old)
    kept = NamedState(
        old.module.subset_state(state.weights, heads),
        {m: old.module.subset_state(values, heads) for m, values in state.moments.items()},
        state.optimizer_step,
    )
    scale = old.scaler.state_dict() if old.scaler is not None else {}
    module = MultiTaskNetwork.from_config(old.module.subset_config(heads))
    old.release()
    session.engine = _prepare(session.accelerator, module, session.config, kept)
    if session.engine.scaler is not None and scale:
        session.engine.scaler.load_state_dict(scale)
    return session.learner.drop_empty_branches()
