import pytest
import torch

from model.kinds.kind import get_kind
from model.losses.loss import get_loss
from model.metrics import metric_for
from model.tasks import constant
from model.tasks.spec import TaskSpec
from model.tasks.targets import TargetBuilder


def learn(spec, *batches):
    predictor = get_kind(spec.kind).constant_predictor(spec)
    for target, mask in batches:
        predictor.update(target, mask)
    return predictor


def all_of(*shape):
    return torch.ones(*shape, dtype=torch.bool)


@pytest.mark.parametrize(("loss", "positive"), [("bce", [1.0]), ("cross_entropy", [0.0, 1.0])])
def test_binary_majority(loss, positive):
    spec = TaskSpec("t", "binary", loss=loss)
    labels = torch.tensor([1, 1, 0, 0, 0])
    mask = torch.tensor([True, True, True, False, False])
    assert learn(spec, (labels, mask)).constant().tolist() == positive
    prediction = learn(spec, (labels, mask)).prediction(5)
    metric = metric_for(spec)
    result = metric.compute(metric.update(metric.zeros(), prediction, labels, mask))
    assert result["error"] == pytest.approx(1 / 3)


def test_equals_give_the_lowest_class():
    predictor = learn(TaskSpec("t", "multiclass", channels=3), (torch.tensor([2, 1]), all_of(2)))
    assert predictor.constant().tolist() == [0.0, 1.0, 0.0]


def test_dense_majority_over_pixels_and_batches():
    spec = TaskSpec("t", "dense_classification", channels=3, ignore_index=0)
    raw = torch.tensor([[[[0, 0, 0, 2]]], [[[1, 2, 0, 0]]]])
    targets = TargetBuilder([spec])([raw], all_of(1, 2))
    parts = [(targets.target[0, i : i + 1], targets.mask[0, i : i + 1]) for i in range(2)]
    prediction = learn(spec, *parts).prediction(2, (1, 4))
    assert prediction.shape == (2, 3, 1, 4)
    assert prediction.argmax(1).unique().tolist() == [2]


def test_mean_and_median():
    labels = torch.tensor([0.0, 1.0, 8.0])
    batches = ((labels[:1], all_of(1)), (labels[1:], all_of(2)))
    assert learn(TaskSpec("t", "regression", loss="mse"), *batches).constant().tolist() == [3.0]
    assert learn(TaskSpec("t", "regression"), *batches).constant().tolist() == [1.0]


def test_the_median_of_a_shifted_loss_is_over_all_pixels():
    labels = torch.tensor([0.0, 1.0, 8.0]).view(1, 1, 1, 3)
    spec = TaskSpec("t", "dense_regression", loss="l1_shift")
    assert learn(spec, (labels, all_of(1, 1, 3))).constant().tolist() == [1.0]


@pytest.mark.parametrize("loss", ["l1", "mse"])
def test_no_other_constant_has_less_loss(loss):
    spec = TaskSpec("t", "dense_regression", channels=2, loss=loss)
    raw = torch.randint(0, 50, (4, 2, 6, 5), generator=torch.Generator().manual_seed(0)) ** 2
    targets = TargetBuilder([spec])([raw], all_of(1, 4))
    predictor = learn(spec, (targets.target[0], targets.mask[0]))

    def total(shift):
        return float(
            get_loss(loss)
            .sample_losses((predictor.prediction(4, (6, 5)) + shift)[None], targets)
            .sum()
        )

    assert total(0.0) < min(total(40.0), total(-40.0))


def test_the_sample_stays_bounded_and_even(monkeypatch):
    monkeypatch.setattr(constant, "CAPACITY", 64)
    predictor = learn(TaskSpec("t", "regression"))
    values = torch.arange(1000.0)
    for part in values.split(37):
        predictor.update(part, all_of(len(part)))
        assert len(predictor.labels.sample) <= 64
    steps = predictor.labels.sample[:, 0].diff()
    assert (steps == steps[0]).all(), "every value has the same weight"
    assert float(predictor.constant()) == pytest.approx(499.5, abs=20)


@pytest.mark.parametrize("kind", ["binary", "regression", "dense_regression"])
def test_without_labels_the_constant_is_finite(kind):
    assert learn(TaskSpec("t", kind)).constant().isfinite().all()
