import json
import shutil
from collections import Counter

import pytest

from model.bundle import save_bundle
from trainer.checkpoints.checkpoint import newest_checkpoint
from trainer.errors import UserError
from trainer.recipes.given import given_groups
from trainer.recipes.groups import heads_of_groups, random_groups, read_groups

TASKS = ("depth_zbuffer", "normal", "segment_semantic", "has_sphere", "num_solids", "camera_pitch")


def checkpoint_bytes(session):
    folder = newest_checkpoint(session.folder.checkpoints)
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def write(path, groups):
    path.write_text(json.dumps({"groups": groups}))
    return path


def test_groups_of_the_recipes(rooms_config, tmp_path):
    def groups(*overrides):
        return given_groups(rooms_config(*overrides), TASKS)

    assert groups("grouping.recipe=affinity") is groups("grouping.recipe=published") is None
    assert groups("grouping.recipe=multitask") == (tuple(range(6)),)
    assert groups("grouping.recipe=single_task") == tuple((task,) for task in range(6))
    named = [[TASKS[5], TASKS[1]], [TASKS[0], TASKS[3], TASKS[2], TASKS[4]]]
    path = write(tmp_path / "groups.json", named)
    fixed = groups("grouping.recipe=fixed", f"grouping.groups={path}")
    assert fixed == ((0, 2, 3, 4), (1, 5))
    assert heads_of_groups(fixed) == [(0, 0), (1, 1), (2, 0), (3, 0), (4, 0), (5, 1)]
    assert groups("grouping.recipe=random") == random_groups(6, 3, seed=5)


@pytest.mark.parametrize(("num_tasks", "num_branches"), [(6, 3), (3, 3), (2, 5), (40, 1)])
def test_random_groups_leave_no_branch_empty(num_tasks, num_branches):
    for seed in range(20):
        groups = random_groups(num_tasks, num_branches, seed)
        assert sorted(task for group in groups for task in group) == list(range(num_tasks))
        assert len(groups) <= num_branches
        if num_tasks >= num_branches:
            assert len(groups) == num_branches
    assert random_groups(num_tasks, num_branches, 3) == random_groups(num_tasks, num_branches, 3)


def test_groups_in_the_configuration(rooms_config):
    listed = f"[[{TASKS[5]}, {TASKS[1]}], [{', '.join((TASKS[0], *TASKS[2:5]))}]]"
    config = rooms_config("grouping.recipe=fixed", f"grouping.groups={listed}")
    assert given_groups(config, TASKS) == ((0, 2, 3, 4), (1, 5))
    with pytest.raises(UserError, match=r"groups: the configuration: task 'other' is not a task"):
        given_groups(rooms_config("grouping.recipe=fixed", "grouping.groups=[[other]]"), TASKS)
    empty = f"[[{', '.join(TASKS)}], []]"
    with pytest.raises(UserError, match=r"grouping\.groups: the configuration: group 1 is empty"):
        given_groups(rooms_config("grouping.recipe=fixed", f"grouping.groups={empty}"), TASKS)


def test_groups_of_a_run(rooms_config, train_here):
    session = train_here(rooms_config("grouping.recipe=random", "run.steps=1"))
    run = session.folder.out
    assert not (run / "result.json").exists()
    expected = random_groups(6, 3, seed=5)
    assert read_groups(run, TASKS) == expected, "of the newest checkpoint"
    other = [list(TASKS[3:]), list(TASKS[:3])]
    write(run / "result.json", other)
    assert read_groups(run, TASKS) == read_groups(run / "result.json", TASKS)
    assert read_groups(run, TASKS) == ((0, 1, 2), (3, 4, 5))
    with pytest.raises(
        UserError, match=r"grouping\.groups: .*run/result\.json: task '.*' .* is not a t"
    ):
        read_groups(run, ("a", "b"))


def test_folders_that_hold_no_groups(rooms_config, train_here, tmp_path):
    with pytest.raises(UserError, match=r"grouping\.groups: .* holds no run \(config\.yaml is mis"):
        read_groups(tmp_path, TASKS)
    overrides = ("grouping.recipe=published", "run.steps=4", "run.checkpoint_every=1")
    session = train_here(rooms_config(*overrides, "run.keep_last=9", "pruning.every=1"))
    run = session.folder.out
    assert len(read_groups(run, TASKS)) <= 3
    for step in (2, 3, 4):
        shutil.rmtree(run / "checkpoints" / f"step-{step:09d}")
    (run / "status.json").unlink(missing_ok=True)
    with pytest.raises(
        UserError, match=r"groups: .*run: 0 of 6 tasks are decided after step 1; let"
    ):
        read_groups(run, TASKS)


def test_random_groups_are_uniform():
    """Two given tasks of many share one of four branches in a quarter of the draws."""
    together = Counter()
    for seed in range(400):
        label = {t: n for n, g in enumerate(random_groups(30, 4, seed)) for t in g}
        together.update({"first": label[0] == label[1], "last": label[7] == label[29]})
    assert all(abs(count / 400 - 0.25) < 0.08 for count in together.values()), together


def test_groups_of_an_exported_model(rooms_config, train_here, tmp_path):
    session = train_here(rooms_config("grouping.recipe=random", "run.steps=1"))
    path = tmp_path / "model.safetensors"
    save_bundle(path, session.engine.module, {})
    assert read_groups(path, TASKS) == random_groups(6, 3, seed=5)
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"grouping\.groups: .*broken\.safetensors: not a readable"):
        read_groups(tmp_path / "broken.safetensors", TASKS)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([["a", "b"], ["c", "x"]], r"groups\.json: task 'x' is not a task of the run"),
        ([["a", "b"], ["c", "b"]], r"groups\.json: task 'b' is named twice"),
        ([["a"]], r"groups\.json: task 'b' \(and 1 more\) is in no group"),
        ([["a", "b", "c"], []], "without an empty group"),
        ([["a", "b", 3]], r'must hold \{"groups": \[\["task", \.\.\.\], \.\.\.\]\}'),
        ({"a": 1}, r'must hold \{"groups"'),
    ],
)
def test_groups_that_cannot_be(groups, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_groups(write(tmp_path / "groups.json", groups), ("a", "b", "c"))


def test_files_that_are_no_groups(tmp_path):
    with pytest.raises(UserError, match=r"grouping\.groups: .*none\.json: No such file"):
        read_groups(tmp_path / "none.json", ("a",))
    (tmp_path / "text.json").write_text("a, b")
    with pytest.raises(UserError, match=r"text\.json is not JSON"):
        read_groups(tmp_path / "text.json", ("a",))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"deep\.json is not JSON"):
        read_groups(tmp_path / "deep.json", ("a",))


@pytest.mark.parametrize(
    ("recipe", "num_branches"), [("multitask", 1), ("random", 3), ("single_task", 6)]
)
def test_given_groups_train_their_heads_only(recipe, num_branches, rooms_config, train_here):
    config = rooms_config(f"grouping.recipe={recipe}", "run.steps=3")
    session = train_here(config)
    grouping, module = session.learner.grouping, session.engine.module
    assert len(module.heads) == 6 and len(module.branches) == num_branches
    assert grouping.alive.shape == (6, num_branches) and grouping.alive.sum(dim=1).eq(1).all()
    assert session.learner.weights(2, 8).eq(grouping.alive.float()).all()
    assert grouping.logits.unique().numel() == 1, "nothing is learned"
    branch = sum(p.numel() for p in module.branches[0].parameters())
    heads = sum(p.numel() for p in module.stacked_heads.parameters())
    total = sum(p.numel() for p in module.parameters())
    assert total == num_branches * branch + heads
    records = [json.loads(line) for line in session.folder.metrics.read_text().splitlines()]
    assert records[0] == {
        "step": 0,
        "kind": "given",
        "heads": [list(head) for head in grouping.heads()],
    }
    assert {r["kind"] for r in records} == {"given", "train", "eval"}, "nothing is pruned"


def test_a_given_grouping_resumes_exactly(rooms_config, train_here):
    overrides = ("grouping.recipe=random", "run.steps=6", "run.checkpoint_every=3")
    session = train_here(rooms_config(*overrides))
    whole = checkpoint_bytes(session)
    lines = session.folder.metrics.read_text()
    shutil.rmtree(newest_checkpoint(session.folder.checkpoints))
    resumed = train_here(rooms_config(*overrides, "run.resume=auto"))
    assert checkpoint_bytes(resumed) == whole
    assert resumed.folder.metrics.read_text() == lines


def test_other_groups_than_the_checkpoints(rooms_config, train_here, tmp_path):
    path = write(tmp_path / "groups.json", [list(TASKS[:2]), list(TASKS[2:])])
    overrides = ("grouping.recipe=fixed", f"grouping.groups={path}", "run.steps=1")
    train_here(rooms_config(*overrides))
    write(path, [list(TASKS[:3]), list(TASKS[3:])])
    with pytest.raises(UserError, match=r"run\.out: .* was trained with other groups than .*fixed"):
        train_here(rooms_config(*overrides, "run.resume=auto"))
