"""Compaction: continue the run with a smaller network, of the heads that are still alive."""

from __future__ import annotations

from model.network import MultiTaskNetwork
from model.subset import subset_config, subset_state
from trainer.checkpoints.state import NamedState, read_state
from trainer.session import Session


def should_compact(session: Session) -> bool:
    """Return whether enough heads of the network are off; the same on every rank.

    Heads that are off are not computed. Their weights, gradients and moments take memory until the
    network is compacted.
    """
    alive = session.learner.grouping.alive
    off = 1.0 - int(alive.sum()) / len(session.engine.module.heads)
    enough = off >= session.config.pruning.compact
    return session.learner.finished or enough or not bool(alive.any(dim=0).all())


def compact(session: Session) -> tuple[int, ...]:
    """Replace network, optimizer and grouping by those of the live heads; every rank must call it.

    Weights and moments of what is kept are carried over exactly. Every rank holds the whole state
    meanwhile, because every rank builds the smaller network from it.

    Returns:
        The branches that were kept, by their old numbers.
    """
    config, layout = session.engine.module.config(), session.engine.module.layout
    heads = session.learner.grouping.heads()
    state = read_state(session.engine)
    kept = NamedState(
        subset_state(state.weights, layout, heads),
        {moment: subset_state(values, layout, heads) for moment, values in state.moments.items()},
        state.optimizer_step,
    )
    smaller = MultiTaskNetwork.from_config(subset_config(config, layout, heads))
    session.replace_engine(smaller, kept)
    return session.learner.drop_empty_branches()
