"""The modules of `trainer.recipes`: what they register, and what they import."""

import subprocess
import sys
from pathlib import Path

import pytest

import trainer.recipes
from dmtg.plugins import RECIPES
from trainer.config.grouping import GroupingSection
from trainer.recipes.given import GivenGroups
from trainer.recipes.learner import GroupLearner
from trainer.recipes.searched import SearchedGroups

BUILT_IN = (
    "affinity", "evidence", "fixed", "grad_tag", "multitask", "published", "random", "single_task",
    "tag",
)  # fmt: skip
ROOT = Path(trainer.recipes.__file__).parents[2]


def test_every_recipe_has_a_module_and_every_module_at_most_one():
    recipes = [RECIPES[name] for name in RECIPES.names() if RECIPES.plugin_of(name) is None]
    assert {name for name in RECIPES.names() if RECIPES.plugin_of(name) is None} == set(BUILT_IN)
    modules = [recipe.__module__ for recipe in recipes]
    assert len(set(modules)) == len(modules) == len(BUILT_IN)
    registering = [
        path.stem
        for path in (ROOT / "trainer" / "recipes").glob("*.py")
        if "@register_recipe(" in path.read_text()
    ]
    assert sorted(registering) == sorted(module.rpartition(".")[2] for module in modules)


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_facts_of_a_recipe(name):
    recipe = RECIPES[name]
    assert issubclass(recipe, GroupLearner) and issubclass(recipe.section, GroupingSection)
    assert recipe.searches == issubclass(recipe, SearchedGroups) == (name in ("tag", "grad_tag"))
    assert recipe.groups_given == issubclass(recipe, GivenGroups)
    assert recipe.groups_given == (name not in ("affinity", "evidence", "published"))
    assert recipe.collects_gradient_statistics == (name in ("affinity", "evidence"))


def test_a_configuration_imports_nothing_heavy():
    """`--print-config` reads a configuration, which reads the registry of recipes."""
    code = (
        "import sys; from pathlib import Path; from trainer.config.loading import load_config; "
        "load_config(Path('experiments/demo.yaml')); "
        "heavy = 'accelerate transformers deepspeed sklearn scipy matplotlib datasets safetensors';"
        "print([name for name in heavy.split() if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.strip() == "[]"


def test_the_configuration_imports_no_recipe():
    for path in (ROOT / "trainer" / "config").glob("*.py"):
        assert "trainer.recipes" not in path.read_text(), path.name
