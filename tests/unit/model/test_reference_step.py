"""One objective of the published implementation: features, logits, losses, gradients."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.encoders import build_encoder
from model.grouping.grouping import Grouping
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "reference"
STEP = FOLDER / "celeba_step_k2_n3.npz"
BANK = "binary_2_cross_entropy"
NAMES = {
    "conv1_1.weight": "0.0.weight",
    "bn1_1.weight": "0.1.weight",
    "bn1_1.bias": "0.1.bias",
    "resblock_2.conv1.weight": "1.0.conv1.weight",
    "resblock_2.bn1.weight": "1.0.norm1.weight",
    "resblock_2.bn1.bias": "1.0.norm1.bias",
    "resblock_2.conv2.weight": "1.0.conv2.weight",
    "resblock_2.bn2.weight": "1.0.norm2.weight",
    "resblock_2.bn2.bias": "1.0.norm2.bias",
}


@pytest.fixture(scope="module")
def step():
    with np.load(STEP) as arrays:
        return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}


@pytest.fixture
def network(step):
    tasks = [TaskSpec(f"t{n}", "binary", loss="cross_entropy") for n in range(3)]
    encoder = build_encoder("residual64", 2, image_size=(64, 64))
    # The reference takes images as they are; this undoes the division by 255.
    network = MultiTaskNetwork(
        tasks, encoder, (64, 64), image_mean=(0, 0, 0), image_std=(1 / 255,) * 3
    )
    with torch.no_grad():
        for branch in range(2):
            for theirs, ours in NAMES.items():
                value = step[f"param/k_group_bones.group_{branch}.{theirs}"]
                network.get_parameter(f"branches.{branch}.{ours}").copy_(value)
            for task in range(3):
                for attribute in ("weight", "bias"):
                    value = step[f"param/kn_decoders.group_{branch}.t{task}.fc1.{attribute}"]
                    network.get_parameter(f"stacked_heads.{BANK}.{attribute}")[
                        3 * branch + task
                    ] = value
    return network


def targets_of(network, step):
    labels = torch.stack([step[f"y/t{n}"] for n in range(3)]).float()
    return network.targets(labels, {}, torch.ones(3, 4, dtype=torch.bool))


def test_features_and_logits(network, step):
    for branch in range(2):
        features = network.branches[branch](step["x"]).flatten(1)
        torch.testing.assert_close(features, step[f"features/{branch}"], rtol=1e-4, atol=1e-4)
        predictions = network(step["x"], network.select([(n, branch) for n in range(3)]))
        for task in range(3):
            expected = step[f"logits/{branch}/t{task}"]
            torch.testing.assert_close(predictions[f"t{task}"], expected, rtol=1e-4, atol=1e-4)


def test_objective_and_all_gradients(network, step):
    targets = targets_of(network, step)
    sums = network(step["x"], network.select(network.heads), targets)
    losses = sums / network.weights(targets)[:, None]
    expected = torch.stack([step[f"loss_per_branch/t{n}"] for n in range(3)])
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)

    grouping = Grouping(3, 2)
    with torch.no_grad():
        grouping.logits.copy_(step["group_logits"])
    z = grouping.sample(step["gumbel"], float(step["tau"]))
    torch.testing.assert_close(z, step["z"], rtol=1e-5, atol=0)
    torch.testing.assert_close(
        grouping.logit_gradient(z, losses), step["grad_group_logits"], rtol=1e-5, atol=1e-7
    )

    total = (z.detach() * losses).sum()
    torch.testing.assert_close(total, step["total"], rtol=1e-5, atol=0)
    total.backward()
    stack = network.stacked_heads[BANK]
    for branch in range(2):
        prefix = f"gradnorm/k_group_bones.group_{branch}"
        for theirs, ours in NAMES.items():
            norm = network.get_parameter(f"branches.{branch}.{ours}").grad.norm()
            torch.testing.assert_close(norm, step[f"{prefix}.{theirs}"], rtol=1e-3, atol=0)
        for task in range(3):
            norm = stack.weight.grad[3 * branch + task].norm()
            expected = step[f"gradnorm/kn_decoders.group_{branch}.t{task}.fc1.weight"]
            torch.testing.assert_close(norm, expected, rtol=1e-4, atol=0)
