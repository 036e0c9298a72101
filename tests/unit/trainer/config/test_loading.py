"""Configurations from YAML files, bases, overrides and plug-ins."""

import re
from pathlib import Path

import pytest
import yaml

from dmtg.plugins import RECIPES
from trainer.config.loading import apply_overrides, load_config
from trainer.errors import UserError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.yaml"
    tree = {
        "run": {"out": "out", "steps": 10},
        "data": {"shards": "shards", "image_size": [64, 48], "global_batch": 8},
        "model": {"encoder": {"name": "residual64"}, "branches": 3},
    }
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "3.e-4", "0.3e-3", ".3e-3", "3.0e-4"])
def test_exponents_are_numbers_in_file_and_override(text, file):
    file.write_text(file.read_text() + f"optim: {{lr: {text}}}\n")
    assert load_config(file).optim.lr == 3e-4
    assert load_config(file, [f"finetune.lr={text}"]).finetune.lr == 3e-4


def test_exponent_in_a_quoted_string_stays_a_string(file):
    assert load_config(file, ["run.out='3e-4'"]).run.out == Path("3e-4")


def test_overrides_replace_the_file_and_make_sections(file):
    config = load_config(
        file,
        [
            "run.steps=7",
            "grouping.recipe=published",
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
        ("run.steps.x=3", "'run.steps' is a value, not a section"),
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
    grandchild.write_text("base: sub/child.yaml\nrun: {steps: 77}\ndata: {image_size: [8, 9]}")
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


def test_a_mapping_of_an_override_replaces_the_files(file):
    file.write_text(file.read_text() + "tasks: {define: {a: {unit: m}}}\n")
    assert load_config(file, ["tasks.define={b: {unit: s}}"]).tasks.define == {"b": {"unit": "s"}}


PUBLISHED = "grouping: {recipe: published, lr: 0.5, temperature: {initial: 4}}\n"
MULTISTEP = "optim: {lr: 1, schedule: {name: multistep, milestones: [0.5]}}\n"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["grouping.recipe=published"], {"lr": 0.5, "noise": "per_rank"}),
        (["grouping.lr=0.1", "grouping.temperature.final=1"], {"lr": 0.1}),
        (["grouping.recipe=affinity"], {"temperature": 0.1}),
        (["grouping.warmup=0.3", "grouping.recipe=affinity"], {"warmup": 0.3}),
        (["grouping.recipe=random"], {"recipe": "random"}),
    ],
)
def test_another_recipe_drops_the_keys_of_the_files(overrides, expected, file):
    """In any order of the overrides; with the same recipe the file's keys stay."""
    file.write_text(file.read_text() + PUBLISHED)
    grouping = load_config(file, overrides).grouping.model_dump()
    assert expected.items() <= grouping.items()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"name": "multistep", "milestones": (0.5,), "gamma": 0.5}),
        (["optim.schedule.gamma=0.1"], {"name": "multistep", "milestones": (0.5,), "gamma": 0.1}),
        (["optim.schedule=constant"], {"name": "constant"}),
        (["optim.schedule.gamma=0.1", "optim.schedule=plateau"], {"gamma": 0.1, "patience": 3}),
        (["optim.schedule.name=plateau"], {"name": "plateau", "min_lr": 3e-5}),
        (["optim.schedule={name: plateau, patience: 1}"], {"name": "plateau", "patience": 1}),
    ],
)
def test_another_schedule_drops_the_keys_of_the_files(overrides, expected, file):
    file.write_text(file.read_text() + MULTISTEP)
    schedule = load_config(file, overrides).optim.schedule.model_dump()
    assert expected.items() <= schedule.items()


@pytest.mark.parametrize(
    ("text", "schedule", "recipe"),
    [
        ("optim: {schedule: cosine}", {"name": "cosine"}, "published"),
        ("optim: {schedule: {name: constant}}", {"name": "constant"}, "published"),
        ("optim: {schedule: {gamma: 0.1}}", {"name": "multistep", "gamma": 0.1}, "published"),
        ("grouping: {recipe: single_task}", {"name": "multistep"}, "single_task"),
        ("grouping: {recipe: published}", {"name": "multistep"}, "published"),
    ],
)
def test_a_file_over_its_base_in_unions(text, schedule, recipe, file):
    file.write_text(file.read_text() + PUBLISHED + MULTISTEP)
    (file.parent / "child.yaml").write_text(f"base: config.yaml\n{text}\n")
    config = load_config(file.parent / "child.yaml")
    assert config.grouping.recipe == recipe
    assert recipe != "published" or config.grouping.lr == 0.5
    assert config.optim.lr == 1.0
    assert schedule.items() <= config.optim.schedule.model_dump().items()


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ("{name: xception}", {}),
        ("{name: xception, options: {channels: 64}}", {"channels": 64}),
        ("{options: {model_type: convnextv2}}", {"model_type": "convnextv2"}),
        ("{name: timm, options: {model: convnext_atto}}", {"model": "convnext_atto"}),
        ("{options: {depths: [1, 1, 2, 1]}}", {"model_type": "resnet", "depths": [1, 1, 2, 1]}),
        ("{name: backbone, pretrained: x}", {"model_type": "resnet", "depths": [1, 1, 1, 1]}),
    ],
)
def test_another_encoder_over_that_of_the_base_has_its_own_options(over, expected, file):
    tree = yaml.safe_load(file.read_text())
    resnet = {"model_type": "resnet", "depths": [1, 1, 1, 1]}
    tree["model"]["encoder"] = {"name": "backbone", "options": resnet}
    file.write_text(yaml.safe_dump(tree))
    child = file.parent / "child.yaml"
    child.write_text(f"base: {file.name}\nmodel: {{encoder: {over}}}\n")
    assert load_config(child).model.encoder.options == expected
    overrides = ["model.encoder.options.channels=64", "model.encoder.name=xception"]
    assert load_config(file, overrides).model.encoder.options == {"channels": 64}


def test_keys_over_a_schedule_that_the_base_names_in_short(file):
    file.write_text(file.read_text() + "optim: {schedule: plateau}\n")
    (file.parent / "child.yaml").write_text("base: config.yaml\noptim: {schedule: {patience: 7}}\n")
    for config in (
        load_config(file, ["optim.schedule.patience=7"]),
        load_config(file.parent / "child.yaml"),
    ):
        assert (config.optim.schedule.name, config.optim.schedule.patience) == ("plateau", 7)


def test_overrides_of_a_tree_without_sections():
    tree = {}
    apply_overrides(tree, ["grouping.warmup=0.3", "optim.schedule.gamma=1"])
    assert tree == {"grouping": {"warmup": 0.3}, "optim": {"schedule": {"gamma": 1}}}


PLUGIN = """
from typing import ClassVar
from dmtg.plugins import register_recipe
from trainer.config.grouping import GroupingSection
from trainer.recipes.given import GivenGroups

class PairsSection(GroupingSection):
    size: int = 2
    start: int = 0

@register_recipe("{name}")
class Pairs(GivenGroups):
    section: ClassVar = PairsSection

    @classmethod
    def groups(cls, config, tasks):
        size = config.grouping.size
        return tuple(tuple(range(n, min(n + size, len(tasks)))) for n in range(0, len(tasks), size))
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Writes a module that registers a recipe of the module's name."""

    def write(name):
        (tmp_path / f"{name}.py").write_text(PLUGIN.replace("{name}", name))
        monkeypatch.syspath_prepend(tmp_path)

    return write


def test_a_plug_in_of_the_file_registers_a_recipe(plugin, file):
    plugin("pairs_of_file")
    with pytest.raises(UserError, match=r"grouping\.recipe: found 'pairs_of_file'; allowed: aff"):
        load_config(file, ["grouping.recipe=pairs_of_file"])
    file.write_text(file.read_text() + "plugins: [pairs_of_file]\n")
    config = load_config(file, ["grouping.recipe=pairs_of_file", "grouping.size=3"])
    assert config.plugins == ("pairs_of_file",) and config.grouping.size == 3
    groups = RECIPES["pairs_of_file"].groups(config, ("a", "b", "c", "d"))
    assert groups == ((0, 1, 2), (3,))
    assert yaml.safe_load(config.to_yaml())["plugins"] == ["pairs_of_file"]
    assert load_config(file, ["grouping.recipe=pairs_of_file", "grouping.start=1"]).grouping.start
    with pytest.raises(UserError, match="sizes: unknown key of recipe 'pairs_of_file'; allowed: r"):
        load_config(file, ["grouping.recipe=pairs_of_file", "grouping.sizes=3"])


def test_plug_ins_of_a_base_and_of_an_override(plugin, file):
    plugin("pairs_of_base")
    plugin("pairs_of_override")
    file.write_text(file.read_text() + "plugins: [pairs_of_base]\n")
    child = file.parent / "child.yaml"
    child.write_text("base: config.yaml\ngrouping: {recipe: pairs_of_base}\n")
    assert load_config(child).plugins == ("pairs_of_base",)
    both = ["plugins=[pairs_of_base, pairs_of_override]", "grouping.recipe=pairs_of_override"]
    assert load_config(child, both).grouping.recipe == "pairs_of_override"


def test_plug_ins_that_cannot_be_imported(file, tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"config\.yaml: plugins: no_such_module cannot be imported"
    ):
        load_config(file, ["plugins=[no_such_module]"])
    (tmp_path / "breaks.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="plugins: breaks cannot be imported: ZeroDivisionError"):
        load_config(file, ["plugins=[breaks]"])
    with pytest.raises(UserError, match="plugins: found 'breaks'; allowed: a list of texts"):
        load_config(file, ["plugins=breaks"])
