"""Models of timm with random weights, against what the undivided model computes."""

import copy
import importlib.util
import json
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model.bundle import BundleError, load_pruned, save_bundle
from model.encoders import build_encoder
from model.encoders.timm_library import import_timm
from model.encoders.timm_stages import divided, families
from model.network import MultiTaskNetwork
from model.subset import subset
from model.sync_batch_norm import SyncBatchNorm, synchronise
from model.tasks.spec import TaskSpec
from tests.processes import ROOT
from tests.unit.model.encoders.hub_cache import cached_repository

if importlib.util.find_spec("timm") is None:
    pytest.skip("timm is not installed: make setup does it", allow_module_level=True)

SIZE = (64, 64)
TINY = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_byobnet")
# A model of each class that is divided, made smaller where its constructor allows it.
MODELS = {
    "cs3darknet_focus_s": {},
    "davit_tiny": {"depths": (1, 1), "embed_dims": (16, 32), "num_heads": (2, 4)},
    "densenet121": {"growth_rate": 4, "block_config": (2, 2)},
    "edgenext_xx_small": {},
    "efficientformerv2_s0": {},
    "efficientvit_b0": {},
    "efficientvit_l1": {
        "widths": (8, 16, 16, 32, 32),
        "depths": (1, 1, 1, 1, 1),
        "head_dim": 8,
    },
    "ese_vovnet19b_slim": {},
    "eva02_tiny_patch14_224": {"depth": 2},
    "fastvit_t8": {},
    "focalnet_tiny_srf": {},
    "gcvit_xxtiny": {},
    "ghostnet_050": {},
    "hgnetv2_b0": {},
    "inception_next_atto": {},
    "mobilenetv3_small_050": {},
    "nextvit_small": {},
    "poolformerv2_s12": {},
    "pvt_v2_b0": {},
    "rdnet_tiny": {},
    "regnetx_002": {},
    "repvit_m0_9": {},
    "resnetv2_18": {},
    "starnet_s050": {},
    "swiftformer_xs": {},
    "swin_tiny_patch4_window7_224": {
        "depths": (1, 1),
        "embed_dim": 16,
        "num_heads": (2, 4),
        "window_size": 4,
    },
    "swinv2_tiny_window8_256": {"depths": (1, 1), "embed_dim": 16, "num_heads": (2, 4)},
    "test_byobnet": {},
    "test_convnext": {},
    "test_efficientnet": {},
    "test_mambaout": {},
    "test_maxvit": {},
    "test_nfnet": {},
    "test_resnet": {},
    "test_vit": {},
    "test_vit2": {},
    "test_vit3": {},
    "tiny_vit_5m_224": {
        "depths": (1, 1, 1, 1),
        "embed_dims": (8, 16, 16, 32),
        "num_heads": (1, 2, 2, 2),
        "window_sizes": (4, 4, 4, 2),
    },
    "vit_small_patch14_reg4_dinov2": {"depth": 2, "embed_dim": 32, "num_heads": 2},
    "vit_small_patch16_dinov3": {"depth": 2, "embed_dim": 32, "num_heads": 2},
}
SLOW = (
    "cs3darknet_focus_s",
    "efficientformerv2_s0",
    "ese_vovnet19b_slim",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "nextvit_small",
    "poolformerv2_s12",
    "rdnet_tiny",
    "resnetv2_18",
)
WHOLE = pytest.param("tnt_s_legacy_patch16_224", marks=pytest.mark.slow)  # is not divided


def create(name, size=SIZE, **options):
    timm = import_timm()
    if timm.get_pretrained_cfg(name).fixed_input_size:
        options["img_size"] = size
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **options)


def features(model, images, size=SIZE):
    """The feature map [B,C,h,w] by the model's own forward pass."""
    maps = model.forward_features(images)
    if maps.ndim == 3:
        patches = maps[:, model.num_prefix_tokens :]
        grid = [
            side // patch for side, patch in zip(size, model.patch_embed.patch_size, strict=True)
        ]
        return patches.transpose(1, 2).reshape(len(images), -1, *grid)
    return maps.movedim(3, 1) if getattr(model, "output_fmt", "") == "NHWC" else maps


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in MODELS]
)
@torch.no_grad()
def test_the_stages_compute_what_the_model_computes(name):
    model = create(name, **MODELS[name]).eval()
    images = torch.randn(2, 3, *SIZE)
    expected = features(model, images)
    stages = divided(model, SIZE)
    assert len(stages) > 2
    torch.testing.assert_close(nn.Sequential(*stages)(images), expected)


def test_the_classes_in_the_documentation_are_those_that_are_divided():
    text = (ROOT / "docs" / "encoders.md").read_text()
    (listed,) = re.findall(r"In timm these are the classes (.*?)\.\n", text, re.DOTALL)
    assert sorted(re.findall(r"`(\w+)`", listed)) == families()


def test_a_model_with_a_large_part_that_is_not_used_is_refused():
    """An exported model of it could not be read."""
    with torch.device("meta"), pytest.raises(ValueError, match="a part of 411041792 bytes"):
        build("vgg11")


@pytest.mark.slow
def test_every_class_that_is_divided_is_compared():
    classes = set()
    for name, options in MODELS.items():
        with torch.device("meta"):
            classes.add(type(create(name, **options)).__name__)
    assert classes == set(families())


def build(name, num_branches=2, size=SIZE, trunk_depth=0, pretrained=None, init="independent", **o):
    torch.manual_seed(0)
    return build_encoder(
        "timm",
        num_branches,
        image_size=size,
        trunk_depth=trunk_depth,
        init=init,
        options={"model": name, **o},
        pretrained=pretrained,
    )


@pytest.mark.parametrize("name", [*TINY, WHOLE])
def test_every_parameter_is_trained_and_the_config_rebuilds_the_architecture(name):
    encoder = build(name)
    images = torch.randn(2, 3, *SIZE)
    for branch in encoder.branches:
        branch.train()
        maps = branch(encoder.trunk(images))
        assert maps.shape == (2, encoder.channels, *encoder.spatial)
        (maps * torch.randn_like(maps)).sum().backward()
        assert [n for n, p in branch.named_parameters() if p.grad is None] == []
    twin = build_encoder(**json.loads(json.dumps(encoder.config)), num_branches=1)
    assert twin.config == encoder.config and encoder.pool == "mean"
    twin.branches[0].load_state_dict(encoder.branches[1].state_dict())
    expected = encoder.branches[1].eval()(images)
    torch.testing.assert_close(twin.branches[0].eval()(images), expected)


@pytest.mark.parametrize("name", TINY)
def test_any_depth_computes_the_same(name):
    images = torch.randn(2, 3, *SIZE)
    whole = build(name, 1)
    values = [p.clone() for p in whole.branches[0].parameters()]
    expected = whole.branches[0].eval()(images)
    for depth in range(1, len(divided(create(name), SIZE))):
        encoder = build(name, 1, trunk_depth=depth)
        parts = nn.Sequential(encoder.trunk, encoder.branches[0]).eval()
        for parameter, value in zip(parts.parameters(), values, strict=True):
            parameter.data.copy_(value)
        torch.testing.assert_close(parts(images), expected)


@pytest.mark.parametrize("size", [(64, 96), (48, 48)])
def test_other_sizes(size):
    encoder = build("test_vit", size=size)
    assert encoder.spatial == (size[0] // 16, size[1] // 16)


def test_branches_start_different_or_as_copies():
    images = torch.randn(1, 3, *SIZE)
    for init in ("independent", "copies"):
        first, second = (b.eval()(images) for b in build("test_vit", init=init).branches)
        assert torch.equal(first, second) == (init == "copies")


def weights(name, **options):
    model = create(name, **options)
    generator = torch.Generator().manual_seed(1)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return model


def test_the_weights_that_timm_names_come_from_the_cache_of_the_hub(hub_cache, tmp_path):
    source = weights("test_vit")
    save_file(source.state_dict(), cached_repository(hub_cache, "timm/test_vit.r160_in1k")
              / "model.safetensors")  # fmt: skip
    described = import_timm().get_pretrained_cfg("test_vit")
    encoder = build("test_vit", pretrained=True, trunk_depth=2)
    images = torch.randn(2, 3, *SIZE)
    for branch in encoder.branches:
        maps = branch.eval()(encoder.trunk.eval()(images))
        torch.testing.assert_close(maps, features(source.eval(), images))
    assert encoder.config["options"] == {"model": "test_vit"}
    assert encoder.image_mean == tuple(described.mean) and encoder.image_std == tuple(described.std)
    assert build("test_vit").image_mean is None
    # The exported model has all of it, and needs neither the cache nor the network.
    tasks = [TaskSpec("a", "binary"), TaskSpec("b", "binary")]
    network = MultiTaskNetwork(tasks, encoder, SIZE, heads=[(0, 0), (1, 1)])
    assert network.config()["image_mean"] == list(described.mean)
    save_bundle(tmp_path / "m.safetensors", network, {})
    (hub_cache / "models--timm--test_vit.r160_in1k").rename(tmp_path / "away")
    pictures = torch.randint(256, (2, 3, *SIZE), dtype=torch.uint8)
    network.eval()
    with torch.no_grad():
        expected = network(pictures, network.select(network.heads))["predictions"]
    loaded = load_pruned(tmp_path / "m.safetensors").network
    with torch.no_grad():
        found = loaded(pictures, loaded.select(loaded.heads))["predictions"]
    assert {n: v.tolist() for n, v in found.items()} == {n: v.tolist() for n, v in expected.items()}


def checkpoint(folder, source, **config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(source.state_dict(), folder / "model.safetensors")
    return str(folder)


IMAGES = {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.5, 0.75]}


@pytest.mark.usefixtures("no_network")
def test_a_folder_of_timm_with_its_own_constructor_arguments(tmp_path):
    source = weights("test_vit", depth=2)
    path = checkpoint(
        tmp_path / "mine",
        source,
        architecture="test_vit",
        model_args={"depth": 2, "num_classes": 7},
        pretrained_cfg=IMAGES,
    )
    encoder = build_encoder("timm", 1, image_size=SIZE, pretrained=path)
    images = torch.randn(1, 3, *SIZE)
    maps = encoder.branches[0].eval()(images)
    torch.testing.assert_close(maps, features(source.eval(), images))
    assert (encoder.image_mean, encoder.image_std) == ((0.5, 0.4, 0.3), (0.25, 0.5, 0.75))
    assert encoder.config["options"] == {"model": "test_vit", "depth": 2}


def test_weights_of_another_model_are_refused(tmp_path):
    path = checkpoint(
        tmp_path / "x", weights("test_convnext"), architecture="test_vit", pretrained_cfg=IMAGES
    )
    with pytest.raises(ValueError, match=r"model\.safetensors has no weights '.*' of test_vit"):
        build_encoder("timm", 1, image_size=SIZE, pretrained=path)
    with pytest.raises(ValueError, match=r"options\.model is 'test_resnet', must be 'test_vit'"):
        build("test_resnet", pretrained=path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": None}, r"options\.model is None, must be a name of timm such as convnext_tiny"),
        ({"name": "hf-hub:a/b"}, r"options\.model is 'hf-hub:a/b', must be a name of timm"),
        ({"name": "test_vitt"}, r"'test_vitt', which timm .* does not know; close are test_vit,"),
        ({"name": "test_vit.no"}, r"'test_vit\.no', test_vit has the tags r160_in1k$"),
        (
            {"name": "test_vit", "checkpoint_path": "x"},
            "has 'checkpoint_path', which cannot be chosen",
        ),
        ({"name": "test_vit", "features_only": True}, "'features_only', which cannot be chosen"),
        ({"name": "test_vit", "pretrained_strict": False}, "'pretrained_strict', which cannot be"),
        ({"name": "test_vit", "nonsense": 1}, "unexpected keyword argument 'nonsense'"),
        ({"name": "test_vit", "depth": 10**6}, r"options\.depth is 1000000, must be at most 65536"),
        ({"name": "test_vit", "act_layer": "a/b"}, r"options\.act_layer is 'a/b', must be a word"),
        ({"name": "test_vit", "num_heads": 7}, r"cannot build it for images of \(64, 64\): "),
        ({"name": "test_vit", "trunk_depth": 7}, "must be from 0 to 6 for this test_vit"),
        (
            {"name": "hrnet_w18_small", "trunk_depth": 1},
            r"must be 0 for hrnet_w18_small, whose class HighResolutionNet is not divided; "
            "those that are: ByobNet, ConvNeXt,",
        ),
        ({"name": "test_vit", "size": (60, 64)}, r"which cannot compute images of \(60, 64\)"),
        (
            {"name": "test_vit", "pretrained": "/no/where"},
            "must be a folder with a config.json",
        ),
        (
            {"name": "test_vit", "pretrained": True},
            "'timm/test_vit.r160_in1k'.*model.safetensors.*not in the cache, and the hub is off",
        ),
    ],
)
@pytest.mark.usefixtures("hub_cache")
def test_faults_are_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_network")
def test_weights_by_the_options_are_refused_in_an_exported_model(tmp_path):
    """They would be fetched from the network."""
    network = MultiTaskNetwork([TaskSpec("a", "binary")], build("test_resnet", 1), SIZE)
    for entry in ({"options": {"model": "test_resnet", "pretrained": True}}, {"pretrained": True}):
        described = network.config()
        network._config["encoder"] = {**described["encoder"], **entry}
        save_bundle(tmp_path / "m.safetensors", network, {})
        network._config["encoder"] = described["encoder"]
        with pytest.raises(BundleError, match="pretrained"):
            load_pruned(tmp_path / "m.safetensors")


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "test_resnet"])
@pytest.mark.parametrize("trunk_depth", [0, 2])
def test_activation_checkpointing_computes_the_same_gradients(name, trunk_depth):
    """With random depth, whose random numbers are drawn again, and with batch statistics."""
    encoder = build(name, trunk_depth=trunk_depth, drop_path_rate=0.5)
    network = MultiTaskNetwork([TaskSpec(n, "binary") for n in "abc"], encoder, SIZE).train()
    images = torch.randint(256, (4, 3, *SIZE), dtype=torch.uint8)
    valid = torch.ones(3, 4, dtype=torch.bool)
    results = []
    for checkpointing in (False, True):
        own = subset(network, network.heads)
        own.activation_checkpointing = checkpointing
        targets = own.labels.targets(torch.ones(3, 4), {}, valid)
        torch.manual_seed(3)
        own(images, own.select(own.heads), targets)["losses"].sum().backward()
        results.append({n: p.grad for n, p in own.named_parameters()} | dict(own.named_buffers()))
    for key, value in results[0].items():
        assert torch.equal(results[1][key], value), key


def test_batch_normalisations_with_an_activation_keep_it_when_they_are_synchronised():
    encoder = build("test_efficientnet", 1)
    branch = encoder.branches[0].eval()
    images = torch.randn(2, 3, *SIZE)
    plain = copy.deepcopy(branch)
    synchronise(branch)
    layers = [m for m in branch.modules() if isinstance(m, SyncBatchNorm)]
    norms = [m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(layers) == len(norms) > 0
    torch.testing.assert_close(branch(images), plain(images))
    torch.testing.assert_close(branch.train()(images), plain.train()(images))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "trunk_depth"), [("test_convnext", 0), ("test_vit", 2)])
def test_compiled_parts_compute_the_same(name, trunk_depth):
    network = MultiTaskNetwork(
        [TaskSpec(n, "binary") for n in "ab"], build(name, trunk_depth=trunk_depth), SIZE
    ).train()
    images = torch.randint(256, (4, 3, *SIZE), dtype=torch.uint8)
    targets = network.labels.targets(torch.ones(2, 4), {}, torch.ones(2, 4, dtype=torch.bool))
    gradients = []
    for compiles in (False, True):
        own = subset(network, network.heads)
        if compiles:
            own.compile_parts()
        own(images, own.select(own.heads), targets)["losses"].sum().backward()
        gradients.append([p.grad for p in own.parameters()])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
