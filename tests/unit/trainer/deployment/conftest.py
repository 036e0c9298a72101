"""An exported model of every kind of task."""

import pytest
import torch

from model.bundle import save_bundle
from model.encoders import build_encoder
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec

TASKS = (
    TaskSpec("depth", "dense_regression", unit="m", unit_scale=0.5, mean=(3.0,), scale=(2.0,)),
    TaskSpec("wall", "dense_classification", channels=3, classes=("no", "left", "right")),
    TaskSpec("cube", "binary"),
    TaskSpec("round things", "binary", loss="cross_entropy"),
    TaskSpec("shape", "multiclass", channels=3, classes=("cube", "a|b <i>*x*</i>", "none")),
    TaskSpec("age", "regression", unit="a", mean=(40.0,), scale=(10.0,)),
)
FACTS = {
    "recipe": "affinity", "step": 40, "precision": "fp32", "seed": 5,
    "dataset": "rooms (train: 36 samples in 4 shards)", "trainer_version": "0.2.0",
}  # fmt: skip


def write_model(path, name="residual64", size=(16, 16), trunk_depth=0, decoder="resize", **options):
    """Write a model with other parameters than those of the start, so that every term counts."""
    torch.manual_seed(0)
    encoder = build_encoder(name, 2, image_size=size, trunk_depth=trunk_depth, options=options)
    heads = [(0, 1), (1, 0), (2, 1), (3, 0), (4, 0), (5, 1)]
    network = MultiTaskNetwork(
        TASKS, encoder, size, heads=heads, dense_widths=(8,), decoder=decoder
    )
    images = torch.randint(0, 256, (8, 3, *size), dtype=torch.uint8)
    network(images, network.select(network.heads))  # moves the running statistics
    with torch.no_grad():
        for parameter in network.stacked_heads.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_bundle(path, network, FACTS)
    return path


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model.safetensors"
    return write_model(path, channels=8)
