import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from model.kinds.binary import Binary
from model.subset import subset
from trainer.builders import build_network
from trainer.report.samples import picture_url, predicted_samples
from trainer.run_data import build_eval_loader, open_manifest
from trainer.tasks import resolve_tasks


@pytest.fixture(scope="module")
def network_and_batch(rooms_yaml):
    from trainer.config.loading import load_config

    config = load_config(rooms_yaml, [])
    manifest = open_manifest(config)
    tasks = resolve_tasks(config.tasks, manifest)
    network = subset(build_network(config, tasks), [(task, 0) for task in range(6)]).eval()
    loader = build_eval_loader(config, manifest, tasks, rank=0, world_size=1, workers=0)
    return network, next(iter(loader))


def test_predictions_are_beside_their_labels(network_and_batch):
    network, batch = network_and_batch
    found = predicted_samples(network, batch, max_picture_bytes=10**7)
    assert found["left_out"] == [] and len(found["samples"]) == 5
    with torch.no_grad():
        outputs = network(batch.images, network.select(network.heads))["predictions"]
    for n, sample in enumerate(found["samples"]):
        assert sample["key"] == batch.keys[n]
        predicted, label, agrees = sample["values"]["has_sphere"]
        probability = float(outputs["has_sphere"][n].sigmoid())
        decision = int(probability >= 0.5)
        assert predicted == f"{decision} ({probability:.2f})"
        if batch.valid["has_sphere"][n]:
            truth = int(batch.labels["has_sphere"][n])
            assert (label, agrees) == (str(truth), truth == decision)
        else:
            assert (label, agrees) == (None, None)
        picture = sample["pictures"]["normal"]
        assert (picture[1] is not None) == bool(batch.valid["normal"][n])
        assert all(url.startswith("data:image/jpeg;base64,") for url in picture[:2] if url)
    missing = [s["values"]["num_solids"][1] is None for s in found["samples"]]
    assert missing == (~batch.valid["num_solids"][:5]).tolist()


def test_pictures_that_would_take_too_much_are_left_out(network_and_batch):
    found = predicted_samples(*network_and_batch, max_picture_bytes=100)
    assert found["left_out"] == ["depth_zbuffer", "normal", "segment_semantic"]
    assert all(sample["pictures"] == {} for sample in found["samples"])


def test_a_kind_that_cannot_be_shown_is_left_out(network_and_batch, monkeypatch):
    def record(*_):
        raise NotImplementedError

    monkeypatch.setattr(Binary, "record", record)
    found = predicted_samples(*network_and_batch, max_picture_bytes=10**7)
    assert found["left_out"] == ["has_sphere"]


def test_a_picture_becomes_small_and_keeps_its_shape():
    picture = np.full((300, 600, 3), (250, 10, 20), np.uint8)
    data = base64.b64decode(picture_url(picture).partition(",")[2])
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (128, 64)
        assert np.abs(np.asarray(image.convert("RGB"), int) - (250, 10, 20)).max() < 6
