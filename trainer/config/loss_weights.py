"""The section `loss_weights`: a union of the sections of all methods, discriminated by `method`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, SerializeAsAny

from dmtg.plugins import LOSS_WEIGHTINGS
from trainer.config.section import Section, validate_choice

DEFAULT_METHOD = "equal"


class LossWeightsSection(Section):
    """The keys that every method has; `loss_weights: NAME` stands for `{method: NAME}`."""

    noun: ClassVar[str | None] = "method"
    discriminator: ClassVar[str] = "method"

    method: str
    """The method that weights the losses of the tasks in the objective."""


def method_sections() -> dict[str, type[LossWeightsSection]]:
    """Return the section of every registered method."""
    return {name: LOSS_WEIGHTINGS[name].section for name in LOSS_WEIGHTINGS.names()}


def validate_loss_weights(value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
    """Return the section of the method that a mapping, or a name, names.

    Raises:
        ValidationError: The method is unknown, or a key or value is not allowed.
    """
    if value is None:
        value = {}
    if isinstance(value, str):
        value = {"method": value}
    if not isinstance(value, Mapping):
        return value
    return validate_choice(method_sections(), {"method": DEFAULT_METHOD, **value})


AnyLossWeightsSection = Annotated[
    SerializeAsAny[LossWeightsSection], BeforeValidator(validate_loss_weights)
]
