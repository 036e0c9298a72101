"""What the tasks ask of the branches, against loops and autograd."""
# Legend: N tasks, K branches, B batch, D features, O outputs, h, w positions, H, W image size.

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from model.encoders import build_encoder
from model.grouping.gradient_statistics import (
    ActivationHook,
    _random_projection,
    residuals,
    stack_statistics,
    statistic_sums,
)
from model.grouping.head_sampling import HeadSample
from model.losses.loss import get_loss
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec
from model.tasks.targets import TargetBuilder, Targets

SCALARS = {
    "bce": (TaskSpec("t", "binary"), 1),
    "two_way": (TaskSpec("t", "binary", loss="cross_entropy"), 2),
    "cross_entropy": (TaskSpec("t", "multiclass", channels=3), 3),
    "l1": (TaskSpec("t", "regression"), 1),
    "mse": (TaskSpec("t", "regression", loss="mse"), 1),
}
DENSE = {
    "l1": (TaskSpec("t", "dense_regression", channels=2, valid_below=6.0), 2),
    "mse": (TaskSpec("t", "dense_regression", loss="mse", channels=2, valid_below=6.0), 2),
    "l1_shift": (TaskSpec("t", "dense_regression", loss="l1_shift", channels=2), 2),
    "cross_entropy": (TaskSpec("t", "dense_classification", channels=4, ignore_index=0), 4),
}


def scalar_case(name, num_samples=6):
    """One task with labels for all samples but the second, and predictions [1,B,O]."""
    spec, outputs = SCALARS[name]
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(outputs if outputs > 1 else 2, (1, num_samples), generator=generator)
    valid = torch.ones(1, num_samples, dtype=torch.bool)
    valid[0, 1] = False
    targets = TargetBuilder([spec])(labels.float(), valid)
    return spec, targets, torch.randn(1, num_samples, outputs, generator=generator)


def dense_case(name):
    """One task with maps of 8x12 pixels, of which some are masked, and no label for a sample."""
    spec, outputs = DENSE[name]
    generator = torch.Generator().manual_seed(1)
    channels = outputs if spec.kind == "dense_regression" else 1
    labels = torch.randint(0, 8, (5, channels, 8, 12), generator=generator)
    valid = torch.tensor([[True, False, True, True, True]])
    targets = TargetBuilder([spec])([labels], valid)
    return spec, targets, torch.randn(1, 5, outputs, 8, 12, generator=generator)


def autograd(loss, targets, prediction):
    leaf = prediction.clone().requires_grad_()
    return torch.autograd.grad(get_loss(loss).sample_losses(leaf, targets).sum(), leaf)[0]


def cell_mean(maps, grid, row, column):
    """The mean [B,C] of maps [B,C,H,W] over a cell of the grid; cells may overlap by a line."""
    spans = [
        slice(math.floor(place * size / count), math.ceil((place + 1) * size / count))
        for place, count, size in zip((row, column), grid, maps.shape[2:], strict=True)
    ]
    return maps[:, :, spans[0], spans[1]].mean(dim=(2, 3))


@pytest.mark.parametrize("name", SCALARS)
def test_residuals_of_scalar_losses_in_closed_form(name):
    spec, targets, prediction = scalar_case(name)
    own, label = prediction[0], targets.target[0]
    expected = {
        "bce": lambda: own.sigmoid() - label[:, None],
        "two_way": lambda: own.softmax(1) - torch.eye(2)[label.clamp_min(0)],
        "cross_entropy": lambda: own.softmax(1) - torch.eye(3)[label.clamp_min(0)],
        "l1": lambda: (own - label[:, None]).sign(),
        "mse": lambda: 2 * (own - label[:, None]),
    }[name]()
    expected[1] = 0.0  # it has no label
    with torch.no_grad():  # as the network calls it
        found = residuals(spec.loss, prediction, targets, (2, 3))
    assert found.shape == (own.shape[1], 6, 6) and not found.requires_grad
    for position in range(6):  # a value of the whole picture belongs to all of its positions
        torch.testing.assert_close(found[:, :, position], expected.T)


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 4)])
def test_residuals_of_dense_losses_are_means_over_the_cells(name, grid):
    spec, targets, prediction = dense_case(name)
    gradient = autograd(spec.loss, targets, prediction)[0]  # [B,O,H,W]
    found = residuals(spec.loss, prediction, targets, grid)
    for row, column in itertools.product(*map(range, grid)):
        expected = cell_mean(gradient, grid, row, column)
        position = row * grid[1] + column
        torch.testing.assert_close(found[:, :, position], expected.T, rtol=1e-4, atol=1e-7)
    assert found.any() and not found[:, 1].any(), "the second sample has no label"


def test_a_masked_pixel_has_no_residual():
    spec, targets, prediction = dense_case("l1")
    gradient = autograd(spec.loss, targets, prediction)[0]
    expected = (prediction[0] - targets.target[0]).sign() / (2 * 8 * 12)
    expected = torch.where(targets.mask[0][:, None], expected, 0.0)
    torch.testing.assert_close(gradient, expected)
    alone = Targets(targets.target, torch.zeros_like(targets.mask), targets.valid)
    assert not residuals("l1", torch.full_like(prediction, torch.nan), alone, (2, 2)).any()


def test_residuals_of_several_heads_follow_each_other():
    spec, _ = SCALARS["cross_entropy"]
    labels = torch.tensor([[0.0, 1.0, 2.0, 1.0], [2.0, 2.0, 0.0, 1.0]])
    targets = TargetBuilder([spec] * 2)(labels, torch.ones(2, 4, dtype=torch.bool))
    prediction = torch.randn(2, 4, 3).bfloat16()
    found = residuals("cross_entropy", prediction, targets, (1, 1))
    assert found.dtype == torch.float32
    expected = prediction.float().softmax(2) - torch.eye(3)[labels.long()]  # [N,B,O]
    for task, output in itertools.product(range(2), range(3)):
        torch.testing.assert_close(found[3 * task + output, :, 0], expected[task, :, output])


def test_sums_against_loops():
    torch.manual_seed(0)
    features, rows = torch.randn(3, 4, 5), torch.randn(2, 3, 4)
    found = statistic_sums(features, rows)
    assert float(found["count"]) == 3
    torch.testing.assert_close(found["residuals"], rows.sum(dim=1))
    mean, products, second = torch.zeros(4, 20), torch.zeros(2, 20), torch.zeros(20, 20)
    for sample in range(3):
        whole = torch.zeros(20)
        for position in range(4):
            placed = torch.zeros(20)  # every position has features of its own
            placed[5 * position : 5 * position + 5] = features[sample, position]
            mean[position] += placed
            whole += placed
            for row in range(2):
                products[row] += rows[row, sample, position] * placed
        second += torch.outer(whole, whole)
    torch.testing.assert_close(found["features"], mean)
    torch.testing.assert_close(found["products"], products)
    torch.testing.assert_close(found["second"], second)


def test_wide_features_are_projected_at_random_but_always_the_same():
    torch.manual_seed(0)
    features, rows = torch.randn(64, 4, 100), torch.randn(3, 64, 4)
    found = statistic_sums(features, rows)
    assert found["products"].shape == (3, 256) and found["second"].shape == (256, 256)
    torch.manual_seed(1)  # of no influence
    again = statistic_sums(features, rows)
    assert all(torch.equal(found[name], again[name]) for name in found)
    # A random projection keeps lengths and angles, roughly.
    exact = torch.einsum("rbp,bpd->rpd", rows, features).flatten(1)
    angles = [nn.functional.cosine_similarity(p[0], p[1:]) for p in (exact, found["products"])]
    torch.testing.assert_close(*angles, atol=0.2, rtol=0)
    ratio = found["products"].norm(dim=1) / exact.norm(dim=1)
    assert float((ratio - 1).abs().max()) < 0.2


@pytest.mark.parametrize("width", [5, 100])
def test_sums_of_two_halves_add_up_to_the_whole(width):
    torch.manual_seed(0)
    features, rows = torch.randn(6, 4, width), torch.randn(2, 6, 4)
    whole = statistic_sums(features, rows)
    first, second = (
        statistic_sums(features[:2], rows[:, :2]),
        statistic_sums(features[2:], rows[:, 2:]),
    )
    for name, value in whole.items():
        torch.testing.assert_close(first[name] + second[name], value, rtol=1e-4, atol=1e-4)


def test_the_random_projection_is_drawn_once_for_all_branches_and_steps(monkeypatch):
    draws, randn = [], torch.randn
    monkeypatch.setattr(torch, "randn", lambda *a, **k: draws.append(a) or randn(*a, **k))
    _random_projection.cache_clear()
    features, rows = torch.ones(2, 4, 100), torch.ones(3, 2, 4)
    with FakeTensorMode() as mode:  # as the planner does
        statistic_sums(mode.from_tensor(features), mode.from_tensor(rows))
    draws.clear()
    for _ in range(3):
        assert type(statistic_sums(features, rows)["second"]) is torch.Tensor
    assert draws == [(4, 100, 256)]


def test_stacking_keeps_the_branches_apart():
    one, two = ({"count": torch.tensor(float(n)), "x": torch.full((2,), n)} for n in (1, 2))
    stacked = stack_statistics([one, two])
    assert stacked["count"].tolist() == [1, 2] and stacked["x"].tolist() == [[1, 1], [2, 2]]


BACKBONES = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1]},
    "convnextv2": {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2},
    "vit": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "patch_size": 8,
    },
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
}
# The grid and the number of features of what enters each encoder's last layer.
ENCODERS = {
    "residual64": ("residual64", {"channels": 8}, 3, (64, 32), (4, 4, 8)),
    "xception": ("xception", {"sizes": [4, 6, 8], "channels": 10}, 3, (32, 24), (4, 4, 8)),
    "mlp": ("mlp", {"widths": [6, 9, 4]}, 6, (1, 1), (1, 1, 9)),
    "resnet": ("backbone", BACKBONES["resnet"], 3, (64, 32), (4, 4, None)),
    "convnextv2": ("backbone", BACKBONES["convnextv2"], 3, (64, 16), (4, 2, 48)),
    "vit": ("backbone", BACKBONES["vit"], 3, (64, 32), (1, 1, 24)),
    "swin": ("backbone", BACKBONES["swin"], 3, (64, 32), (1, 1, 64)),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_the_hook_keeps_the_input_of_the_last_layer(name):
    kind, options, channels, size, shape = ENCODERS[name]
    torch.manual_seed(0)
    if kind == "backbone":
        options = {"model_type": name, **options}
    encoder = build_encoder(kind, 2, image_size=size, options=options)
    images = torch.randn(3, channels, *size)
    calls = []
    layers = [m for m in encoder.branches[1].modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    hooks = [m.register_forward_hook(lambda m, i, _: calls.append((m, i[0]))) for m in layers]
    with ActivationHook(encoder.branches) as hook:
        encoder.branches[0](encoder.trunk(torch.zeros_like(images)))
        encoder.branches[1](encoder.trunk(images))
    for handle in hooks:
        handle.remove()
    features = hook.features(1)
    assert features.shape[:3] == (3, *shape[:2]) and not features.requires_grad
    assert shape[2] in (None, features.shape[3])
    layer, inputs = calls[-1]
    linear = isinstance(layer, nn.Linear)
    assert features.shape[3] == (layer.in_features if linear else layer.in_channels)
    if inputs.ndim == 3:  # tokens
        inputs = inputs.mean(dim=1)
    if linear:  # channels come last
        inputs = inputs.movedim(-1, 1)
    maps = inputs if inputs.ndim == 4 else inputs[:, :, None, None]
    for row, column in itertools.product(*map(range, shape[:2])):
        expected = cell_mean(maps, shape[:2], row, column)
        torch.testing.assert_close(features[:, row, column], expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(hook.features(0), features)


def test_tap_is_gone_after_use_and_after_an_error():
    layer = nn.Linear(3, 2)
    with pytest.raises(RuntimeError), ActivationHook([layer]):
        layer(torch.zeros(1, 4))
    assert not layer._forward_pre_hooks


TASKS = [
    TaskSpec("pitch", "regression", loss="mse"),
    TaskSpec("sphere", "binary"),
    TaskSpec("colour", "multiclass", channels=3),
    TaskSpec("cube", "binary"),
]
RESIDUALS = [1, 3, 2, 2, 2, 0]  # stacked_heads are sorted by signature


@pytest.fixture
def network():
    torch.manual_seed(0)
    encoder = build_encoder("mlp", 2, image_size=(1, 1), options={"widths": [6, 9, 4]})
    return MultiTaskNetwork(TASKS, encoder, (1, 1))


def statistics_of(network, images, selection, targets):
    return network(images, selection, targets, gradient_statistics=True)["gradient_statistics"]


def batch_of(network, num_samples=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_samples, 6, 1, 1, generator=generator)
    scalars = torch.stack(
        [torch.randint(0, high, (num_samples,), generator=generator) for high in (9, 2, 3, 2)]
    ).float()
    valid = torch.rand(4, num_samples, generator=generator) < 0.7
    return images, network.labels.targets(scalars, {}, valid)


def test_products_times_the_heads_weights_are_the_gradients_of_the_last_layer(network):
    """dL/dW = sum_b v r_b h_b' for a head v, its residuals r and the last layer's inputs h."""
    images, targets = batch_of(network)
    selection = network.select(network.heads)
    assert network.labels.residual_tasks.tolist() == RESIDUALS
    output = network(images, selection, targets, gradient_statistics=True)
    losses, statistics = output["losses"], output["gradient_statistics"]
    torch.testing.assert_close(losses, network(images, selection, targets)["losses"])
    for task, branch in network.heads:
        last = [m for m in network.branches[branch].modules() if isinstance(m, nn.Linear)][-1]
        (gradient,) = torch.autograd.grad(losses[task, branch], last.weight, retain_graph=True)
        name = "_".join(map(str, TASKS[task].signature))
        own = [head for head in network.heads if TASKS[head[0]].signature == TASKS[task].signature]
        head = network.stacked_heads[name].weight[own.index((task, branch))]  # [O,D]
        rows = [row for row, owner in enumerate(RESIDUALS) if owner == task]
        expected = head.detach().T @ statistics["products"][branch, rows]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_a_task_without_labels_asks_for_nothing(network):
    images, targets = batch_of(network)
    off = targets["multiclass_3_cross_entropy"]
    ignored = torch.full_like(off.target, -100)
    none = torch.zeros_like(off.mask)
    targets["multiclass_3_cross_entropy"] = Targets(ignored, none, none)
    statistics = statistics_of(network, images, network.select(network.heads), targets)
    for name in ("products", "residuals"):
        assert not statistics[name][:, 2:5].any()
        assert statistics[name][:, [0, 1, 5]].any(dim=2).all()
    assert statistics["count"].tolist() == [8, 8]


def test_heads_that_are_not_computed_add_nothing(network):
    """The others are as with all heads; a branch without any has its features all the same."""
    images, targets = batch_of(network)
    whole = statistics_of(network, images, network.select(network.heads), targets)
    chosen = np.array([[0, 1], [1, 0], [1, 1], [0, 1]], dtype=bool)
    for own in (chosen, np.array([[0, 1]] * 4, dtype=bool)):
        head_sample = HeadSample(own, (0, 1), torch.from_numpy(own).float(), torch.zeros(4, 2))
        selection = network.select_sample(head_sample)
        output = network(images, selection, targets, gradient_statistics=True)
        losses, statistics = output["losses"], output["gradient_statistics"]
        assert torch.equal(losses != 0, torch.from_numpy(own))
        computed = torch.from_numpy(own.T)[:, RESIDUALS, None]  # [K,R,1]
        for name in ("residuals", "products"):
            expected = torch.where(computed, whole[name], 0.0)
            torch.testing.assert_close(statistics[name], expected, rtol=1e-5, atol=1e-6)
        for name in ("count", "features", "second"):
            torch.testing.assert_close(statistics[name], whole[name], rtol=1e-5, atol=1e-6)


def test_signals_of_micro_batches_add_up(network):
    images, targets = batch_of(network)
    selection = network.select(network.heads)
    whole = statistics_of(network, images, selection, targets)
    parts = []
    for rows in (slice(0, 3), slice(3, 8)):
        own = {
            n: Targets(t.target[:, rows], t.mask[:, rows], t.valid[:, rows])
            for n, t in targets.items()
        }
        parts.append(statistics_of(network, images[rows], selection, own))
    for name, value in whole.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], value, rtol=1e-4, atol=1e-5)


def test_signals_beside_losses_of_every_sample(network):
    images, targets = batch_of(network)
    selection = network.select(network.heads)
    output = network(images, selection, targets, per_sample=True, gradient_statistics=True)
    losses, statistics = output["losses"], output["gradient_statistics"]
    assert losses.shape == (4, 2, 8)
    torch.testing.assert_close(losses.sum(dim=2), network(images, selection, targets)["losses"])
    expected = statistics_of(network, images, selection, targets)
    assert all(torch.equal(statistics[name], expected[name]) for name in expected)


def test_dense_and_scalar_tasks_on_a_grid_that_is_not_square():
    tasks = [
        TaskSpec("depth", "dense_regression"),
        TaskSpec("seg", "dense_classification", channels=3),
        TaskSpec("hat", "binary"),
    ]
    torch.manual_seed(0)
    encoder = build_encoder("xception", 2, image_size=(32, 16), options={"sizes": [4, 8]})
    network = MultiTaskNetwork(tasks, encoder, (32, 16), dense_widths=(8,))
    images = torch.randint(0, 256, (3, 3, 32, 16), dtype=torch.uint8)
    dense = {"depth": torch.rand(3, 1, 32, 16), "seg": torch.randint(0, 3, (3, 1, 32, 16))}
    targets = network.labels.targets(torch.ones(1, 3), dense, torch.ones(3, 3, dtype=torch.bool))
    selection = network.select(network.heads)
    statistics = statistics_of(network, images, selection, targets)
    assert network.labels.residual_tasks.tolist() == [2, 1, 1, 1, 0]
    # 4 x 4 positions with 8 features each.
    assert statistics["residuals"].shape == (2, 5, 16) and statistics["products"].shape == (
        2,
        5,
        128,
    )
    assert statistics["products"].any(dim=2).all()
    seg = statistics["residuals"][:, 1:4]
    torch.testing.assert_close(seg.sum(dim=1), torch.zeros(2, 16), atol=1e-4, rtol=0)
