"""The section `grouping`: a union of the sections of all recipes, discriminated by `recipe`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Union

from pydantic import BeforeValidator, Discriminator, SerializeAsAny, Tag, TypeAdapter

from dmtg.plugins import RECIPES
from trainer.config.section import PositiveInt, Section

DEFAULT_RECIPE = "affinity"


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

    The union is built here and not with the class, because plug-ins register recipes.

    Raises:
        ValidationError: The recipe is unknown, or a key or value is not allowed.
    """
    value = {} if value is None else value
    if not isinstance(value, Mapping):
        return value
    tree = {"recipe": DEFAULT_RECIPE, **value}
    return _union(tuple(recipe_sections().items())).validate_python(tree)


@lru_cache(maxsize=8)
def _union(sections: tuple[tuple[str, type[GroupingSection]], ...]) -> TypeAdapter[Any]:
    tagged = tuple(Annotated[section, Tag(name)] for name, section in sections)
    union: Any = Annotated[Union[tagged], Discriminator(_recipe)]  # noqa: UP007 - of a tuple
    return TypeAdapter(union)


def _recipe(value: Mapping[str, Any]) -> str:
    return str(value["recipe"])


AnyGroupingSection = Annotated[SerializeAsAny[GroupingSection], BeforeValidator(validate_grouping)]
