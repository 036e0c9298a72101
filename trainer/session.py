"""A run in memory: started fresh or continued from its newest checkpoint, and saved."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor

from model.heads.layout import HeadSelection, used_branches
from model.tasks.spec import TaskSpec
from trainer.assembly import build_engine, build_learner, build_plateau
from trainer.checkpoints.checkpoint import Checkpoint, Progress
from trainer.checkpoints.files import folder_of_step, set_aside_newer
from trainer.checkpoints.resume import resume_checkpoint
from trainer.checkpoints.state import NamedState, read_state
from trainer.checkpoints.writer import CheckpointWriter
from trainer.config.config import Config
from trainer.engines.engine import Engine
from trainer.engines.plateau import Plateau
from trainer.engines.schedules import learning_rate_factor
from trainer.health.damaged_samples import DamagedSampleCounter
from trainer.health.loss_guard import LossGuard
from trainer.monitoring.logs import RunLog
from trainer.monitoring.monitor import Monitor
from trainer.monitoring.profiling import ProfileWindow
from trainer.monitoring.trackers import check_trackers
from trainer.phases import Phase, list_phases, phase_before, phase_lr
from trainer.recipes.groups import given_groups
from trainer.recipes.learner import GroupLearner
from trainer.run_data import RunData, ShardData, finetune_steps, num_steps
from trainer.run_folder import RunFolder

_OBSERVED = "observed."  # before the names of an observer's tensors in a checkpoint


@dataclass
class Session:
    """Everything that the loop works on.

    Attributes:
        step: Optimizer steps done.
        search_steps: Optimizer steps until every task has one head.
        finetune_steps: Optimizer steps of each phase after that.
        phases: All phases; before the search has ended perhaps more than there will be.
        phase: The one that the engine is made for.
        plateau: What the learning rate follows in the schedule `plateau`.
        selection: How the engine's network computes the live heads that are trained, or of the last
            step those that were sampled.
        observed: What an observer of the training has gathered, the same on every rank; it is
            saved and restored with the run.
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
    finetune_steps: int
    phases: tuple[Phase, ...]
    phase: Phase
    plateau: Plateau | None
    selection: HeadSelection
    observed: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """The N tasks."""
        return self.data.tasks

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run, at most so many before the search has ended."""
        return self.phases[-1].end

    def learning_rate_factor(self, step: int) -> float:
        """Multiplier of every learning rate in a step of this phase."""
        optim, phase = self.config.optim, self.phase
        factor = learning_rate_factor(optim, step - phase.start, phase.num_steps)
        if self.plateau is not None:
            factor *= self.plateau.factor
        return factor * phase_lr(self.config, phase) / optim.lr

    def watch_plateau(self, objective: Tensor) -> None:
        """Show the objective [N] of the step that was just made to the schedule `plateau`."""
        if self.plateau is not None:
            self.plateau.update(self.step - self.phase.start, objective)

    def close(self) -> None:
        """Finish the files, and let go of the network before the process group.

        DDP would else be the group's last owner, and end it holding the interpreter's lock, for
        which a thread of the group may be waiting.
        """
        self.log.close()
        self.folder.release()
        self.engine.release()

    def refresh_selection(self) -> None:
        """Lay out heads and phases anew, after heads were switched off or the phase has changed."""
        heads = self.learner.grouping.heads()
        self.selection = self.engine.module.select(self.phase.heads(heads))
        self.phases = list_phases(
            self.config.finetune, self.search_steps, self.finetune_steps, used_branches(heads)
        )


def start_session(config: Config, accelerator: Accelerator, data: RunData | None = None) -> Session:
    """Build the run, or continue it if its folder holds a checkpoint.

    Args:
        data: In place of the shards that the configuration names.

    Raises:
        UserError, DataError: Data, tasks, folder or checkpoint cannot be used.
    """
    folder = RunFolder(config.run.out)
    data = data or ShardData(config)
    tasks = data.tasks
    folder.check(config)
    check_trackers(config.log)
    checkpoint = resume_checkpoint(config, folder, data, accelerator)
    _check_loaders(config, accelerator, data)
    steps, own_steps = num_steps(config, data), finetune_steps(config, data)
    step = checkpoint.progress.step if checkpoint else 0
    groups = given_groups(config, [task.name for task in tasks])
    learner = build_learner(config, accelerator, tasks, steps, groups, checkpoint)
    heads = learner.grouping.heads()
    phases = list_phases(config.finetune, steps, own_steps, used_branches(heads))
    phase = phase_before(phases, step)
    engine = build_engine(config, accelerator, tasks, groups, phase, checkpoint)
    plateau = build_plateau(config, data, phase, accelerator.device, checkpoint)
    rank = accelerator.process_index
    profile = ProfileWindow(config.run, rank, phases[-1].end)
    accelerator.wait_for_everyone()  # no rank may find what rank 0 writes from here on
    if accelerator.is_main_process:
        folder.create(config)
        set_aside_newer(folder_of_step(folder.checkpoints, step))
    log = RunLog(
        folder,
        config.log,
        rank=rank,
        start_step=step,
        num_steps=phases[-1].end,
        metrics_bytes=checkpoint.progress.metrics_bytes if checkpoint else 0,
        run_ids=checkpoint.progress.trackers if checkpoint else {},
        settings=config.model_dump(mode="json"),
    )
    epoch = None if data.train_samples is None else data.steps_per_epoch()
    monitor = Monitor(config, accelerator, epoch)
    monitor.begin(step, phases[-1].end)
    return Session(
        config,
        folder,
        accelerator,
        data,
        engine,
        learner,
        log,
        monitor,
        profile,
        CheckpointWriter(accelerator, folder.checkpoints, config.run),
        DamagedSampleCounter(
            accelerator,
            config.data,
            data.train_samples,
            checkpoint.progress.replaced if checkpoint else 0,
        ),
        LossGuard(
            tuple(task.name for task in tasks),
            accelerator,
            config.optim.skip_nonfinite,
            checkpoint.progress.skipped if checkpoint else 0,
        ),
        step,
        steps,
        own_steps,
        phases,
        phase,
        plateau,
        engine.module.select(phase.heads(heads)),
        _observed(checkpoint, accelerator.device) if checkpoint else {},
    )


def _observed(checkpoint: Checkpoint, device: torch.device) -> dict[str, Tensor]:
    return {
        name.removeprefix(_OBSERVED): value.to(device)
        for name, value in checkpoint.grouping.items()
        if name.startswith(_OBSERVED)
    }


def _check_loaders(config: Config, accelerator: Accelerator, data: RunData) -> None:
    """Make both loaders once: what is wrong with them is to be known before anything is written."""
    place = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    if config.data.stream is None:  # a stream is not looked at before it is read
        data.train_batches(0, 1, **place)
    data.eval_batches(**place)


def save_session(session: Session) -> None:
    """Take a snapshot of the run and have it written; every rank must call it.

    Raises:
        SaveError: The checkpoint before this one could not be written.
    """
    session.writer.wait()  # before another copy of the state takes memory
    state = read_state(session.engine)
    main = session.accelerator.is_main_process
    session.writer.start(_snapshot(session, state) if main else None)


def _snapshot(session: Session, state: NamedState) -> Checkpoint:
    """The run as it is now, in tensors that the training does not change."""
    scaler, plateau = session.engine.scaler, session.plateau
    progress = Progress(
        step=session.step,
        optimizer_step=state.optimizer_step,
        logits_updates=session.learner.updates,
        network=session.engine.module.config(),
        data=session.data.digest,
        dataset=session.data.dataset,
        metrics_bytes=session.log.metrics_bytes,
        loss_scale=scaler.state_dict() if scaler is not None else {},
        replaced=session.damaged_samples.total,
        skipped=session.guard.total,
        plateau=plateau.state() if plateau is not None else {},
        trackers=session.log.run_ids,
    )
    observed = {f"{_OBSERVED}{name}": value for name, value in session.observed.items()}
    grouping = session.learner.tensors() | observed
    copies = {name: value.detach().cpu().clone() for name, value in grouping.items()}
    return Checkpoint(progress, state, copies)
