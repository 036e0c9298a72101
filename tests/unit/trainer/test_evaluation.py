from dataclasses import replace

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from data_pipelines.reading.loader import eval_loader
from data_pipelines.shards.manifest import Manifest
from model.subset import subset
from trainer.builders import build_network
from trainer.engines.accelerator import make_accelerator
from trainer.engines.engine import Engine
from trainer.evaluation import (
    MetricSums,
    evaluate,
    evaluate_losses,
    evaluate_pruned,
    task_targets,
)
from trainer.run_data import open_manifest
from trainer.tasks import label_requests, resolve_tasks


@pytest.fixture
def engine(rooms_config, forget_accelerate):
    forget_accelerate()
    config = rooms_config()
    tasks = resolve_tasks(config.tasks, open_manifest(config))
    return Engine(make_accelerator(config), build_network(config, tasks), config)


def batches(rooms, tasks, **options):
    return eval_loader(rooms, Manifest.load(rooms), label_requests(tasks), (32, 32), **options)


HEADS = [(task, task % 3) for task in range(6)]


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_metrics_do_not_depend_on_the_batches_or_their_fillers(batch_size, engine, rooms):
    tasks = engine.module.tasks
    whole = evaluate(engine, batches(rooms, tasks, batch_size=4), HEADS)
    assert set(whole) == {task.name for task in tasks}
    found = evaluate(engine, batches(rooms, tasks, batch_size=batch_size), HEADS)
    for name, values in whole.items():
        assert found[name] == pytest.approx(values, rel=1e-5), name
    assert engine.module.training  # as it was before


def test_shares_of_the_ranks_add_up(engine, rooms):
    module = engine.module
    total = torch.zeros(())
    for rank in range(3):
        sums = MetricSums(module.tasks)
        for batch in batches(rooms, module.tasks, batch_size=5, rank=rank, world_size=3):
            with torch.no_grad():
                predictions = module.eval()(batch.images, module.select(HEADS))
            sums.update(predictions["predictions"], task_targets(module, batch))
        total = total + sums.vector
    expected = evaluate(engine, batches(rooms, module.tasks, batch_size=12), HEADS)
    found = MetricSums(module.tasks).compute(total)
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-5), name


def test_pruned_network_scores_as_its_heads_do_in_the_large_one(engine, rooms):
    tasks = engine.module.tasks
    expected = evaluate(engine, batches(rooms, tasks, batch_size=6), HEADS)
    pruned = subset(engine.module.eval(), HEADS)
    found = evaluate_pruned(pruned, batches(rooms, tasks, batch_size=6))
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-4), name


def test_a_task_that_saw_no_label_is_left_out(engine):
    sums = MetricSums(engine.module.tasks)
    assert sums.compute(sums.vector) == {}


def test_losses_are_means_over_the_labels_of_the_split(engine, rooms):
    module = engine.module
    tasks = [task.name for task in module.tasks]
    losses = evaluate_losses(engine, batches(rooms, module.tasks, batch_size=5), HEADS)
    assert module.training  # as it was before
    other = evaluate_losses(engine, batches(rooms, module.tasks, batch_size=12), HEADS)
    assert losses.tolist() == pytest.approx(other.tolist(), rel=1e-5)
    values = []
    for batch in batches(rooms, module.tasks, batch_size=12):
        with torch.no_grad():
            outputs = module.eval()(batch.images, module.select(HEADS))["predictions"]
        target, mask = task_targets(module, batch)["has_sphere"]
        logits = outputs["has_sphere"][mask, 0].double()
        values += binary_cross_entropy_with_logits(
            logits, target[mask].double(), reduction="none"
        ).tolist()
    assert losses[tasks.index("has_sphere")] == pytest.approx(sum(values) / len(values), rel=1e-5)
    (batch,) = batches(rooms, module.tasks, batch_size=64)
    rows = batch.valid_rows.clone()
    rows[tasks.index("has_sphere")] = False
    bare = evaluate_losses(engine, [replace(batch, valid_rows=rows)], HEADS)
    assert [name for name, loss in zip(tasks, bare, strict=True) if loss.isnan()] == ["has_sphere"]
