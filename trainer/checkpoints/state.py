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
    """The state of a network and its optimizer on the CPU.

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


def read_state(engine: Engine) -> NamedState:
    """Gather the full state; a collective call: every rank must make it."""
    saved = engine.module.state_dict().keys()
    buffers = {name: b for name, b in engine.module.named_buffers() if name in saved}
    state = NamedState({name: _on_cpu(b) for name, b in buffers.items()})
    inner = base_optimizer(engine.optimizer).state
    state.optimizer_step = int(max((float(s["step"]) for s in inner.values() if s), default=0.0))
    if engine.zero_stage:
        _link_moments(engine)
    for name, parameter in engine.module.named_parameters():
        if engine.zero_stage:
            _read_zero(state, name, parameter)
            continue
        state.weights[name] = _on_cpu(parameter)
        for moment in _moments(state, parameter):
            state.moments[moment][name] = _on_cpu(inner[parameter][moment])
    return state


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
        values = {m: state.moments[m][name].to(parameter.device).clone() for m in MOMENTS}
        moments = {m: sharded_like(value, parameter) for m, value in values.items()}
        inner[parameter] = {"step": _step(state, parameter), **moments}


def _trained(engine: Engine) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def _moments(state: NamedState, parameter: nn.Parameter) -> tuple[str, ...]:
    """The moments that there are of a parameter."""
    return MOMENTS if state.optimizer_step and parameter.requires_grad else ()


def _step(state: NamedState, like: Tensor) -> Tensor:
    return torch.tensor(float(state.optimizer_step), device=like.device)


def _on_cpu(tensor: Tensor) -> Tensor:
    tensor = whole(tensor.detach())
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().clone()


def _link_moments(engine: Engine) -> None:
    """ZeRO 1 and 2 link only the first group's moments to their parameters; link all groups."""
    zero = engine.network.optimizer
    if engine.zero_stage < 3:
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _read_zero(state: NamedState, name: str, parameter: nn.Parameter) -> None:
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if not parameter.requires_grad:  # the optimizer does not know it
        with GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            state.weights[name] = _on_cpu(parameter)
        return
    shape = getattr(parameter, "ds_shape", parameter.shape)
    state.weights[name] = _on_cpu(safe_get_full_fp32_param(parameter)).view(shape)
    for moment in _moments(state, parameter):
        value = safe_get_full_optimizer_state(parameter, moment)
        state.moments[moment][name] = _on_cpu(value).view(shape)


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
    """ZeRO 3: each rank writes its own slice of the padded, flattened value."""
    from deepspeed.utils import safe_set_local_optimizer_state

    size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
    rank, world_size = engine.accelerator.process_index, engine.accelerator.num_processes
    flat = F.pad(value.flatten(), (0, size * world_size - value.numel()))
    shard = flat[rank * size : (rank + 1) * size].to(parameter.device)
    safe_set_local_optimizer_state(parameter, shard, moment)
