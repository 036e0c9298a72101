"""Replaces the engine during a run: by one of a smaller network, or of another phase."""

from __future__ import annotations

import logging

from model.network import MultiTaskNetwork
from trainer.build import build_plateau, prepare_engine
from trainer.checkpoints.state import NamedState, read_state
from trainer.phases import phase_before
from trainer.session import Session

logger = logging.getLogger(__name__)


def should_compact(session: Session) -> bool:
    """Whether enough heads of the network are off to make it smaller; the same on every rank.

    An index leaves such heads out of the forward and backward pass at once. In weights, gradients
    and moments they take their place until the network is rebuilt.
    """
    alive = session.learner.grouping.alive
    off = 1.0 - int(alive.sum()) / len(session.engine.module.heads)
    enough = off >= session.config.pruning.compact
    return session.learner.finished or enough or not bool(alive.any(dim=0).all())


def compact(session: Session) -> tuple[int, ...]:
    """Rebuild network, optimizer and grouping with the live heads only; every rank must call it.

    Weights and moments of what is kept are carried over exactly.

    Returns:
        The branches that were kept, by their old numbers.
    """
    old, heads = session.engine.module, session.learner.grouping.heads()
    state = read_state(session.engine)
    kept = NamedState(
        old.subset_state(state.weights, heads),
        {m: old.subset_state(values, heads) for m, values in state.moments.items()},
        state.optimizer_step,
    )
    _replace(session, MultiTaskNetwork.from_config(old.subset_config(heads)), kept)
    return session.learner.drop_empty_branches()


def enter_phase(session: Session) -> None:
    """Go on to the next phase if the session's has ended; every rank must call it.

    The weights stay; optimizer and schedule start anew, on what the phase trains.
    """
    phase = phase_before(session.phases, session.step + 1)
    if phase == session.phase:
        return
    assert session.learner.finished and phase.branches is not None, "the search has ended"
    session.phase = phase
    config = session.engine.module.config()
    state = NamedState(read_state(session.engine).weights)
    _replace(session, MultiTaskNetwork.from_config(config), state)
    session.plateau = build_plateau(session.config, session.data, phase, session.accelerator.device)
    session.refresh_selection()
    session.log.expect(session.num_steps)
    session.log.write(session.step, "finetune", branches=list(phase.branches), until=phase.end)
    logger.info(
        "step %d: fine-tuning %d tasks on branches %s until step %d",
        session.step,
        len(session.selection.heads),
        list(phase.branches),
        phase.end,
    )


def _replace(session: Session, module: MultiTaskNetwork, state: NamedState) -> None:
    """Let go of the engine and make one of this network for the session's phase."""
    old = session.engine
    scale = old.scaler.state_dict() if old.scaler is not None else {}
    old.release()
    session.engine = prepare_engine(
        session.accelerator, module, session.config, session.phase, state
    )
    if session.engine.scaler is not None and scale:
        session.engine.scaler.load_state_dict(scale)
