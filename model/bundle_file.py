"""Read the container of an exported model within bounds: its header first, its tensors later."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dmtg.names import shortened
from dmtg.nesting import is_deeper
from model.errors import BundleError
from model.subset import TensorPart

KEY = "dmtg"  # of the description in the metadata of the file

MAX_HEADER_BYTES = 2**24  # names and shapes of the tensors, and the description
MAX_DESCRIPTION_BYTES = 2**22  # 1,000 tasks take less than 2**20
MAX_DEPTH = 20  # of lists and objects inside each other in the description

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


@dataclass(frozen=True)
class TensorInfo:
    """Shape and type of a tensor in the file."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class BundleHeader:
    """What is known of a file without reading its tensors.

    Attributes:
        description: What `save_bundle` wrote about the model.
        tensors: By name.
        bytes: Size of the file.
    """

    description: dict[str, Any]
    tensors: dict[str, TensorInfo]
    bytes: int


def read_header(path: str | Path) -> BundleHeader:
    """Read the description of an exported model and what its tensors are.

    Raises:
        BundleError: The file cannot be read, is no exported model, or its header is too large.
    """
    with _readable(path):
        size = Path(path).stat().st_size
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if MAX_HEADER_BYTES < length <= size:
            raise BundleError(
                f"{path}: its header has {length} bytes, allowed are {MAX_HEADER_BYTES}"
            )
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            description = _description(path, metadata)
            tensors = {name: _info(path, name, file) for name in file.keys()}  # noqa: SIM118
    return BundleHeader(description, tensors, size)


def read_tensors(path: str | Path, wanted: Mapping[str, TensorPart]) -> dict[str, Tensor]:
    """Read tensors, or rows of them; nothing else is read from the disk.

    Args:
        path: The file.
        wanted: What to read, by the names to return it under.

    Raises:
        BundleError: The file cannot be read, or a value is not finite.
    """
    with _readable(path), safe_open(path, framework="pt") as file:
        tensors = {name: _read(file, part) for name, part in wanted.items()}
    broken = not_finite(tensors)
    if broken is not None:
        raise BundleError(f"{path}: {broken}")
    return tensors


def _read(file: Any, part: TensorPart) -> Tensor:  # noqa: ANN401 - of Rust
    if part.rows is None:
        return file.get_tensor(part.name)
    stored, rows = file.get_slice(part.name), np.asarray(part.rows)
    # Rows that follow each other are read at once.
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    return torch.cat([stored[int(run[0]) : int(run[-1]) + 1] for run in runs])


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return which tensor has values that are NaN or infinite, and how many; None if none has."""
    for name, tensor in tensors.items():
        count = int((~tensor.isfinite()).sum()) if tensor.is_floating_point() else 0
        if count:
            return f"{count} of {tensor.numel()} values of tensor {name!r} are NaN or infinite"
    return None


@contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise BundleError(f"{path}: no such file") from error
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: not a readable safetensors file ({error})") from error


def _description(path: str | Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if KEY not in metadata:
        raise BundleError(f"{path}: not an exported model (its metadata has no {KEY!r})")
    text = metadata[KEY]
    if len(text) > MAX_DESCRIPTION_BYTES:
        raise BundleError(
            f"{path}: its description has {len(text)} characters, allowed are "
            f"{MAX_DESCRIPTION_BYTES}"
        )
    try:
        description = json.loads(text, parse_constant=_refuse)
        deep = is_deeper(description, MAX_DEPTH)
    except RecursionError:
        deep = True
    except ValueError as error:
        raise BundleError(f"{path}: its description is not JSON ({error})") from error
    if deep:
        raise BundleError(f"{path}: its description is nested deeper than {MAX_DEPTH} levels")
    if not isinstance(description, dict):
        raise BundleError(f"{path}: its description is {shortened(text)!r}, must be an object")
    return description


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _info(path: str | Path, name: str, file: Any) -> TensorInfo:  # noqa: ANN401 - of Rust
    part = file.get_slice(name)
    if part.get_dtype() not in _DTYPES:
        raise BundleError(
            f"{path}: tensor {name!r} is of type {part.get_dtype()}, must be one of "
            f"{', '.join(_DTYPES)}"
        )
    return TensorInfo(tuple(part.get_shape()), _DTYPES[part.get_dtype()])
