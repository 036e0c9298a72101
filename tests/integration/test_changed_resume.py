"""A run that is resumed with other values, and what its end says each time."""

import json
import shutil

import pytest

from trainer.monitoring.status import read_status
from trainer.results.groups import RunGroups, read_groups

RUN = (
    "run.steps=10", "run.checkpoint_every=5", "run.keep_last=9", "log.every=1", "pruning.every=1",
)  # fmt: skip
OTHER = ("run.steps=14", "optim.lr=1e-2", "optim.schedule=constant", "log.every=2")


@pytest.fixture(scope="module")
def finished(main_script, rooms_yaml, tmp_path_factory):
    out = tmp_path_factory.mktemp("changed") / "run"
    end = main_script("--config", rooms_yaml, f"run.out={out}", *RUN)
    assert end.code == 0, end.stderr
    return out, end


@pytest.fixture
def resumed(finished, main_script, rooms_yaml, tmp_path):
    """Resume a copy of the run, at its end or after five steps."""

    def run(*overrides, name="run", at=10):
        out = tmp_path / name
        shutil.copytree(finished[0], out)
        if at == 5:
            shutil.rmtree(out / "checkpoints" / "step-000000010")
        arguments = ("--config", rooms_yaml, f"run.out={out}", *RUN, *overrides)
        return out, main_script(*arguments, "run.resume=auto")

    return run


def train_records(out):
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r for r in records if r["kind"] == "train"}


def shown(end, out):
    return end.stdout.replace(str(out), "RUN")


def test_a_finished_run_says_the_same_again(finished, resumed):
    out, end = resumed()
    assert end.code == 0, end.stderr
    assert shown(end, out) == shown(finished[1], finished[0])
    text = shown(end, out)
    assert "RUN: finished after 10 steps\n" in text and "groups: 6 tasks on " in text
    assert "evaluation beside the best constant prediction: " in text
    assert "next:  dmtg export RUN --out RUN/model.safetensors\n" in text
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("at", [5, 10])
def test_a_longer_run_with_another_learning_rate(at, finished, resumed):
    out, end = resumed(*OTHER, at=at)
    assert end.code == 0, end.stderr
    for change in (
        "run.steps was 10, is 14", "optim.lr was 0.0003, is 0.01", "log.every was 1, is 2",
        "optim.schedule.name was 'cosine', is 'constant'",
    ):  # fmt: skip
        assert f"from step {at} on: {change}" in end.stderr
    before, after = train_records(finished[0]), train_records(out)
    assert {step: after[step] for step in range(1, at + 1)} == {
        step: before[step] for step in range(1, at + 1)
    }
    later = [step for step in after if step > at]
    assert later == [step for step in range(at + 1, 15) if step % 2 == 0]
    assert all(after[step]["lr"] == 0.01 for step in later)
    # The temperature falls to its end at 0.8 of the first ten steps, as before.
    for step in later:
        if step in before:
            assert after[step]["temperature"] == before[step]["temperature"]
    assert after[14]["heads"] == 6


def test_a_changed_run_may_be_stopped_and_continued(resumed, main_script, rooms_yaml):
    """It has the same curve as one that was not stopped."""
    whole, end = resumed(*OTHER, name="whole", at=5)
    assert end.code == 0, end.stderr
    part, end = resumed(*OTHER, "run.max_minutes=1e-9", name="part", at=5)
    assert "preempted by run.max_minutes after step 6" in end.stderr
    assert f"continue: dmtg train {rooms_yaml} run.out={part} " in end.stdout
    arguments = (f"run.out={part}", *RUN, *OTHER, "run.resume=auto")
    end = main_script("--config", rooms_yaml, *arguments)
    assert end.code == 0 and "optim.lr was" not in end.stderr, end.stderr
    for name in ("metrics.jsonl", "checkpoints/step-000000014/weights.safetensors"):
        assert (part / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize(
    ("at", "steps", "message"),
    [
        (10, 9, "run.steps: 9 steps in all, the last start of this run had 10; 10 are done"),
        (5, 4, "run.steps: 4 steps in all, the last start of this run had 10; 5 are done"),
        (5, 7, "its groups are decided after step 8 (pruning.end of the 10 steps of its first"),
    ],
)
def test_a_run_that_would_be_too_short(at, steps, message, finished, resumed):
    out, end = resumed(f"run.steps={steps}", at=at)
    assert end.code == 2 and message in end.stderr
    assert (out / "config.yaml").read_bytes() == (finished[0] / "config.yaml").read_bytes()


def test_a_shorter_run(resumed):
    out, end = resumed("run.steps=8", at=5)
    assert end.code == 0, end.stderr
    assert max(train_records(out)) == 8
    # The last step decides the groups, after its record.
    assert train_records(out)[8]["heads"] > 6
    assert read_groups(out).num_decided == 6
    assert RunGroups.from_json(read_status(out)["grouping"]) == read_groups(out)


def test_a_plateau_begins_where_it_is_chosen(resumed):
    out, end = resumed("run.steps=14", "optim.schedule=plateau", at=5)
    assert end.code == 0, end.stderr
    assert train_records(out)[6]["lr"] == pytest.approx(3e-4)


def test_groups_and_status_of_the_run(finished, dmtg):
    out = finished[0]
    end = dmtg("groups", out, "--json")
    assert end.code == 0, end.stderr
    found = json.loads(end.stdout.splitlines()[-1])
    assert found["groups"] == json.loads((out / "result.json").read_text())["groups"]
    assert found["decided"] == 6 and found["step"] == 10
    text = dmtg("groups", out).stdout.partition("\n\n")[0]
    assert text.startswith("after step 10\ngroups: 6 tasks on ")
    assert text.removeprefix("after step 10\n") in dmtg("status", out).stdout
    assert text.removeprefix("after step 10\n") in finished[1].stdout


def test_groups_without_a_status_are_those_of_the_checkpoint(finished, dmtg, tmp_path):
    """As of a run of an older version."""
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    expected = dmtg("groups", out).stdout
    (out / "status.json").unlink()
    assert dmtg("groups", out).stdout == expected
    for step in (5, 10):
        shutil.rmtree(out / "checkpoints" / f"step-{step:09d}")
    end = dmtg("groups", out)
    assert end.code == 2 and "no groups yet" in end.stderr
    end = dmtg("groups", tmp_path)
    assert end.code == 2 and "holds no run" in end.stderr
