"""docs/configuration.md: up to date, complete, and its defaults are those that a run gets."""

import re
from copy import deepcopy

import pytest

from dmtg.yaml_text import parse_yaml
from tests.processes import ROOT
from trainer.config.loading import apply_overrides, parse_config

PAGE = (ROOT / "docs" / "configuration.md").read_text()
TREE = {
    "run": {"out": "out", "steps": 10},
    "data": {"shards": "shards", "image_size": [64, 48], "global_batch": 8},
    "model": {"encoder": {"name": "residual64"}, "branches": 3},
}
GIVEN = ("run.steps", "data.shards")  # in the tree, though they have a default
# What chooses each alternative of a union, with the keys that it requires.
CHOICES = {
    "Method `dwa`": "loss_weights.method=dwa",
    "Method `equal`": "loss_weights.method=equal",
    "Method `famo`": "loss_weights.method=famo",
    "Method `given`": "loss_weights={method: given, weights: {has_box: 2}}",
    "Method `uncertainty`": "loss_weights.method=uncertainty",
    "Recipe `affinity`": "grouping.recipe=affinity",
    "Recipe `evidence`": "grouping.recipe=evidence",
    "Recipe `fixed`": "grouping={recipe: fixed, groups: groups.json}",
    "Recipe `grad_tag`": "grouping.recipe=grad_tag",
    "Recipe `hoa`": "grouping.recipe=hoa",
    "Recipe `multitask`": "grouping.recipe=multitask",
    "Recipe `published`": "grouping.recipe=published",
    "Recipe `random`": "grouping.recipe=random",
    "Recipe `single_task`": "grouping.recipe=single_task",
    "Recipe `tag`": "grouping.recipe=tag",
    "Schedule `constant`": "optim.schedule=constant",
    "Schedule `cosine`": "optim.schedule=cosine",
    "Schedule `multistep`": "optim.schedule={name: multistep, milestones: [0.5]}",
    "Schedule `plateau`": "optim.schedule=plateau",
}
# The keys of each union, and the one that chooses among its alternatives.
UNIONS = {
    "Method": ("loss_weights.", "method"),
    "Recipe": ("grouping.", "recipe"),
    "Schedule": ("optim.schedule.", "name"),
}
# Mappings with names of the user, and the places of such names in the keys of the page.
NAMED = ("tasks.define", "tasks.by_kind", "loss_weights.weights")
PLACES = (".TASK", ".KIND")
ROW = re.compile(r"^\| `([\w.]+)` \| (.*) \| (.*) \| (.*) \|$", re.MULTILINE)
TITLE = re.compile(r"^#+ (.*)$", re.MULTILINE)


def parts():
    """Return the rows of every part of the page by its title: key, allowed, default, meaning."""
    titles = list(TITLE.finditer(PAGE))
    ends = [title.start() for title in titles[1:]] + [len(PAGE)]
    return {
        title[1]: ROW.findall(PAGE, title.end(), end)
        for title, end in zip(titles, ends, strict=True)
    }


PARTS = parts()


def config_of(*overrides):
    tree = deepcopy(TREE)
    for override in overrides:
        section, equals, text = override.partition("=")
        if equals and section in ("grouping", "loss_weights"):
            tree[section] = parse_yaml(text)
        else:
            apply_overrides(tree, [override])
    return parse_config(tree, "here.yaml")


def keys_of(values, prefix=""):
    """Yield the dotted keys of all sections and values of a resolved configuration."""
    for key, value in values.items():
        yield f"{prefix}{key}"
        plain = f"{prefix}{key}" in (*NAMED, "model.encoder.options", "log.tracker_options")
        if isinstance(value, dict) and not plain:
            yield from keys_of(value, f"{prefix}{key}.")


def test_the_page_is_what_the_command_writes(written):
    assert written[0] == PAGE, "run: make reference"


@pytest.mark.parametrize("title", CHOICES)
def test_every_key_of_a_run_is_on_the_page(title):
    """The keys of a resolved configuration, as `--print-config` prints them."""
    union, _ = UNIONS[title.partition(" ")[0]]
    listed = {row[0] for rows in PARTS.values() for row in rows if not row[0].startswith(union)}
    listed |= {row[0] for row in PARTS[title]} | {f"{keys}{key}" for keys, key in UNIONS.values()}
    sections = {"run", "data", "tasks", "model", "grouping", "pruning", "loss_weights", "optim"}
    sections |= {"finetune", "eval", "log"}
    assert {f"`{name}`" for name in sections} <= set(PARTS)
    found = set(keys_of(config_of(CHOICES[title]).model_dump(mode="json")))
    other = {key for key in found if key.startswith(tuple(keys for keys, _ in UNIONS.values()))}
    other = {key for key in other if not key.startswith(union)}
    assert found - other - sections <= listed


def test_every_key_of_the_page_exists():
    keys = {key for choice in CHOICES.values() for key in keys_of(config_of(choice).model_dump())}
    for title, rows in PARTS.items():
        for key, *_ in rows:
            if not title.startswith("Options") and not any(place in key for place in PLACES):
                assert key in keys, key


@pytest.mark.parametrize("title", [title for title in PARTS if "encoder" not in title])
def test_a_default_that_is_given_changes_nothing(title):
    choice = [CHOICES[title]] if title in CHOICES else []
    for key, _, default, _ in PARTS[title]:
        if default in ("", "required") or key in GIVEN or any(f"{p}." in key for p in PLACES):
            continue
        value = default.strip("`")
        assert config_of(*choice, f"{key}={value}") == config_of(*choice), key


def test_required_keys_are_those_that_a_configuration_must_have():
    required = {row[0] for rows in PARTS.values() for row in rows if row[2] == "required"}
    assert required == {
        "run.out",
        "data.image_size",
        "data.global_batch",
        "model.encoder.name",
        "model.branches",
        "loss_weights.weights",
        "grouping.groups",
        "optim.schedule.name",
        "optim.schedule.milestones",
    }


def test_every_key_has_one_sentence():
    for rows in PARTS.values():
        for key, allowed, _, meaning in rows:
            assert allowed and re.fullmatch(r"[A-Z`/(1].*\.", meaning), (key, meaning)
            assert not re.search(r"\. [A-Z]", meaning), f"{key} has more than one sentence"


@pytest.mark.parametrize(
    ("encoder", "option", "default"),
    [("residual64", "channels", 64), ("xception", "channels", 512)],
)
def test_options_of_encoders_have_the_defaults_that_are_built(encoder, option, default):
    from model.encoders import build_encoder

    rows = {key: value for key, _, value, _ in PARTS[f"Options of the encoder `{encoder}`"]}
    assert rows[f"model.encoder.options.{option}"] == f"`{default}`"
    own = [build_encoder(encoder, 1, image_size=(64, 64), options=options)
           for options in ({}, {option: default})]  # fmt: skip
    assert own[0].channels == own[1].channels
