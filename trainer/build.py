"""Joins the packages: task specs from config and manifest, the network, the data loaders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from data_pipelines.reading.fields import LabelRequest
from data_pipelines.shards.cache import ShardCache
from data_pipelines.shards.manifest import Field, Manifest, check_shards
from data_pipelines.shards.sources import Folder, open_folder
from dmtg.plugins import TASK_KINDS
from model.encoders import build_encoder
from model.gradient_scale import gradient_factors
from model.grouping.grouping import Grouping
from model.kinds.kind import get_kind
from model.network import MultiTaskNetwork
from model.tasks.presets import PRESETS, TASKONOMY
from model.tasks.spec import TaskSpec
from trainer.config.config import Config
from trainer.config.sections import TasksSection
from trainer.errors import UserError
from trainer.recipes.groups import Groups, heads_of_groups


def open_manifest(config: Config) -> Manifest:
    """Read the manifest and check that the shards of both splits are whole.

    Raises:
        DataError: The manifest, a split or a shard is missing or damaged.
    """
    folder = open_shards(config)
    manifest = Manifest.load(folder)
    train = () if config.data.stream is not None else (config.data.train_split,)
    for name in (*train, config.data.eval_split):
        check_shards(folder, manifest.split(name))
    return manifest


def open_shards(config: Config) -> Folder:
    """The folder of the shards, with its cache if there is one.

    Raises:
        UserError: The run's data are not shards.
    """
    data, cache = config.data, None
    if data.shards is None:
        raise UserError(f"data.shards: not given, the run reads from data.source {data.source!r}")
    if data.cache_dir is not None:
        cache = ShardCache(data.cache_dir, round(data.cache_gb * 1e9))
    return open_folder(data.shards, cache, data.retry_seconds)


def resolve_tasks(section: TasksSection, manifest: Manifest) -> tuple[TaskSpec, ...]:
    """The tasks of a run.

    A task's description is, in this order: its entry in `tasks.define` over the preset's, over
    the released Taskonomy domain of that name, over the manifest's description of its field.

    Raises:
        UserError: An unknown preset or task, or a definition that is not a task's.
    """
    if section.preset is not None and section.preset not in PRESETS:
        allowed = ", ".join(PRESETS)
        raise UserError(f"tasks.preset: found {section.preset!r}; allowed: {allowed}")
    known = dict(TASKONOMY)
    if section.preset is not None:
        known |= {spec.name: spec for spec in PRESETS[section.preset]}
        names = [spec.name for spec in PRESETS[section.preset]]
    elif section.names is not None:
        names = list(section.names)
    else:
        names = [name for name, field in manifest.fields.items() if field.kind != "image"]
    if not names or len(set(names)) < len(names):
        raise UserError(f"tasks.names: found {names}; allowed: one or more names, each once")
    unused = sorted(set(section.define) - set(names))
    if unused:
        raise UserError(f"tasks.define: {', '.join(unused)} is not among the tasks of the run")
    return tuple(_resolve(name, section, known, manifest) for name in names)


def _resolve(
    name: str, section: TasksSection, known: dict[str, TaskSpec], manifest: Manifest
) -> TaskSpec:
    definition = section.define.get(name, {})
    field = manifest.fields.get(definition.get("field", name))
    spec: dict[str, Any] = {}
    if name in known:
        classes = field.classes if field and len(field.classes) == known[name].channels else ()
        spec = replace(known[name], classes=classes or known[name].classes).to_dict()
    elif field is not None and field.kind != "image":
        spec = _spec_of_field(name, str(definition.get("kind", field.kind)), field)
    try:
        return TaskSpec.from_dict({"name": name, **spec, **definition})
    except (ValueError, TypeError) as error:
        labels = ", ".join(sorted(n for n, f in manifest.fields.items() if f.kind != "image"))
        hint = "" if spec or definition else f"; labels in {manifest.dataset}: {labels}"
        raise UserError(f"tasks.define.{name}: {error}{hint}") from None


def _spec_of_field(name: str, kind: str, field: Field) -> dict[str, Any]:
    attributes = get_kind(kind).from_field(field) if kind in TASK_KINDS else {}
    return {"name": name, "kind": kind, **attributes}


def label_requests(tasks: tuple[TaskSpec, ...]) -> list[LabelRequest]:
    """Return what the loader must read for the tasks."""
    return [LabelRequest(t.name, t.field, get_kind(t.kind).stored_channels(t)) for t in tasks]


def build_network(
    config: Config, tasks: tuple[TaskSpec, ...], groups: Groups | None = None
) -> MultiTaskNetwork:
    """The network with all K*N heads, or with a branch for each given group, from `run.seed`.

    Raises:
        UserError: The encoder or the decoder cannot be built as configured.
    """
    torch.manual_seed(config.run.seed)
    section, pretrained = config.model, config.model.encoder.pretrained
    try:
        encoder = build_encoder(
            section.encoder.name,
            section.branches if groups is None else len(groups),
            image_size=config.data.size,
            trunk_depth=section.trunk_depth,
            init=section.init,
            options=section.encoder.options,
            pretrained=None if pretrained is None else str(pretrained),
        )
        return MultiTaskNetwork(
            tasks,
            encoder,
            config.data.size,
            heads=None if groups is None else heads_of_groups(groups),
            dense_widths=section.dense_widths,
            decoder=section.decoder,
            decoder_options=section.decoder_options,
            gradient_scale=gradient_factors(
                section.gradient_scale, len(encoder.branches), len(tasks)
            ),
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def build_grouping(config: Config, num_tasks: int, groups: Groups | None = None) -> Grouping:
    """The Categoricals of all tasks over all branches; where groups are given, all decided."""
    if groups is not None:
        decided = Grouping(num_tasks, len(groups))
        rows, columns = zip(*heads_of_groups(groups), strict=True)
        decided.alive = torch.zeros_like(decided.alive)
        decided.alive[rows, columns] = True
        return decided
    section = config.grouping
    if section.recipe == "default":  # sampler and start values are of the published method
        return Grouping(num_tasks, config.model.branches)
    return Grouping(
        num_tasks,
        config.model.branches,
        sampler=section.sampler,
        start=section.start,
        init=section.init,
        init_noise=section.init_noise,
        seed=config.run.seed,
    )
