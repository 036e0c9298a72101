"""The section `tasks` of a configuration."""

from __future__ import annotations

from pydantic import Field, model_validator

from trainer.config.section import Options, Section


class TasksSection(Section):
    """Which tasks are learned; without `preset` or `names`, every label of the manifest."""

    preset: str | None = None
    names: tuple[str, ...] | None = None
    define: dict[str, Options] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_list(self) -> TasksSection:
        if self.preset is not None and self.names is not None:
            raise ValueError("give at most one of tasks.preset and tasks.names")
        return self
