import json

import pytest
import torch
from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoConfig, ViTForImageClassification

from model.encoders import build_encoder
from model.encoders.backbone import build_parts, resolve_config

SIZE = (64, 32)
SMALL = {
    "resnet": {
        "embedding_size": 8,
        "hidden_sizes": [8, 12, 16],
        "depths": [1, 1, 1],
        "layer_type": "basic",
    },
    "convnext": {"hidden_sizes": [8, 12], "depths": [1, 2], "num_stages": 2},
    "convnextv2": {"hidden_sizes": [8, 12], "depths": [1, 2], "num_stages": 2},
    "dinov2": {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "patch_size": 8,
    },
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "swinv2": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "vitdet": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 8,
        "image_size": 64,
    },
    "vit": {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "patch_size": 8,
    },
}
SPLIT = ("resnet", "convnext", "convnextv2", "dinov2")


def build(family, num_branches=2, **arguments):
    torch.manual_seed(0)
    options = {"model_type": family, **SMALL[family]}
    size = (64, 64) if family in ("swinv2", "vitdet") else SIZE
    return build_encoder(
        "backbone", num_branches, options=options, image_size=size, **arguments
    ), size


@pytest.mark.parametrize("family", SMALL)
def test_every_parameter_of_every_family_is_trained(family):
    encoder, size = build(family)
    for branch in encoder.branches:
        branch.train()
        maps = branch(encoder.trunk(torch.randn(2, 3, *size)))
        assert maps.shape == (2, encoder.channels, *encoder.spatial)
        (maps * torch.randn_like(maps)).sum().backward()
        assert [n for n, p in branch.named_parameters() if p.grad is None] == []
    assert encoder.pool == "mean"


@pytest.mark.parametrize("family", SMALL)
def test_the_config_rebuilds_the_architecture(family):
    encoder, size = build(family)
    config = json.loads(json.dumps(encoder.config))
    twin = build_encoder(**config, num_branches=1)
    assert twin.config == encoder.config
    twin.branches[0].load_state_dict(encoder.branches[1].state_dict())
    images = torch.randn(1, 3, *size)
    expected = encoder.branches[1].eval()(images)
    torch.testing.assert_close(twin.branches[0].eval()(images), expected)


@pytest.mark.parametrize("family", SPLIT)
def test_any_split_computes_what_the_whole_backbone_computes(family, tmp_path):
    config = AutoConfig.for_model(family, **SMALL[family])
    config.out_features = [config.stage_names[-1]]
    torch.manual_seed(0)
    model = MODEL_FOR_BACKBONE_MAPPING[type(config)](config)
    model.save_pretrained(tmp_path)
    images = torch.randn(2, 3, *SIZE)
    expected = model.eval()(images).feature_maps[-1]
    # ResNet has an embedding and 3 stages here, the ConvNeXts 2, DINOv2 3 layers.
    num_stages = {"resnet": 4, "dinov2": 4}.get(family, 3)
    for depth in range(num_stages):
        encoder = build_encoder(
            "backbone", 1, image_size=SIZE, trunk_depth=depth, pretrained=str(tmp_path)
        )
        assert (sum(p.numel() for p in encoder.trunk.parameters()) > 0) == (depth > 0)
        maps = encoder.branches[0].eval()(encoder.trunk.eval()(images))
        torch.testing.assert_close(maps, expected)
    with pytest.raises(ValueError, match=f"must be from 0 to {num_stages - 1} for this {family}"):
        build_encoder(
            "backbone", 1, image_size=SIZE, trunk_depth=num_stages, pretrained=str(tmp_path)
        )


def test_vit_b16_with_six_shared_blocks():
    with torch.device("meta"):
        config = resolve_config({"model_type": "vit"}, None, (256, 256))
        trunk, branch = build_parts(config, 7, (256, 256), None)
        assert branch(trunk(torch.empty(1, 3, 256, 256))).shape == (1, 768, 16, 16)
    attention, mlp, norms = 4 * (768 * 768 + 768), 2 * 768 * 3072 + 3072 + 768, 4 * 768
    block = attention + mlp + norms
    patches, positions = 3 * 16 * 16 * 768 + 768, (1 + 16 * 16) * 768
    found = [sum(p.numel() for p in part.parameters()) for part in (trunk, branch)]
    assert found == [patches + 768 + positions + 6 * block, 6 * block + 2 * 768]
    assert sum(found) == 85_844_736


@pytest.mark.parametrize("image_size", [(64, 64), (64, 32), (96, 96)])
def test_any_split_computes_what_the_pretrained_vit_computes(image_size, tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.for_model("vit", **SMALL["vit"], image_size=64)
    classifier = ViTForImageClassification(config).eval()
    classifier.save_pretrained(tmp_path)
    images = torch.randn(2, 3, *image_size)
    grid = (image_size[0] // 8, image_size[1] // 8)
    tokens = classifier.vit(images, interpolate_pos_encoding=True).last_hidden_state
    expected = tokens[:, 1:].transpose(1, 2).reshape(2, 16, *grid)
    for depth in range(4):
        encoder = build_encoder(
            "backbone", 2, image_size=image_size, trunk_depth=depth, pretrained=str(tmp_path)
        )
        assert (encoder.channels, encoder.spatial) == (16, grid)
        maps = encoder.trunk.eval()(images)
        for branch in encoder.branches:
            torch.testing.assert_close(branch.eval()(maps), expected)
    with pytest.raises(ValueError, match="must be from 0 to 3 for this vit"):
        build_encoder("backbone", 1, image_size=image_size, trunk_depth=4, pretrained=str(tmp_path))


def test_pretrained_branches_are_equal_and_rebuild_without_the_folder(tmp_path):
    config = AutoConfig.for_model("resnet", **SMALL["resnet"])
    MODEL_FOR_BACKBONE_MAPPING[type(config)](config).save_pretrained(tmp_path)
    encoder = build_encoder("backbone", 2, image_size=SIZE, pretrained=str(tmp_path))
    first, second = (branch.state_dict() for branch in encoder.branches)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert encoder.branches[0].training
    config_text = json.dumps(encoder.config)
    assert str(tmp_path) not in config_text
    twin = build_encoder(**json.loads(config_text), num_branches=1)
    twin.branches[0].load_state_dict(first)


@pytest.mark.parametrize("family", ["convnext", "vit"])
@pytest.mark.parametrize("init", ["copies", "independent"])
def test_init(init, family):
    encoder, size = build(family, init=init)
    images = torch.randn(1, 3, *size)
    first, second = (branch.eval()(images) for branch in encoder.branches)
    assert torch.equal(first, second) == (init == "copies")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": {}}, "model_type is None, must be one of .*resnet"),
        ({"options": {"model_type": "bert"}}, "model_type is 'bert', must be one of beit"),
        (
            {"options": {"model_type": "resnet", "depht": 1}},
            "model.encoder.options has 'depht', resnet knows only .*depths",
        ),
        (
            {"options": {"model_type": "resnet", "out_features": ["stem"]}},
            "model.encoder.options has 'out_features'",
        ),
        (
            {"options": {"model_type": "resnet", "layer_type": "odd"}},
            "model.encoder.options is .*'odd'.*, not allowed by resnet",
        ),
        ({"pretrained": "/nowhere"}, "must be a folder with a config.json"),
        (
            {"options": {"model_type": "swin", **SMALL["swin"]}, "trunk_depth": 1},
            "model.trunk_depth is 1, must be 0 for swin; only resnet, convnext",
        ),
    ],
)
def test_faults(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_encoder("backbone", 1, image_size=SIZE, **arguments)


def test_the_folder_decides_the_model_type(tmp_path):
    AutoConfig.for_model("resnet").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type is 'swin', must be 'resnet', as in"):
        build_encoder(
            "backbone",
            1,
            image_size=SIZE,
            pretrained=str(tmp_path),
            options={"model_type": "swin"},
        )
