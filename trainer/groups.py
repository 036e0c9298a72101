"""Learns the grouping during a run: noise, temperature, the logits' updates and the pruning.

Legend: N tasks, K branches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.grouping import Grouping, gumbel_noise
from model.layout import Head, used_branches
from model.pruning import harden, prune
from trainer.config import Config
from trainer.optim import MOMENTS, logits_optimizer
from trainer.schedules import temperature


def hard_heads(logits: Tensor, alive: Tensor) -> list[Head]:
    """The most probable live head (task, branch) of every task, from tensors [N,K]."""
    hard = harden(logits.masked_fill(~alive, -torch.inf).softmax(dim=1), alive)
    return [(task, branch) for task, branch in hard.nonzero().tolist()]


class GroupLearner:
    """The logits [N,K] with their own Adam, outside the engine and in fp32 on every rank.

    Attributes:
        grouping: The Categoricals and which heads are alive.
        finish_step: From this many steps on, every task has one head.
        finished: Whether every task has one head.
    """

    def __init__(
        self, grouping: Grouping, config: Config, num_steps: int, device: torch.device, rank: int
    ) -> None:
        self.grouping = grouping.to(device)
        self._config = config
        self._rank = rank if config.grouping.noise == "per_rank" else 0
        self._device = device
        self.start_step = round(config.pruning.start * num_steps)
        self.finish_step = round(config.pruning.finish * num_steps)
        self._switch(self.grouping.alive)
        self._new_optimizer()

    def _new_optimizer(self) -> None:
        section = self._config
        self._optimizer = logits_optimizer(self.grouping.logits, section.optim, section.grouping.lr)

    def temperature(self, step: int) -> float:
        """The relaxation's temperature in `step`."""
        return temperature(self._config.grouping.temperature, step, self.finish_step)

    def weights(self, step: int) -> Tensor:
        """The weights z [N,K] of the heads in `step`, differentiable in the logits."""
        logits = self.grouping.logits
        noise = gumbel_noise(tuple(logits.shape), self._config.run.seed, step, self._rank)
        return self.grouping.sample(noise.to(self._device), self.temperature(step))

    def update(self, gradient: Tensor, factor: float) -> None:
        """Step the logits along their gradient [N,K], summed over ranks; `factor` scales the lr."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.grouping.lr * factor
        self.grouping.logits.grad = gradient
        self._optimizer.step()

    def prunes_at(self, step: int) -> bool:
        """Whether heads may be switched off after `step` steps."""
        due = step >= self.start_step and step % self._config.pruning.every == 0
        return not self.finished and (due or step >= self.finish_step)

    def prune(self, step: int) -> list[Head]:
        """Decide, after `step` steps, which heads are switched off for good.

        Returns:
            The heads (task, branch) that were switched off now.
        """
        section, alive = self._config.pruning, self.grouping.alive
        if not self.prunes_at(step):
            return []
        if step >= self.finish_step:
            kept = harden(self.grouping.probabilities(), alive)
        else:
            kept = prune(self.grouping.probabilities(), alive, section.threshold)
        off = [(task, branch) for task, branch in (alive & ~kept).nonzero().tolist()]
        self._switch(kept)
        return off

    def _switch(self, alive: Tensor) -> None:
        self.grouping.alive = alive
        # Known on the host, so that no step has to ask the device.
        self.finished = int(alive.sum()) == len(alive)

    def chosen_heads(self) -> list[Head]:
        """The most probable live head of every task."""
        return hard_heads(self.grouping.logits.detach(), self.grouping.alive)

    def drop_empty_branches(self) -> tuple[int, ...]:
        """Cut the branches without a live head out of logits, masks and moments.

        Returns:
            The branches that were kept, by their old numbers.
        """
        kept = used_branches(self.grouping.heads())
        cut = {name: value[:, list(kept)] for name, value in self.tensors().items()}
        self.load(cut, self.updates)
        return kept

    @property
    def updates(self) -> int:
        """Updates of the logits so far."""
        state = self._optimizer.state.get(self.grouping.logits, {})
        return int(state.get("step", 0))

    def tensors(self) -> dict[str, Tensor]:
        """Logits, moments and mask [N,K]: with `updates`, all that a checkpoint must hold."""
        state = self._optimizer.state.get(self.grouping.logits, {})
        logits = self.grouping.logits.detach()
        moments = {name: state.get(name, torch.zeros_like(logits)) for name in MOMENTS}
        return {"logits": logits, "alive": self.grouping.alive, **moments}

    def load(self, tensors: dict[str, Tensor], updates: int) -> None:
        """The inverse of `tensors` and `updates`, with as many branches as the tensors have."""
        tensors = {name: value.to(self._device) for name, value in tensors.items()}
        num_tasks, num_branches = tensors["logits"].shape
        grouping = Grouping(num_tasks, num_branches, sampler=self.grouping.sampler)
        self.grouping = grouping.to(self._device)
        self._switch(tensors["alive"])
        with torch.no_grad():
            self.grouping.logits.copy_(tensors["logits"])
        self._new_optimizer()
        if updates:
            moments = {name: tensors[name].clone() for name in MOMENTS}
            step = torch.tensor(float(updates))
            self._optimizer.state[self.grouping.logits] = {"step": step, **moments}
