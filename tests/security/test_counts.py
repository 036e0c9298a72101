"""Counts of a few characters that ask for gigabytes, in mappings, manifests and configurations."""

import re
import tracemalloc

import pytest
from pydantic import ValidationError

from data_pipelines.convert.mapping import described_field
from data_pipelines.errors import DataError
from data_pipelines.shards.field import MAX_CHANNELS, MAX_CLASSES, Field
from data_pipelines.shards.manifest import Manifest
from model import bounds
from model.encoders import build_encoder
from model.heads.layout import HeadLayout
from model.tasks.spec import TaskSpec
from trainer.config.tasks import TasksSection
from trainer.errors import UserError
from trainer.tasks import resolve_tasks

MAX_BYTES = 20e6
HUGE = 10**9


@pytest.fixture(autouse=True)
def little_memory():
    """Fail a test that allocates much, whatever it raises."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MAX_BYTES


def test_a_mapping_with_a_count_of_classes():
    entry = {"member": "cls", "key": "cls", "kind": "multiclass", "classes": HUGE}
    message = f"fields.a.classes: 1000000000, allowed are at most {MAX_CLASSES}"
    with pytest.raises(DataError, match=message):
        described_field("fields.a", entry)
    assert len(described_field("fields.a", entry | {"classes": 1000}).classes) == 1000


def test_a_manifest_with_channels():
    with pytest.raises(ValidationError, match=f"channels\n.*less than or equal to {MAX_CHANNELS}"):
        Field(member="d.png", kind="dense_regression", channels=HUGE)


@pytest.mark.parametrize(
    ("definition", "most"),
    [
        ({"kind": "multiclass", "channels": HUGE}, bounds.MAX_CLASSES),
        ({"kind": "dense_classification", "channels": HUGE}, bounds.MAX_PIXEL_CHANNELS),
        ({"kind": "dense_regression", "channels": 5000}, bounds.MAX_PIXEL_CHANNELS),
    ],
)
def test_a_task_with_channels(definition, most):
    section = TasksSection(names=["a"], define={"a": definition})
    image = Field(member="rgb.png", kind="image", channels=3)
    manifest = Manifest(dataset="none", fields={"rgb": image}, splits={})
    found = definition["channels"]
    message = f"tasks.define.a: task 'a': channels is {found}, must be an integer of at most {most}"
    with pytest.raises(UserError, match=re.escape(message)):
        resolve_tasks(section, manifest)


def test_the_numbers_of_imagenet_21k_and_of_a_thousand_tasks_are_allowed():
    assert TaskSpec("a", "multiclass", channels=21_841).outputs == 21_841
    layout = HeadLayout([TaskSpec(f"t{n}", "binary") for n in range(1000)], 8, None)
    assert len(layout.heads) == 8000


def test_more_tasks_than_are_allowed():
    tasks = [TaskSpec("a", "binary")] * (bounds.MAX_TASKS + 1)
    with pytest.raises(ValueError, match="tasks holds 10001, must hold at most 10000"):
        HeadLayout(tasks, 1, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_branches": HUGE}, "model.num_branches is 1000000000, must be at least 1 and at mo"),
        ({"image_size": (HUGE, 8)}, r"image_size is \(1000000000, 8\), must be two numbers above"),
        ({"options": {"channels": HUGE}}, "channels is 1000000000, must be an integer above 0 a"),
    ],
)
def test_an_encoder(arguments, message):
    allowed = {"name": "residual64", "num_branches": 1, "image_size": (16, 16)}
    with pytest.raises(ValueError, match=message):
        build_encoder(**{**allowed, **arguments})
