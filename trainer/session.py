"""A run in memory: started as new or continued from its newest checkpoint."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType

from accelerate import Accelerator
from torch import Tensor
from typing_extensions import Self

from model.grouping.head_sampling import HeadSample
from model.heads.layout import HeadSelection, used_branches
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec
from trainer.builders import (
    build_engine,
    build_learner,
    build_loss_weighting,
    build_plateau,
    prepare_engine,
)
from trainer.callback import Callbacks
from trainer.checkpoints.checkpoint import Checkpoint
from trainer.checkpoints.files import folder_of_step, set_aside_newer
from trainer.checkpoints.resume import resume_checkpoint
from trainer.checkpoints.state import NamedState
from trainer.checkpoints.writer import CheckpointWriter
from trainer.class_balance import balanced_tasks
from trainer.config.config import Config
from trainer.engines.agreement import first_message
from trainer.engines.engine import Engine
from trainer.engines.plateau import Plateau
from trainer.engines.schedules import learning_rate_factor
from trainer.errors import Preempted, UserError, explain
from trainer.evaluation import Metrics
from trainer.health.damaged_samples import DamagedSampleCounter
from trainer.health.loss_guard import LossGuard
from trainer.health.stop_signals import stop_at_once
from trainer.loss_weights.weighting import LossWeighting
from trainer.monitoring.logs import RunLog
from trainer.monitoring.monitor import Monitor
from trainer.monitoring.profiling import ProfileWindow
from trainer.monitoring.trackers import check_trackers
from trainer.phases import Phase, list_phases, phase_before, phase_lr
from trainer.recipes.given import given_groups
from trainer.recipes.learner import GroupLearner
from trainer.run_data import RunData, finetune_steps, num_steps, open_data
from trainer.run_folder import RunFolder
from trainer.run_length import check_length, first_search_steps
from trainer.run_lock import WAIT_SECONDS

logger = logging.getLogger(__name__)

# Prefixes of the names of tensors in a checkpoint: of an observer, of the loss weights.
OBSERVED, LOSS_WEIGHTS = "observed.", "loss_weights."


@dataclass(kw_only=True)
class Session:
    """Everything that the loop works on; a context manager that closes it however the run ends.

    Attributes:
        config: Of the run.
        folder: Of the run; locked until the session is closed.
        accelerator: Of the run.
        data: The batches.
        engine: The network and its optimizer.
        learner: Learns the groups.
        log: `metrics.jsonl`, TensorBoard and the log file of this rank.
        monitor: Times and progress.
        profile: The steps that are profiled.
        writer: Writes checkpoints.
        damaged_samples: Counts damaged samples.
        guard: Checks that losses are finite.
        step: Optimizer steps done.
        search_steps: Optimizer steps until every task has one head.
        grouping_steps: The same at the first start of the run: a later change of the length leaves
            the schedule of the grouping as it is.
        finetune_steps: Optimizer steps of each phase after that.
        phases: All phases; before the search has ended perhaps more than there will be.
        phase: The one that the engine is made for.
        plateau: The learning rate's factor in the schedule `plateau`; None in others.
        loss_weighting: Weights the losses of the tasks in this phase.
        observed: What an observer of the training has gathered, the same on every rank; it is
            saved and restored with the run.
        callbacks: Called by the loop.
        with_constants: Whether the last evaluation evaluates the best constant predictions, too.
        constants: Their metrics; empty before.
        stop_requested: Whether a callback of this process has asked to stop.
        selection: The heads that a step computes: all live heads of the phase or, where heads are
            sampled, those of the last step.
    """

    config: Config
    folder: RunFolder
    accelerator: Accelerator
    data: RunData
    engine: Engine
    learner: GroupLearner
    log: RunLog
    monitor: Monitor
    profile: ProfileWindow
    writer: CheckpointWriter
    damaged_samples: DamagedSampleCounter
    guard: LossGuard
    step: int
    search_steps: int
    grouping_steps: int
    finetune_steps: int
    phases: tuple[Phase, ...]
    phase: Phase
    plateau: Plateau | None
    loss_weighting: LossWeighting
    observed: dict[str, Tensor] = field(default_factory=dict)
    callbacks: Callbacks = field(default_factory=Callbacks)
    with_constants: bool = False
    constants: Metrics = field(default_factory=dict)
    stop_requested: bool = False
    selection: HeadSelection = field(init=False)
    _all_heads: HeadSample = field(init=False)

    def __post_init__(self) -> None:
        self.refresh_selection()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failed = error is not None and not isinstance(error, Preempted)
        try:
            self.log.close(error if failed else None)
        finally:
            self.folder.release()
        # After a failure other ranks may be gone: to free the engine could wait for them for ever.
        if not failed or self.accelerator.num_processes == 1:
            self.engine.release()

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """The N tasks."""
        return self.data.tasks

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run, at most so many before the search has ended."""
        return self.phases[-1].end

    def request_stop(self) -> None:
        """Ask the run to save and stop after the next step; one process is enough."""
        self.stop_requested = True

    def learning_rate_factor(self, step: int) -> float:
        """Return the multiplier of every learning rate in a step of this phase."""
        optim, phase = self.config.optim, self.phase
        factor = learning_rate_factor(optim, step - phase.start, phase.num_steps)
        if self.plateau is not None:
            factor *= self.plateau.factor
        return factor * phase_lr(self.config, phase) / optim.lr

    def update_plateau(self, objective: Tensor, loss_weights: Tensor) -> None:
        """Pass the objective [N] of the last step to the schedule `plateau`.

        Args:
            objective: Without the loss weights.
            loss_weights: [N]. Those that change would make the objectives of two epochs different
                quantities.
        """
        if self.plateau is not None:
            if self.loss_weighting.constant:
                objective = objective * loss_weights
            self.plateau.update(self.step - self.phase.start, objective)

    def select_heads(self) -> HeadSample:
        """Choose the heads of the next step, the same on every rank, and select them.

        Where all heads are computed, sample and selection are those of `refresh_selection`.
        """
        head_sample = self.learner.sample_heads(self.step)
        if head_sample is None:
            return self._all_heads
        self.selection = self.engine.module.select_sample(head_sample)
        return head_sample

    def refresh_selection(self) -> None:
        """Select all heads anew, after heads were switched off or the phase has changed."""
        heads, module = self.learner.grouping.heads(), self.engine.module
        self.selection = module.select(self.phase.heads(heads))
        shape = (module.num_tasks, module.num_branches)
        self._all_heads = HeadSample.all_heads(self.selection.heads, shape, self.accelerator.device)
        self.phases = list_phases(
            self.config.finetune, self.search_steps, self.finetune_steps, used_branches(heads)
        )

    def replace_engine(self, module: MultiTaskNetwork, state: NamedState) -> None:
        """Release the engine and prepare one of this network for the session's phase.

        Args:
            module: The network; its weights are overwritten.
            state: Weights and, if the optimizer continues, moments by the network's names.
        """
        loss_scale = self.engine.loss_scale()
        self.engine.release()
        self.engine = prepare_engine(
            self.accelerator, module, self.config, self.phase, state, loss_scale
        )


def start_session(config: Config, accelerator: Accelerator, data: RunData | None = None) -> Session:
    """Build the run, or continue it if its folder holds a checkpoint; every rank must call it.

    The session is a context manager: `with start_session(...) as session:`.

    Args:
        data: In place of the shards that the configuration names.

    Raises:
        UserError, DataError: Data, tasks, folder or checkpoint cannot be used.
    """
    stop_at_once()
    # Errors before `_open_folder` leave no folder behind.
    with ExitStack() as stack:
        folder = claim_folder(config, accelerator)
        stack.callback(folder.release)
        data = data or open_data(config)
        data.tasks = balanced_tasks(config, data)
        check_trackers(config.log)
        checkpoint = resume_checkpoint(config, folder, data, accelerator)
        _check_loaders(config, accelerator, data)
        search_steps, phase_steps = num_steps(config, data), finetune_steps(config, data)
        step = checkpoint.progress.step if checkpoint else 0
        groups = given_groups(config, [task.name for task in data.tasks])
        grouping_steps = first_search_steps(checkpoint, search_steps)
        learner = build_learner(config, accelerator, data.tasks, grouping_steps, groups, checkpoint)
        if checkpoint is not None:
            check_length(config, folder, data, checkpoint.progress, learner)
        branches = used_branches(learner.grouping.heads())
        phases = list_phases(config.finetune, search_steps, phase_steps, branches)
        phase = phase_before(phases, step)
        engine = build_engine(config, accelerator, data.tasks, groups, phase, checkpoint)
        plateau = build_plateau(config, data, phase, accelerator.device, checkpoint)
        loss_weighting = build_loss_weighting(
            config,
            data,
            phase.heads(learner.grouping.heads()),
            accelerator.device,
            _named(checkpoint, LOSS_WEIGHTS),
        )
        damaged_samples, guard = _build_guards(config, accelerator, data, checkpoint)
        profile = ProfileWindow(config.run, accelerator.process_index, phases[-1].end)
        log = _open_folder(config, accelerator, folder, checkpoint, phases[-1].end)
        stack.callback(log.close)
        session = Session(
            config=config,
            folder=folder,
            accelerator=accelerator,
            data=data,
            engine=engine,
            learner=learner,
            log=log,
            monitor=_begin_monitor(config, accelerator, data, step, phases[-1].end),
            profile=profile,
            writer=CheckpointWriter(accelerator, folder.checkpoints, config.run),
            damaged_samples=damaged_samples,
            guard=guard,
            step=step,
            search_steps=search_steps,
            grouping_steps=grouping_steps,
            finetune_steps=phase_steps,
            phases=phases,
            phase=phase,
            plateau=plateau,
            loss_weighting=loss_weighting,
            observed={
                name: value.to(accelerator.device)
                for name, value in _named(checkpoint, OBSERVED).items()
            },
        )
        for change in folder.changes:
            logger.info("from step %d on: %s", step, change)
        stack.pop_all()  # from here on the session closes what was opened
    return session


def claim_folder(config: Config, accelerator: Accelerator) -> RunFolder:
    """Lock `run.out` on the main process, and check that this run may use it; every rank calls it.

    What the folder holds is decided by the process that has the lock: of two starts at once the
    second waits until the first has ended, and then continues its run or is refused. It is refused
    at once if `run.resume` is `never`.

    Raises:
        UserError: On every rank: another process uses the folder, it holds another run, or it
            cannot be written to.
    """
    folder, message = RunFolder(config.run.out), None
    wait = 0.0 if config.run.resume == "never" else WAIT_SECONDS
    if accelerator.num_processes > 1:  # the others wait meanwhile
        wait = min(wait, 0.5 * config.run.timeout_seconds)
    if accelerator.is_main_process:
        try:
            folder.claim(config, wait)
        except (UserError, OSError) as error:
            message = explain(error).message
    try:
        message = first_message(accelerator, message)
    except BaseException:
        folder.release()
        raise
    if message is not None:
        raise UserError(message)
    return folder


def _build_guards(
    config: Config, accelerator: Accelerator, data: RunData, checkpoint: Checkpoint | None
) -> tuple[DamagedSampleCounter, LossGuard]:
    replaced, skipped = 0, 0
    if checkpoint is not None:
        replaced, skipped = checkpoint.progress.replaced, checkpoint.progress.skipped
    names = tuple(task.name for task in data.tasks)
    return (
        DamagedSampleCounter(accelerator, config.data, data.train_samples, replaced),
        LossGuard(names, accelerator, config.optim.skip_nonfinite, skipped),
    )


def _open_folder(
    config: Config,
    accelerator: Accelerator,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    num_steps: int,
) -> RunLog:
    """Save the configuration, set aside checkpoints that the resume passed over, open the log."""
    step = checkpoint.progress.step if checkpoint else 0
    # Every rank has looked at the folder before rank 0 writes into it.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        folder.create(config)
        set_aside_newer(folder_of_step(folder.checkpoints, step))
    return RunLog(
        folder,
        config.log,
        rank=accelerator.process_index,
        start_step=step,
        num_steps=num_steps,
        metrics_bytes=checkpoint.progress.metrics_bytes if checkpoint else 0,
        run_ids=checkpoint.progress.trackers if checkpoint else {},
        settings=config.without_secrets(),
    )


def _begin_monitor(
    config: Config, accelerator: Accelerator, data: RunData, step: int, num_steps: int
) -> Monitor:
    epoch = None if data.train_samples is None else data.steps_per_epoch()
    monitor = Monitor(config, accelerator, epoch)
    monitor.begin(step, num_steps)
    return monitor


def _named(checkpoint: Checkpoint | None, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint whose names have a prefix, without it."""
    grouping = {} if checkpoint is None else checkpoint.grouping
    return {
        name.removeprefix(prefix): value
        for name, value in grouping.items()
        if name.startswith(prefix)
    }


def _check_loaders(config: Config, accelerator: Accelerator, data: RunData) -> None:
    """Make both loaders once, to raise their errors before anything is written."""
    place = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    if config.data.tar_urls is None:  # a stream is opened only to be read
        data.train_batches(0, 1, **place)
    data.eval_batches(**place)
