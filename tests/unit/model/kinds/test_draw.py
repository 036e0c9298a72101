import numpy as np
import pytest

from model.kinds.kind import get_kind
from model.tasks.display import DISPLAYS
from model.tasks.spec import TaskSpec

DEPTH = TaskSpec("depth", "dense_regression", display="depth")
SIGNED = TaskSpec("curve", "dense_regression", channels=2, display="signed")
NORMAL = TaskSpec("normal", "dense_regression", channels=3, display="normal")
CLASSES = TaskSpec("seg", "dense_classification", channels=25, display="classes")


def draw(spec, values):
    return get_kind(spec.kind).draw(spec, values)


def value_range(spec, values):
    return DISPLAYS[spec.display].value_range(values)


def test_normals_are_drawn_as_rgb_whatever_their_length():
    axes = np.array([[1.0, 0, 0], [0, -3.0, 0], [0, 0, 0.1]]).T.reshape(3, 1, 3)
    expected = [[[255, 127, 127], [127, 0, 127], [127, 127, 255]]]
    np.testing.assert_array_equal(draw(NORMAL, axes), expected)


def test_a_normal_of_length_zero_is_grey():
    np.testing.assert_array_equal(draw(NORMAL, np.zeros((3, 1, 1))), [[[127, 127, 127]]])


def test_classes_have_colours_of_their_own_and_more_than_the_map_wrap_around():
    ids = np.array([[0, 1, 20]])
    picture = draw(CLASSES, ids)
    assert picture.shape == (1, 3, 3) and picture.dtype == np.uint8
    assert (picture[0, 0] != picture[0, 1]).any()
    np.testing.assert_array_equal(picture[0, 0], picture[0, 2])


def test_grey_rises_with_the_value():
    spec = TaskSpec("edges", "dense_regression")
    picture = draw(spec, np.linspace(-4, 9, 50).reshape(1, 1, 50))
    assert (np.diff(picture[0, :, 0].astype(int)) >= 0).all()
    assert picture[0, 0].tolist() == [0, 0, 0] and picture[0, -1].tolist() == [255, 255, 255]


def test_signed_values_have_their_middle_at_zero():
    low, high = value_range(SIGNED, np.array([-1.0, 0.0, 5.0] * 100))
    assert low == -high and high == pytest.approx(5)
    picture = draw(SIGNED, np.stack([np.array([[-5.0, 0.0, 5.0]])] * 2))
    red, green, blue = picture[0, 1].astype(int)
    assert abs(red - blue) < 10 and abs(red - green) < 10  # neither warm nor cold


def test_values_without_a_spread_are_drawn_too():
    assert draw(DEPTH, np.full((1, 2, 2), 3.0)).shape == (2, 2, 3)


def test_infinite_values_do_not_set_the_range():
    low, high = value_range(DEPTH, np.array([0.0, 1.0, np.inf, np.nan]))
    assert 0 <= low < high <= 1
