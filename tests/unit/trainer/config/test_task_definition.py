"""The keys of `tasks.define.TASK`."""

from dataclasses import fields

from model.tasks.spec import TaskSpec
from trainer.config.task_definition import TaskDefinition, attribute_docs


class Documented:
    """A class.

    Attributes:
        first: One line.
        second: Two
            lines: with a colon.

    Raises:
        ValueError: Never.
    """


def test_attributes_are_read_from_the_docstring():
    assert attribute_docs(Documented) == {
        "first": "One line.",
        "second": "Two lines: with a colon.",
    }
    assert attribute_docs(int) == {}


def test_every_attribute_of_a_task_is_a_documented_key():
    keys = TaskDefinition.model_fields
    assert list(keys) == [field.name for field in fields(TaskSpec)]
    assert all(field.description and not field.is_required() for field in keys.values())
