import json

import pytest
import torch

from model.encoders import build_encoder
from model.encoders.encoder import output_shape


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_sizes():
    encoder = build_encoder("residual64", 2, image_size=(64, 64))
    assert count(encoder.branches[0]) == 75_840 and count(encoder.trunk) == 0
    assert encoder.channels * encoder.spatial[0] * encoder.spatial[1] == 14_400
    assert encoder.pool == "flatten"


def test_published_split_after_the_stem():
    encoder = build_encoder("residual64", 2, image_size=(64, 64), trunk_depth=1)
    assert count(encoder.trunk) == 1_856
    assert [count(branch) for branch in encoder.branches] == [73_984, 73_984]


def test_split_and_whole_compute_the_same():
    whole = build_encoder("residual64", 1, image_size=(24, 16), options={"channels": 8})
    split = build_encoder(
        "residual64", 1, image_size=(24, 16), trunk_depth=1, options={"channels": 8}
    )
    stem, block = whole.branches[0]
    split.trunk.load_state_dict(stem.state_dict())
    split.branches[0].load_state_dict(block.state_dict())
    images = torch.randn(2, 3, 24, 16)
    output = split.branches[0](split.trunk(images))
    assert torch.equal(output, whole.branches[0](images))
    assert output.shape == (2, whole.channels, *whole.spatial)


@pytest.mark.parametrize("init", ["copies", "independent"])
def test_init(init):
    encoder = build_encoder("residual64", 3, image_size=(16, 16), init=init)
    images = torch.randn(2, 3, 16, 16)
    first, *others = (branch(images) for branch in encoder.branches)
    assert {torch.equal(first, other) for other in others} == {init == "copies"}
    encoder.branches[0][0][0].weight.data.zero_()
    assert encoder.branches[1][0][0].weight.any(), "copies must not share storage"


def test_config_rebuilds_with_any_number_of_branches():
    encoder = build_encoder("residual64", 3, image_size=(16, 16), options={"channels": 4})
    config = json.loads(json.dumps(encoder.config))
    assert len(build_encoder(**config, num_branches=1).branches) == 1
    assert build_encoder(**config, num_branches=1).channels == 4


def test_probing_leaves_mode_and_statistics_alone():
    encoder = build_encoder("residual64", 1, image_size=(16, 16))
    branch = encoder.branches[0]
    assert branch.training and branch[0][1].num_batches_tracked == 0
    branch.eval()
    output_shape(encoder.trunk, branch, (3, 16, 16))
    assert not branch.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "vgg"},
            "model.encoder.name is 'vgg', must be one of backbone, mlp, residual64, timm, xception",
        ),
        ({"num_branches": 0}, "model.num_branches is 0, must be at least 1"),
        ({"init": "same"}, "model.branch_init is 'same', must be one of independent, copies"),
        ({"image_size": (0, 8)}, r"image_size is \(0, 8\), must be two numbers above 0"),
        ({"trunk_depth": 2}, "model.trunk_depth is 2, must be 0 or 1 for residual64"),
        ({"options": {"width": 3}}, "model.encoder.options has 'width', residual64 knows only"),
        ({"options": {"channels": 0}}, "model.encoder.options.channels is 0, must be an integer"),
        ({"pretrained": "x"}, "model.encoder.pretrained is 'x', must be left out"),
    ],
)
def test_faults(arguments, message):
    allowed = {"name": "residual64", "num_branches": 1, "image_size": (16, 16)}
    with pytest.raises(ValueError, match=message):
        build_encoder(**{**allowed, **arguments})


def test_vectors_are_not_feature_maps():
    with pytest.raises(ValueError, match=r"features of shape \(1, 192\), must be a feature map"):
        output_shape(torch.nn.Identity(), torch.nn.Flatten(), (3, 8, 8))
