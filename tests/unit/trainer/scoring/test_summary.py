import json
from pathlib import Path

import pytest

from model.tasks.spec import TaskSpec
from trainer.errors import UserError
from trainer.scoring.summary import check_reference, summarise

FACTS = Path(__file__).resolve().parents[3] / "fixtures" / "reference"
FACTS /= "reference_facts.json"

BINARY = [TaskSpec(name, "binary") for name in ("a", "b", "c")]
MIXED = [
    TaskSpec("attribute", "binary"),
    TaskSpec("number", "multiclass", channels=3),
    TaskSpec("pitch", "regression"),
    TaskSpec("depth", "dense_regression", unit="m", display="depth"),
    TaskSpec("height", "dense_regression", unit="m"),
    TaskSpec("segments", "dense_classification", channels=3),
]
METRICS = {
    "attribute": {"error": 0.1, "f1": 0.9},
    "number": {"error": 0.25},
    "pitch": {"mae": 2.0, "rmse": 3.0},
    "depth": {"mae": 0.5, "aligned_rmse": 0.3},
    "height": {"mae": 1.5},
    "segments": {"miou": 0.6, "pixel_error": 0.1},
}
REFERENCE = {
    "attribute": {"error": 0.2},
    "number": {"error": 0.2},
    "pitch": {"mae": 2.0},
    "depth": {"mae": 1.0},
    "height": {"mae": 1.0},
    "segments": {"miou": 0.5},
}


def of_accuracies(accuracies):
    return {spec.name: {"error": 1 - a} for spec, a in zip(BINARY, accuracies, strict=True)}


def test_published_example():
    """Worked out by hand: (0.02/0.12 - 0.02/0.18 + 0.01/0.06) / 3."""
    metrics, reference = of_accuracies([0.9, 0.8, 0.95]), of_accuracies([0.88, 0.82, 0.94])
    result = summarise(BINARY, metrics, reference)
    assert result.total_error == pytest.approx(35)
    assert result.normalized_gain == pytest.approx(100 * (1 / 6 - 1 / 9 + 1 / 6) / 3)


def test_numbers_of_the_published_implementation():
    example = json.loads(FACTS.read_text())["metrics"]
    metrics, reference = of_accuracies(example["acc"]), of_accuracies(example["ref"])
    result = summarise(BINARY, metrics, reference)
    assert result.total_error == pytest.approx(example["total_error"], rel=1e-12)
    assert result.normalized_gain == pytest.approx(example["normalized_gain"], rel=1e-12)


def test_every_kind_counts_by_its_primary_metric():
    result = summarise(MIXED, METRICS, REFERENCE)
    assert result.gains == pytest.approx(
        {"attribute": 50, "number": -25, "pitch": 0, "depth": 50, "height": -50, "segments": 20}
    )
    assert result.normalized_gain == pytest.approx((50 - 25 + 0 + 50 - 50 + 20) / 6)
    assert result.total_error == pytest.approx(35)  # pixel_error is not a task's error rate
    assert result.primary == pytest.approx(
        {
            "binary": 0.1,
            "multiclass": 0.25,
            "regression": 2.0,
            "dense_regression": 1.0,
            "dense_classification": 0.6,
        }
    )


def test_without_error_rates_or_reference_there_are_no_such_numbers():
    result = summarise(MIXED[2:], METRICS)
    assert (result.total_error, result.normalized_gain, result.gains) == (None, None, {})


@pytest.mark.parametrize(
    "other",
    [
        TaskSpec("height", "dense_regression", unit="mm"),
        TaskSpec("height", "dense_regression", channels=3, unit="m", display="normal"),
    ],
)
def test_no_mean_is_taken_over_unlike_metrics_or_units(other):
    metrics = {"depth": {"mae": 0.5}, "height": {"mae": 1.5, "angle": 20.0}}
    assert summarise([MIXED[3], other], metrics).primary == {}


def test_a_task_without_labels_counts_nowhere():
    """Neither among the metrics nor, if it had none there either, in the reference."""
    metrics = {"a": {"error": 0.1, "f1": 0.0}}
    result = summarise(BINARY, metrics, {"a": {"error": 0.2}, "b": {"error": 0.0}})
    assert result.total_error == pytest.approx(10)
    assert result.gains == {"a": pytest.approx(50)}
    assert summarise(BINARY, {}, {}).normalized_gain is None


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"a": {"error": 0.1}}, "reference: task 'b' is missing; found: a"),
        ({}, "reference: task 'a' is missing; found: none"),
        ({"a": {"f1": 0.5, "acc": 1}}, "task 'a' lacks the metric 'error' .* found: acc, f1"),
        ({"a": {"error": 0.0}}, "'error' of task 'a' is 0.0, must be a finite number above 0"),
        ({"a": {"error": -1.0}}, "'error' of task 'a' is -1.0, must be"),
        ({"a": {"error": float("nan")}}, "'error' of task 'a' is nan, must be"),
    ],
)
def test_what_nothing_can_be_compared_with(reference, message):
    metrics = {"a": {"error": 0.1}, "b": {"error": 0.1}}
    with pytest.raises(UserError, match=message):
        summarise(BINARY[:2], metrics, reference)


def test_faults_that_show_before_an_evaluation():
    check_reference(BINARY, {"b": {"error": 0.1}})
    with pytest.raises(UserError, match="task 'c' lacks the metric 'error'"):
        check_reference(BINARY, {"b": {"error": 0.1}, "c": {}})
