"""The phases of a run: the search for the groups, then the fine-tuning of these groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.heads.layout import Head
from model.network import MultiTaskNetwork
from trainer.config.config import Config
from trainer.config.finetune import FinetuneSection


@dataclass(frozen=True)
class Phase:
    """A range of steps with one optimizer and one schedule.

    Attributes:
        start: Steps done before it.
        end: Steps done after it.
        branches: The branches that are fine-tuned with their heads; None while all is trained.
    """

    start: int
    end: int
    branches: tuple[int, ...] | None = None

    @property
    def num_steps(self) -> int:
        """Steps of this phase."""
        return self.end - self.start

    def heads(self, heads: Sequence[Head]) -> list[Head]:
        """Return those of the heads that this phase trains."""
        return [head for head in heads if self.branches is None or head[1] in self.branches]


def list_phases(
    section: FinetuneSection, search_steps: int, finetune_steps: int, branches: tuple[int, ...]
) -> tuple[Phase, ...]:
    """Return all phases of a run.

    Args:
        section: The order of the fine-tuning.
        search_steps: Steps of the search.
        finetune_steps: Steps of each phase after it, 0 for none.
        branches: The branches that have heads, of which there may be fewer once the search ends.
    """
    phases = [Phase(0, search_steps)]
    if finetune_steps:
        one_by_one = section.order == "one_by_one"
        for group in [(branch,) for branch in branches] if one_by_one else [branches]:
            start = phases[-1].end
            phases.append(Phase(start, start + finetune_steps, group))
    return tuple(phases)


def phase_before(phases: Sequence[Phase], step: int) -> Phase:
    """Return the phase in which the last of `step` steps was made."""
    return next((phase for phase in phases if step <= phase.end), phases[-1])


def phase_lr(config: Config, phase: Phase) -> float:
    """Return the base learning rate of a phase."""
    if phase.branches is None or config.finetune.lr is None:
        return config.optim.lr
    return config.finetune.lr


def freeze(network: MultiTaskNetwork, phase: Phase, section: FinetuneSection) -> frozenset[str]:
    """Freeze what a phase does not train.

    Heads of other groups in a stack that is trained cannot be frozen, because they are rows of the
    same tensors. Their gradient is zero, and without weight decay they stay as they are.

    Returns:
        Prefixes of the parameters that must not be decayed.
    """
    if phase.branches is None:
        return frozenset()
    heads = phase.heads(network.heads)
    trained = network.select(heads).stacked_heads
    parts = [network.stacked_heads[name] for name in network.stacked_heads if name not in trained]
    parts += [b for index, b in enumerate(network.branches) if index not in phase.branches]
    if section.freeze_trunk:
        parts.append(network.trunk)
    network.freeze(parts)
    rest = set(network.heads) - set(heads)
    return (
        frozenset(f"stacked_heads.{name}." for name in network.select(rest).stacked_heads)
        if rest
        else frozenset()
    )
