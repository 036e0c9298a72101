"""The recipe `published` (DMTG, eq. 3-6): Adam updates the logits along the sampled objective."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from dmtg.plugins import SAMPLERS, register_recipe
from model.grouping.grouping import Grouping, gumbel_noise
from model.transfer import copy_to_device
from trainer.config.allowed import NameIn
from trainer.config.config import Config
from trainer.config.grouping import GroupingSection, LearnedGroupingSection
from trainer.config.section import PositiveFloat, Section
from trainer.engines.optim import MOMENTS, logits_optimizer
from trainer.recipes.learner import GroupLearner, LearnerInput


class TemperatureSection(Section):
    """The relaxation's temperature from the first step to `pruning.end`."""

    initial: PositiveFloat = 2.5
    """Temperature in the first step."""
    final: PositiveFloat = 2.5
    """Temperature at `pruning.end`."""
    shape: Literal["linear", "exponential"] = "exponential"
    """How the temperature goes from `initial` to `final`."""


class PublishedSection(LearnedGroupingSection):
    """The keys of the recipe `published`."""

    sampler: Annotated[str, NameIn(SAMPLERS)] = "gumbel"
    """The sampler, which makes the weights of the heads from the logits."""
    noise: Literal["per_rank", "shared"] = "per_rank"
    """Random numbers of the sampler: other ones on each rank, or the same on all."""
    logits_init: Literal["equal", "diagonal", "gaussian"] = "equal"
    """First logits: `logits_value` on all branches, only on the branch of the task's number modulo
    K, or normal with that deviation."""
    logits_value: float = 1.0
    """Value or deviation of the first logits, see `logits_init`."""
    logits_noise: Annotated[float, Field(ge=0.0)] = 0.0
    """Width of the uniform noise that is added to the first logits."""
    lr: PositiveFloat = 1e-3
    """Learning rate of the logits; `optim.schedule` changes it, too."""
    temperature: TemperatureSection = TemperatureSection()
    entropy: float = 0.0
    """Weight of the mean entropy of the distributions in the objective."""
    entropy_form: Literal["binary", "plain"] = "binary"
    """`binary` adds the entropies of the K events "the task is on branch k", as published; `plain`
    is the entropy of the Categorical."""


@register_recipe("published")
class PublishedGroups(GroupLearner):
    """Logits with an Adam optimizer for them alone, and weights from the configured sampler."""

    section: ClassVar[type[GroupingSection]] = PublishedSection
    # As published, nothing is pruned before the end.
    benchmark_pruning: ClassVar[tuple[float, float] | None] = (1.0, 1.0)

    def __init__(
        self, grouping: Grouping, config: Config, num_steps: int, device: torch.device, rank: int
    ) -> None:
        super().__init__(grouping, config, num_steps, device, rank)
        self._section = _section(config)
        self._optimizer = self._new_optimizer()

    @classmethod
    def new_grouping(cls, config: Config, num_tasks: int) -> Grouping:
        """Return the Categoricals with the configured sampler and logits."""
        section = _section(config)
        return Grouping(
            num_tasks,
            config.model.branches,
            sampler=section.sampler,
            logits_init=section.logits_init,
            logits_value=section.logits_value,
            logits_noise=section.logits_noise,
            seed=config.run.seed,
        )

    def _new_optimizer(self) -> torch.optim.Adam:
        return logits_optimizer(self.grouping.logits, self._config.optim, self._section.lr)

    def temperature(self, step: int) -> float:
        """Return the relaxation's temperature in `step`."""
        return temperature(self._section.temperature, step, self.finish_step)

    def weights(self, step: int, num_samples: int) -> Tensor:
        """Return the sampler's weights, with noise that is a function of seed, step and rank."""
        logits = self.grouping.logits
        if self.finished:
            return self.grouping.alive.float()
        per_sample = (num_samples,) if self.grouping.per_sample else ()
        rank = self._rank if self._section.noise == "per_rank" else 0
        noise = gumbel_noise((*logits.shape, *per_sample), self._config.run.seed, step, rank)
        noise = copy_to_device(noise, self._device)
        return self.grouping.sample(noise, self.temperature(step))

    def update(self, inputs: LearnerInput) -> None:
        """Step the logits along the gradient of objective and entropy term."""
        if self.finished:
            return
        section, gradient = self._section, inputs.logits_gradient
        if section.entropy:
            entropy = section.entropy * self.grouping.entropy(section.entropy_form)
            gradient = gradient + torch.autograd.grad(entropy, self.grouping.logits)[0]
        for group in self._optimizer.param_groups:
            group["lr"] = section.lr * inputs.lr_factor
        self.grouping.logits.grad = gradient
        self._optimizer.step()
        self.updates += 1

    def tensors(self) -> dict[str, Tensor]:
        """Return logits and mask, and Adam's moments, all [N,K]."""
        state = self._optimizer.state.get(self.grouping.logits, {})
        zeros = {name: torch.zeros_like(self.grouping.logits.detach()) for name in MOMENTS}
        return {**super().tensors(), **{name: state.get(name, zeros[name]) for name in MOMENTS}}

    def load(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Restore `tensors`."""
        super().load(tensors, updates)
        self._optimizer = self._new_optimizer()
        if updates:
            moments = {name: tensors[name].to(self._device, copy=True) for name in MOMENTS}
            step = torch.tensor(float(updates))
            self._optimizer.state[self.grouping.logits] = {"step": step, **moments}


def temperature(section: TemperatureSection, step: int, num_steps: int) -> float:
    """Return the temperature at `step` of the `num_steps` over which it is annealed."""
    progress = min(1.0, step / max(1, num_steps))
    if section.shape == "exponential":
        return section.initial * (section.final / section.initial) ** progress
    return section.initial + (section.final - section.initial) * progress


def _section(config: Config) -> PublishedSection:
    assert isinstance(config.grouping, PublishedSection), "the recipe has this section"
    return config.grouping
