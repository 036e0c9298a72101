"""`auto` in the loss options of a run."""

import json
import math

import pytest
from safetensors import safe_open

from data_pipelines.reading.class_counts import class_counts
from data_pipelines.synthetic.planted import PlantedProblem
from trainer.bench.planted import PlantedData, planted_config
from trainer.class_balance import balanced_tasks, equally_frequent
from trainer.config.tasks import TasksSection
from trainer.engines.accelerator import make_accelerator
from trainer.errors import UserError
from trainer.export import export_run
from trainer.loop import train
from trainer.run_data import open_data
from trainer.session import start_session
from trainer.tasks import label_requests, resolve_tasks

AUTO = (
    "tasks.by_kind={binary: {loss_options: {pos_weight: auto}}, "
    "multiclass: {loss: focal, loss_options: {class_weights: auto}}, "
    "dense_classification: {loss_options: {class_weights: auto, label_smoothing: 0.1}}}"
)


def test_auto_is_replaced_by_the_counts(rooms_config):
    data = open_data(rooms_config(AUTO))
    tasks = {task.name: task for task in balanced_tasks(rooms_config(AUTO), data)}
    requests = label_requests(data.tasks)
    counted = [r for r in requests if r.task in ("has_sphere", "num_solids", "segment_semantic")]
    counts = class_counts(
        rooms_config().data.shards, data.manifest, "train", counted, progress=False
    )
    negatives, positives = counts["has_sphere"]
    assert tasks["has_sphere"].loss_options == {"pos_weight": negatives / positives}
    options = tasks["segment_semantic"].loss_options
    assert options["label_smoothing"] == 0.1
    for name in ("num_solids", "segment_semantic"):
        weights = tasks[name].loss_options["class_weights"]
        present = [(w, c) for w, c in zip(weights, counts[name], strict=True) if c]
        # The same sum of weights for every class that occurs, and the mean weight 1.
        assert len({round(w * c, 6) for w, c in present}) == 1
        assert sum(w * c for w, c in present) == pytest.approx(sum(counts[name]))
    assert tasks["depth_zbuffer"] is data.tasks[0], "a task without `auto` stays as it is"


@pytest.mark.usefixtures("forget_accelerate")
def test_a_run_trains_resumes_and_exports_with_the_numbers(rooms_config, tmp_path, monkeypatch):
    config = rooms_config(AUTO, "run.steps=2", "run.resume=auto", "eval.limit=5")
    with start_session(config, make_accelerator(config)) as session:
        tasks = {task.name: task.loss_options for task in session.tasks}
        train(session)
    assert isinstance(tasks["has_sphere"]["pos_weight"], float)
    assert len(tasks["num_solids"]["class_weights"]) > 2
    progress = config.run.out / "checkpoints/step-000000002/progress.json"
    saved = {t["name"]: t for t in json.loads(progress.read_text())["network"]["tasks"]}
    assert saved["has_sphere"]["loss_options"] == tasks["has_sphere"]
    assert "loss_options" not in saved["depth_zbuffer"]
    with start_session(config, make_accelerator(config)) as session:
        assert {task.name: task.loss_options for task in session.tasks} == tasks
    monkeypatch.setattr("trainer.data_sources.shards.class_counts", pytest.fail)
    export_run(config.run.out, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        (task,) = [
            task
            for task in json.loads(file.metadata()["dmtg"])["network"]["tasks"]
            if task["name"] == "has_sphere"
        ]
    assert task["loss_options"] == tasks["has_sphere"]
    losses = json.loads((config.run.out / "metrics.jsonl").read_text().splitlines()[0])["losses"]
    assert all(map(math.isfinite, losses.values()))


def test_data_that_cannot_be_counted_need_numbers(rooms_config, tmp_path):
    config = rooms_config(AUTO, "data.tar_urls=https://nowhere.test/{000..009}.tar")
    with pytest.raises(
        UserError, match=r"'auto' needs the number .* data\.tar_urls are not counted"
    ):
        balanced_tasks(config, open_data(config))
    planted = planted_config(tmp_path / "run", 2, 0, "multitask", 4, 8)
    data = PlantedData(PlantedProblem(3, 2, seed=0), planted)
    section = TasksSection(by_kind={"binary": {"loss_options": {"pos_weight": "auto"}}})
    waiting = resolve_tasks(section, open_data(config).manifest)
    data.tasks = tuple(task for task in waiting if task.kind == "binary")
    with pytest.raises(UserError, match=r"which data\.source 'shards' does not have; give numbers"):
        balanced_tasks(planted, data)


def test_a_plan_needs_no_counts(rooms_config):
    tasks = equally_frequent(open_data(rooms_config(AUTO)).tasks)
    options = {task.name: task.loss_options for task in tasks}
    assert options["has_sphere"] == {"pos_weight": 1.0}
    assert set(options["num_solids"]["class_weights"]) == {1.0}


def described(rooms_config, *overrides):
    return {task.name: task for task in open_data(rooms_config(*overrides)).tasks}


def test_attributes_of_a_kind_are_under_those_of_a_task(rooms_config):
    tasks = described(
        rooms_config,
        "tasks.by_kind={binary: {loss_options: {pos_weight: 2, label_smoothing: 0.1}}, "
        "regression: {loss: huber, loss_options: {delta: 3}, unit: degrees}}",
        "tasks.define={has_sphere: {loss_options: {pos_weight: 5}}, camera_pitch: {loss: mse}}",
    )
    assert tasks["has_sphere"].loss_options == {"pos_weight": 5.0, "label_smoothing": 0.1}
    # The options of one loss are not those of another.
    pitch = tasks["camera_pitch"]
    assert (pitch.loss, pitch.loss_options, pitch.unit) == ("mse", {}, "degrees")
    assert tasks["depth_zbuffer"].loss == "l1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{bynary: {loss: focal}}", "task kind is 'bynary', must be one of binary"),
        ("{binary: {field: x}}", "tasks.by_kind.binary.field: unknown key"),
        ("{binary: {loss: huber}}", "tasks.by_kind.binary: task 'has_sphere': loss is 'huber'"),
        ("{binary: {loss_options: {gamma: 1}}}", "tasks.by_kind.binary: .*options of bce"),
        ("{binary: {loss_options: {pos_weight: .inf}}}", "pos_weight: found inf"),
    ],
)
def test_what_a_kind_does_not_take_is_refused(rooms_config, text, message):
    with pytest.raises(UserError, match=message):
        described(rooms_config, f"tasks.by_kind={text}")
