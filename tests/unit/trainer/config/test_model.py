import json

import pytest

from model.encoders import build_encoder
from trainer.config.model import DEFAULT_ENCODER
from trainer.errors import UserError


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.encoder={name: timm, options: {model: convnext_tiny, pretrained: true}}",),
        ("model.encoder={name: timm, options: {model: convnext_tiny}, pretrained: true}",),
        (
            "model.encoder={name: timm, pretrained: true, options: {model: convnext_tiny, "
            "pretrained: true}}",
        ),
    ],
)
def test_the_weights_of_timm_are_chosen_in_either_place(overrides, rooms_config):
    """And one place only is written, so that a resume finds no difference."""
    written = rooms_config(*overrides).without_secrets()["model"]["encoder"]
    expected = {"name": "timm", "options": {"model": "convnext_tiny"}, "pretrained": True}
    assert written == expected
    again = rooms_config(f"model.encoder={json.dumps(expected)}")
    assert again.without_secrets()["model"]["encoder"] == expected


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("false", None),
        ("null", None),
        ("weights/", "weights"),
        ("microsoft/resnet-18@main", "microsoft/resnet-18@main"),
    ],
)
def test_pretrained(given, found, rooms_config):
    assert rooms_config(f"model.encoder.pretrained={given}").model.encoder.pretrained == found


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.encoder={name: timm, pretrained: a/b, options: {model: x, pretrained: true}}",
            "model.encoder: pretrained and options.pretrained differ",
        ),
        ("model.image_std=[0.5, 0, 0.5]", "model.image_std.1: found 0"),
        ("model.image_mean=[0.5]", "model.image_mean"),
    ],
)
def test_faults(override, message, rooms_config):
    with pytest.raises(UserError, match=message):
        rooms_config(override)


def test_the_default_encoder_is_resnet18_without_network(no_connection):
    encoder = build_encoder(
        DEFAULT_ENCODER.name, 1, image_size=(64, 64), options=DEFAULT_ENCODER.options
    )
    assert DEFAULT_ENCODER.pretrained is None and no_connection == []
    # The published network has 11,689,512 with its classifier of 1,000 classes.
    numbers = [p.numel() for p in encoder.branches[0].parameters()]
    assert sum(numbers) == 11_689_512 - (512 * 1000 + 1000)
    assert (encoder.channels, encoder.spatial) == (512, (2, 2))


@pytest.fixture
def no_connection(monkeypatch):
    import socket

    attempts = []
    monkeypatch.setattr(socket.socket, "connect", lambda *a: attempts.append(a))
    return attempts
