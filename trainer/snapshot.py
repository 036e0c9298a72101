"""Save a run: a snapshot of the session that the checkpoint writer puts on the disk."""

from __future__ import annotations

from dmtg.secrets import without_secrets
from trainer.checkpoints.checkpoint import Checkpoint, Progress
from trainer.checkpoints.state import NamedState, read_state
from trainer.session import LOSS_WEIGHTS, OBSERVED, Session


def save_session(session: Session) -> None:
    """Take a snapshot of the run and have it written; every rank must call it.

    To gather the state is collective; only the main process, which writes, copies it to the host.

    Raises:
        SaveError: The checkpoint before this one could not be written.
    """
    session.writer.wait()  # before another copy of the state takes memory
    main = session.accelerator.is_main_process
    state = read_state(session.engine, keep=main)
    session.writer.start(_snapshot(session, state) if main else None)


def _snapshot(session: Session, state: NamedState) -> Checkpoint:
    """Return the run as it is now, in tensors that the training does not change."""
    plateau = session.plateau
    progress = Progress(
        step=session.step,
        optimizer_step=state.optimizer_step,
        logits_updates=session.learner.updates,
        network=session.engine.module.config(),
        data=session.data.digest,
        dataset=without_secrets(session.data.dataset),
        metrics_bytes=session.log.metrics_bytes,
        loss_scale=session.engine.loss_scale(),
        replaced=session.damaged_samples.total,
        skipped=session.guard.total,
        plateau=plateau.state() if plateau is not None else {},
        trackers=session.log.run_ids,
        search_steps=session.search_steps,
        grouping_steps=session.grouping_steps,
    )
    observed = {f"{OBSERVED}{name}": value for name, value in session.observed.items()}
    weighting = session.loss_weighting.tensors()
    loss_weights = {f"{LOSS_WEIGHTS}{name}": value for name, value in weighting.items()}
    grouping = session.learner.tensors() | observed | loss_weights
    copies = {name: value.detach().to("cpu", copy=True) for name, value in grouping.items()}
    return Checkpoint(progress, state, copies)
