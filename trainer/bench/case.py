"""Define a case of `dmtg bench step`, and build this project's training step for it.

Legend: N tasks, K branches, B batch, D features, S pixels on a side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from data_pipelines.reading.collate import Batch
from model.encoders import Encoder
from model.grouping.grouping import gumbel_noise
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec
from model.transfer import copy_to_device
from trainer.config.config import Config
from trainer.config.loading import parse_config
from trainer.config.model import Compile
from trainer.engines.accelerator import make_accelerator
from trainer.engines.device import (
    LOW_PRECISION,
    autocast,
    check_precision,
    chosen_precision,
    set_arithmetic,
)
from trainer.session import Session, start_session
from trainer.step import train_step

SHRINK = 16  # image size / feature map size of the published encoder for indoor scenes
SEED = 0
TAU = 2.5  # temperature that was published for attributes

Step = Callable[[], Tensor]  # execute a step and return its losses [N,K]


@dataclass(frozen=True)
class StepCase:
    """The network, data and precision of one measurement.

    Attributes:
        encoder: residual64, xception, or none for heads on random features.
        tasks: Number of tasks N.
        branches: Number of branches K.
        batch: Number of samples B.
        size: Image side S in pixels.
        heads: linear, or dense for the published decoders.
        features: Number of features D without an encoder.
        precision: Precision of this project's step, as `run.precision`.
        compile: Value of `model.compile`, for the encoder.
        checkpoint: Value of `model.activation_checkpointing`.
        channels_last: Value of `model.channels_last`.
        cudnn_benchmark: Value of `run.cudnn_benchmark`.
        overlap_comm: Value of `run.overlap_comm`.
    """

    encoder: str
    tasks: int
    branches: int
    batch: int
    size: int
    heads: str = "linear"
    features: int = 512
    precision: str = "fp32"
    compile: Compile = False
    checkpoint: bool = False
    channels_last: str = "auto"
    cudnn_benchmark: bool = False
    overlap_comm: bool | None = None

    @property
    def device(self) -> torch.device:
        """The device of the steps."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The type of matrix products and convolutions."""
        return LOW_PRECISION.get(self.precision, torch.float32)

    def specs(self) -> tuple[TaskSpec, ...]:
        """Return the N tasks."""
        kind: Any = "binary" if self.heads == "linear" else "dense_regression"
        return tuple(TaskSpec(f"task{number:04d}", kind) for number in range(self.tasks))

    def data(self) -> Batch:
        """Return the same random samples on the device in every call."""
        generator = torch.Generator().manual_seed(SEED)
        images = torch.randint(
            256, (self.batch, 3, self.size, self.size), generator=generator, dtype=torch.uint8
        )
        names = tuple(task.name for task in self.specs())
        dense, scalars = {}, torch.zeros(0, self.batch)
        if self.heads == "linear":
            scalars = torch.randint(2, (self.tasks, self.batch), generator=generator).float()
        else:
            shape = (self.batch, 1, self.size, self.size)
            dense = {name: torch.rand(shape, generator=generator) for name in names}
        batch = Batch(
            tasks=names,
            scalar_tasks=() if dense else names,
            images=images,
            scalars=scalars,
            dense=dense,
            valid_rows=torch.ones(self.tasks, self.batch, dtype=torch.bool),
            keys=tuple(str(row) for row in range(self.batch)),
        )
        return batch.to(self.device)

    def noise(self, step: int) -> Tensor:
        """Return the Gumbel noise [N,K] of a training step."""
        noise = gumbel_noise((self.tasks, self.branches), SEED, step)
        return copy_to_device(noise, self.device)


class Features(nn.Module):
    """An encoder whose features [B,...] are parameters and do not depend on the image."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.randn(shape))

    def forward(self, images: Tensor) -> Tensor:  # noqa: ARG002 - signature of an encoder
        """Return the features."""
        return self.values


def feature_shape(case: StepCase) -> tuple[int, int, int, int]:
    """Return the shape [B,D,h,w] of random features that replace an encoder's map."""
    side = 1 if case.heads == "linear" else case.size // SHRINK
    return case.batch, case.features, side, side


class _BenchData:
    """`trainer.run_data.RunData` with tasks and without batches, which the steps get directly."""

    train_samples: int | None = None
    eval_samples = 1
    digest = dataset = "bench"

    def __init__(self, case: StepCase) -> None:
        self.tasks = case.specs()

    def steps_per_epoch(self) -> int:
        """Return 1; no result depends on it."""
        return 1

    def train_batches(self, *_: int, **__: int) -> Iterator[Batch]:
        """Return no batches."""
        return iter(())

    def eval_batches(self, **_: int) -> Iterator[Batch]:
        """Return no batches."""
        return iter(())


def bench_config(case: StepCase, out: Path) -> Config:
    """Return the configuration of a run whose steps are those of the case.

    No configuration has heads alone; its encoder is another, and only its arithmetic counts.
    """
    tree: dict[str, Any] = {
        "run": {
            "out": str(out),
            "steps": 10**6,
            "seed": SEED,
            "precision": case.precision,
            "cudnn_benchmark": case.cudnn_benchmark,
            "overlap_comm": case.overlap_comm,
        },
        "data": {
            "shards": "bench",
            "image_size": [case.size, case.size],
            "global_batch": case.batch,
            "workers": 0,
        },
        "model": {
            "encoder": {"name": "residual64" if case.encoder == "none" else case.encoder},
            "branches": case.branches,
            "decoder": "deconv",
            "compile": case.compile,
            "activation_checkpointing": case.checkpoint,
            "channels_last": case.channels_last,
        },
        "grouping": {"recipe": "published", "temperature": {"initial": TAU, "final": TAU}},
        "pruning": {"threshold": 0.5 / case.branches, "begin": 1.0, "end": 1.0},
        "optim": {"name": "adam", "schedule": "constant"},
        "log": {"trackers": [], "progress": False},
    }
    return parse_config(tree, "dmtg bench step")


def set_arithmetic_of(case: StepCase) -> None:
    """Set the arithmetic of a run of the case for every step in this process.

    Raises:
        UserError: The precision needs a GPU, and the device of the case is the CPU.
    """
    config = bench_config(case, Path("unused"))
    if case.device.type == "cpu":
        check_precision(chosen_precision(config))
    set_arithmetic(config)


@contextmanager
def our_step(case: StepCase) -> Iterator[tuple[Step, MultiTaskNetwork]]:
    """Yield this project's step on the case, and the network that it trains."""
    if case.encoder == "none":
        network = _heads_on_features(case)
        yield _pass_of_heads(case, network), network
        return
    AcceleratorState._reset_state()  # it refuses a precision other than that of an earlier case
    with TemporaryDirectory() as folder:
        config = bench_config(case, Path(folder) / "run")
        with start_session(config, make_accelerator(config), _BenchData(case)) as session:
            yield _training_step(case, session), session.engine.module


def _training_step(case: StepCase, session: Session) -> Step:
    batch = case.data()

    def step() -> Tensor:
        result = train_step(session, [batch])
        session.step += 1
        return result.losses

    return step


def _heads_on_features(case: StepCase) -> MultiTaskNetwork:
    torch.manual_seed(SEED)
    shape = feature_shape(case)
    encoder = Encoder(
        trunk=nn.Identity(),
        branches=[Features(*shape) for _ in range(case.branches)],
        in_channels=3,
        channels=shape[1],
        spatial=(shape[2], shape[3]),
        pool="flatten",
        init="independent",
        config={},
    )
    size = (case.size, case.size)
    return MultiTaskNetwork(case.specs(), encoder, size, decoder="deconv").to(case.device)


def _pass_of_heads(case: StepCase, network: MultiTaskNetwork) -> Step:
    """Return a forward and backward pass of the heads as a step without an optimizer."""
    batch, selection = case.data(), network.select(network.heads)
    weights = ((1.0 + case.noise(0)) / TAU).softmax(dim=1)  # [N,K]

    def step() -> Tensor:
        network.zero_grad()
        targets = network.labels.targets(batch.scalars, batch.dense, batch.valid_rows)
        inverse_label_counts = network.labels.label_counts(targets).reciprocal().unsqueeze(1)
        with autocast(case.precision, case.device.type):
            losses = network(batch.images, selection, targets)["losses"]
        losses = losses * inverse_label_counts
        (weights * losses).sum().backward()
        return losses.detach()

    return step
