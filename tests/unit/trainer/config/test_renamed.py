"""Keys of version 1: messages with the new names, and the migration of saved configurations."""

from pathlib import Path

import pytest
import yaml

from trainer.config.loading import parse_config
from trainer.config.renamed import RENAMED, migrated
from trainer.errors import UserError
from trainer.run_folder import RunFolder

VERSION1 = Path(__file__).resolve().parents[3] / "fixtures" / "version1"


def tree_of(**sections):
    tree = {
        "run": {"out": "out", "steps": 10},
        "data": {"shards": "shards", "image_size": [64, 48], "global_batch": 8},
        "model": {"encoder": {"name": "residual64"}, "branches": 3},
    }
    return {**tree, **{name: {**tree.get(name, {}), **s} for name, s in sections.items()}}


def errors_of(tree):
    with pytest.raises(UserError) as error:
        parse_config(tree, "here.yaml")
    first, *lines = str(error.value).splitlines()
    assert first == f"here.yaml: {len(lines)} error(s)"
    return [line.strip() for line in lines]


def nested(path, value):
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_key_is_an_error_that_names_the_new_one(old):
    sections = nested(old, 1)
    if old.startswith("grouping."):
        sections["grouping"]["recipe"] = "published"
    assert errors_of(tree_of(**sections)) == [f"{old}: renamed to {RENAMED[old]}"]


def test_a_required_key_by_its_old_name_is_one_error():
    tree = tree_of()
    tree["data"] = {"shards": "s", "size": [8, 8], "global_batch": 8}
    assert errors_of(tree) == ["data.size: renamed to data.image_size"]


def test_the_old_name_of_the_default_recipe():
    message = "grouping.recipe: 'default' is renamed to 'affinity'"
    assert errors_of(tree_of(grouping={"recipe": "default"})) == [message]


def test_all_old_keys_of_a_file_are_named_at_once():
    tree = tree_of(
        optim={"clip": 5.0, "warmup": 3, "gamma": 0.5},
        grouping={"recipe": "grad_tag", "search": {"every": 2, "projection": 8}},
        eval={"batch": 3},
    )
    assert errors_of(tree) == [
        "grouping.search.every: renamed to grouping.search_every",
        "grouping.search.projection: renamed to grouping.projection",
        "optim.clip: renamed to optim.max_grad_norm",
        "optim.warmup: renamed to optim.warmup_steps",
        "optim.gamma: renamed to optim.schedule.gamma",
        "eval.batch: renamed to eval.batch_size",
    ]


COMMON = {
    "run": {
        "out": "run", "steps": 40, "checkpoint_every": 4, "keep_every": 4,
    },
    "data": {"shards": "planted", "image_size": [1, 1], "global_batch": 16, "workers": 0},
    "model": {"encoder": {"name": "mlp", "options": {"widths": [32, 4]}}, "branches": 2},
    "optim": {"name": "adam", "schedule": "constant", "max_grad_norm": 5.0},
    "log": {"every": 4, "trackers": [], "progress": False},
}  # fmt: skip
RUNS = {
    "affinity": {
        "grouping": {"recipe": "affinity", "warmup": 0.2},
        "pruning": {"every": 4},
    },
    "published": {
        "grouping": {"recipe": "published", "lr": 0.05, "sampled_heads": 1},
        "pruning": {"every": 4, "begin": 0.5},
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_a_saved_run_is_the_run_with_the_new_keys(name):
    saved = RunFolder(VERSION1 / name).load_config()
    text = (VERSION1 / name / "config.yaml").read_text()
    assert "clip: 5.0" in text and "plugins" not in text, "as version 1 saved it"
    assert saved == parse_config({**COMMON, **RUNS[name]}, "test")


def test_a_saved_run_can_be_continued(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "config.yaml").write_text((VERSION1 / "affinity" / "config.yaml").read_text())
    tree = {**COMMON, **RUNS["affinity"]}
    tree["run"] = {**tree["run"], "resume": "auto", "out": str(tmp_path)}
    folder.check(parse_config(tree, "test"))
    with pytest.raises(UserError, match=r"grouping\.warmup was 0\.2, is 0\.1"):
        folder.check(parse_config({**tree, "grouping": {"recipe": "affinity"}}, "test"))
    with pytest.raises(UserError, match=r"grouping\.recipe was 'affinity', is 'tag'"):
        folder.check(parse_config({**tree, "grouping": {"recipe": "tag"}}, "test"))


def version1(recipe, **optim):
    """The affinity fixture with other values in the keys of every recipe and schedule."""
    tree = yaml.safe_load((VERSION1 / "affinity" / "config.yaml").read_text())
    tree["grouping"] = {
        "recipe": recipe, "groups": "g.json" if recipe == "fixed" else None, "sampled_heads": 3,
        "sampler": "softmax", "noise": "shared", "start": "gaussian", "init": 2.0,
        "init_noise": 0.5, "lr": 0.25,
        "temperature": {"start": 4.0, "end": 1.0, "shape": "linear"},
        "entropy": 0.75, "entropy_form": "plain",
        "affinity": {
            "warmup": 0.3, "branches": "all", "start_probability": 0.6, "average": 0.9,
            "temperature": 0.2,
        },
        "search": {"every": 5, "steps": 9, "projection": 64},
    }  # fmt: skip
    tree["optim"] |= optim
    tree["data"] |= {"streams": 4}
    tree["model"] |= {"init": "copies", "start": ["a"], "checkpoint_branches": True}
    return parse_config(migrated(tree), "saved")


GROUPINGS = {
    "default": {
        "recipe": "affinity", "sampled_heads": 3, "warmup": 0.3, "num_groups": "all",
        "initial_probability": 0.6, "loss_decay": 0.9, "temperature": 0.2,
    },
    "published": {
        "recipe": "published", "sampled_heads": 3, "sampler": "softmax", "noise": "shared",
        "logits_init": "gaussian", "logits_value": 2.0, "logits_noise": 0.5, "lr": 0.25,
        "temperature": {"initial": 4.0, "final": 1.0, "shape": "linear"}, "entropy": 0.75,
        "entropy_form": "plain",
    },
    "fixed": {"recipe": "fixed", "groups": "g.json"},
    "random": {"recipe": "random"},
    "multitask": {"recipe": "multitask"},
    "single_task": {"recipe": "single_task"},
    "tag": {"recipe": "tag", "search_every": 5, "search_steps": 9},
    "grad_tag": {
        "recipe": "grad_tag", "search_every": 5, "search_steps": 9, "projection": 64,
    },
}  # fmt: skip


@pytest.mark.parametrize("recipe", GROUPINGS)
def test_keys_of_the_runs_recipe_are_kept_and_those_of_others_dropped(recipe):
    config = version1(recipe)
    assert config.grouping.model_dump(mode="json") == GROUPINGS[recipe]
    assert config.data.num_streams == 4
    model = config.model
    assert (model.branch_init, model.activation_checkpointing) == ("copies", True)
    assert [str(path) for path in model.init_from] == ["a"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", {}),
        ("cosine", {}),
        ("multistep", {"milestones": [0.25, 0.5], "gamma": 0.1}),
        ("plateau", {"gamma": 0.1, "patience": 1, "threshold": 0.2, "min_lr": 1e-5}),
    ],
)
def test_keys_of_the_runs_schedule_are_kept_and_those_of_others_dropped(name, expected):
    milestones = [0.25, 0.5] if name == "multistep" else []
    values = {"gamma": 0.1, "patience": 1, "threshold": 0.2, "min_lr": 1e-5, "warmup": 7}
    optim = version1("default", schedule=name, milestones=milestones, **values).optim
    assert optim.schedule.model_dump(mode="json") == {"name": name, **expected}
    assert (optim.warmup_steps, optim.max_grad_norm) == (7, 5.0)
