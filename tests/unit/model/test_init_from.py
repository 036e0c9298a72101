"""Starts from exported models: which weights go where, and what does not fit."""

import copy
import logging

import pytest
import torch

from model.bundle import save_bundle
from model.encoders import build_encoder
from model.init_from import init_from
from model.network import MultiTaskNetwork
from model.subset import subset
from model.tasks.spec import TaskSpec

SIZE = (32, 32)
DEPTH = TaskSpec("depth", "dense_regression")
CUBE, BALL, CONE = (TaskSpec(name, "binary") for name in ("cube", "ball", "cone"))
KIND = TaskSpec("kind", "multiclass", channels=3)
ENCODERS = {
    "residual64": ("residual64", {"channels": 4}, (0, 1)),
    "xception": ("xception", {"sizes": [4, 8, 16, 16, 16], "channels": 8}, (0, 1, 3, 5)),
    "resnet": (
        "backbone",
        {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
        | {"layer_type": "basic"},
        (0, 1, 2),
    ),
    "convnextv2": (
        "backbone",
        {"model_type": "convnextv2", "hidden_sizes": [8, 16], "depths": [1, 1], "patch_size": 4}
        | {"num_stages": 2},
        (0, 1),
    ),
    "dinov2": (
        "backbone",
        {"model_type": "dinov2", "hidden_size": 8, "num_hidden_layers": 3, "patch_size": 16}
        | {"num_attention_heads": 2, "image_size": 32},
        (0, 1, 3),
    ),
    "vit": (
        "backbone",
        {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 3, "patch_size": 16}
        | {"num_attention_heads": 2, "intermediate_size": 16},
        (0, 1, 3),
    ),
}


def network(tasks, num_branches=1, seed=0, encoder="residual64", trunk_depth=0, **options):
    torch.manual_seed(seed)
    name, own, _ = ENCODERS[encoder]
    built = build_encoder(name, num_branches, image_size=SIZE, trunk_depth=trunk_depth, options=own)
    made = MultiTaskNetwork(tasks, built, SIZE, dense_widths=(8,), **options)
    with torch.no_grad():  # so that no two tensors are equal by chance, counters aside
        for tensor in made.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.1)
    return made


@pytest.fixture
def save(tmp_path):
    def write(made, name="model"):
        path = tmp_path / f"{name}.safetensors"
        save_bundle(path, made, {})
        return path

    return write


def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def outputs(made, branch=None):
    """Predictions of every task by its head on a branch, or by its only head."""
    heads = [h for h in made.heads if branch is None or h[1] == branch]
    return made.eval()(images(), made.select(heads))["predictions"]


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "theirs", "own"),
    [
        (name, theirs, own)
        for name, (_, _, depths) in ENCODERS.items()
        for theirs, own in [
            (depths[0], depths[-1]),
            (depths[-1], depths[0]),
            (depths[1], depths[-1]),
        ]
    ],
)
def test_every_branch_computes_what_the_file_does_wherever_it_is_split(encoder, theirs, own, save):
    tasks = [DEPTH, CUBE, KIND]
    source = network(tasks, 1, 1, encoder, theirs)
    made = network(tasks, 3, 2, encoder, own)
    init_from(made, [save(source)])
    for branch in range(3):
        same(outputs(made, branch), outputs(source))


def test_branch_k_starts_as_file_k_and_only_with_its_tasks(save, caplog):
    files = [network([CUBE, CONE], 1, 1), network([BALL], 1, 2)]
    made = network([BALL, CUBE], 2, 3)
    fresh = copy.deepcopy(made.stacked_heads.state_dict())
    with caplog.at_level(logging.INFO):
        init_from(made, [save(file, str(n)) for n, file in enumerate(files)])
    found = [outputs(made, branch) for branch in (0, 1)]
    torch.testing.assert_close(found[0]["cube"], outputs(files[0])["cube"])
    torch.testing.assert_close(found[1]["ball"], outputs(files[1])["ball"])
    rows = made.layout.rows["binary_1_bce"]
    for head in ((0, 0), (1, 1)):  # ball on the branch of cubes, cube on that of balls
        for key, value in fresh.items():
            row = rows[head]
            assert torch.equal(made.stacked_heads.state_dict()[key][row], value[row])
    assert "heads that start fresh: ball on branch 0, cube on branch 1" in caplog.text
    assert "cone of it not used" in caplog.text


def test_a_file_with_as_many_branches_is_taken_branch_by_branch(save):
    source = network([CUBE, BALL], 2, 1, heads=[(0, 1), (1, 0)])
    made = network([CUBE, BALL], 2, 2)
    init_from(made, [save(source)])
    for branch in (0, 1):
        for key, value in source.branches[branch].state_dict().items():
            assert torch.equal(made.branches[branch].state_dict()[key], value)
    groups = subset(made, [(0, 1), (1, 0)])
    same(outputs(groups), outputs(source))


def test_the_trunk_is_the_first_file_s_and_a_difference_is_said(save, caplog):
    files = [network([CUBE], 1, seed) for seed in (1, 2)]
    made = network([CUBE], 2, 3, trunk_depth=1)
    with caplog.at_level(logging.WARNING):
        init_from(made, [save(file, str(n)) for n, file in enumerate(files)])
    same(outputs(made, 0), outputs(files[0]))
    assert "the trunk of" in caplog.text and "1.safetensors differs for branch 1" in caplog.text
    blocks = files[1].branches[0][1].state_dict()
    assert all(torch.equal(made.branches[1].state_dict()[k], v) for k, v in blocks.items())
    caplog.clear()
    init_from(made, [save(files[0], "a"), save(files[0], "b")])
    assert "differs" not in caplog.text


def refused(made, paths, *parts):
    before = copy.deepcopy(made.state_dict())
    with pytest.raises(ValueError) as error:
        init_from(made, paths)
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert all(torch.equal(made.state_dict()[name], value) for name, value in before.items())


def test_what_does_not_fit(save, tmp_path):
    made = network([DEPTH, CUBE], 3)
    one = save(network([CUBE], 1))
    refused(made, [one, one], "names 2 files, must name 1 or 3")
    refused(made, [tmp_path / "none.safetensors"], "none.safetensors: no such file")
    two = save(network([CUBE, BALL], 2, heads=[(0, 0), (1, 1)]), "two")
    refused(made, [two], "two.safetensors has 2 branches", "1 or as many as the run: 3")
    other = save(network([CUBE], 1, encoder="resnet"), "resnet")
    refused(made, [other], "resnet.safetensors has encoder backbone", "the run's: residual64")
    task = TaskSpec("cube", "binary", loss="cross_entropy")
    refused(made, [save(network([task], 1), "two_way")],
        "task 'cube' of kind binary with 2 outputs", "binary with 1 outputs")  # fmt: skip
    encoder = build_encoder("residual64", 1, image_size=SIZE, options={"channels": 4})
    wide = MultiTaskNetwork([DEPTH], encoder, SIZE, dense_widths=(16,))
    refused(made, [save(wide, "wide")], "wide.safetensors has a head of 'depth'", "'weight0'")


def test_another_image_size_shows_in_the_heads(save):
    size = (16, 16)
    encoder = build_encoder("residual64", 1, image_size=size, options={"channels": 4})
    small = MultiTaskNetwork([CUBE], encoder, size)
    refused(network([CUBE], 2), [save(small)], "a head of 'cube' of shapes {'weight': (1, 36)")
