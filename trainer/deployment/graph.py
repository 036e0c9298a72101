"""The graph of a model by torch.export, and its file."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from dmtg.files import atomic_path
from dmtg.memory import is_out_of_memory
from dmtg.names import one_line
from trainer.deployment.deployed import METADATA_KEY, DeployedModel, check_agreement
from trainer.errors import UserError

METADATA_FILE = f"{METADATA_KEY}.json"  # in a .pt2 archive
_MAX_BATCH, _MAX_SIDE = 2**16, 2**16


def export_graph(model: DeployedModel, images: Tensor) -> ExportedProgram:
    """Return the graph of a model for batches of any size.

    Args:
        model: The model, in evaluation mode.
        images: Inputs to trace it with, two at least.

    Raises:
        UserError: The encoder or a decoder has code that torch.export cannot trace.
    """
    limits = {"batch": _MAX_BATCH}
    axes = {
        axis: Dim(name, min=1, max=limits.get(name, _MAX_SIDE))
        for axis, name in model.dynamic_axes.items()
    }
    try:
        with torch.no_grad(), quiet_exporter():
            return torch.export.export(model, (images,), dynamic_shapes=(axes,))
    except Exception as error:  # tracing runs code of the encoder: any error can come
        if is_out_of_memory(error):
            raise
        encoder = model.network.config()["encoder"]["name"]
        raise UserError(
            f"the encoder {encoder} or a decoder of this model cannot be exported: torch.export "
            f"cannot trace it: {one_line(f'{type(error).__name__}: {error}', 300)}"
        ) from error


def write_torch(path: Path, model: DeployedModel, examples: Sequence[Tensor]) -> float:
    """Write a model as a `.pt2` file of torch.export, and compare it with the model.

    Args:
        path: The file; it appears under its name only after the comparison.
        model: The model.
        examples: Inputs of different sizes, of which the first has two images at least.

    Returns:
        The largest difference of any output.

    Raises:
        UserError: The model cannot be exported.
        ValueError: The outputs differ.
    """
    program = export_graph(model, examples[0])
    with atomic_path(path) as partial, quiet_exporter():
        torch.export.save(
            program, partial, extra_files={METADATA_FILE: json.dumps(model.description())}
        )
        loaded = torch.export.load(partial).module()
        return max(_difference(loaded, model, images) for images in examples)


@torch.no_grad()
def _difference(loaded: torch.nn.Module, model: DeployedModel, images: Tensor) -> float:
    return check_agreement("the exported program", model(images), loaded(images))


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Suppress what torch and onnxscript say about their own parts while they export."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
