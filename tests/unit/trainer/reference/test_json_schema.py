"""The JSON Schema of configurations, by an independent validator."""

import json
from copy import deepcopy

import pytest
from jsonschema import Draft7Validator

from dmtg.yaml_text import parse_yaml, read_yaml
from tests.processes import ROOT
from trainer.config.loading import apply_overrides, load_config, parse_config
from trainer.errors import UserError

PATH = ROOT / "experiments" / "dmtg.schema.json"
SCHEMA = json.loads(PATH.read_text())
EXPERIMENTS = sorted(PATH.parent.glob("*.yaml"))
TREE = {
    "run": {"out": "out", "steps": 10},
    "data": {"shards": "shards", "image_size": [64, 48], "global_batch": 8},
    "model": {"encoder": {"name": "residual64"}, "branches": 3},
}


def tree_of(*overrides):
    tree = deepcopy(TREE)
    apply_overrides(tree, overrides)
    return tree


def errors_of(tree):
    return [
        f"{error.json_path}: {error.message}" for error in Draft7Validator(SCHEMA).iter_errors(tree)
    ]


def test_the_file_is_what_the_command_writes(written):
    assert written[1] == PATH.read_text(), "run: make reference"


def test_it_is_a_schema_without_references():
    Draft7Validator.check_schema(SCHEMA)
    assert '"$ref"' not in PATH.read_text() and "prefixItems" not in PATH.read_text()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_name_the_schema_and_follow_it(path):
    assert path.read_text().startswith(f"# yaml-language-server: $schema={PATH.name}\n")
    assert errors_of(read_yaml(path)) == []
    resolved = load_config(path).model_dump(mode="json")
    assert errors_of(resolved) == []


RIGHT = [
    "data.image_size=64",
    "model.encoder=xception",
    "model.compile=reduce-overhead",
    "optim.schedule=plateau",
    "optim.schedule={name: multistep, milestones: [0.5]}",
    "grouping.warmup=0.2",
    "grouping.recipe=published",
    "tasks.define={a: {kind: binary, loss: ''}}",
    "run.max_minutes=null",
    "model.encoder={name: backbone, options: {model_type: resnet, depths: [1]}}",
    "model.encoder={name: residual64, options: {channels: 8}}",
]


@pytest.mark.parametrize("override", RIGHT)
def test_right_values(override):
    tree = tree_of(override)
    parse_config(deepcopy(tree), "here.yaml")
    assert errors_of(tree) == []


WRONG = [
    "run.steps=many",
    "run.steps=0",
    "run.steps=2.5",
    "run.resume=nevr",
    "run.out=5",
    "data.image_size=[64]",
    "data.image_size=[64, 64, 3]",
    "data.image_size=0",
    "data.crop=0",
    "data.batch_size=8",
    "data.shards=5",
    "data.source=csv",
    "model.encoder=resnet18",
    "model.encoder.name=vgg",
    "model.encoder={options: {}}",
    "model.decoder=resise",
    "model.compile=fast",
    "modle.branches=3",
    "tasks.preset=celeba",
    "tasks.names=hat",
    "tasks.define={a: {kind: binry}}",
    "tasks.define={a: {knd: binary}}",
    "tasks.define={a: {mean: 0.5}}",
    "grouping.recipe=afinity",
    "grouping.lr=0.1",
    "grouping.recipe=fixed",
    "optim.lr=0",
    "optim.betas=[0.9]",
    "optim.betas=[0.9, 2]",
    "optim.schedule=cosin",
    "optim.schedule=multistep",
    "optim.schedule={gamma: 0.1}",
    "optim.schedule={name: cosine, gamma: 0.1}",
    "optim.schedule={name: multistep, milestones: []}",
    "plugins=breaks",
]


@pytest.mark.parametrize("override", WRONG)
def test_editors_and_the_program_refuse_the_same(override):
    tree = tree_of(override)
    assert errors_of(tree)
    with pytest.raises(UserError):
        parse_config(tree, "here.yaml")


@pytest.mark.parametrize("section", ["run", "data", "model"])
def test_required_keys(section):
    tree = {name: value for name, value in tree_of().items() if name != section}
    assert errors_of(tree) and not errors_of({**tree, "base": "other.yaml"})
    tree = {**TREE, section: {}}
    assert errors_of(tree) and not errors_of({**tree, "base": "other.yaml"})


@pytest.mark.parametrize(
    "override",
    [
        "grouping={recipe: mine, anything: 3}",
        "model.encoder=mine",
        "model.encoder={name: mine, options: {a: 1}}",
        "model.decoder=mine",
        "data.source=mine",
        "tasks.define={a: {kind: mine, loss: mine, metric: mine}}",
        "grouping={recipe: published, sampler: mine}",
    ],
)
@pytest.mark.parametrize("opened", [{"plugins": ["my_package"]}, {"base": "other.yaml"}])
def test_names_of_plug_ins(override, opened):
    """A file that names plug-ins, or a base that may do so, can have names that are not known."""
    path, _, value = override.partition("=")
    tree = tree_of(override) if "." in path else {**tree_of(), path: parse_yaml(value)}
    assert errors_of(tree)
    assert not errors_of({**tree, **opened})


def test_the_keys_of_another_recipe_are_refused_also_beside_plug_ins():
    tree = {**tree_of("grouping.recipe=published", "grouping.warmup=0.1"), "plugins": ["mine"]}
    assert errors_of(tree)


def test_every_key_has_its_documentation():
    steps = SCHEMA["properties"]["run"]["properties"]["steps"]
    assert steps["description"].startswith("Length of the run in optimizer steps")
    lr = SCHEMA["properties"]["optim"]["properties"]["lr"]
    assert lr == {
        "type": "number",
        "exclusiveMinimum": 0.0,
        "description": "Learning rate of trunk and branches.",
        "default": 0.001,
    }
