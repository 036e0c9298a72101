"""Import timm (1.0), also where torchvision is missing or broken.

timm requires torchvision, but its models use only the class `FrozenBatchNorm2d` of it, and of
`timm.data` only constants. There is no torchvision for the CPU builds of torch on PyPI.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from dmtg.optional_packages import hide_if_broken, import_package

_ADVICE = "install it with pip install 'dmtg[timm]', without torchvision with --no-deps timm"
_DATA = "timm.data"
_CONSTANTS = "timm.data.constants"


class _FrozenBatchNorm2d(nn.Module):
    """Stands for torchvision's class, of which timm asks whether layers are instances."""

    def __init__(self, *_: object, **__: object) -> None:
        raise ValueError("model.encoder.options: frozen batch normalisation needs torchvision")


def import_timm() -> ModuleType:
    """Return the library timm.

    Raises:
        ValueError: It is not installed or cannot be imported.
    """
    # Tensors that are made by the import have values, also where a network is built without.
    with torch.device("cpu"):
        if "timm" in sys.modules or hide_if_broken("torchvision"):
            return _import()
        with _without_torchvision():
            return _import()


def _import() -> ModuleType:
    return import_package("timm", "model.encoder.name timm", _ADVICE)


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """Replace what timm's models import of torchvision; `timm.data` stays replaced."""
    stand_ins = [ModuleType(f"torchvision{part}") for part in ("", ".ops", ".ops.misc")]
    stand_ins[2].__dict__["FrozenBatchNorm2d"] = _FrozenBatchNorm2d
    for module in stand_ins:
        module.__spec__ = ModuleSpec(module.__name__, None)
    sys.modules |= {module.__name__: module for module in stand_ins}
    sys.modules |= {module.__name__: module for module in _data_modules()}
    try:
        yield
    except BaseException:
        for name in (_DATA, _CONSTANTS):
            sys.modules.pop(name, None)
        raise
    finally:
        for module in stand_ins:
            del sys.modules[module.__name__]
        sys.modules["torchvision"] = None  # type: ignore[assignment]


def _data_modules() -> list[ModuleType]:
    """Return `timm.data` with its constants only, and the module that defines them."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.submodule_search_locations is None:
        return []  # the import says what is wrong
    folder = Path(spec.submodule_search_locations[0]) / "data"
    found = importlib.util.spec_from_file_location(_CONSTANTS, folder / "constants.py")
    if found is None or found.loader is None or not (folder / "constants.py").is_file():
        return []
    constants = importlib.util.module_from_spec(found)
    found.loader.exec_module(constants)
    data = ModuleType(_DATA)
    data.__path__ = [str(folder)]
    data.__dict__.update({k: v for k, v in vars(constants).items() if k.isupper()})
    return [data, constants]
