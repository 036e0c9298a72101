"""A small run as a user starts it: what it writes down and shows."""

import re
from itertools import pairwise

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TASKS = ("depth_zbuffer", "normal", "segment_semantic", "has_sphere", "num_solids", "camera_pitch")


def test_the_folder_holds_what_it_should(run):
    out, _ = run
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "tensorboard"} <= {
        path.name for path in out.iterdir()
    }
    assert sorted(path.name for path in (out / "checkpoints").glob("step-*")) == [
        f"step-{step:09d}" for step in (10, 20, 30, 40)
    ]
    assert not list(out.rglob("*.partial"))


def test_heads_fall_from_all_to_one_per_task(records):
    training = [r for r in records if r["kind"] == "train"]
    heads = [r["heads"] for r in training]
    assert [r["step"] for r in training] == list(range(2, 41, 2))
    assert heads[0] == 18 and heads[-1] == 6
    assert all(now >= then for now, then in pairwise(heads))
    fallen = sum(len(r["off"]) for r in records if r["kind"] == "prune")
    assert fallen == 12
    assert all(set(r["losses"]) == set(TASKS) for r in training)


def test_the_record_of_a_loss_is_the_mean_over_tasks(records):
    for record in (r for r in records if r["kind"] == "train"):
        assert record["loss"] == pytest.approx(np.mean(list(record["losses"].values())))


def test_without_a_terminal_a_line_shows_loss_temperature_heads_and_speed(run):
    text = run[1].stderr
    assert re.search(
        r"step 40 of 40, loss [\d.]+, temperature [\d.]+, heads 6 of 18, samples/s \d+\n", text
    )
    assert "\r" not in text and "%|" not in text and "Warning" not in text


def test_tensorboard_holds_the_scalars_and_the_probabilities(run, records):
    events = EventAccumulator(str(run[0] / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    for name in ("loss", "temperature", "heads", "branches", "lr"):
        assert f"train/{name}" in tags["scalars"]
    assert {"eval/depth_zbuffer/mae", "speed/samples_per_second"} <= set(tags["scalars"])
    heads = [(event.step, event.value) for event in events.Scalars("train/heads")]
    assert heads == [(r["step"], r["heads"]) for r in records if r["kind"] == "train"]
    image = events.Images("grouping/probabilities")[0]
    assert image.height == 6 * 16 and image.width == 3 * 16  # a cell of 16 pixels per head
