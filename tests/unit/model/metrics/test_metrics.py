import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from model.metrics import metric_for
from model.tasks.spec import TaskSpec
from model.tasks.targets import TargetBuilder
from tests.waits import Waits

SPECS = {
    "bce": TaskSpec("t", "binary"),
    "two_way": TaskSpec("t", "binary", loss="cross_entropy"),
    "balanced": TaskSpec("t", "binary", metric="balanced_binary"),
    "multiclass": TaskSpec("t", "multiclass", channels=4),
    "regression": TaskSpec("t", "regression", mean=(2.0,), scale=(3.0,), unit_scale=-0.5),
    "depth": TaskSpec(
        "t", "dense_regression", mean=(9.0,), scale=(4.0,), valid_below=200.0, unit_scale=0.1
    ),
    "aligned_depth": TaskSpec(
        "t", "dense_regression", scale=(4.0,), valid_below=200.0, unit_scale=0.1, display="depth"
    ),
    "edges": TaskSpec(
        "t", "dense_regression", mean=(90.0,), scale=(60.0,), unit_scale=0.5, positive_above=60.0
    ),
    "curvature": TaskSpec("t", "dense_regression", channels=2, scale=(3.0, 5.0)),
    "normal": TaskSpec(
        "t",
        "dense_regression",
        channels=3,
        mean=(127.5,),
        scale=(127.5,),
        unit_scale=1 / 127.5,
        unit_offset=-1.0,
        display="normal",
    ),
    "segments": TaskSpec("t", "dense_classification", channels=5, ignore_index=0),
}
BATCH = 8


def draw(spec, seed, share_valid=0.7):
    """A prediction, target, mask and the raw labels of one task."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(1, BATCH, generator=generator) < share_valid
    size = (3, 4) if spec.dense else ()
    prediction = torch.randn(BATCH, spec.outputs, *size, generator=generator)
    if spec.dense:
        high = 3 if spec.kind == "dense_classification" else 256
        channels = 1 if spec.kind == "dense_classification" else spec.channels
        raw = torch.randint(0, high, (BATCH, channels, *size), generator=generator)
        targets = TargetBuilder([spec])([raw], valid)
    else:
        raw = torch.randint(0, max(2, spec.channels), (BATCH,), generator=generator).float()
        targets = TargetBuilder([spec])(raw[None], valid)
    return prediction, targets.target[0], targets.mask[0], raw


def evaluate(spec, *parts):
    metric = metric_for(spec)
    states = [metric.update(metric.zeros(), *part) for part in parts]
    return metric.compute(sum(states, metric.zeros()))


@pytest.mark.parametrize("name", SPECS)
@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, BATCH), max_size=3))
@settings(max_examples=10, deadline=None)
def test_any_partition_gives_the_same_metrics(name, seed, cuts):
    spec = SPECS[name]
    prediction, target, mask, _ = draw(spec, seed)
    edges = [0, *sorted(cuts), BATCH]
    parts = [(prediction[a:b], target[a:b], mask[a:b]) for a, b in itertools.pairwise(edges)]
    assert evaluate(spec, *parts) == pytest.approx(
        evaluate(spec, (prediction, target, mask)), rel=1e-12
    )


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("share_valid", [0.0, 0.7, 1.0])
def test_on_a_gpu_metrics_are_the_same_and_nothing_waits(name, share_valid, monkeypatch):
    spec = SPECS[name]
    prediction, target, mask, _ = draw(spec, 3, share_valid)
    expected = evaluate(spec, (prediction, target, mask))
    for module in ("dense", "scalar"):  # what `within` does on a GPU
        monkeypatch.setattr(
            f"model.metrics.{module}.within",
            lambda mask, values, filler: torch.where(mask, values, filler),
        )
    metric = metric_for(spec)
    state = metric.zeros()
    with Waits() as waits:
        state = metric.update(state, prediction, target, mask)
    assert not waits.found
    assert metric.compute(state) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", SPECS)
def test_without_labels_there_are_no_metrics(name):
    prediction, target, mask, _ = draw(SPECS[name], 0, share_valid=0.0)
    assert evaluate(SPECS[name], (prediction, target, mask)) == {}


@pytest.mark.parametrize("name", SPECS)
def test_values_outside_the_mask_do_not_matter(name):
    spec = SPECS[name]
    prediction, target, mask, _ = draw(spec, 1)
    hidden = ~mask[:, None]
    poisoned = torch.where(hidden, float("nan"), prediction)
    assert evaluate(spec, (poisoned, target, mask)) == evaluate(spec, (prediction, target, mask))


@pytest.mark.parametrize("name", SPECS)
def test_the_primary_metric_is_reported_and_perfect_predictions_are_perfect(name):
    spec = SPECS[name]
    _, target, mask, _ = draw(spec, 2)
    if spec.loss == "bce":
        perfect = (2 * target - 1)[:, None]
    elif spec.loss == "cross_entropy":
        perfect = torch.eye(spec.outputs)[target.clamp(min=0)].movedim(-1, 1)
    else:
        perfect = target if spec.dense else target[:, None]
    metric = metric_for(spec)
    result = evaluate(spec, (perfect, target, mask))
    best = 1.0 if metric.higher_is_better else 0.0
    assert result[metric.primary] == pytest.approx(best, abs=1e-5)
    worse = evaluate(spec, (torch.randn_like(perfect) * 3, target, mask))[metric.primary]
    assert (worse < best) == metric.higher_is_better


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_balanced_error_against_sklearn(seed):
    spec = SPECS["balanced"]
    prediction, target, mask, _ = draw(spec, seed)
    result = evaluate(spec, (prediction, target, mask))
    if not mask.any():
        assert result == {}
        return
    called = (prediction[:, 0] > 0)[mask]
    recalls = sk.recall_score(target[mask], called, average=None, labels=target[mask].unique())
    assert result.pop("balanced_error") == pytest.approx(1 - recalls.mean())
    assert result == evaluate(SPECS["bce"], (prediction, target, mask))


def test_a_constant_has_a_balanced_error_of_one_half_however_rare_positives_are():
    target, mask = torch.zeros(500), torch.ones(500, dtype=torch.bool)
    target[7] = 1
    result = evaluate(SPECS["balanced"], (torch.full((500, 1), -1.0), target, mask))
    assert (result["balanced_error"], result["error"]) == (0.5, 1 / 500)


@pytest.mark.parametrize("name", ["bce", "two_way"])
def test_binary_against_sklearn(name):
    spec = SPECS[name]
    prediction, target, mask, _ = draw(spec, 3)
    called = prediction[:, 0] > 0 if name == "bce" else prediction.argmax(1)
    result = evaluate(spec, (prediction, target, mask))
    assert result["error"] == pytest.approx(1 - sk.accuracy_score(target[mask], called[mask]))
    assert result["f1"] == pytest.approx(sk.f1_score(target[mask], called[mask]))


def test_f1_without_positives_is_zero():
    spec = SPECS["bce"]
    batch = (-torch.ones(3, 1), torch.zeros(3), torch.ones(3, dtype=torch.bool))
    assert evaluate(spec, batch) == {"error": 0.0, "f1": 0.0}


def test_multiclass_against_sklearn():
    prediction, target, mask, _ = draw(SPECS["multiclass"], 4)
    result = evaluate(SPECS["multiclass"], (prediction, target, mask))
    expected = 1 - sk.accuracy_score(target[mask], prediction.argmax(1)[mask])
    assert result == {"error": pytest.approx(expected)}


def test_regression_in_natural_units():
    spec = SPECS["regression"]
    prediction, target, mask, raw = draw(spec, 5)
    guess = (prediction[:, 0] * 3 + 2) * -0.5
    errors = (guess - raw * -0.5)[mask].double()
    result = evaluate(spec, (prediction, target, mask))
    assert result["mae"] == pytest.approx(float(errors.abs().mean()), rel=1e-5)
    assert result["rmse"] == pytest.approx(float(errors.square().mean().sqrt()), rel=1e-5)


def test_depth_counts_valid_pixels_only():
    spec = SPECS["depth"]
    prediction, target, mask, raw = draw(spec, 6)
    labelled = mask.any(dim=(1, 2))
    kept = (raw[:, 0] < 200) & labelled[:, None, None]
    errors = ((prediction[:, 0] * 4 + 9) - raw[:, 0]).abs()[kept] * 0.1
    assert 0 < int(kept.sum()) < kept.numel()
    result = evaluate(spec, (prediction, target, mask))
    assert result == {"mae": pytest.approx(float(errors.mean()), rel=1e-5)}


def test_each_channel_has_its_own_scale():
    spec = SPECS["curvature"]
    ones = torch.ones(1, 1, 1, dtype=torch.bool)
    result = evaluate(spec, (torch.ones(1, 2, 1, 1), torch.zeros(1, 2, 1, 1), ones))
    assert result == {"mae": pytest.approx((3 + 5) / 2)}


def test_angle_of_known_normals():
    along = {"x": (1.0, 0.0, 0.0), "z": (0.0, 0.0, 1.0), "xz": (1.0, 0.0, 1.0)}
    spec, mask = SPECS["normal"], torch.ones(1, 1, 1, dtype=torch.bool)
    for name, angle in (("x", 0.0), ("z", 90.0), ("xz", 45.0)):
        # The scaled values of a normal are its components.
        guess, true = (torch.tensor(along[n]).view(1, 3, 1, 1) for n in (name, "x"))
        result = evaluate(spec, (guess * 2, true, mask))
        assert result["angle"] == pytest.approx(angle, abs=1e-4)
        assert not math.isnan(result["mae"])


def test_segments_against_sklearn():
    spec = SPECS["segments"]
    prediction, target, mask, _ = draw(spec, 7)
    true = target[mask].numpy()
    called = prediction[:, 1:].argmax(1)[mask].numpy() + 1
    present = np.unique(true)
    assert set(present) == {1, 2} and set(called) == {1, 2, 3, 4}
    result = evaluate(spec, (prediction, target, mask))
    expected = sk.jaccard_score(true, called, labels=present, average="macro")
    assert result["miou"] == pytest.approx(expected)
    assert result["pixel_error"] == pytest.approx(1 - sk.accuracy_score(true, called))
    state = metric_for(spec).update(metric_for(spec).zeros(), prediction, target, mask)
    confusion = sk.confusion_matrix(true, called, labels=range(5))
    assert torch.equal(state.view(5, 5), torch.from_numpy(confusion).double())
