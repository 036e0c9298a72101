"""The evidence for groups in files and output of runs, by the commands that a user types."""

import json
import shutil

import pytest

from trainer import Callback, Trainer

RECIPE = "affinity"
RUN = (
    "run.steps=60", "run.checkpoint_every=30", "run.keep_last=9", f"grouping.recipe={RECIPE}",
    "grouping.warmup=0.2", "pruning.begin=0.5", "pruning.end=0.95", "finetune.steps=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def first(dmtg, rooms_yaml, tmp_path_factory):
    """A run with warm-up, groups, and fine-tuning of one branch after the other."""
    out = tmp_path_factory.mktemp("evidence") / "run"
    end = dmtg("train", rooms_yaml, f"run.out={out}", *RUN)
    assert end.code == 0, end.stderr
    return out, end


def written(out):
    return json.loads((out / "groups.json").read_text())


def test_every_task_has_its_evidence(first, dmtg):
    out, end = first
    found = written(out)
    assert len(found["tasks"]) == 6 and -1 <= found["agreement"] <= 1
    for task in found["tasks"].values():
        assert task["choices"] == 1 and 0 <= task["firmness"] <= 1
        assert task["standard_error"] > 0
        assert task["significant"] == (task["margin"] > 3 * task["standard_error"])
    groups = [sorted(t for t, v in found["tasks"].items() if v["branch"] == k) for k in range(3)]
    assert sorted(filter(None, groups)) == sorted(map(sorted, found["groups"]))
    shown = dmtg("groups", out, "--json")
    assert json.loads(shown.stdout.splitlines()[-1]) == found
    result = json.loads((out / "result.json").read_text())
    assert result["agreement"] == found["agreement"] and result["groups"] == found["groups"]
    assert result["evidence"].keys() == found["tasks"].keys()
    better = sum(task["significant"] for task in found["tasks"].values())
    text = " ".join(end.stdout.split())
    assert f"margins: {better} of 6 tasks: the chosen branch is better than the best" in text
    assert "The groups are " in text and f"at {found['agreement'] + 0:.2f}" in text
    assert "gain margin firm" in text and "groups.json" in text
    assert all(len(line) <= 80 for line in dmtg("groups", out).stdout.splitlines())


def test_fine_tuning_leaves_the_evidence_of_the_search(first, dmtg, tmp_path):
    """The checkpoint after step 60 is that of the end of the search; a status is not there."""
    out = tmp_path / "run"
    shutil.copytree(first[0], out)
    (out / "status.json").unlink()
    for folder in (out / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > 60:
            shutil.rmtree(folder)
    found = json.loads(dmtg("groups", out, "--json").stdout.splitlines()[-1])
    assert found["step"] == 60
    assert {**found, "step": None} == {**written(first[0]), "step": None}


@pytest.mark.parametrize("step", [30, 60])
def test_a_resumed_run_ends_with_the_same_evidence(first, step, dmtg, rooms_yaml, tmp_path):
    """Resumed before heads are switched off, and before fine-tuning."""
    out = tmp_path / "run"
    shutil.copytree(first[0], out)
    for folder in (out / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    for name in ("groups.json", "result.json", "status.json"):
        (out / name).unlink()
    end = dmtg("train", rooms_yaml, f"run.out={out}", *RUN, "run.resume=auto")
    assert end.code == 0, end.stderr
    for name in ("groups.json", "result.json"):
        assert (out / name).read_bytes() == (first[0] / name).read_bytes()


def test_its_groups_are_given_to_another_run_which_has_no_evidence(
    first, dmtg, rooms_yaml, tmp_path
):
    out, given = tmp_path / "run", first[0] / "groups.json"
    end = dmtg(
        "train", rooms_yaml, f"run.out={out}", "grouping.recipe=fixed", f"grouping.groups={given}",
        "run.steps=2",
    )  # fmt: skip
    assert end.code == 0, end.stderr
    found = written(out)
    assert sorted(map(sorted, found["groups"])) == sorted(map(sorted, written(first[0])["groups"]))
    assert found["agreement"] is None
    names = ("margin", "standard_error", "significant", "firmness")
    assert all(task[name] is None for task in found["tasks"].values() for name in names)
    assert "margin" not in end.stdout and "firm" not in end.stdout
    end = dmtg("groups", out)
    assert end.code == 0 and "margin" not in end.stdout


class StopAt(Callback):
    def on_step_end(self, session):
        if session.step == 50:
            session.request_stop()


def test_a_run_that_is_stopped_shows_it_and_writes_no_result(rooms_yaml, dmtg, tmp_path):
    """Its groups may still change; `dmtg groups` has them at any time."""
    overrides = [f"run.out={tmp_path / 'run'}", *RUN]
    result = Trainer(rooms_yaml, overrides, callbacks=[StopAt()]).train()
    assert not result.finished and result.recipe == RECIPE
    assert all(each.firmness is not None for each in result.evidence.values())
    assert -1 <= result.agreement <= 1
    assert not (tmp_path / "run" / "groups.json").exists()
    found = json.loads(dmtg("groups", tmp_path / "run", "--json").stdout.splitlines()[-1])
    assert found["agreement"] == result.agreement
    assert found["tasks"]["normal"]["margin"] == result.evidence["normal"].margin
