"""The files of experiments/: all load, networks have the published sizes, schedules run as told."""

import json
from pathlib import Path

import pytest
import torch

from model.tasks.presets import PRESETS
from trainer.builders import build_network
from trainer.config.loading import load_config
from trainer.engines.plateau import Plateau
from trainer.engines.schedules import learning_rate_factor
from trainer.recipes.published import temperature

ROOT = Path(__file__).resolve().parents[4]
FACTS = json.loads((ROOT / "tests/fixtures/reference/reference_facts.json").read_text())
RECIPES = sorted((ROOT / "experiments").glob("*.yaml"))
CELEBA9, TASKONOMY5 = ([p for p in RECIPES if p.stem.startswith(f"{n}_")]
                       for n in ("celeba9", "taskonomy5"))  # fmt: skip
EPOCH = 7  # steps of an epoch in these tests


def load(name):
    return load_config(ROOT / "experiments" / f"{name}.yaml")


def count(config):
    with torch.device("meta"):
        network = build_network(config, PRESETS[config.tasks.preset])
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_file_loads_and_says_how_to_launch_it(path):
    config = load_config(path)
    lines = path.read_text().splitlines()
    assert any(f"experiments/{path.name}" in line for line in lines if line.startswith("#"))
    if config.tasks.preset:
        assert count(config) > 0


def test_every_file_has_a_folder_of_its_own():
    assert len({load_config(path).run.out for path in RECIPES}) == len(RECIPES)


@pytest.mark.parametrize("branches", [2, 3, 4])
def test_celeba9_has_the_published_size(branches):
    """With the logits; a shared trunk is there once instead of in every branch."""
    config, shared = (load(f"celeba9_k{branches}{end}") for end in ("", "_shared"))
    assert count(config) + 9 * branches == FACTS[f"celeba9_k{branches}"]["params"]
    trunk = FACTS["celeba_resnet_shared_trunk"]["trunk_params"]
    assert count(config) - count(shared) == (branches - 1) * trunk


@pytest.mark.parametrize("branches", [3, 4, 5])
@pytest.mark.parametrize("depth", [0, 3, 6, 9])
def test_taskonomy5_has_the_published_size(branches, depth):
    config = load(f"taskonomy5_k{branches}" + ("" if depth == 6 else f"_shared{depth}"))
    part = FACTS[f"xception_split{depth or 6}"]
    trunk, branch = part["trunk_params"], part["branch_params"]
    if depth == 0:  # all of it is in the branches
        trunk, branch = 0, trunk + branch
    decoders = sum(FACTS[f"taskonomy_decoder_{n}ch"]["params"] for n in (1, 3, 18, 1, 1))
    assert count(config) == trunk + branches * (branch + decoders)


@pytest.mark.parametrize("path", CELEBA9, ids=lambda path: path.stem)
def test_celeba9_halves_its_learning_rate_every_15_epochs(path):
    """As the paper says, beginning at 8e-4 for weights and logits."""
    config, steps = load_config(path), 100 * EPOCH
    assert config.run.epochs == 100
    for rate in (config.optim.lr, config.grouping.lr):
        found = [rate * learning_rate_factor(config.optim, step, steps) for step in range(steps)]
        assert found == pytest.approx([8e-4 / 2 ** (n // EPOCH // 15) for n in range(steps)])


@pytest.mark.parametrize("path", TASKONOMY5, ids=lambda path: path.stem)
def test_taskonomy5_halves_its_learning_rate_on_a_plateau(path):
    """As the paper says: from 1e-3 after more than three epochs without progress, to 3e-5."""
    section = load_config(path).optim
    plateau, rates = Plateau(section.schedule, section.lr, 1, torch.device("cpu")), []
    for epoch in range(1, 61):
        plateau.update(epoch, torch.ones(5))
        rates.append(section.lr * plateau.factor)
    assert rates == pytest.approx([max(1e-3 / 2 ** (n // 4), 3e-5) for n in range(60)])
    before = plateau.factor
    for epoch, loss in enumerate((0.95, 0.91, 0.89), 61):  # less by a tenth or more is progress
        plateau.update(epoch, torch.full((5,), loss))
    assert plateau.state()["bad_epochs"] == 0 and plateau.factor == before


@pytest.mark.parametrize("path", CELEBA9 + TASKONOMY5, ids=lambda path: path.stem)
def test_published_searches_keep_all_heads_at_a_constant_temperature(path):
    config, steps = load_config(path), 100 * EPOCH
    assert round(config.pruning.begin * steps) == round(config.pruning.end * steps) == steps
    found = {temperature(config.grouping.temperature, step, steps) for step in range(steps + 1)}
    assert found == {2.5 if path in CELEBA9 else 4.0}
