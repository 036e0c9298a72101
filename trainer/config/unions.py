"""Sections that are unions: which alternatives a key has, and which of its keys chooses one."""

from __future__ import annotations

from typing import Any, get_args, get_origin

from trainer.config.grouping import DEFAULT_RECIPE, GroupingSection, recipe_sections
from trainer.config.loss_weights import DEFAULT_METHOD, LossWeightsSection, method_sections
from trainer.config.optim import CosineSchedule
from trainer.config.section import Section

# Per union its discriminator and the value that this has by default.
CHOICES = {
    "grouping": (GroupingSection.discriminator, DEFAULT_RECIPE),
    "loss_weights": (LossWeightsSection.discriminator, DEFAULT_METHOD),
    "optim.schedule": (CosineSchedule.discriminator, CosineSchedule().name),
}
# Sections for which a text stands: the value of this key.
SHORTHANDS = {
    "loss_weights": LossWeightsSection.discriminator,
    "optim.schedule": CosineSchedule.discriminator,
    "model.encoder": "name",
}


def alternatives(annotation: Any) -> dict[str, type[Section]]:  # noqa: ANN401 - of any field
    """Return the sections of a union by the value that chooses them; nothing for other types."""
    if annotation is GroupingSection:
        return dict(recipe_sections())
    if annotation is LossWeightsSection:
        return dict(method_sections())
    members = _sections(annotation)
    if len(members) < 2:
        return {}
    return {str(member.model_fields[member.discriminator].default): member for member in members}


def from_registry(annotation: Any) -> bool:  # noqa: ANN401 - of any field
    """Return whether the sections of a union are those of registered parts.

    Plug-ins may add some, and a mapping without the key that chooses gets the default.
    """
    return isinstance(annotation, type) and bool(alternatives(annotation))


def section_type(annotation: Any) -> type[Section] | None:  # noqa: ANN401 - of any field
    """Return the section that a key holds; None if it is a value or a union of sections."""
    members = _sections(annotation)
    return members[0] if len(members) == 1 and not alternatives(annotation) else None


def value_keys(section: type[Section], prefix: str = "") -> set[str]:
    """Return the dotted keys of all values of a section and of the sections in it."""
    keys: set[str] = set()
    for name, field in section.model_fields.items():
        inner = section_type(field.annotation)
        keys |= {prefix + name} if inner is None else value_keys(inner, f"{prefix}{name}.")
    return keys


def has_value(section: type[Section], path: str) -> bool:
    """Return whether a dotted key is a value of a section, or a part of one that is a mapping."""
    key, _, rest = path.partition(".")
    field = section.model_fields.get(key)
    if field is None:
        return False
    inner = section_type(field.annotation)
    if inner is not None:
        return has_value(inner, rest)
    return not rest or get_origin(field.annotation) is dict


def _sections(annotation: Any) -> list[type[Section]]:  # noqa: ANN401 - of any field
    return [
        member
        for member in (annotation, *get_args(annotation))
        if isinstance(member, type) and issubclass(member, Section)
    ]
