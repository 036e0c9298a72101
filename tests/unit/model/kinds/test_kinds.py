"""The methods of a kind that prediction, the doctor, the loader and the plan call."""

import numpy as np
import pytest
import torch

from data_pipelines.shards.field import Field
from dmtg.plugins import TASK_KINDS
from model.kinds.kind import get_kind
from model.tasks.spec import TaskSpec

SPECS = {
    "binary": TaskSpec("t", "binary"),
    "multiclass": TaskSpec("t", "multiclass", channels=3),
    "regression": TaskSpec("t", "regression", unit="kg", unit_scale=2.0, unit_offset=1.0),
    "dense_regression": TaskSpec("t", "dense_regression", channels=2, unit="m", unit_scale=0.5),
    "dense_classification": TaskSpec("t", "dense_classification", channels=4, ignore_index=0),
}


def test_every_built_in_kind_is_here():
    assert set(SPECS) == {name for name in TASK_KINDS.names() if not TASK_KINDS.plugin_of(name)}


def test_an_unknown_kind_lists_the_known_ones():
    with pytest.raises(ValueError, match="task kind is 'rank', must be one of binary, dense_cl"):
        get_kind("rank")


@pytest.mark.parametrize(
    ("kind", "value", "record"),
    [
        ("binary", 0.75, {"value": True, "probability": 0.75}),
        ("binary", 0.25, {"value": False, "probability": 0.25}),
        (
            "multiclass",
            [0.25, 0.5, 0.25],
            {"value": "1", "probabilities": {"0": 0.25, "1": 0.5, "2": 0.25}},
        ),
        ("regression", 2.5, {"value": 2.5, "unit": "kg"}),
    ],
)
def test_scalar_predictions_as_json(kind, value, record):
    assert get_kind(kind).record(SPECS[kind], torch.tensor(value)) == record


def test_probabilities_have_the_names_of_the_classes():
    spec = TaskSpec("t", "multiclass", channels=2, classes=("cat", "dog"))
    record = get_kind("multiclass").record(spec, torch.tensor([0.25, 0.75]))
    assert record == {"value": "dog", "probabilities": {"cat": 0.25, "dog": 0.75}}


@pytest.mark.parametrize(
    ("spec", "value", "text", "as_json"),
    [
        (SPECS["binary"], 1.0, "1", True),
        (TaskSpec("t", "binary", classes=("no", "yes")), 0.0, "no", False),
        (SPECS["multiclass"], 2.0, "2", "2"),
        (SPECS["regression"], 3.0, "7 kg", 7.0),
        (TaskSpec("t", "regression"), 0.123456, "0.1235", 0.123456),
    ],
)
def test_scalar_labels_as_text_and_as_json(spec, value, text, as_json):
    kind = get_kind(spec.kind)
    assert kind.label_text(spec, value) == text
    assert kind.label_value(spec, value) == as_json
    assert type(kind.label_value(spec, value)) is type(as_json)


def test_a_label_map_is_drawn_in_natural_units_without_its_invalid_pixels():
    spec, kind = SPECS["dense_regression"], get_kind("dense_regression")
    label = np.zeros((2, 1, 4), np.uint16)
    label[0, 0] = 10, 20, 30, 65535
    mask = np.array([[True, True, True, False]])
    picture, caption = kind.draw_label(spec, label, mask)
    low, high = np.percentile([5.0, 10.0, 15.0], (1, 99))
    assert caption == f"{low:.3g} to {high:.3g} m"
    assert picture[0, 0, 0] == 0 and picture[0, 2, 0] == 255
    assert 0 < picture[0, 1, 0] < 255


def test_a_class_map_is_drawn_with_the_number_of_its_classes():
    label = np.array([[[0, 1, 3, 3, 2]]], np.uint8)
    mask = np.array([[False, True, True, True, False]])
    spec, kind = SPECS["dense_classification"], get_kind("dense_classification")
    picture, caption = kind.draw_label(spec, label, mask)
    assert caption == "2 classes"
    np.testing.assert_array_equal(picture[0, 1:3], kind.draw(spec, label[0])[0, 1:3])


RAMP = np.linspace(0, 8, 101).reshape(1, 1, 101)  # the 1st and 99th percentile: 0.08 and 7.92


@pytest.mark.parametrize(
    ("spec", "values", "caption"),
    [
        (SPECS["dense_regression"], np.concatenate([RAMP, -RAMP]), "0.08 to 7.92 m"),
        (TaskSpec("t", "dense_regression", display="depth"), RAMP, "0.08 to 7.92"),
        (TaskSpec("t", "dense_regression", display="signed"), RAMP, "-7.92 to 7.92"),
        (TaskSpec("t", "dense_regression", channels=3, display="normal"), np.eye(3), ""),
        (SPECS["dense_classification"], np.zeros((2, 3)), ""),
    ],
)
def test_captions_of_predictions(spec, values, caption):
    assert get_kind(spec.kind).caption(spec, values) == caption


@pytest.mark.parametrize(
    ("field", "attributes"),
    [
        (Field(member="a.json", key="x", kind="binary"), {}),
        (
            Field(member="a.json", key="x", kind="multiclass", classes=("a", "b")),
            {"classes": ["a", "b"], "channels": 2},
        ),
        (Field(member="a.json", key="x", kind="regression"), {}),
        (
            Field(member="a.json", key="x", kind="regression", mean=2.0, std=3.0),
            {"mean": [2.0], "scale": [3.0]},
        ),
        (
            Field(member="x.png", kind="dense_regression", channels=2, mean=2.0, std=3.0),
            {"channels": 2, "mean": [2.0], "scale": [3.0]},
        ),
        (
            Field(member="x.png", kind="dense_classification", classes=("a", "b", "c")),
            {"classes": ["a", "b", "c"], "channels": 3},
        ),
    ],
)
def test_a_task_from_a_field(field, attributes):
    kind = get_kind(field.kind)
    assert kind.from_field(field) == attributes
    assert kind.stored_as == field.kind
    spec = TaskSpec.from_dict({"name": "t", "kind": field.kind, **attributes})
    assert kind.stored_channels(spec) == field.channels


def test_the_rule_of_labels_names_classes_by_their_ids():
    assert get_kind("binary").label_rule(SPECS["binary"])["classes"] == ("0", "1")
    assert get_kind("multiclass").label_rule(SPECS["multiclass"])["classes"] == ("0", "1", "2")
    assert get_kind("regression").label_rule(SPECS["regression"])["classes"] == ()
    rule = get_kind("dense_classification").label_rule(SPECS["dense_classification"])
    assert (rule["kind"], rule["ignore_index"]) == ("dense_classification", 0)


@pytest.mark.parametrize(
    ("kind", "method", "values"),
    [
        ("dense_regression", "record", 1),
        ("binary", "draw", 1),
        ("binary", "caption", 1),
        ("binary", "draw_label", 2),
    ],
)
def test_what_a_kind_does_not_define_is_named(kind, method, values):
    with pytest.raises(NotImplementedError, match=f"defines no {method}"):
        getattr(get_kind(kind), method)(SPECS[kind], *[None] * values)
