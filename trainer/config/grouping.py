"""The section `grouping`: a union of the sections of all recipes, discriminated by `recipe`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, SerializeAsAny

from dmtg.plugins import RECIPES
from trainer.config.section import PositiveInt, Section, validate_choice

DEFAULT_RECIPE = "evidence"


class GroupingSection(Section):
    """The keys that every recipe has; a recipe with more keys has a subclass."""

    noun: ClassVar[str | None] = "recipe"
    discriminator: ClassVar[str] = "recipe"

    recipe: str
    """The method that decides the grouping."""


class LearnedGroupingSection(GroupingSection):
    """The keys of all recipes that learn the groups while they train."""

    sampled_heads: PositiveInt | None = None
    """Number of heads of each task, chosen at random, that a step computes; null computes all."""


def recipe_sections() -> dict[str, type[GroupingSection]]:
    """Return the section of every registered recipe."""
    return {name: RECIPES[name].section for name in RECIPES.names()}


def validate_grouping(value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
    """Return the section of the recipe that a mapping names.

    Raises:
        ValidationError: The recipe is unknown, or a key or value is not allowed.
    """
    value = {} if value is None else value
    if not isinstance(value, Mapping):
        return value
    return validate_choice(recipe_sections(), {"recipe": DEFAULT_RECIPE, **value})


AnyGroupingSection = Annotated[SerializeAsAny[GroupingSection], BeforeValidator(validate_grouping)]
