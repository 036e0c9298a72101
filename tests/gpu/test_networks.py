"""Every encoder with every decoder, in every precision and with and without recomputation."""

import copy
import importlib.util
from operator import lt

import pytest
import torch

from dmtg.plugins import DENSE_DECODERS, ENCODERS
from model.encoders import build_encoder
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec
from tests.gpu.devices import ON_CPU, ON_THE_CPU, TOLERANCE

CONVNEXT = {
    "model_type": "convnextv2", "hidden_sizes": [8, 16], "depths": [1, 1], "patch_size": 4,
    "num_stages": 2,
}  # fmt: skip
RESNET = {
    "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
    "layer_type": "basic",
}  # fmt: skip
VIT = {
    "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "patch_size": 8,
}  # fmt: skip
BUILT = {
    "convnext": ("backbone", CONVNEXT),
    "mlp": ("mlp", {"widths": [8, 16, 16]}),
    "residual64": ("residual64", {"channels": 8}),
    "resnet": ("backbone", RESNET),
    "timm": ("timm", {"model": "test_convnext"}),
    "vit": ("backbone", VIT),
    "xception": ("xception", {"sizes": [8, 16, 32, 32], "channels": 16}),
}
DECODERS = ("linear", *DENSE_DECODERS.names())
PRECISIONS = ON_THE_CPU if ON_CPU else tuple(TOLERANCE)
LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}
BATCH, SIDE = 8, 32


def test_every_registered_encoder_is_tried():
    assert {name for name, _ in BUILT.values()} == set(ENCODERS.names())


def size_of(encoder):
    return (1, 1) if encoder == "mlp" else (SIDE, SIDE)


def build(encoder, decoder):
    torch.manual_seed(0)
    name, options = BUILT[encoder]
    if name == "timm" and importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    tasks = [TaskSpec("face", "binary"), TaskSpec("age", "regression")]
    if decoder != "linear":
        tasks += [
            TaskSpec("depth", "dense_regression"),
            TaskSpec("ids", "dense_classification", channels=5),
        ]
    built = build_encoder(name, 2, image_size=size_of(encoder), options=options, trunk_depth=1)
    options = {} if decoder == "linear" else {"decoder": decoder}
    return MultiTaskNetwork(tasks, built, size_of(encoder), dense_widths=(8,), **options)


def batch_of(network, device):
    """Images, labels of scalar and of dense tasks, and which there are; the same in every call."""
    torch.manual_seed(1)
    pixels = network.image_size
    images = torch.randint(256, (BATCH, 3, *pixels), dtype=torch.uint8)
    if len(network.image_mean) != 3:
        images = torch.randn(BATCH, len(network.image_mean), *pixels)
    scalars = torch.stack([torch.arange(BATCH) % 2, torch.linspace(-1, 1, BATCH)])
    dense = {}
    if network.num_tasks > 2:
        dense["depth"] = torch.rand(BATCH, 1, *pixels).to(device)
        dense["ids"] = torch.randint(5, (BATCH, 1, *pixels), dtype=torch.uint8).to(device)
    valid = torch.ones(network.num_tasks, BATCH, dtype=torch.bool)
    return images.to(device), scalars.to(device), dense, valid.to(device)


def losses_and_gradients(network, device, precision="fp32"):
    """Return the losses [N,K], and the gradient of their sum as one vector, on the CPU."""
    images, scalars, dense, valid = batch_of(network, device)
    targets = network.labels.targets(scalars, dense, valid)
    low = LOW.get(precision)
    with torch.autocast(images.device.type, low, enabled=low is not None):
        losses = network(images, network.select(network.heads), targets)["losses"]
    losses.sum().backward()
    gradient = torch.cat([p.grad.float().flatten() for p in network.parameters()])
    return losses.detach().cpu(), gradient.cpu()


@pytest.fixture
def arithmetic():
    """Sets how exact products of fp32 numbers are, as `trainer.engines.device` does."""

    def use(precision):
        torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
        torch.backends.cudnn.allow_tf32 = precision != "fp32"

    yield use
    use("fp32")


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("encoder", BUILT)
def test_losses_and_gradients_are_those_of_the_cpu(encoder, decoder, device, arithmetic):
    if encoder == "mlp" and decoder != "linear":
        pytest.skip("an mlp has no pixels")
    network = build(encoder, decoder)
    arithmetic("fp32")
    losses, gradient = losses_and_gradients(copy.deepcopy(network), "cpu")
    errors, limits = {}, {}
    for precision in PRECISIONS:
        arithmetic(precision)
        for recomputes in (False, True):
            mine = copy.deepcopy(network).to(device)
            mine.activation_checkpointing = recomputes
            found, slope = losses_and_gradients(mine, device, precision)
            of_losses = ((found - losses).abs() / losses.abs().clamp_min(1e-3)).max()
            # As one vector: single elements are sums that nearly cancel.
            of_gradient = (slope - gradient).norm() / gradient.norm()
            errors[precision, recomputes] = float(of_losses), float(of_gradient)
            limits[precision, recomputes] = TOLERANCE[precision], 10 * TOLERANCE[precision]
    wrong = [case for case in errors if not all(map(lt, errors[case], limits[case]))]
    assert not wrong, errors  # of losses and of the gradient, by precision and recomputation
