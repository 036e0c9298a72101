"""The check of a network's description, before anything is built from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dmtg.names import shortened
from model.bounds import (
    MAX_BRANCHES,
    MAX_IMAGE_SIDE,
    MAX_STAGES,
    MAX_TASKS,
    MAX_WIDTH,
    is_count,
)
from model.encoders.plain_options import check_plain_options

_ENTRIES = (
    "image_size",
    "dense_widths",
    "decoder",
    "decoder_options",
    "gradient_scale",
    "image_mean",
    "image_std",
    "encoder",
    "tasks",
    "num_branches",
    "heads",
)
_OF_ENCODER = ("name", "image_size", "trunk_depth", "options")  # no weights from elsewhere


def check_config(config: Mapping[str, Any]) -> None:
    """Check the entries of a network's description, and that its numbers are within bounds.

    Encoder, decoder and tasks check their own entries when they are built.

    Args:
        config: `MultiTaskNetwork.config()`, perhaps from a file.

    Raises:
        ValueError: An entry is unknown, missing or out of bounds; the message names it, its value
            and what is allowed.
    """
    check_entries(config)
    encoder = _entry(config, "encoder")
    for place, size in (
        ("network.image_size", _entry(config, "image_size")),
        ("network.encoder.image_size", _entry(encoder, "image_size", "network.encoder")),
    ):
        _check_list(place, size, 2, MAX_IMAGE_SIDE)
        if len(size) != 2:
            raise ValueError(f"{place} is {size!r}, must be height and width")
    branches = _entry(config, "num_branches")
    if not is_count(branches, MAX_BRANCHES):
        raise _error("network.num_branches", branches, f"an integer from 1 to {MAX_BRANCHES}")
    tasks = _entry(config, "tasks")
    if not isinstance(tasks, list):
        raise _error("network.tasks", tasks, "a list")
    if not is_count(len(tasks), MAX_TASKS):
        raise _error("len(network.tasks)", len(tasks), f"from 1 to {MAX_TASKS}")
    _check_heads(_entry(config, "heads"), len(tasks) * branches)
    _check_list("network.dense_widths", config.get("dense_widths", []), MAX_STAGES, MAX_WIDTH)
    for name in ("image_mean", "image_std", "gradient_scale"):
        _check_numbers(f"network.{name}", config.get(name))
    check_plain_options(config.get("decoder_options", {}), "network.decoder_options")


def check_entries(config: Mapping[str, Any]) -> None:
    """Check that a description has no entries that none has, such as weights to load.

    Raises:
        ValueError: There is one; the message names it, its value and what is allowed.
    """
    _check_entries("network", config, _ENTRIES)
    if "encoder" in config:
        _check_entries("network.encoder", config["encoder"], _OF_ENCODER)


def _entry(tree: Mapping[str, Any], name: str, place: str = "network") -> Any:  # noqa: ANN401
    if name not in tree:
        raise ValueError(f"{place}.{name} is missing")
    return tree[name]


def _check_entries(place: str, tree: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(tree, Mapping):
        raise _error(place, tree, "a mapping")
    for name in sorted(set(tree) - set(allowed)):
        raise _error(f"{place}.{name}", tree[name], f"left out; allowed are {', '.join(allowed)}")


def _check_list(place: str, values: object, length: int, most: int) -> None:
    if not isinstance(values, (list, tuple)) or len(values) > length:
        raise _error(place, values, f"a list of at most {length} integers")
    if not all(is_count(value, most) for value in values):
        raise _error(place, values, f"integers from 1 to {most}")


def _check_heads(heads: object, most: int) -> None:
    if not isinstance(heads, (list, tuple)):
        raise _error("network.heads", heads, "a list")
    if len(heads) > most:
        raise _error("len(network.heads)", len(heads), f"at most {most}, tasks times branches")
    for head in heads:
        pair = isinstance(head, (list, tuple)) and len(head) == 2
        if not pair or not all(isinstance(number, int) for number in head):
            raise _error("network.heads", head, "pairs of a task and a branch")


def _check_numbers(place: str, values: object) -> None:
    if values is None:
        return
    if not isinstance(values, (list, tuple)) or len(values) > MAX_WIDTH:
        raise _error(place, values, f"a list of at most {MAX_WIDTH} numbers")
    for value in values:
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise _error(place, value, "finite numbers")


def _error(place: str, found: object, allowed: str) -> ValueError:
    return ValueError(f"{place} is {shortened(repr(found))}, must be {allowed}")
