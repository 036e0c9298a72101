"""One geometry for all pictures: exact where it can be, consistent everywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.transforms import Geometry, Params

IDENTITY = Params(8, 8, 0, 0, 8, 8, False)


def coordinates(height: int, width: int) -> np.ndarray:
    """[2,H,W] uint16: row and column of every pixel."""
    return np.stack(np.mgrid[:height, :width]).astype(np.uint16)


def test_no_change_returns_the_picture_itself():
    picture = coordinates(8, 8)
    for interpolation in ("nearest", "bilinear"):
        assert Geometry((8, 8)).apply(picture, IDENTITY, interpolation) is picture


def test_nearest_by_whole_factors():
    picture = coordinates(8, 12)
    params = Params(8, 12, 0, 0, 8, 12, False)
    smaller = Geometry((4, 4)).apply(picture, params, "nearest")
    np.testing.assert_array_equal(smaller[0][:, 0], [1, 3, 5, 7])
    np.testing.assert_array_equal(smaller[1][0], [1, 4, 7, 10])
    taller = Geometry((16, 12)).apply(picture, params, "nearest")
    np.testing.assert_array_equal(taller, picture.repeat(2, axis=1))
    larger = Geometry((16, 24)).apply(picture, params, "nearest")
    np.testing.assert_array_equal(larger, picture.repeat(2, axis=1).repeat(2, axis=2))


def test_crop_without_resize_cuts_out():
    picture = coordinates(8, 12)
    params = Params(8, 12, 2, 3, 4, 6, False)
    for interpolation, source in (
        ("nearest", picture),
        ("bilinear", picture[:1].astype(np.uint8)),
        ("bilinear", picture[[0, 1, 0]].astype(np.uint8)),
    ):
        cut = Geometry((4, 6)).apply(source, params, interpolation)
        assert cut.dtype == source.dtype
        np.testing.assert_array_equal(cut, source[:, 2:6, 3:9])


def test_bilinear_is_antialiased():
    checks = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)[None]
    params = Params(32, 32, 0, 0, 32, 32, False)
    smaller = Geometry((4, 4)).apply(checks, params, "bilinear")
    assert np.abs(smaller.astype(int) - 127).max() <= 3


def test_nearest_never_makes_a_new_value():
    rng = np.random.default_rng(0)
    picture = rng.choice(np.array([3, 700, 65535], np.uint16), (1, 37, 23))
    resized = Geometry((11, 50)).apply(picture, Params(37, 23, 0, 0, 37, 23, False), "nearest")
    assert set(np.unique(resized)) == {3, 700, 65535}
    assert resized.dtype == np.uint16


def test_mirror_and_the_sign_of_x():
    params = Params(8, 8, 0, 0, 8, 8, True)
    geometry = Geometry((8, 8), flip=True)
    for dtype, top in ((np.uint8, 255), (np.uint16, 65535)):
        picture = coordinates(8, 8).astype(dtype)
        mirrored = geometry.apply(picture, params, "nearest")
        np.testing.assert_array_equal(mirrored, picture[..., ::-1])
        negated = geometry.apply(picture, params, "nearest", negate_x=True)
        assert negated.dtype == dtype
        np.testing.assert_array_equal(negated[0], top - picture[0, :, ::-1])
        np.testing.assert_array_equal(negated[1], picture[1, :, ::-1])
    signed = coordinates(8, 8).astype(np.float32) - 3.5
    negated = geometry.apply(signed, params, "nearest", negate_x=True)
    np.testing.assert_array_equal(negated[0], -signed[0, :, ::-1])
    np.testing.assert_array_equal(negated[1], signed[1, :, ::-1])
    kept = geometry.apply(picture, IDENTITY, "nearest", negate_x=True)
    assert kept is picture


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    crop=st.floats(0.01, 1),
)
def test_a_drawn_crop_lies_inside_and_keeps_shape(seed, height, width, crop):
    params = Geometry((8, 8), crop=crop).draw(np.random.default_rng(seed), height, width)
    assert 0 <= params.top <= params.top + params.crop_height <= height
    assert 0 <= params.left <= params.left + params.crop_width <= width
    assert params.crop_height >= 1
    assert params.crop_width >= 1
    side = params.crop_height / height
    assert abs(side - params.crop_width / width) <= 0.5 / height + 0.5 / width + 1 / min(
        height, width
    )
    assert side**2 >= crop * (1 - 2 / height) - 1 / height


def test_area_share_is_uniform():
    geometry, rng = Geometry((8, 8), crop=0.2, flip=True), np.random.default_rng(0)
    drawn = [geometry.draw(rng, 1000, 1000) for _ in range(4000)]
    shares = np.array([p.crop_height * p.crop_width / 1e6 for p in drawn])
    np.testing.assert_allclose(
        np.quantile(shares, [0, 0.25, 0.5, 0.75, 1]), np.linspace(0.2, 1, 5), atol=0.03
    )
    assert 0.45 < np.mean([p.mirror for p in drawn]) < 0.55
    centres = [(p.top + p.crop_height / 2) / 1000 for p in drawn]
    assert abs(np.mean(centres) - 0.5) < 0.01


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.sampled_from([2, 3, 4]))
def test_labels_of_another_resolution_follow_the_image(seed, factor):
    """The same relative point is read, to within one pixel of the coarser picture."""
    geometry = Geometry((16, 16), crop=0.3, flip=True)
    params = geometry.draw(np.random.default_rng(seed), 24, 36)
    coarse = geometry.apply(coordinates(24, 36), params, "nearest")
    fine = geometry.apply(coordinates(24 * factor, 36 * factor), params, "nearest")
    np.testing.assert_array_equal(fine // factor, coarse)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_image_and_labels_stay_aligned(seed):
    """A smooth ramp read bilinearly agrees with the pixel that nearest picks."""
    geometry = Geometry((16, 16), crop=0.3, flip=True)
    params = geometry.draw(np.random.default_rng(seed), 32, 32)
    ramp = coordinates(32, 32)[[0, 1, 0]].astype(np.uint8) * 8
    smooth = geometry.apply(ramp, params, "bilinear").astype(int)
    picked = geometry.apply(ramp, params, "nearest").astype(int)
    assert np.abs(smooth - picked)[:, 2:-2, 2:-2].max() <= 9


def test_bilinear_refuses_other_dtypes():
    with pytest.raises(
        ValueError, match="array: bilinear needs uint8 with 1 or 3 channels, found uint16 with 2"
    ):
        Geometry((4, 4)).apply(coordinates(8, 8), IDENTITY, "bilinear")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"image_size": (0, 4)}, r"image_size: \(0, 4\) must be at least 1 x 1"),
        ({"image_size": (4, 4), "crop": 0.0}, "crop: 0.0 must be greater than 0"),
        ({"image_size": (4, 4), "crop": 1.5}, "crop: 1.5 must be greater than 0 and at most 1"),
    ],
)
def test_bad_geometries_are_refused(options, expected):
    with pytest.raises(ValueError, match=expected):
        Geometry(**options)
