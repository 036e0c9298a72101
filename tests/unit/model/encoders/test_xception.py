import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from model.encoders import build_encoder
from model.encoders.xception import SIZES, Xception, XceptionBlock

FACTS = Path(__file__).resolve().parents[3] / "fixtures/reference/reference_facts.json"
SMALL = {"sizes": [4, 6, 8, 12, 12], "channels": 10}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def build(num_branches=1, image_size=(32, 16), **arguments):
    torch.manual_seed(0)
    return build_encoder(
        "xception", num_branches, **{"image_size": image_size, "options": SMALL, **arguments}
    )


@pytest.mark.parametrize(
    ("depth", "in_trunk", "in_branch"),
    [
        (0, 0, 16_847_608),
        (3, 120_416, 16_727_192),
        (6, 5_169_464, 11_678_144),
        (9, 10_011_392, 6_836_216),
    ],
)
def test_published_sizes(depth, in_trunk, in_branch):
    with torch.device("meta"):
        trunk, branch = Xception({}, (256, 256)).build_parts(depth)
        maps = trunk(torch.empty(1, 3, 256, 256))
        assert branch(maps).shape == (1, 512, 16, 16)
    assert (count(trunk), count(branch)) == (in_trunk, in_branch)
    if depth:
        assert maps.shape[1] == SIZES[depth - 1]


@pytest.mark.parametrize("depth", [3, 6, 9])
def test_the_published_implementation_has_the_same_sizes(depth):
    facts = json.loads(FACTS.read_text())[f"xception_split{depth}"]
    with torch.device("meta"):
        trunk, branch = Xception({}, (256, 256)).build_parts(depth)
        maps = trunk(torch.empty(1, 3, 256, 256))
        found = {
            "trunk_params": count(trunk),
            "branch_params": count(branch),
            "trunk_out": list(maps.shape),
            "branch_out": list(branch(maps).shape),
        }
    assert found == facts


def naive_block(block, maps):
    """The block by the functions of torch, in training mode."""

    def normalised(values, norm):
        return F.batch_norm(values, None, None, norm.weight, norm.bias, training=True)

    hidden = maps
    for depthwise, pointwise, norm in block.convs:
        hidden = F.conv2d(hidden.relu(), depthwise.weight, padding=1, groups=hidden.shape[1])
        hidden = normalised(F.conv2d(hidden, pointwise.weight), norm)
    if maps.shape[1] == hidden.shape[1]:
        return hidden + maps
    hidden = F.conv2d(hidden, block.down.weight, block.down.bias, stride=2)
    return hidden + normalised(F.conv2d(maps[..., ::2, ::2], block.skip.weight), block.skip_norm)


@pytest.mark.parametrize(("outputs", "repeats"), [(5, 3), (7, 2)])
def test_a_block_is_what_is_published(outputs, repeats):
    block = XceptionBlock(5, outputs)
    assert len(block.convs) == repeats
    maps = torch.randn(2, 5, 8, 6)
    kept = maps.clone()
    torch.testing.assert_close(block(maps), naive_block(block, maps))
    assert torch.equal(maps, kept), "the input must not change in place"


def test_every_split_computes_the_same():
    whole = build()
    images = torch.randn(2, 3, 32, 16)
    expected = whole.branches[0](images)
    assert expected.shape == (2, 10, 4, 2) == (2, whole.channels, *whole.spatial)
    assert whole.pool == "mean"
    stages = len(whole.branches[0])
    assert stages == 6, "five sizes and the last convolution"
    for depth in range(1, stages):
        split = build(trunk_depth=depth)
        found = [*split.trunk, *split.branches[0]]
        for stage, same in zip(found, whole.branches[0], strict=True):
            stage.load_state_dict(same.state_dict())
        assert torch.equal(split.branches[0](split.trunk(images)), expected)


def test_the_branch_ends_in_relu_and_a_separable_convolution():
    (last,) = build(trunk_depth=5).branches[0].eval()
    depthwise, pointwise, norm = last[1]
    maps = torch.randn(2, 12, 4, 2)
    hidden = F.conv2d(maps.clamp(min=0), depthwise.weight, padding=1, groups=12)
    expected = norm(F.conv2d(hidden, pointwise.weight))
    torch.testing.assert_close(last(maps), expected)
    assert (expected < 0).any()


def test_small_images_and_the_published_options():
    encoder = build(image_size=(64, 64), options={}, trunk_depth=13)
    assert (encoder.channels, encoder.spatial) == (512, (4, 4))


@pytest.mark.parametrize("init", ["copies", "independent"])
def test_init_and_config(init):
    encoder = build(3, init=init, trunk_depth=2)
    maps = encoder.trunk(torch.randn(2, 3, 32, 16))
    first, *others = (branch(maps) for branch in encoder.branches)
    assert {torch.equal(first, other) for other in others} == {init == "copies"}
    twin = build_encoder(**json.loads(json.dumps(encoder.config)), num_branches=1)
    twin.trunk.load_state_dict(encoder.trunk.state_dict())
    twin.branches[0].load_state_dict(encoder.branches[2].state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": {"widths": [3]}}, "options has 'widths', xception knows only 'sizes', 'chan"),
        ({"options": {"sizes": [8]}}, r"options.sizes is \[8\], must be 2 or more integers above"),
        ({"options": {"sizes": [8, 0]}}, r"options.sizes is \[8, 0\], must be 2 or more"),
        ({"options": {"sizes": 8}}, "options.sizes is 8, must be 2 or more"),
        ({"options": {"channels": 1.5}}, "options.channels is 1.5, must be an integer above 0"),
        ({"trunk_depth": 6}, "model.trunk_depth is 6, must be from 0 to 5 for xception"),
        ({"image_size": (24, 20)}, r"image_size is \(24, 20\), must be multiples of 8 for xcept"),
        ({"pretrained": "x"}, "model.encoder.pretrained is 'x', must be left out for xception"),
    ],
)
def test_faults(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)
