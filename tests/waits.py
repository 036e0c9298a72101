"""Find on the CPU what would make the host wait for a GPU."""

import sys
import traceback
from collections.abc import Callable

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operators whose result, or the shape of it, the host must know before the program can go on.
_READING = (
    "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique", "bincount",
    "equal.default", "repeat_interleave.Tensor", "histc",
)  # fmt: skip
_INDEXING = ("aten.index.", "aten.index_put", "aten._index_put", "aten._unsafe_index")
# Functions that copy between host and device, where they are two.
_COPYING = (torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.to, torch.Tensor.cuda)
_TO_HOST = (torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.item)


class Waits(TorchDispatchMode):
    """Records the calls in its context for which the host would wait for a GPU.

    On the CPU host and device are the same. Every call that names a device counts as a copy, which
    must be the one of `model.transfer`; so does every call that returns values to the host.

    Args:
        allowed: Names of functions, or parts of paths of files, whose calls do not count.
    """

    def __init__(self, *allowed: str) -> None:
        super().__init__()
        # Optimizers keep step counts on the host; gradients are clipped where they are.
        known = ("torch/optim", "torch/nn/utils/clip_grad.py", "model/transfer.py")
        self._allowed = (*allowed, *known)
        self._copies = _Copies(self._record)
        self.found: list[str] = []

    def __enter__(self) -> "Waits":
        super().__enter__()
        self._copies.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._copies.__exit__(*error)
        super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if any(part in name for part in _READING) or (
            name.startswith(_INDEXING) and any(_is_mask(index) for index in args[1])
        ):
            self._record(name)
        return func(*args, **(kwargs or {}))

    def _record(self, name: str) -> None:
        stack = [
            (frame.f_code.co_filename, line, frame.f_code.co_name)
            for frame, line in traceback.walk_stack(sys._getframe(2))  # the innermost first
        ]
        if not any(
            part in file or part == function
            for file, _, function in stack
            for part in self._allowed
        ):
            callers = [entry for entry in stack if "/torch/" not in entry[0]][2::-1]
            places = [f"{file}:{line} {function}" for file, line, function in callers]
            self.found.append(f"{name} at {', '.join(places)}")


class _Copies(TorchFunctionMode):
    def __init__(self, record: Callable[[str], None]) -> None:
        super().__init__()
        self._record = record

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        copies = func in _COPYING and _names_a_device(args, kwargs) and not _is_known(kwargs)
        if copies or func in _TO_HOST:
            self._record(getattr(func, "__name__", str(func)))
        return func(*args, **kwargs)


def _is_mask(index) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


def _is_known(kwargs) -> bool:
    """Whether torch itself copies between devices without waiting, as the loss scaler does."""
    caller = sys._getframe(2).f_code.co_filename
    return bool(kwargs.get("non_blocking")) and "/torch/" in caller


def _names_a_device(args, kwargs) -> bool:
    values = (*args[1:], kwargs.get("device"))
    return any(isinstance(value, str | torch.device) for value in values)
