"""Losses with options, compared with torch's losses and with the formulas of the papers."""

import json

import pytest
import torch
import torch.nn.functional as F

from model.kinds.kind import get_kind
from model.losses.loss import get_loss
from model.losses.options import balanced_weights, positive_weight
from model.tasks.constant import ValueSample
from model.tasks.spec import TaskSpec
from model.tasks.targets import TargetBuilder

BATCH, SIDE = 7, 5


def sampled(specs, seed=0, share_valid=0.6):
    """Random predictions [n,B,...], raw labels and valid flags for tasks of one signature."""
    generator = torch.Generator().manual_seed(seed)
    spec, count = specs[0], len(specs)
    size = (SIDE, SIDE) if spec.dense else ()
    valid = torch.rand(count, BATCH, generator=generator) < share_valid
    valid[:, 0] = True
    prediction = 2 * torch.randn(count, BATCH, spec.outputs, *size, generator=generator)
    if spec.kind == "dense_classification":
        shape = (BATCH, 1, *size)
        raw = [torch.randint(0, spec.channels + 1, shape, generator=generator) for _ in specs]
    elif spec.kind.endswith("regression"):
        shape = (BATCH, 1, *size) if spec.dense else (BATCH,)
        values = [3 * torch.randn(*shape, generator=generator) for _ in specs]
        raw = values if spec.dense else torch.stack(values)
    else:
        raw = torch.randint(0, max(2, spec.channels), (count, BATCH), generator=generator).float()
    return prediction, raw, valid


def mean_losses(specs, prediction, raw, valid):
    """Return the loss of every task, as the trainer divides sums by sums."""
    targets = TargetBuilder(specs)(raw, valid)
    loss = get_loss(specs[0].loss)
    losses, weights = loss.sample_losses(prediction, targets), loss.sample_weights(targets)
    assert losses.shape == weights.shape == valid.shape
    assert not losses[~valid].any() and not weights[~valid].any()
    return losses.sum(dim=1) / weights.sum(dim=1)


def check(specs, expected, seeds=range(3)):
    """Compare losses and gradients of a stack with a function of one task's arguments."""
    for seed in seeds:
        prediction, raw, valid = sampled(specs, seed)
        prediction.requires_grad_()
        found = mean_losses(specs, prediction, raw, valid)
        naive = torch.stack(
            [
                expected(spec, prediction[row][valid[row]], raw[row][valid[row]])
                for row, spec in enumerate(specs)
            ]
        )
        torch.testing.assert_close(found, naive)
        weights = torch.arange(1.0, len(specs) + 1)
        gradients = [torch.autograd.grad((weights * x).sum(), prediction) for x in (found, naive)]
        torch.testing.assert_close(*gradients)


def test_binary_cross_entropy():
    specs = [
        TaskSpec("plain", "binary"),
        TaskSpec("rare", "binary", loss_options={"pos_weight": 7.5}),
        TaskSpec("smooth", "binary", loss_options={"label_smoothing": 0.2}),
        TaskSpec("both", "binary", loss_options={"label_smoothing": 0.1, "pos_weight": 0.25}),
    ]

    def naive(spec, prediction, raw):
        smoothing = spec.loss_options.get("label_smoothing", 0.0)
        weight = torch.tensor(spec.loss_options.get("pos_weight", 1.0))
        target = torch.where(raw > 0, 1 - smoothing / 2, smoothing / 2)
        return F.binary_cross_entropy_with_logits(prediction[:, 0], target, pos_weight=weight)

    check(specs, naive)


CLASS_OPTIONS = (
    {},
    {"class_weights": [0.5, 2.0, 3.0]},
    {"label_smoothing": 0.3},
    {"class_weights": [1.0, 0.0, 4.0], "label_smoothing": 0.15},
)


@pytest.mark.parametrize("kind", ["multiclass", "dense_classification"])
def test_cross_entropy(kind):
    specs = [
        TaskSpec(f"t{number}", kind, channels=3, loss_options=options)
        for number, options in enumerate(CLASS_OPTIONS)
    ]

    def naive(spec, prediction, raw):
        ids = (raw[:, 0] if raw.ndim == 4 else raw).long()
        ids = torch.where(ids < 3, ids, -100)
        weights = spec.loss_options.get("class_weights")
        return F.cross_entropy(
            prediction,
            ids,
            weight=None if weights is None else torch.tensor(weights),
            label_smoothing=spec.loss_options.get("label_smoothing", 0.0),
        )

    check(specs, naive)


def test_focal_loss_of_classes():
    specs = [
        TaskSpec("default", "multiclass", channels=3, loss="focal"),
        TaskSpec("steep", "multiclass", channels=3, loss="focal", loss_options={"gamma": 3.5}),
        TaskSpec("flat", "multiclass", channels=3, loss="focal", loss_options={"gamma": 0.5}),
        TaskSpec(
            "weighted",
            "multiclass",
            channels=3,
            loss="focal",
            loss_options={"gamma": 1.0, "class_weights": [1.0, 2.0, 5.0]},
        ),
    ]

    def naive(spec, prediction, raw):
        gamma = spec.loss_options.get("gamma", 2.0)
        weights = torch.tensor(spec.loss_options.get("class_weights", (1.0, 1.0, 1.0)))
        total = 0.0
        for logits, label in zip(prediction, raw.long(), strict=True):
            p = logits.softmax(dim=0)[label]
            total = total - weights[label] * (1 - p) ** gamma * p.log()
        return total / weights[raw.long()].sum()

    check(specs, naive)


def test_focal_loss_of_a_binary_task_is_the_published_one():
    """Eq. 5 of the paper with a sigmoid, alpha for positives and 1 - alpha for negatives."""
    alpha = 0.25
    spec = TaskSpec("t", "binary", loss="focal", loss_options={"class_weights": [0.75, 0.25]})

    def naive(_spec, prediction, raw):
        p = (prediction[:, 1] - prediction[:, 0]).sigmoid()
        p_t = torch.where(raw > 0, p, 1 - p)
        alpha_t = torch.where(raw > 0, alpha, 1 - alpha)
        return (-alpha_t * (1 - p_t) ** 2 * p_t.log()).sum() / alpha_t.sum()

    check([spec], naive)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_of_certain_predictions_is_finite(gamma):
    spec = TaskSpec("t", "multiclass", channels=3, loss="focal", loss_options={"gamma": gamma})
    prediction = torch.tensor([[[200.0, 0.0, 0.0], [0.0, 200.0, 0.0]]]).requires_grad_()
    targets = TargetBuilder([spec])(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))
    losses = get_loss("focal").sample_losses(prediction, targets)
    assert losses.tolist() == [[pytest.approx(0.0, abs=1e-15), pytest.approx(200.0)]]
    (gradient,) = torch.autograd.grad(losses.sum(), prediction)
    assert gradient.isfinite().all()


def test_focal_loss_without_focus_is_the_weighted_cross_entropy():
    options = {"class_weights": [0.5, 2.0, 3.0]}
    focal = TaskSpec(
        "t", "dense_classification", channels=3, loss="focal", loss_options={"gamma": 0, **options}
    )
    plain = TaskSpec("t", "dense_classification", channels=3, loss_options=options)
    arguments = sampled([focal])
    torch.testing.assert_close(mean_losses([focal], *arguments), mean_losses([plain], *arguments))


@pytest.mark.parametrize("kind", ["regression", "dense_regression"])
def test_huber(kind):
    deltas = (None, 0.3, 2.5)
    specs = [
        TaskSpec(f"t{n}", kind, loss="huber", loss_options={} if d is None else {"delta": d})
        for n, d in enumerate(deltas)
    ]

    def naive(spec, prediction, raw):
        target = raw if prediction.ndim == 4 else raw[:, None]
        return F.huber_loss(prediction, target, delta=spec.loss_options.get("delta", 1.0))

    check(specs, naive)


@pytest.mark.parametrize("delta", [0.2, 1.0, 30.0])
def test_the_constant_of_the_huber_loss_has_the_least_loss(delta):
    spec = TaskSpec("t", "regression", loss="huber", loss_options={"delta": delta})
    values = torch.cat(
        [torch.randn(300, generator=torch.Generator().manual_seed(1)), 9.0 + torch.rand(40)]
    )
    predictor = get_kind("regression").constant_predictor(spec)
    predictor.update(values, torch.ones(len(values), dtype=torch.bool))
    grid = torch.linspace(-1, 5, 3001)
    losses = F.huber_loss(
        grid[:, None].expand(-1, len(values)),
        values.expand(len(grid), -1),
        delta=delta,
        reduction="none",
    ).mean(dim=1)
    assert float(predictor.constant()) == pytest.approx(float(grid[losses.argmin()]), abs=3e-3)


def test_the_heads_that_are_computed_have_the_options_of_their_tasks():
    specs = [
        TaskSpec(f"t{n}", "binary", loss_options={"pos_weight": float(n)} if n else {})
        for n in range(4)
    ]
    prediction, raw, valid = sampled(specs, share_valid=1.0)
    targets = TargetBuilder(specs)(raw, valid)
    losses = get_loss("bce").sample_losses(prediction, targets)
    for rows in (slice(1, 3), torch.tensor([0, 3])):
        part = get_loss("bce").sample_losses(prediction[rows], targets.select(rows))
        assert part.equal(losses[rows])


def test_without_options_nothing_is_computed_for_them():
    specs = [TaskSpec("t", "multiclass", channels=3), TaskSpec("u", "multiclass", channels=3)]
    _, raw, valid = sampled(specs)
    assert not TargetBuilder(specs)(raw, valid).options


def test_a_masked_nan_takes_no_part():
    for spec in (
        TaskSpec("t", "multiclass", channels=3, loss_options=CLASS_OPTIONS[3]),
        TaskSpec("t", "multiclass", channels=3, loss="focal"),
        TaskSpec("t", "binary", loss_options={"pos_weight": 3.0}),
        TaskSpec("t", "regression", loss="huber", loss_options={"delta": 0.5}),
    ):
        prediction, raw, valid = sampled([spec])
        expected = mean_losses([spec], prediction, raw, valid)
        broken = torch.where(valid[..., None], prediction, torch.nan).requires_grad_()
        found = mean_losses([spec], broken, raw, valid)
        assert found.equal(expected)
        (gradient,) = torch.autograd.grad(found.sum(), broken)
        assert gradient.isfinite().all() and not gradient[~valid].any()


def test_a_task_with_options_is_read_again_from_json():
    spec = TaskSpec(
        "t",
        "multiclass",
        channels=2,
        classes=("cat", "dog"),
        loss_options={"class_weights": {"dog": 3}, "label_smoothing": 0},
    )
    assert spec.loss_options == {"class_weights": (1.0, 3.0), "label_smoothing": 0.0}
    assert TaskSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert "loss_options" not in TaskSpec("t", "binary").to_dict()
    assert len({spec, spec}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 2}, "a mapping from options of bce: pos_weight, label_smoothing$"),
        ([1], r"loss_options is \[1\], must be a mapping"),
        ({"pos_weight": 0}, "pos_weight is 0, must be a number above 0, or auto$"),
        ({"pos_weight": "much"}, "'t': loss_options.pos_weight is 'much', must be"),
        ({"pos_weight": True}, "pos_weight is True, must be"),
        ({"pos_weight": float("nan")}, "pos_weight is nan, must be"),
        ({"label_smoothing": "auto"}, "is 'auto', must be a number from 0 to below 1$"),
    ],
)
def test_options_that_a_loss_does_not_take_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TaskSpec("t", "binary", loss_options=options)


@pytest.mark.parametrize("weights", [[1, 2, 3], {"2": 1}, [1, -1], 2.0, "12"])
def test_class_weights_are_one_for_each_class(weights):
    message = "class_weights is .*, must be a list of 2 numbers of at least 0, or a mapping from"
    with pytest.raises(ValueError, match=message):
        TaskSpec("t", "binary", loss="cross_entropy", loss_options={"class_weights": weights})


def test_weights_of_counts():
    assert positive_weight([90, 10]) == 9.0
    assert positive_weight([5, 0]) == positive_weight([0, 5]) == 1.0
    # As `compute_class_weight("balanced", ...)` of scikit-learn over the classes that occur.
    assert balanced_weights([6, 3, 0, 1]) == pytest.approx((10 / 18, 10 / 9, 1.0, 10 / 3))
    counts = [6, 3, 0, 1]
    assert sum(
        w * c for w, c in zip(balanced_weights(counts), counts, strict=True)
    ) == pytest.approx(10)


def test_the_constant_goes_from_the_median_to_the_mean():
    sample = ValueSample(1)
    sample.update(torch.tensor([1.0, 2.0, 9.0]), torch.ones(3, dtype=torch.bool))
    loss = get_loss("huber")
    assert float(loss.constant(sample, delta=1e6)) == pytest.approx(4.0, abs=1e-4)  # the mean
    assert float(loss.constant(sample, delta=1e-4)) == pytest.approx(2.0, abs=1e-3)  # the median
