"""Export from checkpoints that every engine wrote."""

import pytest
import torch

from data_pipelines.reading.loader import eval_loader
from data_pipelines.shards.manifest import Manifest
from model.bundle import load_pruned
from model.network import MultiTaskNetwork
from tests.distributed.cells import thirty_steps
from trainer.checkpoints.checkpoint import load_checkpoint
from trainer.export import export_run
from trainer.tasks import label_requests

pytestmark = pytest.mark.distributed


def cells(engine=None):
    return [thirty_steps(name) for name in ([engine] if engine else ["ddp_cpu", "zero3_cpu"])]


@pytest.mark.parametrize("engine", ["ddp_cpu", "zero2_cpu", "zero3_cpu"])
def test_the_exported_model_is_the_run_s(engine, trained, rooms, tmp_path):
    run = trained(thirty_steps(engine))
    report = export_run(run, tmp_path / "model.safetensors")
    assert (report.step, report.tasks) == (30, 6)
    assert 0 <= report.max_abs_diff <= 1e-4 and report.bytes > 4 * report.parameters

    checkpoint = load_checkpoint(run / "checkpoints/step-000000030")
    full = MultiTaskNetwork.from_config(checkpoint.progress.network)
    full.load_state_dict(checkpoint.state.weights)
    full.eval()
    pruned = load_pruned(tmp_path / "model.safetensors")
    assert report.groups == len(pruned.groups) == full.num_branches
    best = torch.where(
        checkpoint.grouping["alive"], checkpoint.grouping["logits"], -torch.inf
    ).argmax(dim=1)
    loader = eval_loader(
        rooms, Manifest.load(rooms), label_requests(full.tasks), (32, 32), batch_size=6
    )
    with torch.no_grad():
        for batch in loader:
            selection = full.select(list(enumerate(best.tolist())))
            expected = full(batch.images, selection)["predictions"]
            selection = pruned.network.select(pruned.network.heads)
            found = pruned.network(batch.images, selection)["predictions"]
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


def test_engines_export_the_same_model(trained, tmp_path):
    models = []
    for engine in ("ddp_cpu", "zero3_cpu"):
        path = tmp_path / f"{engine}.safetensors"
        export_run(trained(thirty_steps(engine)), path)
        models.append(load_pruned(path))
    assert models[0].groups == models[1].groups
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    first, second = (model(images)["depth_zbuffer"] for model in models)
    torch.testing.assert_close(first, second, rtol=1e-2, atol=1e-2)
