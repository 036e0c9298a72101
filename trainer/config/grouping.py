"""The section `grouping` of a configuration, and the sections in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from dmtg.plugins import SAMPLERS
from trainer.config.section import PositiveFloat, PositiveInt, Section


class TemperatureSection(Section):
    """The relaxation's temperature from the first step to `pruning.finish`."""

    start: PositiveFloat = 2.5
    end: PositiveFloat = 2.5
    shape: Literal["linear", "exponential"] = "exponential"


class SearchSection(Section):
    """How the recipes `tag` and `grad_tag` look for the groups before they train.

    `every` is the number of steps between two looks at the tasks' gradients, `steps` the length of
    the search where it is not that of the run, and `projection` the size of a projected gradient.
    """

    every: PositiveInt = 10
    steps: PositiveInt | None = None
    projection: PositiveInt = 512


class AffinitySection(Section):
    """The recipe `default`.

    `warmup` is the share of the run in which all tasks train on all branches. A task then starts on
    the branch of its group with `start_probability`; `branches: all` makes as many groups as there
    are branches, `estimate` fewer where the affinities say so. `average` is the weight of the past
    in the averaged losses, `temperature` that of the posterior when the warm-up ends.
    """

    warmup: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    branches: Literal["estimate", "all"] = "estimate"
    start_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.75
    average: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.98
    temperature: PositiveFloat = 0.1


class GroupingSection(Section):
    """How tasks find their branch.

    The recipes `default` and `published` learn it while they train; `fixed` (with `groups`, a
    file), `random`, `multitask` (one branch) and `single_task` (a branch for each task) are given
    from the start; `tag` and `grad_tag` search first, in a run of their own, and train then.
    `affinity` is of the recipe `default`, `search` of the last two; what stands between
    `sampled_heads` and these is of the recipe `published`. While groups are learned, every step
    computes `sampled_heads` heads of a task, chosen at random, or without it all that are alive.
    """

    recipe: Literal[
        "default",
        "published",
        "fixed",
        "random",
        "multitask",
        "single_task",
        "tag",
        "grad_tag",
    ] = "default"
    groups: Path | None = None
    sampled_heads: PositiveInt | None = None
    sampler: Annotated[str, AfterValidator(SAMPLERS.check)] = "gumbel"
    noise: Literal["per_rank", "shared"] = "per_rank"
    start: Literal["equal", "diagonal", "gaussian"] = "equal"
    init: float = 1.0
    init_noise: Annotated[float, Field(ge=0.0)] = 0.0
    lr: PositiveFloat = 1e-3
    temperature: TemperatureSection = TemperatureSection()
    entropy: float = 0.0
    entropy_form: Literal["binary", "plain"] = "binary"
    affinity: AffinitySection = AffinitySection()
    search: SearchSection = SearchSection()

    @model_validator(mode="after")
    def _groups_used(self) -> GroupingSection:
        if (self.recipe == "fixed") != (self.groups is not None):
            raise ValueError("groups is needed by recipe 'fixed' and by no other")
        return self
