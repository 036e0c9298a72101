"""Memory: what compaction frees, and the peak of a step against `dmtg plan`."""

import gc

import pytest
import torch

import trainer.loop
from data_pipelines.synthetic.planted import NUM_INPUTS, PlantedProblem
from model.tasks.presets import PRESETS
from tests.gpu.devices import ON_CPU
from trainer.bench.planted import PlantedData, planted_config
from trainer.config.loading import parse_config
from trainer.engines.accelerator import make_accelerator
from trainer.planning.forecast import forecast
from trainer.planning.stages import Machine
from trainer.planning.step_cost import empty_batch
from trainer.session import start_session
from trainer.step import train_step

TASKS, BRANCHES, WIDTH = 4, 8, 64 if ON_CPU else 2048
ADAM = 3  # copies of a weight that an engine keeps: itself and two moments
SLACK = 2**16 if ON_CPU else 2**22  # bytes of logits, batches and rounding


def allocated():
    """Return the bytes of all tensors on the device."""
    gc.collect()
    if not ON_CPU:
        return torch.cuda.memory_allocated()
    found = (o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter))
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}
    return sum(storages.values())


def warm_up(train, config, data):
    """Let cuBLAS allocate the workspaces that it keeps for each thread."""
    run = config.run.model_copy(update={"out": config.run.out.with_name("warm-up")})
    train(config.model_copy(update={"run": run}), data)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compaction_frees_the_whole_old_network(precision, train, tmp_path, monkeypatch):
    options = (
        f"run.precision={precision}", "pruning.begin=0.25", "pruning.end=0.5",
        f"model.encoder.options={{widths: [{NUM_INPUTS}, {WIDTH}, {WIDTH}, 4]}}",
    )  # fmt: skip
    config = planted_config(tmp_path / "run", BRANCHES, 0, "published", 8, 32, options)
    seen, compact = [], trainer.loop.compact

    def measured(session):
        def weights():
            return 4 * sum(p.numel() for p in session.engine.module.parameters())

        seen.append((allocated() - before, weights()))
        kept = compact(session)
        seen.append((allocated() - before, weights()))
        return kept

    data = PlantedData(PlantedProblem(TASKS, 2, seed=0), config)
    warm_up(train, config, data)
    monkeypatch.setattr(trainer.loop, "compact", measured)
    before = allocated()
    train(config, data)
    (_, old), (now, new) = seen[0], seen[-1]
    assert new < 0.6 * old, "at most one branch of a task is left"
    for bytes_found, weights in seen:
        assert ADAM * weights <= bytes_found < ADAM * weights + SLACK + weights * 0.05
    assert now < seen[0][0]
    assert allocated() - before < SLACK, "nothing is left after the run"


class EmptyData:
    """`trainer.run_data.RunData` whose batches are zeros."""

    train_samples: int | None = None
    eval_samples = 1
    digest = dataset = "empty"

    def __init__(self, config):
        self.tasks = PRESETS[config.tasks.preset]
        self.batch = empty_batch(self.tasks, config.data.global_batch, (3, *config.data.image_size))

    def steps_per_epoch(self):
        return 1

    def train_batches(self, start_step, end_step, **_):
        return (self.batch for _ in range(start_step, end_step))

    def eval_batches(self, **_):
        return [self.batch]


# preset, encoder, side, batch, precision, recomputation
PLANNED = {
    "attributes": ("celeba9", "residual64", 64, 512, "fp32", False),
    "attributes-bf16": ("celeba9", "residual64", 64, 512, "bf16", False),
    "pixels-bf16": ("taskonomy5", "xception", 256, 16, "bf16", False),
    "pixels-recomputed": ("taskonomy5", "xception", 256, 16, "bf16", True),
}


def planned_config(case, out):
    preset, encoder, side, batch, precision, recomputes = PLANNED[case]
    small = {} if encoder == "residual64" else {"sizes": [8, 16, 32, 32, 32], "channels": 16}
    if ON_CPU:
        side, batch = (64 if encoder == "residual64" else 32), 4
    return parse_config({
        "run": {"out": str(out), "steps": 3, "precision": precision},
        "data": {"shards": "nowhere", "image_size": [side] * 2, "global_batch": batch,
                 "allow_flat_labels": True},
        "tasks": {"preset": preset},
        "model": {
            "branches": 3, "decoder": "deconv", "activation_checkpointing": recomputes,
            "encoder": {"name": encoder, "options": small if ON_CPU else {}},
        },
        "grouping": {"recipe": "published"},
        "pruning": {"begin": 1.0, "end": 1.0},
        "log": {"trackers": [], "progress": False},
    }, case)  # fmt: skip


@pytest.mark.parametrize("case", PLANNED)
def test_the_planned_peak_is_that_of_the_allocator(case, here, train, device, tmp_path):
    config = planned_config(case, tmp_path / "run")
    planned = forecast(config, Machine(1, 80.0, tflops=1.0)).stages["before"].memory["ddp"]
    data = EmptyData(config)
    warm_up(train, config, data)
    before = allocated()
    if not ON_CPU:
        torch.cuda.reset_peak_memory_stats()
    with here(), start_session(config, make_accelerator(config), data) as session:
        for _ in range(3):
            train_step(session, [data.batch.to(device)])
            session.step += 1
    if not ON_CPU:
        found = torch.cuda.max_memory_allocated() - before
        assert abs(planned.total / found - 1) < 0.1, (planned.total, found, planned)
