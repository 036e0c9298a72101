import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.loading import load_config, parse_config
from trainer.errors import UserError

ROOT = Path(__file__).resolve().parents[4]


def tree(**sections):
    base = {
        "run": {"out": "out", "steps": 10},
        "data": {"shards": "shards", "size": [64, 48], "global_batch": 8},
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
    assert "allowed: accumulation, betas, clip" in message


def test_unknown_section_is_named_with_the_sections():
    assert re.search(r"optimizer: unknown key; allowed: data, .*run, tasks", fault(optimizer={}))


def test_unknown_key_two_levels_down():
    message = fault(grouping={"temperature": {"begin": 1.0}})
    assert "grouping.temperature.begin: unknown key; allowed: end, shape, start" in message


def test_wrong_type_names_path_value_and_what_is_allowed():
    message = fault(data={"global_batch": "many"})
    assert "data.global_batch: found 'many'; Input should be a valid integer" in message


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"run": {"steps": 0}}, "run.steps: found 0; Input should be greater than 0"),
        ({"run": {"resume": "yes"}}, "run.resume: found 'yes'; Input should be 'never' or 'auto'"),
        ({"data": {"crop": 0.0}}, "data.crop: found 0.0; Input should be greater than 0"),
        ({"pruning": {"start": 1.5}}, "pruning.begin: found 1.5; Input should be less than"),
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
    assert lines[0] == "here.yaml: 4 fault(s)" and len(lines) == 5
    for path in ("run.seed", "data.global_batch", "optim.bogus", "log.every"):
        assert sum(line.strip().startswith(f"{path}:") for line in lines) == 1


@pytest.mark.parametrize("given", [{"steps": 5, "epochs": 1.0}, {"steps": None}])
def test_exactly_one_length(given):
    assert "run: give exactly one of run.steps and run.epochs" in fault(run=given)


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"tasks": {"preset": "celeba9", "names": ["a"]}}, "at most one of tasks.preset and"),
        ({"pruning": {"start": 0.9, "finish": 0.5}}, "start 0.9 must not be after finish 0.5"),
        ({"optim": {"schedule": "multistep"}}, "milestones are needed by schedule 'multistep'"),
        ({"optim": {"milestones": [0.5]}}, "milestones are needed by schedule 'multistep'"),
        (
            {"finetune": {"steps": 5, "epochs": 1}},
            "at most one of finetune.steps and finetune.epochs",
        ),
        (
            {"finetune": {"freeze_trunk": False}},
            "finetune: freeze_trunk is false, which needs order",
        ),
        ({"optim": {"schedule": "plateau", "gamma": 1.0}}, "gamma is 1.0, min_lr is 3e-05"),
        ({"optim": {"schedule": "plateau", "lr": 1e-5}}, "at most lr, 1e-05"),
        (
            {"optim": {"schedule": "plateau"}, "data": {"stream": "a.tar"}},
            "optim.schedule is 'plateau', which needs epochs; data.tar_urls has none",
        ),
        (
            {"finetune": {"epochs": 2}, "data": {"stream": "a.tar"}},
            "finetune.epochs: data.tar_urls has no end, give finetune.steps instead",
        ),
        ({"pruning": {"threshold": 0.34}}, "must be below 1/model.branches = 0.3333"),
    ],
)
def test_values_that_contradict_each_other(sections, expected):
    assert expected in fault(**sections)


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "3.e-4", "0.3e-3", ".3e-3", "3.0e-4"])
def test_exponents_are_numbers_in_file_and_override(text, file):
    file.write_text(file.read_text() + f"optim: {{lr: {text}}}\n")
    assert load_config(file).optim.lr == 3e-4
    assert load_config(file, [f"grouping.lr={text}"]).grouping.lr == 3e-4


def test_exponent_in_a_quoted_string_stays_a_string(file):
    assert load_config(file, ["run.out='3e-4'"]).run.out == Path("3e-4")


def test_overrides_replace_the_file_and_make_sections(file):
    config = load_config(
        file,
        [
            "run.steps=7",
            "grouping.temperature.initial=4",
            "data.image_size=[8, 9]",
            "optim.max_grad_norm=null",
        ],
    )
    assert config.run.steps == 7 and config.data.image_size == (8, 9)
    assert config.grouping.temperature.initial == 4.0 and config.optim.max_grad_norm is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps=3", "override 'steps=3': expected section.key=value"),
        ("run.steps", "override 'run.steps': expected section.key=value"),
        ("run.steps.x=3", "'steps' is a value, not a section"),
        ("run.out=[1", "'[1' is not a YAML value"),
    ],
)
def test_bad_override(override, expected, file):
    with pytest.raises(UserError, match=re.escape(expected)):
        load_config(file, [override])


def test_bad_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(UserError, match="expected a mapping of sections"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("run: {out")
    with pytest.raises(UserError, match="is not YAML"):
        load_config(tmp_path / "broken.yaml")


def test_a_file_says_only_what_differs_from_its_base(file):
    (file.parent / "sub").mkdir()
    child, grandchild = file.parent / "sub/child.yaml", file.parent / "last.yaml"
    child.write_text(
        "base: ../config.yaml\nmodel: {branches: 5, encoder: {options: {channels: 8}}}"
    )
    grandchild.write_text("base: sub/child.yaml\nrun: {steps: 77}\ndata: {size: [8, 9]}")
    config = load_config(grandchild, ["model.branch_init=copies"])
    assert config.model.encoder.name == "residual64"
    assert config.model.encoder.options == {"channels": 8}
    assert (config.model.branches, config.model.branch_init) == (5, "copies")
    assert (config.run.steps, config.data.image_size, config.data.global_batch) == (77, (8, 9), 8)
    assert load_config(file).model.branches == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: none.yaml", "child.yaml -> .*none.yaml: No such file"),
        ("base: child.yaml", "child.yaml -> .*child.yaml: base leads back to a file"),
        ("base: other.yaml", "child.yaml -> .*other.yaml -> .*child.yaml: base leads back"),
        ("base: [a.yaml]", r"base is \['a.yaml'\]; allowed is the path of a YAML file"),
    ],
)
def test_a_base_that_cannot_be_used(text, expected, tmp_path):
    (tmp_path / "child.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text("base: child.yaml")
    with pytest.raises(UserError, match=expected):
        load_config(tmp_path / "child.yaml")


def test_sections_are_frozen(file):
    with pytest.raises(ValueError, match="frozen"):
        load_config(file).run.steps = 3


@given(
    lr=st.floats(1e-12, 1e3),
    milestones=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    seed=st.integers(0, 2**40),
    size=st.tuples(st.integers(1, 999), st.integers(1, 999)),
)
def test_resolved_yaml_round_trip(lr, milestones, seed, size):
    config = parse_config(
        tree(
            run={"seed": seed},
            data={"size": list(size)},
            optim={"lr": lr, "schedule": "multistep", "milestones": milestones},
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
