"""Keys that version 1 had, and their names since: for messages, and for runs that it saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.config.grouping import recipe_sections
from trainer.config.optim import OptimSection
from trainer.config.unions import alternatives, value_keys

RENAMED = {
    "data.size": "data.image_size",
    "data.stream": "data.tar_urls",
    "data.streams": "data.num_streams",
    "model.start": "model.init_from",
    "model.init": "model.branch_init",
    "model.checkpoint_branches": "model.activation_checkpointing",
    "grouping.start": "grouping.logits_init",
    "grouping.init": "grouping.logits_value",
    "grouping.init_noise": "grouping.logits_noise",
    "grouping.temperature.start": "grouping.temperature.initial",
    "grouping.temperature.end": "grouping.temperature.final",
    "grouping.affinity.warmup": "grouping.warmup",
    "grouping.affinity.branches": "grouping.num_groups",
    "grouping.affinity.start_probability": "grouping.initial_probability",
    "grouping.affinity.average": "grouping.loss_decay",
    "grouping.affinity.temperature": "grouping.temperature",
    "grouping.search.every": "grouping.search_every",
    "grouping.search.steps": "grouping.search_steps",
    "grouping.search.projection": "grouping.projection",
    "pruning.start": "pruning.begin",
    "pruning.finish": "pruning.end",
    "optim.warmup": "optim.warmup_steps",
    "optim.milestones": "optim.schedule.milestones",
    "optim.gamma": "optim.schedule.gamma",
    "optim.patience": "optim.schedule.patience",
    "optim.threshold": "optim.schedule.threshold",
    "optim.min_lr": "optim.schedule.min_lr",
    "optim.clip": "optim.max_grad_norm",
    "optim.accumulation": "optim.gradient_accumulation_steps",
    "eval.batch": "eval.batch_size",
    "log.tensorboard": "log.trackers",
}
_CONVERTED = {"log.tensorboard": lambda value: ["tensorboard"] if value else []}
RENAMED_RECIPES = {"default": "affinity"}


def renamed_below(path: str, value: Any) -> list[tuple[str, str]]:  # noqa: ANN401 - a YAML value
    """Return the old and new dotted paths of all renamed keys at a path and below.

    Args:
        path: Of an unknown key.
        value: Its value, a mapping if it is a section.
    """
    paths = [path, *(f"{path}.{key}" for key, _ in _values(value))]
    return [(each, RENAMED[each]) for each in paths if each in RENAMED]


def migrated(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration that version 1 saved, with the keys of this version.

    Version 1 saved the keys of all recipes and schedules. Those of the run's recipe and schedule
    are kept.
    """
    result = {name: _renamed(name, section) for name, section in tree.items()}
    grouping, optim = tree.get("grouping", {}), tree.get("optim", {})
    recipe = grouping.get("recipe", "default")
    recipe = RENAMED_RECIPES.get(recipe, recipe)
    sections = recipe_sections()
    if recipe in sections:
        keys = value_keys(sections[recipe])
        result["grouping"] = _chosen("grouping", grouping, keys) | {"recipe": recipe}
    schedule = optim.get("schedule", "cosine")
    schedules = alternatives(OptimSection.model_fields["schedule"].annotation)
    if schedule in schedules:
        keys = value_keys(OptimSection) | {
            f"schedule.{key}" for key in value_keys(schedules[schedule])
        }
        moved = _chosen("optim", {**optim, "schedule": {"name": schedule}}, keys)
        result["optim"] = moved
    return result


def _renamed(name: str, section: Any) -> Any:  # noqa: ANN401 - a YAML value
    if not isinstance(section, Mapping):
        return section
    result = {}
    for key, value in section.items():
        old = f"{name}.{key}"
        convert = _CONVERTED.get(old)
        new = RENAMED.get(old, old).partition(".")[2]
        result[new] = value if convert is None else convert(value)
    return result


def _chosen(name: str, section: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    """Return a section with renamed keys, without those that are not among `keys`."""
    result: dict[str, Any] = {}
    for path, value in _values(section):
        new = RENAMED.get(f"{name}.{path}", f"{name}.{path}").partition(".")[2]
        if new not in keys:
            continue
        *parents, key = new.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        place[key] = value
    return result


def _values(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - any YAML
    """Yield the dotted keys and values of all that is not a mapping."""
    if not isinstance(tree, Mapping):
        return
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _values(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
