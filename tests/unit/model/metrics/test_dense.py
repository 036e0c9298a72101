import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.metrics import metric_for
from model.tasks.presets import TASKONOMY
from model.tasks.spec import TaskSpec
from model.tasks.targets import TargetBuilder

DEPTH = TASKONOMY["depth_zbuffer"]
METRES = DEPTH.scale[0] / 512  # a step of one in what the head predicts


def evaluate(spec, *parts):
    metric = metric_for(spec)
    return metric.compute(sum((metric.update(metric.zeros(), *p) for p in parts), metric.zeros()))


def depth_batch(seed, batch=4, height=6, width=7, share_valid=0.7):
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(500, 8000, (batch, 1, height, width), generator=generator)
    hidden = torch.rand(raw.shape, generator=generator) > share_valid
    raw = torch.where(hidden, 65535, raw)
    targets = TargetBuilder([DEPTH])([raw], torch.ones(1, batch, dtype=torch.bool))
    prediction = torch.randn(batch, 1, height, width, generator=generator)
    return prediction, targets.target[0], targets.mask[0], raw.numpy()


@pytest.mark.parametrize("seed", range(4))
def test_aligned_rmse_against_numpy_least_squares_in_metres(seed):
    prediction, target, mask, raw = depth_batch(seed)
    squares, pixels, gone = 0.0, 0, 0.0
    for image in range(len(raw)):
        metres = raw[image, 0].astype(np.float64) / 512
        valid = metres < 16
        columns = [prediction[image, 0].double().numpy()[valid], np.ones(valid.sum())]
        system = np.stack(columns, axis=1)
        fit, *_ = np.linalg.lstsq(system, metres[valid], rcond=None)
        squares += float(((system @ fit - metres[valid]) ** 2).sum())
        gone += float(((metres[valid] - metres[valid].mean()) ** 2).sum())
        pixels += int(valid.sum())
    assert squares < gone  # the factor explains something
    result = evaluate(DEPTH, (prediction, target, mask))
    assert result["aligned_rmse"] == pytest.approx((squares / pixels) ** 0.5, rel=1e-6)


@given(
    seed=st.integers(0, 100),
    factors=st.lists(st.sampled_from([-3.0, 0.01, 0.7, 50.0]), min_size=4, max_size=4),
    summand=st.floats(-20, 20),
)
@settings(max_examples=15, deadline=None)
def test_scale_and_shift_of_every_image_are_given_away(seed, factors, summand):
    prediction, target, mask, _ = depth_batch(seed)
    moved = prediction.double() * torch.tensor(factors).view(4, 1, 1, 1) + summand
    expected = evaluate(DEPTH, (prediction, target, mask))["aligned_rmse"]
    result = evaluate(DEPTH, (moved, target, mask))["aligned_rmse"]
    assert result == pytest.approx(expected, rel=1e-6)
    perfect = target.double() * torch.tensor(factors).view(4, 1, 1, 1) + summand
    assert evaluate(DEPTH, (perfect, target, mask))["aligned_rmse"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3, 1e6])
def test_a_constant_prediction_leaves_the_spread_of_each_image(constant):
    _, target, mask, _ = depth_batch(1)
    spread = sum(
        float(((image[valid] - image[valid].mean()) ** 2).sum())
        for image, valid in zip(target[:, 0].double(), mask, strict=True)
    )
    expected = METRES * (spread / float(mask.sum())) ** 0.5
    result = evaluate(DEPTH, (torch.full_like(target, constant), target, mask))
    assert result["aligned_rmse"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("num_pixels", [0, 1, 2])
def test_images_with_hardly_a_pixel(num_pixels):
    """Two numbers fit one or two pixels without a rest; such pixels still count."""
    prediction, target, mask, _ = depth_batch(2, batch=2, share_valid=1.0)
    mask[1].view(-1)[num_pixels:] = False
    alone = evaluate(DEPTH, (prediction[:1], target[:1], mask[:1]))["aligned_rmse"]
    both = evaluate(DEPTH, (prediction, target, mask))["aligned_rmse"]
    fraction = 42 / (42 + num_pixels)
    assert both == pytest.approx(alone * fraction**0.5, rel=1e-9)
    only = evaluate(DEPTH, (prediction[1:], target[1:], mask[1:]))
    assert only == {} if num_pixels == 0 else only["aligned_rmse"] == pytest.approx(0, abs=1e-9)


def test_fractions_of_normals_within_limits():
    spec = TASKONOMY["normal"]
    degrees = torch.tensor([0.0, 11.2, 11.3, 22.4, 22.6, 29.9, 30.1, 90.0, 180.0, 5.0])
    radians = torch.deg2rad(degrees.double())
    turned = torch.stack([radians.cos(), radians.sin(), torch.zeros(10)]).view(1, 3, 1, 10) * 0.3
    along_x = torch.zeros(1, 3, 1, 10)
    along_x[:, 0] = 1
    mask = torch.ones(1, 1, 10, dtype=torch.bool)
    mask[..., 9] = False
    result = evaluate(spec, (turned, along_x, mask))
    fractions = {name: result[name] for name in ("within_11.25", "within_22.5", "within_30")}
    assert fractions == pytest.approx(
        {"within_11.25": 2 / 9, "within_22.5": 4 / 9, "within_30": 6 / 9}
    )
    assert result["angle"] == pytest.approx(float(degrees[:9].mean()), rel=1e-6)


@pytest.mark.parametrize("name", ["edge_texture", "keypoints2d", "edge_occlusion", "keypoints3d"])
def test_f1_of_responses_against_sklearn(name):
    """A stored value counts as positive where it is more than one scale above the mean."""
    spec = TASKONOMY[name]
    generator = np.random.default_rng(0)
    edge = spec.mean[0] + spec.scale[0]
    raw = generator.normal(edge, spec.scale[0], (3, 1, 16, 16)).clip(0, 65535).astype(np.uint16)
    valid = torch.tensor([[True, True, False]])
    targets = TargetBuilder([spec])([torch.from_numpy(raw.astype(np.int64))], valid)
    noise = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    prediction = targets.target[0] + noise
    true = (raw[:2] > edge + 0.5).ravel()
    guess = (prediction[:2].double() * spec.scale[0] + spec.mean[0]).numpy()
    called = (guess > edge + 0.5).ravel()
    assert 0.2 < true.mean() < 0.8 and 0.2 < called.mean() < 0.8
    result = evaluate(spec, (prediction, targets.target[0], targets.mask[0]))
    assert set(result) == {"mae", "f1"}
    assert result["f1"] == pytest.approx(sk.f1_score(true, called))


@pytest.mark.parametrize("label", [0.0, 99.0])
def test_f1_where_nothing_is_called_positive_is_zero(label):
    spec = TaskSpec("t", "dense_regression", positive_above=50.0)
    target, mask = torch.full((1, 1, 2, 2), label), torch.ones(1, 2, 2, dtype=torch.bool)
    assert evaluate(spec, (torch.zeros(1, 1, 2, 2), target, mask))["f1"] == 0.0


def test_a_value_at_the_threshold_is_not_above_it():
    spec = TaskSpec("t", "dense_regression", positive_above=2.0)
    target, mask = torch.tensor([[[[2.0, 3.0]]]]), torch.ones(1, 1, 2, dtype=torch.bool)
    assert evaluate(spec, (torch.tensor([[[[2.0, 2.5]]]]), target, mask))["f1"] == 1.0


def test_classes_that_only_other_batches_hold_count_once_for_all():
    """Present is a class of the whole split: batch means would divide by other numbers."""
    spec = TaskSpec("t", "dense_classification", channels=4, ignore_index=0)
    labels = torch.tensor([[[[1, 1, 0]]], [[[2, 1, 0]]]])
    called = torch.tensor([[[3, 1, 2]], [[2, 2, 1]]])
    targets = TargetBuilder([spec])([labels], torch.ones(1, 2, dtype=torch.bool))
    prediction = torch.eye(4)[called].movedim(-1, 1)
    parts = [(prediction[i, None], targets.target[0, i, None], targets.mask[0, i, None])
             for i in range(2)]  # fmt: skip
    # Class 1: hit 1 of 3 labelled; class 2: hit 1, labelled 1, called 2. Class 3 never occurs.
    assert evaluate(spec, *parts)["miou"] == pytest.approx((1 / 3 + 1 / 2) / 2)
