"""The configuration of a run, and the conditions between its sections."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from data_pipelines.shards import remote
from dmtg.secrets import without_secrets_in
from dmtg.yaml_text import dump_yaml
from trainer.config.data import DataSection
from trainer.config.evaluation import EvalSection
from trainer.config.finetune import FinetuneSection
from trainer.config.grouping import AnyGroupingSection, validate_grouping
from trainer.config.log import LogSection
from trainer.config.loss_weights import AnyLossWeightsSection, validate_loss_weights
from trainer.config.model import ModelSection
from trainer.config.optim import OptimSection, PlateauSchedule
from trainer.config.pruning import PruningSection
from trainer.config.run import RunSection
from trainer.config.section import Section
from trainer.config.tasks import TasksSection


class Config(Section):
    """Everything that a run depends on."""

    plugins: tuple[str, ...] = ()
    """Modules that are imported before the configuration is checked, to register parts."""
    run: RunSection
    data: DataSection
    tasks: TasksSection = TasksSection()
    model: ModelSection
    grouping: AnyGroupingSection = Field(default_factory=lambda: validate_grouping({}))
    """How tasks get their branches: `recipe` chooses the method and the keys of this section."""
    pruning: PruningSection = PruningSection()
    loss_weights: AnyLossWeightsSection = Field(default_factory=lambda: validate_loss_weights({}))
    """What the losses of the tasks are multiplied by in the objective."""
    optim: OptimSection = OptimSection()
    finetune: FinetuneSection = FinetuneSection()
    eval: EvalSection = EvalSection()
    log: LogSection = LogSection()

    @model_validator(mode="after")
    def _threshold_below_uniform(self) -> Config:
        if self.model.branches > 1 and self.pruning.threshold >= 1.0 / self.model.branches:
            raise ValueError(
                f"pruning.threshold: found {self.pruning.threshold}; must be below "
                f"1/model.branches = {1.0 / self.model.branches:.4g}, the probability that every "
                "head starts with"
            )
        return self

    @model_validator(mode="after")
    def _epochs_known(self) -> Config:
        if self.data.tar_urls is None:
            return self
        if isinstance(self.optim.schedule, PlateauSchedule):
            raise ValueError(
                "optim.schedule: found 'plateau', which needs epochs; data.tar_urls has none"
            )
        if self.finetune.epochs:
            raise ValueError(
                "finetune.epochs: data.tar_urls has no end, give finetune.steps instead"
            )
        return self

    @model_validator(mode="after")
    def _sources_in_time(self) -> Config:
        is_remote = isinstance(self.data.shards, str) or self.data.tar_urls is not None
        most = self.run.timeout_seconds - 2 * remote.TIMEOUT
        if is_remote and self.data.retry_seconds >= most:
            raise ValueError(
                f"data.retry_seconds: found {self.data.retry_seconds:g}; must be below {most:g}: "
                f"two attempts of {remote.TIMEOUT:g} s before run.timeout_seconds, "
                f"{self.run.timeout_seconds:g}, after which the other ranks give up"
            )
        return self

    def without_secrets(self) -> dict[str, Any]:
        """Return the values as JSON without credentials, as they are written and shown."""
        values: dict[str, Any] = without_secrets_in(self.model_dump(mode="json"))
        return values

    def to_yaml(self) -> str:
        """Return the resolved configuration as YAML, without credentials."""
        return dump_yaml(self.without_secrets())
