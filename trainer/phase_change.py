"""The change from one phase of a run to the next."""

from __future__ import annotations

import logging

from model.network import MultiTaskNetwork
from trainer.builders import build_loss_weighting, build_plateau
from trainer.checkpoints.state import read_weights
from trainer.phases import phase_before
from trainer.session import Session

logger = logging.getLogger(__name__)


def enter_phase(session: Session) -> None:
    """Enter the next phase if the session's has ended; every rank must call it.

    The weights stay. Optimizer, schedule and loss weights start anew, on the parameters and tasks
    that the phase trains.
    """
    phase = phase_before(session.phases, session.step + 1)
    if phase == session.phase:
        return
    assert session.learner.finished and phase.branches is not None, "the search has ended"
    session.phase = phase
    network = MultiTaskNetwork.from_config(session.engine.module.config())
    session.replace_engine(network, read_weights(session.engine))
    session.plateau = build_plateau(session.config, session.data, phase, session.accelerator.device)
    session.refresh_selection()
    session.loss_weighting = build_loss_weighting(
        session.config, session.data, session.selection.heads, session.accelerator.device
    )
    session.log.expect(session.num_steps)
    session.log.write(session.step, "finetune", branches=list(phase.branches), until=phase.end)
    logger.info(
        "step %d: fine-tuning %d tasks on branches %s until step %d",
        session.step,
        len(session.selection.heads),
        list(phase.branches),
        phase.end,
    )
