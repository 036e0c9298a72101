"""Write a model as ONNX, and compare what onnxruntime computes with the model."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dmtg.files import PARTIAL_PREFIX, publish
from dmtg.memory import is_out_of_memory
from dmtg.names import one_line
from trainer.deployment.deployed import METADATA_KEY, DeployedModel, check_agreement
from trainer.deployment.graph import export_graph, quiet_exporter
from trainer.errors import UserError

OPSET = 18  # antialiased resizing needs it; runtimes since 2023 have it
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
MAX_BYTES = 2**31 - 2**27  # of one file: its format, protobuf, ends at 2 GiB


def write_onnx(path: Path, model: DeployedModel, examples: Sequence[Tensor]) -> float:
    """Write a model as ONNX, and compare it with the model.

    The input has the name `DeployedModel.input_name`, the outputs have those of the tasks. Weights
    of more than `MAX_BYTES` are written to a second file beside it, `NAME.onnx.data`.

    Args:
        path: The file; it appears under its name only after the comparison.
        model: The model.
        examples: Inputs of different sizes, of which the first has two images at least.

    Returns:
        The largest difference of any output.

    Raises:
        UserError: The packages of the extra `onnx` are missing, or the model cannot be exported.
        ValueError: The outputs differ.
    """
    _check_installed()
    program = export_graph(model, examples[0])
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    # Not only a temporary name: the file names the one with the weights.
    with tempfile.TemporaryDirectory(prefix=PARTIAL_PREFIX, dir=path.parent) as folder:
        unchecked = Path(folder) / path.name
        try:
            with torch.no_grad(), quiet_exporter():
                converted = torch.onnx.export(
                    program,
                    dynamo=True,
                    opset_version=OPSET,
                    input_names=[model.input_name],
                    output_names=[task.name for task in model.tasks],
                    dynamic_shapes=(model.dynamic_axes,),
                    verbose=False,
                )
                assert converted is not None, "the exporter of graphs returns a program"
                converted.model.metadata_props[METADATA_KEY] = json.dumps(model.description())
                converted.save(unchecked, external_data=weights > MAX_BYTES)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            cause = one_line(f"{type(error).__name__}: {error}", 300)
            raise UserError(f"this model cannot be converted to ONNX: {cause}") from error
        difference = max(_difference(unchecked, model, images) for images in examples)
        for file in sorted(Path(folder).iterdir(), reverse=True):  # the weights first
            publish(file, path.parent / file.name)
    return difference


@torch.no_grad()
def _difference(path: Path, model: DeployedModel, images: Tensor) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(None, {model.input_name: images.numpy()})
    found = {name: torch.from_numpy(value) for name, value in zip(names, outputs, strict=True)}
    return check_agreement("onnxruntime", model(images), found)


def _check_installed() -> None:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format onnx: {', '.join(missing)} is not installed; install dmtg with the extra "
            "onnx: pip install -c constraints.txt 'dmtg[onnx]'"
        )
