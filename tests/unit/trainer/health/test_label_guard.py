"""The look at a run's first labels: flattened ones stop it, unless they are allowed."""

import logging

import numpy as np
import pytest

from data_pipelines.decode.codecs import encode_json, encode_png
from data_pipelines.doctor.checks import task_findings
from data_pipelines.doctor.statistics import LabelStatistics
from data_pipelines.shards.manifest import Field, Manifest
from data_pipelines.shards.writer import ShardWriter
from trainer.doctor.rules import rule_of
from trainer.errors import UserError
from trainer.loop import train

FIELDS = {
    "rgb": Field(member="rgb.png", kind="image", channels=3),
    "depth": Field(member="depth.png", kind="dense_regression", mean=1000.0, std=500.0),
    "hat": Field(member="a.json", key="hat", kind="binary"),
    "weight": Field(member="a.json", key="weight", kind="regression"),
}


def write(root, depth=None, weight=None, hat=None, samples=80):
    """Good labels, but for the constants given; depth may be a function of the number."""
    with ShardWriter(root, "train") as writer:
        for number in range(samples):
            rng = np.random.default_rng(number)
            picture = rng.integers(0, 4000, (16, 16)).astype(np.uint16)
            flat = None if depth is None else np.full((16, 16), depth(number), np.uint16)
            record = {
                "hat": int(rng.integers(2)) if hat is None else hat,
                "weight": float(rng.normal()) if weight is None else weight,
            }
            members = {
                "rgb.png": encode_png(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)),
                "depth.png": encode_png(picture if flat is None else flat),
                "a.json": encode_json(record),
            }
            writer.write(f"s{number}", members)
    split = writer.split(dict.fromkeys(FIELDS, samples))
    Manifest(dataset="toy", fields=FIELDS, splits={"train": split}).save(root)
    return root


def steps_until_the_end_or_a_stop(session):
    with pytest.raises(UserError) as error:
        train(session)
    return session.step, str(error.value)


def test_good_labels_train(session_of, tmp_path, caplog):
    session = session_of(write(tmp_path / "data"), 16, batch=8, run={"steps": 9})
    with caplog.at_level(logging.WARNING, "trainer.health.label_guard"):
        train(session)
    assert session.step == 9
    assert "labels of" not in caplog.text


@pytest.mark.parametrize(
    ("flat", "task"),
    [
        ({"depth": lambda _: 900}, "depth"),
        ({"depth": lambda number: 10 * number}, "depth"),
        ({"weight": 3.25}, "weight"),
    ],
)
@pytest.mark.parametrize("batch", [8, 64])
def test_flattened_labels_stop_the_run(session_of, tmp_path, flat, task, batch):
    session = session_of(write(tmp_path / "data", **flat), 16, batch=batch)
    step, message = steps_until_the_end_or_a_stop(session)
    assert step == 64 // batch - 1
    assert message.startswith(f"labels of {task} hold one value throughout the first")
    assert "data.allow_flat_labels=true" in message and "dmtg doctor" in message
    assert not any((tmp_path / "run" / "checkpoints").glob("step*"))


def without_a_valid_pixel(root, every=1):
    """Class maps of which every pixel is ignored, one for every few samples."""
    segments = Field(member="seg.png", kind="dense_classification", classes=("none", "a", "b"))
    fields = {name: FIELDS[name] for name in ("rgb", "weight")} | {"seg": segments}
    with ShardWriter(root, "train") as writer:
        for number in range(80):
            rng = np.random.default_rng(number)
            members = {
                "rgb.png": encode_png(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)),
                "a.json": encode_json({"weight": float(rng.normal())}),
            }
            if number % every == 0:
                members["seg.png"] = encode_png(np.zeros((16, 16), np.uint8))
            writer.write(f"s{number}", members)
    split = writer.split({"rgb": 80, "weight": 80, "seg": -(-80 // every)})
    Manifest(dataset="toy", fields=fields, splits={"train": split}).save(root)
    return root


IGNORED = {"define": {"seg": {"ignore_index": 0}}}


def test_labels_without_a_valid_pixel_stop_the_run(session_of, tmp_path):
    """`dmtg doctor` says of them what the run says."""
    session = session_of(without_a_valid_pixel(tmp_path / "data"), 16, batch=32, tasks=IGNORED)
    step, message = steps_until_the_end_or_a_stop(session)
    assert step == 1
    assert message.startswith("labels of seg have no valid pixel throughout the first 2 step(s)")
    assert "every pixel is invalid or ignored" in message and "dmtg doctor" in message
    statistics = LabelStatistics(rule_of(session.tasks[1]))
    statistics.add(0, np.zeros((1, 16, 16), np.uint8))
    [finding] = task_findings(statistics, all_seen=False)
    assert finding.level == "error"
    assert finding.message == "every pixel of every label is invalid or ignored"


def test_they_train_when_allowed_too(session_of, tmp_path, caplog):
    root = without_a_valid_pixel(tmp_path / "data")
    run = {"run": {"steps": 3}, "data": {"allow_flat_labels": True}, "tasks": IGNORED}
    session = session_of(root, 16, batch=32, **run)
    with caplog.at_level(logging.WARNING, "trainer.health.label_guard"):
        train(session)
    assert session.step == 3
    assert "labels of seg in the first steps: every pixel of every label is" in caplog.text


def test_few_labels_without_a_valid_pixel_prove_nothing(session_of, tmp_path):
    root = without_a_valid_pixel(tmp_path / "data", every=40)
    session = session_of(root, 16, batch=32, run={"steps": 3}, tasks=IGNORED)
    train(session)
    assert session.step == 3


def test_they_train_when_allowed(session_of, tmp_path, caplog):
    root = write(tmp_path / "data", depth=lambda _: 900)
    session = session_of(
        root,
        16,
        batch=32,
        run={"steps": 3},
        data={"allow_flat_labels": True},
    )
    with caplog.at_level(logging.WARNING, "trainer.health.label_guard"):
        train(session)
    assert session.step == 3
    assert "labels of depth in the first steps: flattened: one value (900)" in caplog.text


def test_a_rare_class_is_only_a_warning(session_of, tmp_path, caplog):
    root = write(tmp_path / "data", hat=0)
    session = session_of(root, 16, batch=64, run={"steps": 2})
    with caplog.at_level(logging.WARNING, "trainer.health.label_guard"):
        train(session)
    assert "labels of hat in the first steps: only class '0' in 64 labels" in caplog.text
    assert caplog.text.count("labels of hat in the first steps") == 1, "one line for a task"


def test_few_labels_prove_nothing(session_of, tmp_path):
    """Four flat pictures may be walls."""
    root = write(tmp_path / "data", depth=lambda _: 900, samples=4)
    session = session_of(root, 16, batch=4, run={"steps": 1})
    train(session)
    assert session.step == 1
