"""An exported model in use: photos of any size and mode, floats, and gradients in images."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dmtg.errors import DataError
from model.bundle import load_pruned, save_bundle
from model.encoders import build_encoder
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec

SIZE = (16, 16)
TASKS = [
    TaskSpec("depth", "dense_regression", unit="m", unit_scale=0.5),
    TaskSpec("wall", "dense_classification", channels=3, classes=("no", "left", "right")),
    TaskSpec("cube", "binary"),
    TaskSpec("shape", "multiclass", channels=3, classes=("cube", "ball", "none")),
    TaskSpec("age", "regression", unit="a", mean=(40.0,), scale=(10.0,)),
]
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 25, 3)).astype(np.uint8)


def exported(folder, tasks=TASKS, encoder=None, size=SIZE, **options):
    torch.manual_seed(0)
    encoder = encoder or build_encoder("residual64", 2, image_size=size, options={"channels": 8})
    heads = [(task, task % 2) for task in range(len(tasks))]
    network = MultiTaskNetwork(tasks, encoder, size, heads=heads, dense_widths=(8,), **options)
    save_bundle(folder / "model.safetensors", network, {})
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_pruned(exported(tmp_path_factory.mktemp("model")))


def test_floats_from_0_to_1_are_the_same_images(model):
    levels = torch.from_numpy(PIXELS[:16, :16].transpose(2, 0, 1).copy())[None]
    expected, found = model(levels), model(levels.float() / 255)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    doubles = model(levels.double() / 255)
    torch.testing.assert_close(doubles["age"], expected["age"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((1, 3, 16, 16), 200.0), r"torch\.float32 from 200 to 200, must be uint8 from"),
        (torch.full((1, 3, 16, 16), -0.5), "from -0.5 to -0.5, must be uint8 from 0 to 255, or"),
        (torch.full((1, 3, 16, 16), torch.nan), "from nan to nan, must be uint8"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.int64), r"images are torch\.int64, must be uint8"),
        (torch.zeros(1, 3, 8, 16, dtype=torch.uint8), r"must be \(B, 3, 16, 16\)"),
    ],
)
def test_other_images_are_refused(model, images, message):
    with pytest.raises(ValueError, match=message):
        model(images)


def test_gradients_in_images_are_those_of_finite_differences(tmp_path):
    """Also where training scales the gradients that branches send into the trunk."""
    encoder = build_encoder(
        "residual64", 2, image_size=SIZE, trunk_depth=1, options={"channels": 8}
    )
    path = exported(tmp_path, TASKS[2:], encoder, gradient_scale=(0.25, 0.5))
    model = load_pruned(path)
    torch.manual_seed(1)
    images, direction = 0.5 * torch.rand(1, 3, *SIZE) + 0.25, torch.randn(1, 3, *SIZE)
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(model(images)["age"].sum(), images)
    step = 1e-4  # so short that few units change sign

    def along(length):
        return float(model((images + length * direction).detach())["age"].sum())

    measured = (along(step) - along(-step)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(measured, rel=5e-2)


def test_parameters_have_gradients_only_where_it_is_wanted(model):
    images = torch.zeros(1, 3, *SIZE, dtype=torch.uint8)
    assert not any(value.requires_grad for value in model(images).values())
    model.requires_grad_()
    try:
        assert model(images)["age"].requires_grad
    finally:
        model.requires_grad_(False)


def test_photos_are_resized_as_training_resizes_them(model, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    expected = np.asarray(Image.fromarray(PIXELS).resize((16, 16), Image.Resampling.BILINEAR))
    for photo in (tmp_path / "photo.png", str(tmp_path / "photo.png"), PIXELS,
                  Image.fromarray(PIXELS)):  # fmt: skip
        images = model.preprocess(photo)
        assert images.dtype == torch.uint8 and images.shape == (1, 3, 16, 16)
        assert np.array_equal(images[0].permute(1, 2, 0).numpy(), expected)
    assert model.preprocess([PIXELS, PIXELS[:3]]).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK", "I;16"])
def test_photos_of_every_mode(model, mode):
    grey = Image.fromarray(np.full((5, 7), 255, np.uint8))
    photo = (
        Image.fromarray(np.full((5, 7), 65535, np.uint16)) if mode == "I;16" else grey.convert(mode)
    )
    assert photo.mode == mode
    assert (model.preprocess(photo) == 255).all()


def test_a_prediction_is_that_of_the_images_in_the_size_of_the_photo(model):
    outputs = model(model.preprocess(PIXELS))
    found = model.predict(PIXELS)
    assert list(found) == [task.name for task in TASKS]
    assert found["cube"]["probability"] == pytest.approx(float(outputs["cube"][0]))
    assert found["cube"]["value"] == (found["cube"]["probability"] >= 0.5)
    assert found["shape"]["value"] == TASKS[3].classes[int(outputs["shape"][0].argmax())]
    assert found["age"]["value"] == pytest.approx(float(outputs["age"][0]), rel=1e-5)
    depth = found["depth"]["value"]
    assert depth.shape == (1, 40, 25) and found["depth"]["unit"] == "m"
    # An independent resize: Pillow's of floats.
    pillow = Image.fromarray(outputs["depth"][0, 0].numpy()).resize((25, 40), Image.BILINEAR)
    np.testing.assert_allclose(depth[0], np.asarray(pillow), rtol=1e-4, atol=1e-4)
    wall = found["wall"]["value"]
    assert wall.shape == (40, 25) and wall.dtype == np.uint8
    ids = Image.fromarray(outputs["wall"][0].numpy().astype(np.uint8))
    assert np.array_equal(wall, np.asarray(ids.resize((25, 40), Image.NEAREST)))
    assert found["wall"]["classes"] == ["no", "left", "right"]


def test_several_photos_are_predicted_in_batches(model, monkeypatch):
    photos = [PIXELS, PIXELS[:10], PIXELS[:, :7], PIXELS[::-1].copy(), PIXELS[:, ::-1].copy()]
    alone = [model.predict(photo) for photo in photos]
    sizes, forward = [], model.network.forward

    def record(images, selection):
        sizes.append(len(images))
        return forward(images, selection)

    monkeypatch.setattr(model.network, "forward", record)
    together = model.predict(photos, batch_size=2)
    assert sizes == [2, 2, 1]
    for one, other in zip(alone, together, strict=True):
        assert other["age"]["value"] == pytest.approx(one["age"]["value"], abs=1e-4)
        assert other["depth"]["value"].shape == one["depth"]["value"].shape


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        ("absent.png", "absent.png: cannot be read"),
        (Image.new("F", (3, 3)), "photo: picture of mode F, allowed are"),
        (np.zeros((3, 4, 3)), r"photo is an array of float64 \[3, 4, 3\], must be uint8 \[H,W,3\]"),
        (np.zeros((3, 4, 2), np.uint8), r"uint8 \[3, 4, 2\], must be uint8 \[H,W,3\] or \[H,W\]"),
    ],
)
def test_what_is_no_photo(model, photo, message):
    with pytest.raises(DataError, match=message):
        model.predict(photo)
    with pytest.raises(DataError, match=r"photo is of type int, must be a path"):
        model.predict([3])
    with pytest.raises(ValueError, match="photos is empty"):
        model.predict([])
    with pytest.raises(ValueError, match="batch_size is 0, must be at least 1"):
        model.predict(PIXELS, batch_size=0)


def test_a_model_of_vectors_takes_floats_as_they_are(tmp_path):
    encoder = build_encoder("mlp", 2, image_size=(1, 1), options={"widths": [3, 8, 4]})
    model = load_pruned(exported(tmp_path, TASKS[2:4], encoder, (1, 1)))
    vectors = 100 * torch.randn(5, 3, 1, 1)
    network = model.network
    expected = network(vectors, network.select(network.heads))["predictions"]["cube"]
    torch.testing.assert_close(model(vectors)["cube"], F.sigmoid(expected[:, 0]))
    with pytest.raises(ValueError, match=r"takes floats \[B, 3, 1, 1\], not photos"):
        model.predict(PIXELS)
