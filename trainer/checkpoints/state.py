"""Weights and Adam moments by parameter name, in fp32: the same for every engine and world size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.engines.engine import Engine
from trainer.engines.fsdp import sharded_like, whole
from trainer.engines.optim import MOMENTS, base_optimizer


@dataclass
class NamedState:
    """The state of a network and its optimizer, on the CPU.

    Attributes:
        weights: Parameter or buffer name to its full value (parameters in fp32).
        moments: Moment (`exp_avg`, `exp_avg_sq`) to name of a trained parameter to its full fp32
            value.
        optimizer_step: Updates made so far.
    """

    weights: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]] = field(
        default_factory=lambda: {moment: {} for moment in MOMENTS}
    )
    optimizer_step: int = 0


def read_state(engine: Engine, *, keep: bool = True) -> NamedState:
    """Gather the full state; a collective call: every rank must make it.

    Args:
        keep: Whether this rank needs the state. Else every gathered tensor is dropped at once,
            nothing is copied, and the state is empty.
    """
    inner = base_optimizer(engine.optimizer).state
    step = int(max((float(s["step"]) for s in inner.values() if s), default=0.0))
    return _read(engine, step, keep=keep)


def read_weights(engine: Engine) -> NamedState:
    """Gather the weights only, as `read_state` does."""
    return _read(engine, step=0, keep=True)


def _read(engine: Engine, step: int, *, keep: bool) -> NamedState:
    state = NamedState({}, optimizer_step=step)
    for moment, name, tensor in _gathered(engine, has_moments=step > 0):
        if keep:
            values = state.weights if moment is None else state.moments[moment]
            values[name] = _on_cpu(tensor)
        del tensor  # before the next one is gathered
    return state


def _gathered(engine: Engine, *, has_moments: bool) -> Iterator[tuple[str | None, str, Tensor]]:
    """Yield the moment or None, the parameter name and the full value of every tensor of the state.

    A value may be freed when the next one is asked for.
    """
    saved = engine.module.state_dict().keys()
    for name, buffer in engine.module.named_buffers():
        if name in saved:
            yield None, name, buffer
    if engine.zero_stage:
        _link_moments(engine)
    inner = base_optimizer(engine.optimizer).state
    for name, parameter in engine.module.named_parameters():
        moments = MOMENTS if has_moments and parameter.requires_grad else ()
        if engine.zero_stage:
            yield from _gathered_by_zero(name, parameter, moments)
            continue
        yield None, name, whole(parameter.detach())
        for moment in moments:
            yield moment, name, whole(inner[parameter][moment])


def load_weights(module: nn.Module, state: NamedState) -> None:
    """Put the weights and buffers into a plain network, before it is prepared.

    Parameters stay fp32 under every engine, so what `prepare` copies or shards is exact.
    """
    module.load_state_dict(state.weights)


def write_moments(engine: Engine, state: NamedState) -> None:
    """Put the optimizer's moments and step into a prepared engine that has made no step yet."""
    if not state.optimizer_step:
        return
    if engine.zero_stage:
        _write_zero(engine, state)
        return
    inner = base_optimizer(engine.optimizer).state
    for name, parameter in _trained(engine):
        moments = {
            m: sharded_like(_on_device(state.moments[m][name], parameter), parameter)
            for m in MOMENTS
        }
        inner[parameter] = {"step": _step(state, parameter), **moments}


def _trained(engine: Engine) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def _step(state: NamedState, like: Tensor) -> Tensor:
    return torch.tensor(float(state.optimizer_step), device=like.device)


def _on_device(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a copy of a moment in the parameter's layout in memory, which fused Adam needs."""
    copy = torch.empty_strided(parameter.shape, parameter.stride(), device=parameter.device)
    return copy.copy_(value)


def _on_cpu(tensor: Tensor) -> Tensor:
    """Return the one copy of a tensor that a checkpoint needs, in the layout that files have."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)


def _link_moments(engine: Engine) -> None:
    """ZeRO 1 and 2 link only the first group's moments to their parameters; link all groups."""
    zero = engine.network.optimizer
    if engine.zero_stage < 3:
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _gathered_by_zero(
    name: str, parameter: nn.Parameter, moments: tuple[str, ...]
) -> Iterator[tuple[str | None, str, Tensor]]:
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if not parameter.requires_grad:  # the optimizer does not know it
        with GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            yield None, name, parameter
        return
    shape = getattr(parameter, "ds_shape", parameter.shape)
    yield None, name, safe_get_full_fp32_param(parameter).view(shape)
    for moment in moments:
        yield moment, name, safe_get_full_optimizer_state(parameter, moment).view(shape)


def _write_zero(engine: Engine, state: NamedState) -> None:
    zero, inner = engine.network.optimizer, base_optimizer(engine.optimizer).state
    sharded = engine.zero_stage == 3
    flat_groups = (
        zero.fp32_partitioned_groups_flat if sharded else zero.single_partition_of_fp32_groups
    )
    for flat in flat_groups:  # a new engine has no Adam state to write into
        empty = {moment: torch.zeros_like(flat) for moment in MOMENTS}
        inner[flat] = {"step": _step(state, flat), **empty}
    _link_moments(engine)
    write = _write_shard if sharded else _write_full
    for name, parameter in _trained(engine):
        for moment in MOMENTS:
            write(engine, parameter, state.moments[moment][name], moment)


def _write_full(_: Engine, parameter: Tensor, value: Tensor, moment: str) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state

    safe_set_full_optimizer_state(parameter, value, moment)


def _write_shard(engine: Engine, parameter: Tensor, value: Tensor, moment: str) -> None:
    """Write this rank's slice of the padded, flattened value under ZeRO 3."""
    from deepspeed.utils import safe_set_local_optimizer_state

    size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
    rank, world_size = engine.accelerator.process_index, engine.accelerator.num_processes
    flat = F.pad(value.flatten(), (0, size * world_size - value.numel()))
    shard = flat[rank * size : (rank + 1) * size].to(parameter.device)
    safe_set_local_optimizer_state(parameter, shard, moment)
