import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from model.losses.loss import get_loss
from model.tasks.presets import TASKONOMY
from model.tasks.spec import TaskSpec
from model.tasks.targets import IGNORED, TargetBuilder, Targets

PATH = Path(__file__).resolve().parents[3] / "fixtures" / "reference"

SPECS = {
    "bce": TaskSpec("t", "binary"),
    "two_way": TaskSpec("t", "binary", loss="cross_entropy"),
    "multiclass": TaskSpec("t", "multiclass", channels=4),
    "l1": TaskSpec("t", "regression", mean=(2.0,), scale=(3.0,)),
    "mse": TaskSpec("t", "regression", loss="mse"),
    "dense_l1": TaskSpec("t", "dense_regression", channels=2, valid_below=200.0),
    "dense_l1_shift": TaskSpec(
        "t", "dense_regression", channels=2, valid_below=200.0, loss="l1_shift"
    ),
    "dense_mse": TaskSpec("t", "dense_regression", loss="mse"),
    "dense_classes": TaskSpec("t", "dense_classification", channels=3, ignore_index=1),
}


def draw_batch(spec, num_tasks, batch, seed, share_valid=0.6):
    """Random prediction [n,B,...], raw labels and valid flags for tasks of one spec."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(num_tasks, batch, generator=generator) < share_valid
    size = (4, 5) if spec.dense else ()
    prediction = torch.randn(num_tasks, batch, spec.outputs, *size, generator=generator)
    if spec.kind == "dense_regression":
        shape = (batch, spec.channels, *size)
        raw = [torch.randint(0, 256, shape, generator=generator) for _ in range(num_tasks)]
    elif spec.kind == "dense_classification":
        shape = (batch, 1, *size)
        raw = [torch.randint(0, 3, shape, generator=generator) for _ in range(num_tasks)]
    elif spec.kind == "regression":
        raw = torch.randn(num_tasks, batch, generator=generator)
    else:
        raw = torch.randint(0, max(2, spec.channels), (num_tasks, batch), generator=generator)
        raw = raw.float()
    return prediction, TargetBuilder([spec] * num_tasks)(raw, valid)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("depth_rotate", "l1_shift"),
        ("normal_rotate", "l1_shift"),
        ("depth_simple", "l1"),
        ("normal_simple", "l1"),
        ("keypoints2d", "l1"),
        ("edge_texture", "l1"),
        ("segment_semantic", "cross_entropy"),
    ],
)
def test_reference_values_and_gradients(name, loss):
    with np.load(PATH / "losses.npz") as arrays:
        reference = {
            k: torch.from_numpy(np.asarray(arrays[f"{name}/{k}"]))
            for k in ("pred", "target", "mask", "loss", "grad")
        }
    mask, valid = reference["mask"][:, 0], torch.ones(1, 3, dtype=torch.bool)
    if loss == "cross_entropy":
        raw = reference["target"].to(torch.uint8)
        targets = TargetBuilder([TASKONOMY["segment_semantic"]])([raw], valid)
    else:
        if name in ("keypoints2d", "edge_texture"):
            mask = torch.ones_like(mask)
        target = torch.where(mask[:, None], reference["target"], 0.0)
        targets = Targets(target[None], mask[None], valid)
    prediction = reference["pred"].requires_grad_()
    losses = get_loss(loss).sample_losses(prediction[None], targets)
    value = losses.sum() / get_loss(loss).sample_weights(targets).sum()
    value.backward()
    torch.testing.assert_close(value, reference["loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(prediction.grad, reference["grad"], rtol=1e-5, atol=1e-9)


def naive_shift_loss(outputs, target, mask):
    """The least mean over the inner pixels of one sample, a pixel at a time."""
    channels, height, width = outputs.shape
    means = []
    for down, right in itertools.product((-1, 0, 1), repeat=2):
        total = sum(
            float((outputs[:, y + down, x + right] - target[:, y, x]).abs().sum())
            for y in range(1, height - 1)
            for x in range(1, width - 1)
            if mask[y, x]
        )
        means.append(total / (channels * (height - 2) * (width - 2)))
    return min(means)


def naive_loss(spec, prediction, targets):
    """Sum of losses and of weights, sample by sample and pixel by pixel, in float64."""
    total, weight = 0.0, 0.0
    for row, column in zip(*torch.nonzero(targets.valid, as_tuple=True), strict=True):
        outputs = prediction[row, column].double()
        target, mask = targets.target[row, column], targets.mask[row, column]
        if spec.loss == "cross_entropy":
            flat, ids = outputs.reshape(spec.outputs, -1), target.reshape(-1)
            for pixel in range(flat.shape[1]):
                if ids[pixel] != IGNORED:
                    total += float(torch.logsumexp(flat[:, pixel], 0) - flat[ids[pixel], pixel])
                    weight += 1
            continue
        if spec.loss == "bce":
            p = torch.sigmoid(outputs[0])
            total += -float(torch.log(p if target == 1 else 1 - p))
        elif spec.loss == "l1_shift":
            total += naive_shift_loss(outputs, target.double(), mask)
        else:
            difference = (outputs - target.double()) * mask.double()
            power = 1 if spec.loss == "l1" else 2
            total += float((difference.abs() ** power).mean())
        weight += 1
    return total, weight


@pytest.mark.parametrize("name", SPECS)
def test_against_a_loop_over_samples(name):
    spec = SPECS[name]
    prediction, targets = draw_batch(spec, 3, 5, seed=1)
    total, weight = naive_loss(spec, prediction, targets)
    assert float(get_loss(spec.loss).sample_losses(prediction, targets).sum()) == pytest.approx(
        total, 1e-5
    )
    assert float(get_loss(spec.loss).sample_weights(targets).sum()) == pytest.approx(weight)


@pytest.mark.parametrize("name", SPECS)
@given(seed=st.integers(0, 1000), cut=st.integers(1, 5))
@settings(max_examples=10, deadline=None)
def test_sums_over_parts_of_the_batch_are_the_sums_of_the_batch(name, seed, cut):
    spec = SPECS[name]
    prediction, targets = draw_batch(spec, 2, 6, seed)
    losses, weights = (
        get_loss(spec.loss).sample_losses(prediction, targets),
        get_loss(spec.loss).sample_weights(targets),
    )
    for part in (slice(0, cut), slice(cut, None)):
        piece = Targets(targets.target[:, part], targets.mask[:, part], targets.valid[:, part])
        part_losses = get_loss(spec.loss).sample_losses(prediction[:, part], piece)
        torch.testing.assert_close(part_losses, losses[:, part])
        assert torch.equal(get_loss(spec.loss).sample_weights(piece), weights[:, part])


def reached(spec, mask):
    """Which predictions are compared with a label, were it after a shift."""
    if spec.loss != "l1_shift":
        return mask
    inner = F.pad(mask[..., 1:-1, 1:-1].float(), (1, 1, 1, 1))
    return F.max_pool2d(inner, 3, stride=1, padding=1) > 0


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", SPECS)
def test_a_poisoned_prediction_without_label_has_no_effect(name, poison):
    spec = SPECS[name]
    prediction, targets = draw_batch(spec, 2, 6, seed=3)
    clean = get_loss(spec.loss).sample_losses(prediction, targets)
    hidden = (~reached(spec, targets.mask).unsqueeze(2)).expand_as(prediction)
    assert hidden.any()
    poisoned = torch.where(hidden, poison, prediction).requires_grad_()
    losses = get_loss(spec.loss).sample_losses(poisoned, targets)
    losses.sum().backward()
    assert torch.equal(losses, clean)
    assert torch.equal(losses[~targets.valid], torch.zeros_like(losses[~targets.valid]))
    assert torch.equal(poisoned.grad[hidden], torch.zeros_like(poisoned.grad[hidden]))
    assert poisoned.grad.isfinite().all()


@pytest.mark.parametrize("name", SPECS)
def test_a_batch_without_labels_is_exactly_zero(name):
    spec = SPECS[name]
    prediction, targets = draw_batch(spec, 2, 4, seed=5, share_valid=0.0)
    prediction.requires_grad_()
    losses = get_loss(spec.loss).sample_losses(prediction, targets)
    losses.sum().backward()
    assert not losses.any() and not prediction.grad.any()
    assert not get_loss(spec.loss).sample_weights(targets).any()


@pytest.mark.parametrize("name", SPECS)
def test_half_precision_predictions_give_fp32_losses(name):
    spec = SPECS[name]
    prediction, targets = draw_batch(spec, 2, 4, seed=6)
    rounded = prediction.bfloat16()
    losses = get_loss(spec.loss).sample_losses(rounded, targets)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, get_loss(spec.loss).sample_losses(rounded.float(), targets))


def test_multiclass_agrees_with_torch():
    prediction, targets = draw_batch(SPECS["multiclass"], 1, 6, seed=8, share_valid=1.0)
    expected = F.cross_entropy(prediction[0], targets.target[0])
    mean = get_loss("cross_entropy").sample_losses(prediction, targets).sum() / 6
    torch.testing.assert_close(mean, expected)


@pytest.mark.parametrize("down", [-1, 0, 1])
@pytest.mark.parametrize("right", [-1, 0, 1])
def test_a_shift_by_one_pixel_is_forgiven_per_sample_and_task(down, right):
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(2, 3, 2, 6, 7, generator=generator)
    everything = torch.ones(2, 3, 6, 7, dtype=torch.bool)
    targets = Targets(truth, everything, torch.ones(2, 3, dtype=torch.bool))
    prediction = truth.clone()
    prediction[1, 2] = truth[1, 2].roll((down, right), dims=(1, 2))
    prediction[0, 1] = truth[0, 1].roll((0, 2), dims=(1, 2))
    losses = get_loss("l1_shift").sample_losses(prediction, targets)
    assert (losses == 0).tolist() == [[True, False, True], [True, True, True]]


def test_the_gradient_of_a_shift_is_that_of_the_least_of_nine():
    prediction, targets = draw_batch(SPECS["dense_l1_shift"], 3, 5, seed=2)
    prediction.requires_grad_()
    losses = get_loss("l1_shift").sample_losses(prediction, targets)
    factors = torch.linspace(0.5, 2, losses.numel()).view_as(losses)
    (result,) = torch.autograd.grad((losses * factors).sum(), prediction)
    mask, target = targets.mask[:, :, None, 1:-1, 1:-1], targets.target[..., 1:-1, 1:-1]
    shifted = prediction.unfold(3, 2, 1).unfold(4, 3, 1)  # [n,B,C,3,3,H-2,W-2] of a 4x5 picture
    differences = (shifted - target[:, :, :, None, None]) * mask[:, :, :, None, None]
    least = differences.abs().mean(dim=(2, 5, 6)).flatten(2).min(dim=2).values
    torch.testing.assert_close(losses, least)
    (expected,) = torch.autograd.grad((least * factors).sum(), prediction)
    torch.testing.assert_close(result, expected)
    assert result.any()


def test_of_equal_shifts_none_is_taken():
    """All nine shifts of a flat prediction are equal: the border has no gradient."""
    prediction = torch.full((1, 1, 1, 5, 5), 2.0, requires_grad=True)
    flat = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    targets = Targets(torch.zeros(1, 1, 1, 5, 5), flat, torch.ones(1, 1, dtype=torch.bool))
    get_loss("l1_shift").sample_losses(prediction, targets).sum().backward()
    expected = F.pad(torch.full((3, 3), 1 / 9), (1, 1, 1, 1))
    torch.testing.assert_close(prediction.grad[0, 0, 0], expected)


def test_a_nan_where_there_is_a_label_is_not_hidden_by_the_other_shifts():
    prediction = torch.zeros(1, 1, 1, 3, 4)
    prediction[..., 0, 0] = float("nan")
    mask = torch.ones(1, 1, 3, 4, dtype=torch.bool)
    targets = Targets(torch.ones(1, 1, 1, 3, 4), mask, torch.ones(1, 1, dtype=torch.bool))
    assert get_loss("l1_shift").sample_losses(prediction, targets).isnan().all()


def test_a_picture_without_inner_pixels_cannot_be_shifted():
    everything = torch.ones(1, 1, 2, 9, dtype=torch.bool)
    targets = Targets(torch.zeros(1, 1, 1, 2, 9), everything, torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="prediction is 2x9 pixels, must be at least 3x3"):
        get_loss("l1_shift").sample_losses(torch.zeros(1, 1, 1, 2, 9), targets)


def test_segments_that_are_all_ignored_are_exactly_zero():
    """Labelled samples whose every pixel is of the ignored class, as released views have them."""
    raw = [torch.zeros(3, 1, 4, 5, dtype=torch.uint8)]
    spec = TASKONOMY["segment_semantic"]
    targets = TargetBuilder([spec])(raw, torch.ones(1, 3, dtype=torch.bool))
    prediction = torch.randn(1, 3, 18, 4, 5).mul(50).requires_grad_()
    losses = get_loss("cross_entropy").sample_losses(prediction, targets)
    losses.sum().backward()
    assert torch.equal(losses, torch.zeros(1, 3)) and not prediction.grad.any()
    assert torch.equal(get_loss("cross_entropy").sample_weights(targets), torch.zeros(1, 3))
