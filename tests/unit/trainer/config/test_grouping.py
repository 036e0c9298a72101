"""The section `grouping`, a union of the sections of all recipes."""

import pytest
import yaml

from dmtg.plugins import RECIPES
from trainer.config.loading import parse_config
from trainer.errors import UserError


def config_of(**grouping):
    tree = {
        "run": {"out": "out", "steps": 10},
        "data": {"shards": "shards", "image_size": [64, 48], "global_batch": 8},
        "model": {"encoder": {"name": "residual64"}, "branches": 3},
    }
    return parse_config({**tree, "grouping": grouping} if grouping else tree, "here.yaml")


def error_of(**grouping):
    with pytest.raises(UserError) as error:
        config_of(**grouping)
    first, *lines = str(error.value).splitlines()
    assert first == f"here.yaml: {len(lines)} error(s)"
    return [line.strip() for line in lines]


def test_the_default_recipe_is_evidence():
    assert config_of().grouping == config_of(recipe="evidence").grouping
    assert config_of(warmup=0.3).grouping.recipe == "evidence"
    assert type(config_of().grouping) is RECIPES["evidence"].section


def test_a_key_of_another_recipe_is_named_with_the_recipe_and_its_keys():
    assert error_of(recipe="affinity", lr=0.1, temperature=0.2) == [
        "grouping.lr: unknown key of recipe 'affinity'; allowed: initial_probability, loss_decay, "
        "num_groups, recipe, sampled_heads, temperature, warmup; lr is a key of recipe published"
    ]
    assert error_of(recipe="multitask", warmup=0.2) == [
        "grouping.warmup: unknown key of recipe 'multitask'; allowed: recipe; warmup is a key of "
        "recipe affinity or evidence"
    ]
    assert error_of(recipe="tag", projection=8) == [
        "grouping.projection: unknown key of recipe 'tag'; allowed: recipe, search_every, "
        "search_steps; projection is a key of recipe grad_tag"
    ]


def test_an_unknown_recipe():
    (line,) = error_of(recipe="best", lr=1)
    # Other tests may have registered more.
    assert line.startswith(
        "grouping.recipe: found 'best'; allowed: affinity, evidence, fixed, grad_tag, multitask, "
        "published, random, single_task, tag"
    )


def test_values_of_a_recipe_are_checked_with_the_others():
    assert error_of(recipe="published", lr=-1, sampled_heads=0, temperature={"shape": "x"}) == [
        "grouping.sampled_heads: found 0; allowed: a whole number from 1 to 10^12, or null",
        "grouping.lr: found -1; allowed: a number above 0",
        "grouping.temperature.shape: found 'x'; allowed: linear or exponential",
    ]
    assert error_of(recipe="fixed") == ["grouping.groups: required and not given; allowed: a path"]


def test_a_value_in_place_of_the_section():
    (line,) = error_of_value("published")
    assert line.startswith("grouping: found 'published'; allowed: a mapping with the key recipe")
    assert line.endswith("; write {recipe: published}")


def error_of_value(value):
    tree = config_of().model_dump(mode="json") | {"grouping": value}
    with pytest.raises(UserError) as error:
        parse_config(tree, "here.yaml")
    return [line.strip() for line in str(error.value).splitlines()[1:]]


SECTIONS = {
    "affinity": {"warmup": 0.3, "num_groups": "all", "sampled_heads": 2},
    "published": {"sampler": "softmax", "temperature": {"initial": 4.0}, "logits_noise": 0.5},
    "fixed": {"groups": "groups.json"},
    "random": {},
    "multitask": {},
    "single_task": {},
    "tag": {"search_every": 3},
    "grad_tag": {"search_steps": 7, "projection": 8},
}


@pytest.mark.parametrize("recipe", SECTIONS)
def test_a_section_is_saved_with_all_its_keys_and_round_trips(recipe):
    config = config_of(recipe=recipe, **SECTIONS[recipe])
    saved = yaml.safe_load(config.to_yaml())
    assert saved["grouping"].keys() == RECIPES[recipe].section.model_fields.keys()
    for key, value in SECTIONS[recipe].items():
        nested = isinstance(value, dict)
        assert (
            value.items() <= saved["grouping"][key].items()
            if nested
            else (saved["grouping"][key] == value)
        )
    again = parse_config(saved, "saved")
    assert again == config and type(again.grouping) is RECIPES[recipe].section
    assert parse_config(config.model_dump(), "dumped") == config
