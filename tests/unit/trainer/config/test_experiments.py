"""The files of experiments/: what they build, and the values of the paper."""

import json
from pathlib import Path

import pytest
import torch

from model.tasks.presets import PRESETS
from trainer.build import build_network
from trainer.config.loading import load_config

ROOT = Path(__file__).resolve().parents[4]
FACTS = ROOT / "tests" / "fixtures" / "reference" / "reference_facts.json"
FILES = sorted(
    path
    for pattern in ("celeba*.yaml", "taskonomy5*.yaml", "taskonomy_full.yaml")
    for path in (ROOT / "experiments").glob(pattern)
)
# Encoder of K branches with all heads and the logits, as the published code counts them.
CELEBA9 = {2: 670_134, 3: 1_005_201, 4: 1_340_268}
# Trunk and branch of an Xception by the number of shared stages.
XCEPTION = {3: (120_416, 16_727_192), 6: (5_169_464, 11_678_144), 9: (10_011_392, 6_836_216)}
XCEPTION[0] = (0, sum(XCEPTION[6]))
DECODERS = 3 * 520_225 + 520_803 + 525_138  # of five tasks with 1, 3, 18, 1 and 1 channels
BATCHES = {3: 24, 4: 16, 5: 12}  # per GPU


def load(name):
    return load_config(ROOT / "experiments" / f"{name}.yaml")


def count(config):
    with torch.device("meta"):
        network = build_network(config, PRESETS[config.tasks.preset])
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recipe_builds_and_has_its_folder(path):
    config = load_config(path)
    assert config.run.out == Path("runs") / path.stem and count(config) > 0
    lines = path.read_text().splitlines()
    assert any(f"--config experiments/{path.name}" in line for line in lines), "how to launch it"


@pytest.mark.parametrize("branches", CELEBA9)
def test_celeba9_has_the_published_size(branches):
    config = load(f"celeba9_k{branches}")
    assert count(config) + 9 * branches == CELEBA9[branches]
    shared = load(f"celeba9_k{branches}_shared")
    assert count(config) - count(shared) == (branches - 1) * 1856  # the stem, once
    if not FACTS.exists():
        pytest.skip("the numbers of the published code are not at hand")
    assert json.loads(FACTS.read_text())[f"celeba9_k{branches}"]["params"] == CELEBA9[branches]


@pytest.mark.parametrize("branches", BATCHES)
@pytest.mark.parametrize("depth", XCEPTION)
def test_taskonomy5_has_the_published_size_and_batch(branches, depth):
    plain = depth == 6
    config = load(f"taskonomy5_k{branches}" + ("" if plain else f"_shared{depth}"))
    trunk, branch = XCEPTION[depth]
    assert count(config) == trunk + branches * (branch + DECODERS)
    assert (config.model.branches, config.model.trunk_depth) == (branches, depth)
    assert config.data.global_batch == 8 * (BATCHES[branches] if plain else 16)


def test_celeba9_has_the_published_values():
    for name in ("celeba9_k2", "celeba9_k3", "celeba9_k4", "celeba9_k2_shared"):
        config = load(name)
        optim, grouping = config.optim, config.grouping
        assert (optim.name, optim.lr, grouping.lr) == ("adam", 8e-4, 8e-4)
        schedule = optim.schedule
        assert [round(100 * m) for m in schedule.milestones] == [15, 30, 45, 60, 75, 90]
        assert (schedule.name, schedule.gamma, config.run.epochs) == ("multistep", 0.5, 100)
        assert (config.data.global_batch, config.data.image_size) == (256, (64, 64))
        assert (config.model.branch_init, config.model.gradient_scale) == ("copies", "none")
        assert (grouping.recipe, grouping.logits_init) == ("published", "equal")
        assert grouping.logits_value == 1.0
        assert grouping.temperature.initial == grouping.temperature.final == 2.5
        assert (config.pruning.begin, config.pruning.end) == (1.0, 1.0)
        assert not (
            config.data.flip or optim.weight_decay or optim.warmup_steps or optim.max_grad_norm
        )


def test_taskonomy5_has_the_published_values():
    for name in ("taskonomy5_k3", "taskonomy5_k5_shared9", "taskonomy5_vit"):
        config = load(name)
        optim, grouping = config.optim, config.grouping
        assert (optim.name, optim.lr, grouping.lr) == ("adam", 1e-3, 1e-3)
        schedule = optim.schedule
        assert (schedule.name, schedule.gamma, schedule.patience) == ("plateau", 0.5, 3)
        assert (schedule.threshold, schedule.min_lr, config.run.epochs) == (0.1, 3e-5, 100)
        assert (config.data.image_size, config.data.flip) == ((256, 256), True)
        assert (config.model.decoder, config.model.gradient_scale) == ("deconv", "paper")
        assert (grouping.recipe, config.model.branch_init) == ("published", "copies")
        assert grouping.temperature.initial == grouping.temperature.final == 4.0
        assert (config.finetune.order, config.finetune.freeze_trunk) == ("one_by_one", True)
        assert config.finetune.epochs > 0
