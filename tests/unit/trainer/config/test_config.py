import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config.loading import load_config, parse_config
from trainer.errors import UserError

ROOT = Path(__file__).resolve().parents[4]


def tree(**sections):
    base = {
        "run": {"out": "out", "steps": 10},
        "data": {"shards": "shards", "image_size": [64, 48], "global_batch": 8},
        "model": {"encoder": {"name": "residual64"}, "branches": 3},
    }
    return {**base, **{name: {**base.get(name, {}), **own} for name, own in sections.items()}}


def fault(**sections):
    with pytest.raises(UserError) as error:
        parse_config(tree(**sections), "here.yaml")
    return str(error.value)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree()))
    return path


def test_unknown_key_is_named_with_what_is_allowed():
    message = fault(optim={"learning_rate": 1e-3})
    assert "optim.learning_rate: unknown key" in message
    assert "allowed: betas, gradient_accumulation_steps, heads_lr" in message


def test_unknown_section_is_named_with_the_sections():
    assert re.search(
        r"optimizer: unknown key; allowed: data, .*plugins, .*run, tasks", fault(optimizer={})
    )


def test_unknown_key_two_levels_down():
    message = fault(grouping={"recipe": "published", "temperature": {"begin": 1.0}})
    assert "grouping.temperature.begin: unknown key; allowed: final, initial, shape" in message


def test_wrong_type_names_path_value_and_what_is_allowed():
    message = fault(data={"global_batch": "many"})
    assert "data.global_batch: found 'many'; allowed: a whole number from 1 to 10^12" in message


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        (
            {"run": {"steps": 0}},
            "run.steps: found 0; allowed: a whole number from 1 to 10^12, or null",
        ),
        ({"run": {"resume": "yes"}}, "run.resume: found 'yes'; allowed: never or auto"),
        ({"data": {"crop": 0.0}}, "data.crop: found 0.0; allowed: a number above 0 and at most 1"),
        ({"pruning": {"begin": 1.5}}, "pruning.begin: found 1.5; allowed: a number from 0 to 1"),
        ({"model": {"branches": 2.5}}, "model.branches: found 2.5"),
        ({"optim": {"betas": [0.9, 2]}}, "optim.betas.1: found 2"),
    ],
)
def test_value_out_of_range(sections, expected):
    assert expected in fault(**sections)


def test_missing_value():
    with pytest.raises(UserError, match=r"data\.image_size: required and not given"):
        parse_config(tree() | {"data": {"shards": "s", "global_batch": 8}}, "here.yaml")


def test_all_faults_come_in_one_message_a_line_each():
    message = fault(
        run={"seed": -1}, data={"global_batch": "x"}, optim={"bogus": 1}, log={"every": 0}
    )
    lines = message.splitlines()
    assert lines[0] == "here.yaml: 4 error(s)" and len(lines) == 5
    for path in ("run.seed", "data.global_batch", "optim.bogus", "log.every"):
        assert sum(line.strip().startswith(f"{path}:") for line in lines) == 1


@pytest.mark.parametrize("given", [{"steps": 5, "epochs": 1.0}, {"steps": None}])
def test_exactly_one_length(given):
    assert "run: give exactly one of run.steps and run.epochs" in fault(run=given)


def test_algorithms_are_not_chosen_by_time_in_a_deterministic_run():
    message = fault(run={"deterministic": True, "cudnn_benchmark": True})
    assert "run: give at most one of run.deterministic and run.cudnn_benchmark" in message


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"tasks": {"preset": "celeba9", "names": ["a"]}}, "at most one of tasks.preset and"),
        (
            {"pruning": {"begin": 0.9, "end": 0.5}},
            "pruning.begin: found 0.9; must not be after pruning.end, 0.5",
        ),
        (
            {"finetune": {"steps": 5, "epochs": 1}},
            "at most one of finetune.steps and finetune.epochs",
        ),
        (
            {"finetune": {"freeze_trunk": False}},
            "finetune.freeze_trunk: found false, which needs finetune.order",
        ),
        (
            {"optim": {"schedule": {"name": "plateau", "gamma": 1.0}}},
            "optim.schedule.gamma: found 1.0, and min_lr 3e-05",
        ),
        ({"optim": {"schedule": "plateau", "lr": 1e-5}}, "at most optim.lr, 1e-05"),
        (
            {"optim": {"schedule": "plateau"}, "data": {"tar_urls": "a.tar"}},
            "optim.schedule: found 'plateau', which needs epochs; data.tar_urls has none",
        ),
        (
            {"finetune": {"epochs": 2}, "data": {"tar_urls": "a.tar"}},
            "finetune.epochs: data.tar_urls has no end, give finetune.steps instead",
        ),
        ({"pruning": {"threshold": 0.34}}, "must be below 1/model.branches = 0.3333"),
    ],
)
def test_values_that_contradict_each_other(sections, expected):
    assert expected in fault(**sections)


def test_sections_are_frozen(file):
    with pytest.raises(ValueError, match="frozen"):
        load_config(file).run.steps = 3


@given(
    lr=st.floats(1e-12, 1e3),
    milestones=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    seed=st.integers(0, 2**40),
    size=st.tuples(st.integers(1, 999), st.integers(1, 999)),
)
@settings(deadline=None)
def test_resolved_yaml_round_trip(lr, milestones, seed, size):
    config = parse_config(
        tree(
            run={"seed": seed},
            data={"image_size": list(size)},
            optim={"lr": lr, "schedule": {"name": "multistep", "milestones": milestones}},
            tasks={"define": {"a": {"kind": "binary"}}},
        ),
        "here.yaml",
    )
    assert parse_config(yaml.safe_load(config.to_yaml()), "resolved") == config


EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))


def test_there_are_experiments():
    assert EXPERIMENTS


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_every_experiment_loads(path):
    assert load_config(path).run.out != Path()
