"""The cells of comparisons with files of groups, numbers of branches, and runs of some tasks."""

import json

import pytest

from tests.conftest import TASKS
from trainer.compare.cells import run_cell
from trainer.compare.plan import config_of, plan_cells, remarks
from trainer.compare.rows import parse_rows
from trainer.compare.single_task import shared_by_tasks
from trainer.errors import UserError
from trainer.run_data import open_data


@pytest.fixture
def plan(rooms_yaml, tmp_path):
    def cells(recipes, *overrides, seeds=(3,), **options):
        names = recipes.split(",")
        return plan_cells(rooms_yaml, names, seeds, tmp_path / "out", overrides, **options)

    return cells


@pytest.fixture
def groups_file(tmp_path):
    def write(name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"groups": [list(TASKS[:2]), list(TASKS[2:])]}))
        return path

    return write


def described(cells):
    return [(c.row, c.seed, c.branches, str(c.folder).rpartition("out/")[2]) for c in cells]


def test_each_recipe_with_each_number_of_branches(plan):
    cells = plan("affinity,single_task,random", seeds=(3, 4), branches=(4, 1, 2))
    assert described(cells) == [
        ("affinity K=4", 3, 4, "affinity-k4/seed-3"),
        ("affinity K=4", 4, 4, "affinity-k4/seed-4"),
        ("affinity K=2", 3, 2, "affinity-k2/seed-3"),
        ("affinity K=2", 4, 2, "affinity-k2/seed-4"),
        ("single_task", 3, None, "single_task/seed-3"),
        ("single_task", 4, None, "single_task/seed-4"),
        ("random K=4", 3, 4, "random-k4/seed-3"),
        ("random K=4", 4, 4, "random-k4/seed-4"),
        ("random K=2", 3, 2, "random-k2/seed-3"),
        ("random K=2", 4, 2, "random-k2/seed-4"),
        ("multitask", 3, None, "multitask/seed-3"),
        ("multitask", 4, None, "multitask/seed-4"),
    ]
    assert [cell.index for cell in cells] == list(range(12))
    assert [config_of(cell).model.branches for cell in cells] == [
        4,
        4,
        2,
        2,
        3,
        3,
        4,
        4,
        2,
        2,
        3,
        3,
    ]
    assert {config_of(cell).grouping.recipe for cell in cells[:4]} == {"affinity"}


def test_one_branch_is_trained_once(plan):
    assert [c.row for c in plan("multitask,random", branches=(1, 2))] == ["multitask", "random K=2"]
    assert [c.row for c in plan("affinity,random", branches=(1,))] == ["multitask"]


def test_the_cells_of_shared_rows_do_not_depend_on_the_numbers(plan):
    """More numbers later: what is trained stays."""
    alone = plan("single_task")
    (shared,) = [c for c in plan("single_task,random", branches=(2, 4)) if c.row == "single_task"]
    assert shared.folder == alone[0].folder and shared.arguments == alone[0].arguments


def test_groups_of_files_take_part(plan, groups_file):
    first, other = groups_file("groups.json"), groups_file("deep/er/mine.json")
    cells = plan(f"random,fixed={first},fixed={other},fixed:again={first}", "run.steps=2")
    assert described(cells)[1:] == [
        (f"fixed={first.parent.name}", 3, None, f"fixed-{first.parent.name}/seed-3"),
        ("fixed=mine", 3, None, "fixed-mine/seed-3"),
        ("fixed=again", 3, None, "fixed-again/seed-3"),
    ]
    assert [config_of(c).grouping.groups for c in cells[1:]] == [first, other, first]
    assert cells[2].identity == {"recipe": "fixed", "seed": 3, "label": "fixed=mine"}


def test_labels_of_groups(groups_file, monkeypatch):
    path = groups_file("runs/first/result.json")
    monkeypatch.chdir(path.parent.parent.parent)
    assert parse_rows(["fixed=runs/first"])[0].label == "fixed=first"
    assert parse_rows(["fixed=runs/first/result.json"])[0].label == "fixed=first"
    monkeypatch.chdir(path.parent)
    assert parse_rows(["fixed=result.json"])[0].label == "fixed=result"
    path.rename(path.with_name("a b|c.json"))
    assert parse_rows(["fixed=a b|c.json"])[0].label == "fixed=a_b_c"


@pytest.mark.parametrize(
    ("recipes", "branches", "message"),
    [
        ("random,fixed=no.json", (), r"found 'fixed=no\.json': no such file or folder$"),
        ("fixed=", (), r"found 'fixed=': no such file or folder$"),
        ("fixed:=x", (), r"found 'fixed:=x': the label must be 1 to 100 letters"),
        ("fixed:../a=x", (), r"found 'fixed:\.\./a=x': the label must be 1 to 100 letters"),
        ("randm", (2,), r"found 'randm'; allowed, each once: .*fixed=PATH; did you mean 'random'"),
        ("random", (2, 2), r"--k: found 2,2; allowed: numbers from 1 to \d+, each once"),
        ("random", (0,), r"--k: found 0; allowed: numbers from 1"),
        ("random", (10**9,), r"--k: found 1000000000; allowed"),
    ],
)
def test_rows_that_cannot_be(recipes, branches, message, plan):
    with pytest.raises(UserError, match=message):
        plan(recipes, branches=branches)


def test_groups_of_other_tasks_are_refused_before_the_training(plan, groups_file):
    path = groups_file("mine.json")
    path.write_text(json.dumps({"groups": [list(TASKS[:2])]}))
    with pytest.raises(UserError, match=r"mine\.json: task 'segment_semantic' .* is in no group"):
        plan(f"random,fixed={path}")


def test_two_rows_of_one_label(plan, groups_file):
    first, other = groups_file("a/same.json"), groups_file("b/same.json")
    with pytest.raises(UserError, match=r"have the folder 'fixed-same'; .* fixed:LABEL=PATH"):
        plan(f"fixed={first},fixed={other}")


def test_the_comparison_sets_the_number_of_branches(plan):
    with pytest.raises(UserError, match=r"override 'model\.branches=2': compare sets this key"):
        plan("random", "model.branches=2", branches=(2, 4))
    assert config_of(plan("random", "model.branches=2")[0]).model.branches == 2


def test_an_override_of_the_groups_is_for_rows_without_a_file(plan, groups_file):
    path, other = groups_file("mine.json"), groups_file("other.json")
    cells = plan(f"fixed,fixed={path}", f"grouping.groups={other}")
    assert [config_of(cell).grouping.groups for cell in cells] == [other, path]
    with pytest.raises(UserError, match="no recipe here has it"):
        plan(f"fixed={path}", f"grouping.groups={other}")


def test_all_recipes_start_with_the_same_weights_unless_told_otherwise(plan):
    assert all(config_of(cell).model.paired_init for cell in plan("affinity,random"))
    cells = plan("affinity,random", "model.paired_init=false")
    assert not any(config_of(cell).model.paired_init for cell in cells)
    assert "other initial heads" in remarks(cells)[0]


def test_a_comparison_of_an_earlier_version_goes_on_without(plan, rooms_config):
    """Its cells have neither the key nor a label, and are read and not trained again."""
    done, waiting = plan("random,multitask", "run.steps=2")
    config = rooms_config("run.steps=2", "run.seed=3", "grouping.recipe=random", "run.resume=auto")
    lines = config.to_yaml().splitlines()
    old = [line for line in lines if "paired_init" not in line]
    assert len(old) == len(lines) - 1
    done.folder.mkdir(parents=True)
    (done.folder / "config.yaml").write_text("\n".join(old))
    record = {"recipe": "random", "seed": 3, "status": "done", "seconds": 1.0, "groups": []}
    (done.folder / "cell.json").write_text(json.dumps(record))
    again = plan("random,multitask", "run.steps=2")
    assert not any(config_of(cell).model.paired_init for cell in again)
    assert run_cell(again[0], None) == record and again[1].load()["status"] == "waiting"
    assert waiting.folder == again[1].folder


def test_runs_of_some_tasks(plan):
    cells = plan("single_task,random", "tasks.define.normal.loss=mse", single_task_chunk=4)
    assert described(cells) == [
        ("single_task", 3, None, "single_task/seed-3-part-1-of-2"),
        ("single_task", 3, None, "single_task/seed-3-part-2-of-2"),
        ("random", 3, None, "random/seed-3"),
    ]
    assert [cell.part for cell in cells] == [(1, 2), (2, 2), None]
    assert cells[0].name == "single_task, part 1 of 2"
    assert cells[0].load()["part"] == [1, 2]
    whole = open_data(config_of(plan("single_task")[0])).tasks
    parts = [open_data(config_of(cell)).tasks for cell in cells[:2]]
    assert parts == [whole[:4], whole[4:]]
    assert {config_of(cell).grouping.recipe for cell in cells[:2]} == {"single_task"}


def test_runs_of_some_tasks_have_the_weights_of_their_losses(plan):
    weights = '{"normal": 2.0, "camera_pitch": 3.0}'
    overrides = ("loss_weights.method=given", f"loss_weights.weights={weights}")
    cells = plan("single_task", *overrides, single_task_chunk=3)
    found = [config_of(cell).loss_weights.weights for cell in cells]
    assert found == [{"normal": 2.0}, {"camera_pitch": 3.0}]


def test_what_the_tasks_of_a_run_share_is_said(plan, rooms_config):
    clipped = plan("single_task,random")
    assert remarks(clipped) == [
        "The tasks of a run of single_task share the clipping of gradients (optim.max_grad_norm); "
        "with --single-task-chunk 1 each is trained alone."
    ]
    assert remarks(plan("single_task", single_task_chunk=1)) == []
    assert remarks(plan("random")) == []
    assert shared_by_tasks(rooms_config("optim.max_grad_norm=null")) == []
    options = ("model.trunk_depth=1", "optim.schedule=plateau", "loss_weights=famo")
    shared = " ".join(shared_by_tasks(rooms_config(*options)))
    assert all(
        key in shared for key in ("trunk_depth", "max_grad_norm", "schedule", "loss_weights")
    )
