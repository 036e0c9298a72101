"""What a recipe that searches first reads of the run that it observes.

Legend: N tasks, K branches.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from model.heads.layout import HeadSelection
from trainer.config.config import Config

if TYPE_CHECKING:  # the network imports encoders, which no recipe needs to be registered
    from model.network import MultiTaskNetwork


class ObservedEngine(Protocol):
    """The engine of an observed run."""

    @property
    def module(self) -> MultiTaskNetwork:
        """The plain network."""

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Return the sum of every rank's values."""


class ObservedRun(Protocol):
    """A run that trains one network of all tasks, such as `trainer.session.Session`."""

    @property
    def config(self) -> Config:
        """The configuration of this run."""

    @property
    def engine(self) -> ObservedEngine:
        """The engine with the network as it is before the step."""

    @property
    def tasks(self) -> Sized:
        """The N tasks."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""

    @property
    def selection(self) -> HeadSelection:
        """How the network computes its heads."""

    @property
    def observed(self) -> dict[str, Tensor]:
        """Tensors that a recipe gathers, the same on every rank; saved with the run."""

    def learning_rate_factor(self, step: int) -> float:
        """Return the multiplier of every learning rate in a step."""
