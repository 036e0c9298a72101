"""Statistics against numpy, and one finding for each defect of labels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.doctor.checks import data_findings, is_flattened, task_findings, worst
from data_pipelines.doctor.statistics import DataStatistics, LabelRule, LabelStatistics, few_ulps
from data_pipelines.reading.collate import Batch

DEPTH = LabelRule("depth", "dense_regression", scale=(1000.0,), valid_below=60000.0)
NORMAL = LabelRule("normal", "dense_regression", scale=(127.5,))
SEGMENT = LabelRule("seg", "dense_classification", classes=("none", "a", "b", "c"), ignore_index=0)
HAT = LabelRule("hat", "binary", classes=("0", "1"))
SHAPE = LabelRule("shape", "multiclass", classes=("x", "y", "z"))
SIZE = LabelRule("size", "regression")


def statistics_of(rule, labels):
    """Statistics of labels, which are pictures [C,H,W] or scalars."""
    statistics = LabelStatistics(rule)
    for number, label in enumerate(labels):
        array = np.asarray(label)
        statistics.add(number, array if array.ndim else array.reshape(1, 1, 1))
    return statistics


def messages(statistics, level, **known):
    findings = task_findings(statistics, **{"all_seen": False, **known})
    return " | ".join(finding.message for finding in findings if finding.level == level)


def depths(count=6, seed=0, low=500, high=5000):
    rng = np.random.default_rng(seed)
    return rng.integers(low, high, (count, 1, 8, 9)).astype(np.uint16)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 5), channels=st.sampled_from([1, 2, 3]))
@settings(max_examples=30, deadline=None)
def test_sums_are_those_of_numpy(seed, count, channels):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 65536, (count, channels, 5, 4)).astype(np.uint16)
    seen = statistics_of(DEPTH, labels)
    mask = (labels < 60000).all(axis=1)  # [count,H,W]
    values = labels.transpose(0, 2, 3, 1)[mask].astype(float)  # [V,C]
    assert (seen.present, seen.pixels, seen.valid) == (count, mask.size, mask.sum())
    assert seen.empty == sum(not part.any() for part in mask)
    if len(values):
        np.testing.assert_array_equal(seen.low, values.min(axis=0))
        np.testing.assert_array_equal(seen.high, values.max(axis=0))
        np.testing.assert_allclose(seen.mean, values.mean(axis=0))
        np.testing.assert_allclose(seen.deviation, values.std(axis=0), atol=1e-3)
        assert sum(seen.counts.values()) == seen.counted == values.size


def test_the_most_frequent_value_survives_many_rare_ones():
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(20, 1, 30, 30)).astype(np.float32)
    labels[:, :, :10] = 7.0
    seen = statistics_of(LabelRule("x", "dense_regression"), labels)
    assert seen.counts.most_common(1) == [(7.0, 20 * 300)]
    assert len(seen.counts) < 10_000


def test_good_labels_have_no_finding():
    rng = np.random.default_rng(1)
    assert task_findings(statistics_of(DEPTH, depths()), all_seen=True) == []
    normals = rng.integers(0, 256, (4, 3, 8, 8)).astype(np.uint8)
    assert task_findings(statistics_of(NORMAL, normals), all_seen=True) == []
    ids = rng.integers(0, 4, (4, 1, 8, 8)).astype(np.uint8)
    assert task_findings(statistics_of(SEGMENT, ids), all_seen=True) == []
    assert task_findings(statistics_of(HAT, rng.integers(0, 2, 40)), all_seen=True) == []
    assert task_findings(statistics_of(SIZE, rng.normal(size=40)), all_seen=True) == []


@pytest.mark.parametrize("ulps", [0, 1, 6])
def test_a_label_collapsed_to_rounding_noise_is_an_error(ulps):
    step = np.spacing(np.float32(1234.5))
    noise = np.random.default_rng(2).integers(0, ulps + 1, (5, 1, 6, 6))
    labels = (np.float32(1234.5) + noise * step).astype(np.float32)
    seen = statistics_of(LabelRule("depth", "dense_regression"), labels)
    message = messages(seen, "error")
    assert "flattened: one value (1234.5) in all 5 labels" in message
    assert ("float32 roundings" in message) == bool(ulps)
    assert is_flattened(seen)


def test_a_real_range_of_many_ulps_is_not_flattened():
    labels = (1.0 + 1e-5 * np.random.default_rng(3).random((5, 1, 6, 6))).astype(np.float32)
    seen = statistics_of(LabelRule("depth", "dense_regression"), labels)
    assert not is_flattened(seen)
    assert "deviation of the scaled target is" in messages(seen, "warning")


def test_a_value_for_each_picture_is_an_error():
    labels = [np.full((1, 6, 6), 100 * number, np.uint16) for number in range(1, 6)]
    seen = statistics_of(DEPTH, labels)
    assert messages(seen, "error") == "flattened: each of the 5 pictures holds one value"
    assert is_flattened(seen)
    mixed = statistics_of(DEPTH, [*labels, depths(1)[0]])
    assert messages(mixed, "error") == "" and not is_flattened(mixed)
    assert "5 of 6 pictures hold one value" in messages(mixed, "warning")


def test_invalid_pixels_do_not_hide_a_flat_picture():
    label = np.full((1, 6, 6), 700, np.uint16)
    label[0, :3] = 65535
    assert is_flattened(statistics_of(DEPTH, [label, label]))


def test_one_flat_channel_is_named():
    labels = np.random.default_rng(4).integers(0, 256, (4, 3, 8, 8)).astype(np.uint8)
    labels[:, 1] = 127
    seen = statistics_of(NORMAL, labels)
    assert messages(seen, "warning") == "one value in all of channel 1"
    assert not is_flattened(seen)


def test_all_ignored_segmentation_is_an_error():
    seen = statistics_of(SEGMENT, np.zeros((4, 1, 6, 6), np.uint8))
    assert messages(seen, "error") == "every pixel of every label is invalid or ignored"
    some = [np.zeros((1, 6, 6), np.uint8), *np.eye(6, dtype=np.uint8)[None, None] + 1]
    assert "1 of 2 labels have no valid pixel" in messages(statistics_of(SEGMENT, some), "warning")


def test_ids_without_a_class_are_counted():
    ids = np.tile(np.array([1, 2, 3, 255], np.uint8), (2, 1, 4, 1))
    assert "25 % of ids stand for no class" in messages(statistics_of(SEGMENT, ids), "error")
    unknown = statistics_of(SEGMENT, np.full((2, 1, 4, 4), 200, np.uint8))
    assert "(100 % unknown ids)" in messages(unknown, "error")


def test_one_class_needs_enough_labels_to_be_an_error():
    few, many = statistics_of(HAT, [1] * 20), statistics_of(HAT, [1] * 600)
    assert messages(few, "warning").startswith("only class '1' in 20 labels")
    assert messages(few, "error") == ""
    assert messages(few, "error", all_seen=True) == "only class '1' in 20 labels"
    assert messages(many, "error") == "only class '1' in 600 labels"


def test_a_class_that_only_the_samples_read_lack_is_no_error():
    many = statistics_of(HAT, [0] * 600)
    assert messages(many, "error", more_classes=True) == ""
    expected = "only class '0' in 600 labels, others in the rest of the split"
    assert messages(many, "warning", more_classes=True).startswith(expected)
    assert messages(many, "error", all_seen=True, more_classes=True).startswith("only class '0'")


def test_class_balance_and_absent_classes():
    assert messages(statistics_of(SHAPE, [0, 1] * 10), "note") == "classes never seen: z"
    rare = statistics_of(SHAPE, [2] + [0] * 199 + [1] * 0)
    assert messages(rare, "warning") == "nearly constant: 99.5 % of the values are x"


def test_a_nearly_constant_picture_label():
    labels = np.full((4, 1, 64, 64), 255, np.uint16)
    labels[:, 0, 0, 0] = 9
    seen = statistics_of(LabelRule("edge", "dense_regression", scale=(1.0,)), labels)
    assert messages(seen, "warning") == "nearly constant: 99.98 % of the values are 255"
    labels[1:, 0, 0, 0] = 255
    seen = statistics_of(LabelRule("edge", "dense_regression", scale=(1.0,)), labels)
    assert messages(seen, "error").startswith("nearly constant: 99.99 % of the values are 255")


def test_a_scale_that_does_not_fit():
    assert messages(statistics_of(DEPTH, depths()), "warning") == ""
    tiny = LabelRule("depth", "dense_regression", scale=(1e9,))
    assert "check its scale" in messages(statistics_of(tiny, depths()), "warning")


def test_regressions_of_one_value():
    assert messages(statistics_of(SIZE, [2.5] * 9), "error") == (
        "flattened: one value (2.5) in all 9 labels"
    )
    alone = statistics_of(SIZE, [2.5])
    assert messages(alone, "error") == "" and not is_flattened(alone)


def test_labels_of_two_types():
    labels = [depths(1)[0], (depths(1)[0] // 256).astype(np.uint8)]
    assert (
        messages(statistics_of(DEPTH, labels), "error") == "stored in several types: uint16, uint8"
    )


def test_no_label_at_all():
    assert messages(LabelStatistics(SIZE), "warning") == "no label in the samples read"
    assert not is_flattened(LabelStatistics(SIZE))


def test_few_ulps():
    assert few_ulps(np.array([0.0, 1.0]), np.array([0.0, 1.0 + 2**-21])).tolist() == [True, True]
    assert few_ulps(np.array([1.0]), np.array([1.0001])).tolist() == [False]
    assert not few_ulps(np.array([30000.0]), np.array([30001.0])).any()


def batch_of(images, hats, sizes, depth, valid, keys=None):
    """A batch of the tasks hat, size and depth."""
    return Batch(
        tasks=("hat", "size", "depth"),
        scalar_tasks=("hat", "size"),
        images=torch.as_tensor(images),
        scalars=torch.tensor([hats, sizes], dtype=torch.float32),
        dense={"depth": torch.as_tensor(depth)},
        valid_rows=torch.as_tensor(valid),
        keys=tuple(keys or [f"k{n}" for n in range(len(hats))]),
    )


def random_batch(count, seed=0, **changes):
    rng = np.random.default_rng(seed)
    values = {
        "images": rng.integers(0, 256, (count, 3, 4, 4)).astype(np.uint8),
        "hats": rng.integers(0, 2, count).tolist(),
        "sizes": rng.normal(size=count).tolist(),
        "depth": rng.integers(0, 5000, (count, 1, 4, 4)).astype(np.uint16),
        "valid": np.ones((3, count), bool),
    }
    return batch_of(**{**values, **changes})


def seen_in(*batches):
    statistics = DataStatistics([HAT, SIZE, DEPTH])
    for batch in batches:
        statistics.update(batch)
    return statistics


def test_batches_leave_out_fillers_and_missing_labels():
    valid = np.ones((3, 4), bool)
    valid[2, 1] = False
    valid[:, 3] = False
    batch = random_batch(4, valid=valid, keys=["a", "b", "c", ""])
    statistics = seen_in(batch, random_batch(2, seed=1))
    assert statistics.num_samples == 5 == len(statistics.images)
    assert {task: s.present for task, s in statistics.labels.items()} == {
        "hat": 5,
        "size": 5,
        "depth": 4,
    }
    assert sorted(statistics.labels["depth"].prints) == [0, 2, 3, 4]
    assert data_findings(statistics) == []


def test_copies_of_images_are_named():
    first = random_batch(3)
    copies = batch_of(
        first.images, [0, 1, 0], [1, 2, 3], first.dense["depth"], np.ones((3, 3), bool), "xyz"
    )
    [finding] = data_findings(seen_in(first, copies))
    assert finding.level == "warning"
    assert finding.message == "3 of 6 images are copies (k0 and x)"
    same = np.zeros((4, 3, 4, 4), np.uint8)
    same[:, :, 0, 0] = 9
    assert worst(data_findings(seen_in(random_batch(4, images=same)))) == "error"


def test_images_of_one_colour():
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 4, 4)).astype(np.uint8)
    images[2] = np.array([1, 2, 3], np.uint8)[:, None, None]
    [finding] = data_findings(seen_in(random_batch(4, images=images)))
    assert finding.message == "1 of 4 images are of one colour" and finding.level == "warning"
    flat = np.zeros((4, 3, 4, 4), np.uint8)
    assert worst(data_findings(seen_in(random_batch(4, images=flat)))) == "error"


def test_equal_tasks_are_detected_for_any_dtype():
    statistics = DataStatistics(
        [HAT, LabelRule("cap", "binary", classes=("0", "1")), DEPTH, SEGMENT]
    )
    labels = np.random.default_rng(0).integers(0, 4, (20, 1, 4, 4))
    hats = np.random.default_rng(1).integers(0, 2, 20)
    batch = Batch(
        ("hat", "cap", "depth", "seg"),
        ("hat", "cap"),
        torch.from_numpy(np.random.default_rng(2).integers(0, 256, (20, 3, 4, 4)).astype(np.uint8)),
        torch.tensor(np.stack([hats, hats]), dtype=torch.float32),
        {
            "depth": torch.from_numpy(labels.astype(np.uint16)),
            "seg": torch.from_numpy(labels.astype(np.uint8)),
        },
        torch.ones(4, 20, dtype=torch.bool),
        tuple(f"k{n}" for n in range(20)),
    )
    statistics.update(batch)
    assert [finding.message for finding in data_findings(statistics)] == [
        "hat and cap have equal labels in all 20 samples",
        "depth and seg have equal labels in all 20 samples",
    ]


def test_few_equal_scalars_may_be_chance():
    statistics = DataStatistics([HAT, SIZE])
    batch = random_batch(8)
    scalars = torch.tensor([[0.0, 1] * 4] * 2)
    statistics.update(
        batch_of(batch.images, *scalars.tolist(), batch.dense["depth"], np.ones((3, 8), bool))
    )
    assert data_findings(statistics) == []
