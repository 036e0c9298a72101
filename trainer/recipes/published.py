"""The published updates of the logits (DMTG, eq. 3-6): Adam along the sampled objective."""

from __future__ import annotations

import torch
from torch import Tensor

from model.grouping.grouping import Grouping, gumbel_noise
from model.grouping.head_sampling import HeadSample
from trainer.config.config import Config
from trainer.engines.optim import MOMENTS, logits_optimizer
from trainer.engines.schedules import temperature
from trainer.recipes.learner import GroupLearner


class PublishedGroups(GroupLearner):
    """Logits with an Adam of their own, and weights from the configured sampler."""

    def __init__(
        self, grouping: Grouping, config: Config, num_steps: int, device: torch.device, rank: int
    ) -> None:
        super().__init__(grouping, config, num_steps, device, rank)
        self._optimizer = self._new_optimizer()

    def _new_optimizer(self) -> torch.optim.Adam:
        section = self._config
        return logits_optimizer(self.grouping.logits, section.optim, section.grouping.lr)

    def temperature(self, step: int) -> float:
        """The relaxation's temperature in `step`."""
        return temperature(self._config.grouping.temperature, step, self.finish_step)

    def weights(self, step: int, num_samples: int) -> Tensor:
        """Weights from the sampler, with noise that is a function of seed, step and rank."""
        section, logits = self._config.grouping, self.grouping.logits
        if self.finished:
            return self.grouping.alive.float()
        per_sample = (num_samples,) if self.grouping.per_sample else ()
        rank = self._rank if section.noise == "per_rank" else 0
        noise = gumbel_noise((*logits.shape, *per_sample), self._config.run.seed, step, rank)
        return self.grouping.sample(noise.to(self._device), self.temperature(step))

    def update(
        self,
        step: int,  # noqa: ARG002
        gradient: Tensor,
        losses: Tensor,  # noqa: ARG002
        factor: float,
        head_sample: HeadSample | None = None,  # noqa: ARG002
    ) -> None:
        """Step the logits along the gradient of objective and entropy term."""
        if self.finished:
            return
        section = self._config.grouping
        if section.entropy:
            entropy = section.entropy * self.grouping.entropy(section.entropy_form)
            gradient = gradient + torch.autograd.grad(entropy, self.grouping.logits)[0]
        for group in self._optimizer.param_groups:
            group["lr"] = section.lr * factor
        self.grouping.logits.grad = gradient
        self._optimizer.step()
        self.updates += 1

    def tensors(self) -> dict[str, Tensor]:
        """Logits and mask, and Adam's moments, all [N,K]."""
        state = self._optimizer.state.get(self.grouping.logits, {})
        zeros = {name: torch.zeros_like(self.grouping.logits.detach()) for name in MOMENTS}
        return {**super().tensors(), **{name: state.get(name, zeros[name]) for name in MOMENTS}}

    def load(self, tensors: dict[str, Tensor], updates: int) -> None:
        """The inverse of `tensors`."""
        super().load(tensors, updates)
        self._optimizer = self._new_optimizer()
        if updates:
            moments = {name: tensors[name].to(self._device, copy=True) for name in MOMENTS}
            step = torch.tensor(float(updates))
            self._optimizer.state[self.grouping.logits] = {"step": step, **moments}
