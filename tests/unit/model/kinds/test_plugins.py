"""A loss, a kind and a metric from a module outside the package: one file each is enough."""

import importlib
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dmtg import plugins
from model.bundle import load_pruned, save_bundle
from model.encoders import build_encoder
from model.kinds.kind import get_kind
from model.losses.loss import get_loss
from model.metrics import metric_for
from model.network import MultiTaskNetwork
from model.subset import subset
from model.tasks.decode import natural
from model.tasks.spec import TaskSpec
from model.tasks.targets import TargetBuilder
from trainer.doctor.rules import rule_of
from trainer.planning.step_cost import empty_batch
from trainer.tasks import label_requests

HUBER = """
import torch.nn.functional as F

from dmtg.plugins import register_loss
from model.losses.loss import ValueLoss


@register_loss("my_huber")
class Huber(ValueLoss):
    kinds = ("regression", "dense_regression")

    def element_losses(self, prediction, target):
        return F.huber_loss(prediction, target, reduction="none")

    def constant(self, values):
        center = values.median
        for _ in range(50):  # weights of iteratively reweighted least squares
            weights = 1 / (values.sample - center).abs().clamp_min(1.0)
            center = (weights * values.sample).sum(dim=0) / weights.sum(dim=0)
        return center
"""

COUNT = """
from dmtg.plugins import register_loss, register_metric, register_task_kind
from model.kinds.regression import Regression
from model.losses.loss import ValueLoss
from model.metrics.base import ValueMetric
import torch


@register_loss("poisson")
class Poisson(ValueLoss):
    kinds = ("count",)

    def element_losses(self, prediction, target):
        return prediction.exp() - target * prediction

    def values(self, prediction):
        return prediction.exp()

    def constant(self, values):
        return values.mean.log()


@register_metric("count_bias")
class CountBias(ValueMetric):
    kinds = ("count",)
    primary = "bias"
    size = 2

    def sums(self, prediction, target, mask):
        return torch.stack([(prediction[:, 0] - target)[mask].sum(), mask.sum()])

    def ratios(self, sums):
        return {"bias": sums[0] / sums[1]}


@register_task_kind("count")
class Count(Regression):
    default_loss = "poisson"

    def from_field(self, field):
        return {}

    def record(self, spec, value):
        return {"value": round(float(value)), "expected": float(value)}
"""


@pytest.fixture(scope="module", autouse=True)
def parts(tmp_path_factory):
    """Import both modules as plug-ins; forget them afterwards."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "huber_part.py").write_text(HUBER)
    (folder / "count_part.py").write_text(COUNT)
    registries = (plugins.LOSSES, plugins.METRICS, plugins.TASK_KINDS)
    for registry in registries:
        registry.names()
    entries = [dict(registry._entries) for registry in registries]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    plugins.load_plugins(["huber_part", "count_part"])
    yield folder
    sys.path.remove(str(folder))
    for registry, known in zip(registries, entries, strict=True):
        registry._entries.clear()
        registry._entries.update(known)
    for name in ("huber_part", "count_part"):
        del sys.modules[name]


def test_the_modules_are_outside_the_packages(parts):
    assert Path(sys.modules["huber_part"].__file__).parent == parts
    assert plugins.LOSSES.plugin_of("my_huber") == "huber_part"
    assert plugins.TASK_KINDS.plugin_of("count") == "count_part"


def test_a_task_takes_the_new_loss_and_no_other_kind_does():
    assert TaskSpec("t", "regression", loss="my_huber").signature == ("regression", 1, "my_huber")
    assert TaskSpec.from_dict(TaskSpec("t", "count").to_dict()).loss == "poisson"
    message = "must be one of bce, cross_entropy, focal for a binary task"
    with pytest.raises(ValueError, match=message):
        TaskSpec("t", "binary", loss="my_huber")
    with pytest.raises(ValueError, match="must be one of poisson for a count task"):
        TaskSpec("t", "count", loss="l1")
    with pytest.raises(ValueError, match=r"kind is 'rank', must be one of .*, count"):
        TaskSpec("t", "rank")


def test_huber_of_a_map_against_torch():
    spec = TaskSpec("t", "dense_regression", loss="my_huber", valid_below=200.0, scale=(50.0,))
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (4, 1, 5, 6), generator=generator)
    valid = torch.tensor([[True, True, False, True]])
    targets = TargetBuilder([spec])([raw], valid)
    prediction = 3 * torch.randn(1, 4, 1, 5, 6, generator=generator)
    prediction[0, 2] = float("nan")
    prediction.requires_grad_()
    losses = get_loss("my_huber").sample_losses(prediction, targets)
    losses.sum().backward()
    for sample in (0, 1, 3):
        kept = raw[sample] < 200
        each = F.huber_loss(prediction[0, sample], raw[sample] / 50.0, reduction="none")
        torch.testing.assert_close(losses[0, sample], (each * kept).sum() / 30)
    assert losses[0, 2] == 0 and not prediction.grad[0, 2].any()
    assert prediction.grad.isfinite().all()


def test_poisson_of_counts_against_its_closed_form():
    """The loss of a missing label is zero although that of (0, 0) is one."""
    spec = TaskSpec("t", "count")
    targets = TargetBuilder([spec])(torch.tensor([[2.0, 7.0, 0.0]]), torch.tensor([[1, 0, 1]]) > 0)
    prediction = torch.tensor([[[0.5], [0.1], [-1.0]]], requires_grad=True)
    losses = get_loss("poisson").sample_losses(prediction, targets)
    losses.sum().backward()
    expected = [math.exp(0.5) - 2 * 0.5, 0.0, math.exp(-1.0)]
    assert losses[0].tolist() == pytest.approx(expected)
    gradient = [math.exp(0.5) - 2, 0.0, math.exp(-1.0)]
    assert prediction.grad[0, :, 0].tolist() == pytest.approx(gradient)
    assert get_loss("poisson").sample_weights(targets).tolist() == [[1.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    "arguments", [{"kind": "regression", "loss": "my_huber"}, {"kind": "count"}], ids=str
)
def test_the_constant_has_the_least_loss(arguments):
    spec = TaskSpec("t", **arguments)
    labels = torch.tensor([0.0, 1.0, 1.0, 2.0, 9.0])
    everything = torch.ones(5, dtype=torch.bool)
    predictor = get_kind(spec.kind).constant_predictor(spec)
    predictor.update(labels, everything)
    targets = TargetBuilder([spec])(labels[None], everything[None])

    def total(shift):
        prediction = (predictor.prediction(5) + shift)[None]
        return float(get_loss(spec.loss).sample_losses(prediction, targets).sum())

    assert total(0.0) < min(total(0.05), total(-0.05))


def test_metrics_and_predictions_are_counts():
    spec = TaskSpec("t", "count")
    prediction, labels = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([2.0, 1.0, 0.0])
    mask = torch.tensor([True, True, False])
    errors = [2 - 1, math.e - 1]

    def evaluate(task):
        metric = metric_for(task)
        return metric.compute(metric.update(metric.zeros(), prediction, labels, mask))

    assert evaluate(spec)["mae"] == pytest.approx(sum(errors) / 2)
    named = TaskSpec("t", "count", metric="count_bias")
    assert evaluate(named) == {"bias": pytest.approx((-errors[0] + errors[1]) / 2)}
    assert metric_for(named).primary == "bias"
    assert TaskSpec.from_dict(named.to_dict()) == named
    with pytest.raises(ValueError, match="metric is 'count_bias', must be one of regression for"):
        TaskSpec("t", "regression", metric="count_bias")
    values = natural(spec, prediction)
    assert values.tolist() == pytest.approx([1, math.e, math.exp(5)])
    assert get_kind("count").record(spec, values[1]) == {
        "value": 3,
        "expected": pytest.approx(math.e),
    }


def test_loader_doctor_and_plan_take_it():
    spec = TaskSpec("t", "count", field="people")
    [request] = label_requests((spec,))
    assert (request.field, request.channels) == ("people", 1)
    assert rule_of(spec).kind == "regression" and rule_of(spec).classes == ()
    assert empty_batch([spec], 2, (3, 4, 4)).scalars.shape == (1, 2)
    assert get_kind("count").label_text(spec, 4.0) == "4"


def test_a_network_learns_them_and_is_exported(tmp_path):
    tasks = [
        TaskSpec("count", "count"),
        TaskSpec("weight", "regression", loss="my_huber"),
        TaskSpec("height", "dense_regression", loss="my_huber"),
        TaskSpec("cube", "binary"),
    ]
    torch.manual_seed(0)
    encoder = build_encoder("residual64", 2, image_size=(8, 8), options={"channels": 4})
    network = MultiTaskNetwork(tasks, encoder, (8, 8), dense_widths=(8,))
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    scalars = torch.tensor([[5.0] * 6, [3.0] * 6, [1.0] * 6])
    dense = {"height": torch.full((6, 1, 8, 8), 2.0)}
    valid = torch.ones(4, 6, dtype=torch.bool)
    valid[:, 5] = False
    targets = network.labels.targets(scalars, dense, valid)
    assert network.labels.label_counts(targets).tolist() == [5.0] * 4
    selection = network.select(network.heads)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    history = []
    for _ in range(6):
        losses = network(images, selection, targets)["losses"]
        optimizer.zero_grad()
        losses.sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        optimizer.step()
        history.append(losses.detach())
    assert (history[-1] < history[0]).all()
    pruned = subset(network, [(0, 0), (1, 0), (2, 1), (3, 1)])
    save_bundle(tmp_path / "model.safetensors", pruned, {})
    model = load_pruned(tmp_path / "model.safetensors")
    assert model.tasks == tuple(tasks)
    with torch.no_grad():
        outputs = model.network(images, model.network.select(model.network.heads))
    rates = outputs["predictions"]["count"][:, 0]
    torch.testing.assert_close(model(images)["count"], rates.exp())
