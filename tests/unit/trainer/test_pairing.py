"""Recipes with the same seed: equal initial weights with `model.paired_init`, equal batches."""

import json

import pytest
import torch

from trainer.builders import build_network
from trainer.recipes.given import given_groups
from trainer.run_data import open_data

GIVEN = ("random", "multitask", "single_task", "fixed")
PAIRED = "model.paired_init=true"


@pytest.fixture
def network_of(rooms_config, tmp_path):
    """The new network of a recipe, with three branches unless its groups are given."""

    def build(recipe, *overrides):
        options = [f"grouping.recipe={recipe}", *overrides]
        tasks = open_data(rooms_config(*overrides)).tasks
        names = [task.name for task in tasks]
        if recipe == "fixed":
            path = tmp_path / "groups.json"
            path.write_text(json.dumps({"groups": [names[3:], names[:1], names[1:3]]}))
            options.append(f"grouping.groups={path}")
        config = rooms_config(*options)
        return build_network(config, tasks, given_groups(config, names))

    return build


def weights(network):
    """Every tensor by trunk, branch, and head (task, branch, attribute)."""
    found = {}
    for name, tensor in network.state_dict().items():
        part, _, rest = name.partition(".")
        stack, _, attribute = rest.partition(".")
        if part != "stacked_heads":
            found[name] = tensor
            continue
        for (task, branch), row in network.layout.rows[stack].items():
            found[task, branch, attribute] = tensor[row]
    return found


def differing(network, reference):
    """The tensors of both networks that are not equal, and the number of those of both."""
    ours, theirs = weights(network), weights(reference)
    common = ours.keys() & theirs.keys()
    return {name for name in common if not torch.equal(ours[name], theirs[name])}, len(common)


@pytest.mark.parametrize(
    "override", ["model.trunk_depth=1", "model.branch_init=copies", "model.decoder=deconv"]
)
@pytest.mark.parametrize("recipe", GIVEN)
def test_given_groups_start_as_the_network_of_all_heads(recipe, override, network_of):
    full = network_of("affinity", override)
    different, common = differing(network_of(recipe, override, PAIRED), full)
    assert common > 10 and not different
    # Without the key the heads differ, as before: numbers of existing configurations stay.
    different, _ = differing(network_of(recipe, override), full)
    assert different and all(isinstance(name, tuple) for name in different)


def test_branches_beyond_those_of_the_configuration_differ_from_all_others(network_of):
    single = network_of("single_task", PAIRED)
    assert single.num_branches == 6 > network_of("affinity").num_branches == 3
    names = [name for name in weights(single) if str(name).startswith("branches.0.")]
    drawn = [n for n in names if single.state_dict()[n].float().std() > 0]
    assert drawn
    for name in drawn:
        of_branches = [single.state_dict()[name.replace("s.0.", f"s.{k}.", 1)] for k in range(6)]
        assert all(not torch.equal(of_branches[0], other) for other in of_branches[1:])


def test_the_scale_of_gradients_is_that_of_its_own_branches(network_of):
    options = ("model.gradient_scale=paper", PAIRED)
    assert network_of("multitask", *options).config()["gradient_scale"][0] == 1.0
    assert network_of("single_task", *options).config()["gradient_scale"][0] == 6**-0.5


def test_a_network_of_all_heads_does_not_depend_on_the_key(network_of):
    different, common = differing(network_of("affinity", PAIRED), network_of("affinity"))
    assert common and not different


@pytest.mark.parametrize("recipe", ["random", "multitask", "single_task", "affinity"])
def test_every_recipe_sees_the_same_batches(recipe, rooms_config):
    def images(*overrides):
        data = open_data(rooms_config("data.crop=0.7", "data.flip=true", *overrides))
        return [batch.images for batch in data.train_batches(0, 4, rank=0, world_size=1)]

    batches = images(f"grouping.recipe={recipe}", "model.branches=2")
    expected = images("grouping.recipe=published")
    assert len(batches) == 4
    assert all(map(torch.equal, batches, expected))
    other = images(f"grouping.recipe={recipe}", "run.seed=6")
    assert not all(map(torch.equal, other, expected))
