"""The keys of `tasks.define.TASK` and `tasks.by_kind.KIND`: attributes of a `TaskSpec`."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import create_model
from pydantic.fields import FieldInfo

from dmtg.plugins import LOSSES, METRICS, TASK_KINDS
from model.tasks.display import DISPLAYS
from model.tasks.spec import TaskSpec
from trainer.config.allowed import NameIn
from trainer.config.section import PositiveInt, Section

# What the types of the attributes do not say.
_TYPES: dict[str, Any] = {
    "channels": PositiveInt,
    "kind": Annotated[str, NameIn(TASK_KINDS)],
    "field": str | None,
    "loss": Annotated[str, NameIn(LOSSES, or_empty=True)] | None,
    "metric": Annotated[str, NameIn(METRICS, or_empty=True)] | None,
    "display": Literal[tuple(DISPLAYS)],
}
_ATTRIBUTE = re.compile(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)


def attribute_docs(documented: type) -> dict[str, str]:
    """Return what the section `Attributes` of a class's docstring says of each attribute."""
    _, _, text = inspect.cleandoc(documented.__doc__ or "").partition("\nAttributes:\n")
    text = text.partition("\n\n")[0]
    return {name: " ".join(lines.split()) for name, lines in _ATTRIBUTE.findall(text)}


def _key(attribute: Field[Any], types: dict[str, Any], docs: dict[str, str]) -> tuple[Any, Any]:
    default = None if attribute.default is MISSING else attribute.default
    if attribute.default_factory is not MISSING:
        default = attribute.default_factory()
    annotation = _TYPES.get(attribute.name, types[attribute.name])
    return annotation, FieldInfo(default=default, description=docs.get(attribute.name))


def _keys() -> dict[str, Any]:
    types, docs = get_type_hints(TaskSpec), attribute_docs(TaskSpec)
    return {each.name: _key(each, types, docs) for each in fields(TaskSpec)}


class _Definition(Section):
    """What replaces a task's description: the keys left out are those of preset or manifest."""


class _OfKind(Section):
    """What replaces the descriptions of all tasks of a kind: attributes of more than one task."""


_OF_ONE_TASK = ("name", "kind", "field")

TaskDefinition: type[Section] = create_model(
    "TaskDefinition", __base__=_Definition, __doc__=_Definition.__doc__, **_keys()
)
KindDefinition: type[Section] = create_model(
    "KindDefinition",
    __base__=_OfKind,
    __doc__=_OfKind.__doc__,
    **{name: key for name, key in _keys().items() if name not in _OF_ONE_TASK},
)
