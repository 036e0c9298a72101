"""The section `tasks` of a configuration."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from dmtg.plugins import TASK_KINDS
from trainer.config.section import Options, Section


class TasksSection(Section):
    """Which tasks are learned; without `preset` or `names`, every label of the manifest.

    `define` has attributes of single tasks by name, `by_kind` those of all tasks of a kind.
    """

    preset: str | None = None
    names: tuple[str, ...] | None = None
    by_kind: dict[str, Options] = Field(default_factory=dict)
    define: dict[str, Options] = Field(default_factory=dict)

    @field_validator("by_kind")
    @classmethod
    def _kinds(cls, by_kind: dict[str, Options]) -> dict[str, Options]:
        for kind, attributes in by_kind.items():
            TASK_KINDS.check(kind)
            own = sorted(attributes.keys() & {"name", "kind", "field"})
            if own:
                raise ValueError(f"{kind}.{own[0]} is an attribute of a single task, see define")
        return by_kind

    @model_validator(mode="after")
    def _one_list(self) -> TasksSection:
        if self.preset is not None and self.names is not None:
            raise ValueError("give at most one of tasks.preset and tasks.names")
        return self
