"""All registries, the decorators that fill them, and the import of plug-in modules."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from dmtg.registry import Registry

GROUP = "dmtg.plugins"  # of the entry points by which an installed package is found

TASK_KINDS: Registry[Any] = Registry("task kind", "model.kinds")
LOSSES: Registry[Any] = Registry("loss", "model.losses")
METRICS: Registry[Any] = Registry("metric", "model.metrics")
ENCODERS: Registry[Any] = Registry("encoder", "model.encoders")
DENSE_DECODERS: Registry[Any] = Registry("dense decoder", "model.heads")
SAMPLERS: Registry[Any] = Registry("sampler", "model.grouping.samplers")
RECIPES: Registry[Any] = Registry("recipe", "trainer.recipes")
LOSS_WEIGHTINGS: Registry[Any] = Registry("loss weighting", "trainer.loss_weights")
DATA_SOURCES: Registry[Any] = Registry("data source", "trainer.data_sources")
CONVERTERS: Registry[Any] = Registry(  # the others take more than a folder, or `datasets`
    "converter", "data_pipelines.convert.celeba", "data_pipelines.convert.taskonomy"
)

REGISTRIES: dict[str, Registry[Any]] = {
    registry.noun: registry
    for registry in (
        TASK_KINDS,
        LOSSES,
        METRICS,
        ENCODERS,
        DENSE_DECODERS,
        SAMPLERS,
        RECIPES,
        LOSS_WEIGHTINGS,
        DATA_SOURCES,
        CONVERTERS,
    )
}

register_task_kind = TASK_KINDS.register
register_loss = LOSSES.register
register_metric = METRICS.register
register_encoder = ENCODERS.register
register_dense_decoder = DENSE_DECODERS.register
register_sampler = SAMPLERS.register
register_recipe = RECIPES.register
register_loss_weighting = LOSS_WEIGHTINGS.register
register_data_source = DATA_SOURCES.register
register_converter = CONVERTERS.register


class PluginError(ValueError):
    """A plug-in cannot be imported; the message names its module and the cause."""


def load_plugins(modules: Iterable[str] = ()) -> None:
    """Import plug-ins, which register their parts: those that are installed, and `modules`.

    A module that is imported already is not imported again.

    Args:
        modules: Dotted names, as the configuration's `plugins` has them.

    Raises:
        PluginError: A module cannot be imported.
    """
    installed = [point.value.partition(":")[0] for point in entry_points(group=GROUP)]
    for name in dict.fromkeys([*installed, *modules]):
        _import(name)


@dataclass(frozen=True)
class Place:
    """Where a plug-in failed.

    Attributes:
        module: Dotted name.
        file: Its path.
        line: Number of the line.
    """

    module: str
    file: str
    line: int


def place_in_plugin(error: BaseException) -> Place | None:
    """Return the last place in a plug-in, or in a module beside it, that an error came through.

    What the plug-in calls may have raised the error. None if no plug-in was involved.
    """
    modules = {module for registry in REGISTRIES.values() for module in registry.plugins()}
    packages = {module.rpartition(".")[0] or module for module in modules}
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        name = frame.f_globals.get("__name__", "")
        if name in modules or name in packages or name.rpartition(".")[0] in packages:
            place = Place(name, frame.f_code.co_filename, line)
    return place


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise PluginError(f"plugins: {name} cannot be imported: {cause}") from error
