import json

import pytest
import torch
from torch.profiler import record_function

from trainer.config.loading import parse_config
from trainer.config.run import RunSection
from trainer.errors import UserError
from trainer.monitoring.profiling import ProfileWindow


def section(tmp_path, **values):
    return RunSection(out=tmp_path, steps=10, **values)


def train(window, start, end):
    """Steps that can be told apart in a trace."""
    for step in range(start, end):
        window.before_step(step)
        with record_function(f"training step {step}"):
            torch.ones(8, 8) @ torch.ones(8, 8)
        window.after_step(step + 1, last=step + 1 == end)


def names(path):
    return {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}


def traces(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_the_trace_holds_the_operators_of_its_steps_only(tmp_path):
    train(ProfileWindow(section(tmp_path, profile="3:5"), 0, 10), 0, 10)
    assert traces(tmp_path) == ["profile/rank-0-steps-3-5.json"]
    found = names(tmp_path / "profile/rank-0-steps-3-5.json")
    assert {"aten::mm", "training step 3", "training step 4"} <= found
    assert not {"training step 2", "training step 5"} & found


def test_a_window_that_the_run_ends_in_is_cut(tmp_path):
    train(ProfileWindow(section(tmp_path, profile="8:99"), 0, 10), 0, 10)
    found = names(tmp_path / "profile/rank-0-steps-8-99.json")
    assert {"training step 8", "training step 9"} <= found


@pytest.mark.parametrize(("profile", "start"), [("0:2", 0), ("3:5", 3), ("3:5", 2)])
def test_a_window_may_begin_with_the_first_steps_of_a_start(profile, start, tmp_path):
    train(ProfileWindow(section(tmp_path, profile=profile), 0, 10), start, 10)
    first, end = map(int, profile.split(":"))
    found = names(tmp_path / f"profile/rank-0-steps-{first}-{end}.json")
    steps = {name for name in found if str(name).startswith("training step")}
    assert steps == {f"training step {step}" for step in range(first, end)}


def test_a_start_that_ends_before_the_window_makes_no_trace(tmp_path):
    train(ProfileWindow(section(tmp_path, profile="3:5"), 0, 10), 0, 3)
    assert traces(tmp_path) == []


def test_the_log_names_the_steps_of_the_trace(tmp_path, caplog):
    with caplog.at_level("INFO"):
        train(ProfileWindow(section(tmp_path, profile="2:9"), 0, 10), 0, 4)
    assert "the trace of steps 2 to 4 is in" in caplog.text


@pytest.mark.parametrize("start", [4, 5, 7])
def test_a_run_that_is_continued_later_makes_no_trace(start, tmp_path):
    train(ProfileWindow(section(tmp_path, profile="3:5"), 0, 10), start, 10)
    assert traces(tmp_path) == []


def test_other_ranks_are_traced_when_asked_for(tmp_path):
    train(ProfileWindow(section(tmp_path, profile="3:5"), 1, 10), 0, 10)
    assert traces(tmp_path) == []
    train(ProfileWindow(section(tmp_path, profile="3:5", profile_ranks="all"), 1, 10), 0, 10)
    assert traces(tmp_path) == ["profile/rank-1-steps-3-5.json"]


def test_without_a_window_nothing_is_traced(tmp_path):
    train(ProfileWindow(section(tmp_path), 0, 10), 0, 3)
    assert traces(tmp_path) == []


def test_a_window_after_the_end_is_refused(tmp_path):
    message = r"run\.profile: 10:12 begins at step 10, the run has only 10; allowed are START:END"
    with pytest.raises(UserError, match=message):
        ProfileWindow(section(tmp_path, profile="10:12"), 0, 10)


@pytest.mark.parametrize("value", ["5", "5:5", "5:3", "-1:3", "a:b", "1:2:3", "1 :2", "²:³"])
def test_what_is_no_window_is_refused(value):
    tree = {
        "run": {"out": "x", "steps": 10, "profile": value},
        "data": {"shards": "s", "image_size": [8, 8], "global_batch": 8},
        "model": {"encoder": {"name": "residual64"}, "branches": 3},
    }
    with pytest.raises(UserError) as error:
        parse_config(tree, "test")
    allowed = "allowed: START:END, two step numbers of which the second is larger"
    assert f"run.profile: found {value!r}; {allowed}" in str(error.value)
