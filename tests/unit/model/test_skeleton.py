import pytest
import torch
from torch import nn

from dmtg.plugins import DENSE_DECODERS, ENCODERS
from model.bundle import load_pruned, save_bundle
from model.encoders import build_encoder
from model.encoders.family import EncoderFamily, Parts
from model.heads.deconv import DeconvHeads
from model.network import MultiTaskNetwork
from model.skeleton import build_skeleton, check_maps
from model.tasks.decode import natural
from model.tasks.spec import TaskSpec

TASKS = [TaskSpec("depth", "dense_regression"), TaskSpec("cube", "binary")]
BACKBONES = {
    "dinov2": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1]},
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "swinv2": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "vit": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8},
}


class ReadsValues(nn.Module):
    """A convolution that computes what the device `meta` cannot."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4)

    def forward(self, images):
        return self.conv(images) * float(images.abs().max().clamp(1, 1).item())


class ReadsValuesFamily(EncoderFamily):
    def build_parts(self, _trunk_depth):
        return Parts(nn.Identity(), ReadsValues())


class ReadsArrays(ReadsValues):
    """Computes in NumPy when it is built, for which `meta` has another error."""

    def __init__(self):
        super().__init__()
        self.factor = float(torch.ones(2).numpy().min())


class ReadsArraysFamily(EncoderFamily):
    def build_parts(self, _trunk_depth):
        return Parts(nn.Identity(), ReadsArrays())


class ReadsValuesHeads(DeconvHeads):
    """A decoder that `meta` can build, but not compute."""

    def forward(self, features, rows):
        outputs = super().forward(features, rows)
        assert float(outputs[0].detach().abs().amax()) >= 0
        return outputs


class ReadsArraysHeads(DeconvHeads):
    def forward(self, features, rows):
        outputs = super().forward(features, rows)
        assert outputs[0].detach().numpy().size
        return outputs


def network_of(name, size, decoder="resize", **options):
    torch.manual_seed(0)
    encoder = build_encoder(name, 2, image_size=size, options=options)
    return MultiTaskNetwork(
        TASKS, encoder, size, [(0, 0), (1, 1)], decoder=decoder, dense_widths=(8,)
    )


def assert_loads(network, path):
    images = torch.randint(256, (2, 3, *network.image_size), dtype=torch.uint8)
    save_bundle(path, network, {})
    model = load_pruned(path)
    assert [n for n, _ in model.network.named_parameters()] == [
        n for n, _ in network.named_parameters()
    ]
    found = model(images)
    with torch.no_grad():
        predictions = network.eval()(images, network.select(network.heads))["predictions"]
    for spec in TASKS:
        assert torch.equal(found[spec.name], natural(spec, predictions[spec.name])), spec.name


@pytest.mark.parametrize("family", BACKBONES)
def test_a_backbone_is_loaded_without_a_run_on_an_image(family, tmp_path):
    """Also without the parameters that its output does not depend on, and with its tables."""
    network = network_of("backbone", (64, 64), model_type=family, **BACKBONES[family])
    assert_loads(network, tmp_path / "m")


@pytest.mark.parametrize(
    ("family", "error"), [(ReadsValuesFamily, RuntimeError), (ReadsArraysFamily, TypeError)]
)
def test_an_encoder_of_a_plugin_may_read_values(family, error, tmp_path, monkeypatch):
    ENCODERS.names()
    monkeypatch.setitem(ENCODERS._entries, "reads_values", family)
    network = network_of("reads_values", (16, 16))
    with pytest.raises(error), torch.device("meta"):
        MultiTaskNetwork.from_config(network.config())
    assert_loads(network, tmp_path / "m")


@pytest.mark.parametrize("heads", [ReadsValuesHeads, ReadsArraysHeads])
def test_a_decoder_of_a_plugin_may_read_values(heads, tmp_path, monkeypatch):
    DENSE_DECODERS.names()
    monkeypatch.setitem(DENSE_DECODERS._entries, "reads_values", heads)
    network = network_of("residual64", (16, 16), "reads_values", channels=4)
    skeleton = build_skeleton(network.config(), num_tensors=100, num_bytes=10_000)
    assert skeleton.device.type == "meta"
    assert_loads(network, tmp_path / "m")


def test_what_a_decoder_of_this_project_computes_is_always_bounded(monkeypatch):
    config = network_of("residual64", (16, 16), "deconv", channels=4).config()
    skeleton = build_skeleton(config, num_tensors=100, num_bytes=10_000)
    monkeypatch.setattr(DeconvHeads, "forward", lambda _, features, _rows: features[0].max().item())
    with pytest.raises(RuntimeError, match="meta"):
        check_maps(skeleton)


def test_nothing_has_storage_and_the_random_state_stays():
    config = network_of("residual64", (16, 16), channels=4).config()
    state = torch.random.get_rng_state()
    skeleton = build_skeleton(config, num_tensors=100, num_bytes=10_000)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {tensor.device.type for tensor in skeleton.state_dict().values()} == {"meta"}
    assert skeleton.branches[0] is skeleton.branches[1] and skeleton.num_branches == 2
    check_maps(skeleton)


def test_the_bound_of_modules_holds_only_while_a_skeleton_is_built():
    config = network_of("mlp", (1, 1), widths=[3, *[2] * 2000]).config()
    with pytest.raises(ValueError, match="more than the 1016 modules that its tensors allow"):
        build_skeleton(config, num_tensors=1, num_bytes=10_000)
    nn.Sequential(*(nn.ReLU() for _ in range(2000)))


def test_the_shape_of_a_tensor_is_bounded_by_the_file():
    config = network_of("residual64", (16, 16), channels=4).config()
    config["encoder"]["options"]["channels"] = 2000
    with pytest.raises(ValueError, match=r"shape \(2000, 2000, 3, 3\) would have 144000000 bytes"):
        build_skeleton(config, num_tensors=100, num_bytes=10_000)
    build_skeleton(config, num_tensors=100, num_bytes=200_000_000)
