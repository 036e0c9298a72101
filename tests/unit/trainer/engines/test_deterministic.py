"""What a training step calls has a deterministic algorithm on CUDA, as far as torch documents it.

The steps run on the device `meta`, where torch takes the same Python code as on CUDA.
"""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.encoders import build_encoder
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec
from trainer.engines.accelerator import make_accelerator
from trainer.engines.device import set_arithmetic
from trainer.planning.step_cost import empty_batch
from trainer.run import train_run

# With `torch.use_deterministic_algorithms(True)` torch 2.13 raises an error for these on CUDA, see
# the documentation of that function; of `nll_loss2d_forward` where it reduces, of `cumsum` for
# floats, of `bincount` with weights.
RAISING = {
    "avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward", "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward", "max_unpool2d", "max_unpool3d",
    "upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward", "_upsample_bilinear2d_aa_backward",
    "_upsample_bicubic2d_aa_backward", "reflection_pad1d_backward", "reflection_pad2d_backward",
    "reflection_pad3d_backward", "_ctc_loss_backward", "_embedding_bag", "put_", "histc", "median",
    "grid_sampler_2d_backward", "grid_sampler_3d_backward", "cumsum", "scatter_reduce",
}  # fmt: skip


class Called(TorchDispatchMode):
    """Notes the operators that are called, in the backward pass too."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("nll_loss_forward", "nll_loss2d_forward"):
            name += "" if args[3] == 0 else " that reduces"
        self.names.add(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # has no type on `meta`
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


LOSSES = {
    "binary": ("bce", "cross_entropy"),
    "multiclass": ("cross_entropy",),
    "regression": ("l1", "mse"),
    "dense_regression": ("l1", "l1_shift", "mse"),
    "dense_classification": ("cross_entropy",),
}


def tasks():
    return [
        TaskSpec(f"{kind}{loss}{copy}", kind, loss=loss, **more(kind))
        for kind, losses in LOSSES.items()
        for loss in losses
        for copy in range(2)
    ]


def more(kind):
    return {"channels": 5} if kind in ("multiclass", "dense_classification") else {}


def called(encoder, decoder, size=(64, 64), options=None):
    """The operators of a step in which the heads of a branch do not follow each other."""
    with torch.device("meta"):
        built = build_encoder(encoder, 2, image_size=size, options=options)
        network = MultiTaskNetwork(tasks(), built, size, decoder=decoder)
        heads = [(n, k) for n, k in network.heads if n % 3 or k]
        batch = empty_batch(network.tasks, 2, (len(network.image_mean), *size))
        with Called() as mode:
            targets = network.labels.targets(batch.scalars, batch.dense, batch.valid_rows)
            output = network(batch.images, network.select(heads), targets, gradient_statistics=True)
            output["losses"].sum().backward()
    return mode.names


SMALL = {"hidden_sizes": [8, 16], "depths": [1, 1]}
TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SWIN = {"depths": [1, 1], "num_heads": [1, 2]}
ENCODERS = {
    "residual64": ("residual64", {}),
    "xception": ("xception", {}),
    "resnet": ("backbone", {"model_type": "resnet", "embedding_size": 8, **SMALL}),
    "convnextv2": ("backbone", {"model_type": "convnextv2", "num_stages": 2, **SMALL}),
    "swin": ("backbone", {"model_type": "swin", "embed_dim": 8, **SWIN}),
    "dinov2": ("backbone", {"model_type": "dinov2", "patch_size": 8, **TRANSFORMER}),
    "vit": ("backbone", {"model_type": "vit", "patch_size": 8, **TRANSFORMER}),
}  # fmt: skip


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        *((encoder, "resize") for encoder in ENCODERS),
        ("residual64", "deconv"),
        *(
            pytest.param(encoder, "deconv", marks=pytest.mark.slow)
            for encoder in ENCODERS
            if encoder != "residual64"
        ),
    ],
)
def test_a_step_calls_nothing_that_raises_on_cuda(encoder, decoder):
    name, options = ENCODERS[encoder]
    names = called(name, decoder, options=options)
    assert "convolution_backward" in names and not names & RAISING


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("encoder", ["dinov2", "vit"])
def test_positions_that_are_interpolated_raise(encoder):
    """Where images are not square, or of another size than in pretraining; docs/failures.md."""
    name, options = ENCODERS[encoder]
    names = called(name, "resize", size=(64, 96), options=options)
    assert names & RAISING == {"upsample_bicubic2d_backward"}


@pytest.mark.usefixtures("forget_accelerate")
@pytest.mark.parametrize("recipe", ["affinity", "evidence", "published", "tag", "grad_tag"])
def test_neither_recipes_nor_metrics_call_anything_else_that_raises(
    rooms_config, monkeypatch, recipe
):
    """On the CPU torch does not replace bilinear interpolation."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # so that it is restored
    config = rooms_config("run.steps=6", "run.deterministic=true", f"grouping.recipe={recipe}")
    with Called() as mode:
        train_run(config, make_accelerator(config))
    set_arithmetic(rooms_config())
    assert mode.names & RAISING == {"upsample_bilinear2d_backward"}
