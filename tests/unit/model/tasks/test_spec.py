import json

import pytest

from dmtg.plugins import LOSSES, TASK_KINDS
from model.kinds.kind import get_kind
from model.tasks.spec import TaskSpec

DEPTH = TaskSpec(
    "depth", "dense_regression", mean=(1500.0,), scale=(1000.0,), valid_below=8192.0, unit="m"
)


def test_defaults_follow_the_kind():
    assert TaskSpec("a", "binary").loss == "bce"
    assert TaskSpec("a", "multiclass", channels=3).loss == "cross_entropy"
    assert TaskSpec("a", "regression").loss == "l1"
    assert TaskSpec("a", "binary").field == "a"
    assert TaskSpec("a", "binary", field="b").field == "b"


@pytest.mark.parametrize(
    ("spec", "signature"),
    [
        (TaskSpec("a", "binary"), ("binary", 1, "bce")),
        (TaskSpec("a", "binary", loss="cross_entropy"), ("binary", 2, "cross_entropy")),
        (TaskSpec("a", "multiclass", channels=5), ("multiclass", 5, "cross_entropy")),
        (TaskSpec("a", "regression", loss="mse"), ("regression", 1, "mse")),
        (TaskSpec("a", "dense_regression", channels=3), ("dense_regression", 3, "l1")),
    ],
)
def test_signature(spec, signature):
    assert spec.signature == signature
    assert spec.outputs == signature[1]


@pytest.mark.parametrize(
    "spec",
    [
        DEPTH,
        TaskSpec("s", "dense_classification", channels=3, ignore_index=0, classes=("a", "b", "c")),
        TaskSpec("n", "dense_regression", channels=2, mean=(1, 2), scale=(3, 4), display="signed"),
        TaskSpec("e", "dense_regression", positive_above=0.25, loss="l1_shift"),
        TaskSpec("m", "dense_regression", metric="depth"),
    ],
)
def test_round_trip_through_json(spec):
    assert TaskSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "tenary"}, "task 't': kind is 'tenary', must be one of binary, dense_class"),
        ({"kind": "binary", "channels": 2}, "channels is 2, must be 1 for a binary task"),
        ({"kind": "multiclass"}, "channels is 1, must be the number of classes, at least 2"),
        ({"kind": "dense_regression", "channels": 0}, "channels is 0, must be at least 1"),
        ({"kind": "binary", "loss": "l1"}, "loss is 'l1', must be one of bce, cross_entropy"),
        ({"kind": "regression", "scale": (0.0,)}, r"scale is \(0.0,\), must be above 0"),
        ({"kind": "regression", "mean": (1, 2)}, r"mean is \(1, 2\), must be one finite number"),
        ({"kind": "regression", "mean": (float("nan"),)}, "must be one finite number"),
        ({"kind": "binary", "mean": (1.0,)}, "must be left out: labels are ids"),
        ({"kind": "binary", "valid_below": 3.0}, "valid_below is 3.0, must be left out"),
        ({"kind": "regression", "ignore_index": 3}, "ignore_index is 3, must be left out"),
        ({"kind": "regression", "unit_scale": 0.0}, "unit_scale is 0.0, must be a finite"),
        ({"kind": "dense_regression", "display": "red"}, "display is 'red', must be one of grey"),
        ({"kind": "binary", "classes": ("a",)}, "must be empty or 2 names"),
        (
            {"kind": "regression", "loss": "l1_shift"},
            "loss is 'l1_shift', must be one of l1, huber, mse",
        ),
        ({"kind": "binary", "positive_above": 0.5}, "positive_above is 0.5, must be left out"),
        ({"kind": "dense_regression", "channels": 2, "positive_above": 1.0}, "of one channel"),
        ({"kind": "dense_regression", "display": "depth", "positive_above": 1.0}, "no depth"),
        ({"kind": "dense_regression", "positive_above": float("inf")}, "must be a finite number"),
        ({"kind": "dense_regression", "metric": "binary"}, "metric is 'binary', must be one of d"),
        ({"kind": "dense_regression", "metric": "response"}, "positive_above is None, must be set"),
        ({"kind": ["binary"]}, r"kind is \['binary'\], must be one of"),
    ],
)
def test_contradictions_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TaskSpec("t", **arguments)


def test_an_empty_metric_is_not_written():
    """Files written before the attribute existed, and those read by such a version, lack it."""
    assert "metric" not in DEPTH.to_dict()


def test_a_task_needs_a_name():
    with pytest.raises(ValueError, match="task name is empty"):
        TaskSpec("", "binary")


def test_from_dict_names_what_is_wrong():
    with pytest.raises(ValueError, match="unknown attribute 'colour', must be one of name, kind"):
        TaskSpec.from_dict({"name": "t", "kind": "binary", "colour": 1})
    with pytest.raises(ValueError, match="'kind' is missing"):
        TaskSpec.from_dict({"name": "t"})


@pytest.mark.parametrize(
    ("kind", "losses"),
    [
        ("binary", ["bce", "cross_entropy", "focal"]),
        ("multiclass", ["cross_entropy", "focal"]),
        ("regression", ["l1", "huber", "mse"]),
        ("dense_regression", ["l1", "huber", "mse", "l1_shift"]),
        ("dense_classification", ["cross_entropy", "focal"]),
    ],
)
def test_every_kind_has_a_default_loss_and_names_the_others(kind, losses):
    allowed = get_kind(kind).allowed_losses(kind)
    assert allowed[0] == losses[0] and set(allowed) == set(losses)
    assert kind in TASK_KINDS and set(losses) <= set(LOSSES.names())


def test_an_unknown_loss_is_an_error_that_lists_what_the_kind_allows():
    message = "loss is 'hubber', must be one of l1, huber, mse for a regression task"
    with pytest.raises(ValueError, match=message):
        TaskSpec("t", "regression", loss="hubber")
