"""Which plug-ins an exported model needs, and the message where they are not registered.

A file names modules but never causes their import: what is imported is decided by the caller, the
configuration and the installed packages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dmtg.plugins import (
    DENSE_DECODERS,
    ENCODERS,
    LOSSES,
    METRICS,
    REGISTRIES,
    TASK_KINDS,
)
from dmtg.registry import Registry
from model.kinds.kind import get_kind
from model.tasks.spec import TaskSpec


def plugins_of(network: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return by module the plug-ins that a network uses, as in `{"mine": ["encoder tiny"]}`.

    Args:
        network: `MultiTaskNetwork.config()`.
    """
    plugins: dict[str, list[str]] = {}
    for registry, name in dict.fromkeys(_parts(network)):
        module = registry.plugin_of(name)
        if module is not None:
            plugins.setdefault(module, []).append(f"{registry.noun} {name}")
    return plugins


def _parts(network: Mapping[str, Any]) -> Iterator[tuple[Registry[Any], str]]:
    """Yield the registry and the name of all that was looked up to build the network."""
    yield ENCODERS, network["encoder"]["name"]
    yield DENSE_DECODERS, network["decoder"]
    for description in network["tasks"]:
        spec = TaskSpec.from_dict(description)
        yield TASK_KINDS, spec.kind
        yield LOSSES, spec.loss
        yield METRICS, get_kind(spec.kind).metric_name(spec)


def missing_plugins(plugins: Mapping[str, list[str]]) -> str | None:
    """Return what is missing of a model's plug-ins and how to import it; None if nothing is.

    Args:
        plugins: From `plugins_of`, as read from a file.
    """
    missing = {
        module: absent
        for module, parts in plugins.items()
        if (absent := [part for part in parts if not _registered(part)])
    }
    if not missing:
        return None
    parts = "; ".join(f"{', '.join(absent)} of {module}" for module, absent in missing.items())
    options = " ".join(f"--plugin {module}" for module in missing)
    return (
        f"needs plug-ins that are not registered: {parts}. Install the package of each module, "
        f"then import it: load_pruned(path, plugins={list(missing)!r}), {options} for a dmtg "
        f"command, or plugins: [{', '.join(missing)}] in a configuration. A package with an entry "
        "point in the group dmtg.plugins is imported without being named"
    )


def _registered(part: str) -> bool:
    noun, _, name = part.rpartition(" ")
    return noun in REGISTRIES and name in REGISTRIES[noun]
