"""The tasks of a run: from its configuration and the manifest of its data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from data_pipelines.reading.fields import LabelRequest
from data_pipelines.shards.manifest import Field, Manifest
from dmtg.names import shortened
from dmtg.plugins import TASK_KINDS
from dmtg.suggestions import did_you_mean
from model.kinds.kind import get_kind
from model.tasks.presets import PRESETS, TASKONOMY
from model.tasks.spec import TaskSpec
from trainer.config.tasks import TasksSection
from trainer.errors import UserError

_LONGEST = 500  # characters of the labels in a message


def resolve_tasks(section: TasksSection, manifest: Manifest) -> tuple[TaskSpec, ...]:
    """Return the tasks of a run.

    A task's description is, in this order: its entry in `tasks.define` over that of its kind in
    `tasks.by_kind`, over the preset's, over the released Taskonomy domain of that name, over the
    manifest's description of its field.

    Raises:
        UserError: An unknown task, or a definition that is not a task's.
    """
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
        raise UserError(
            f"tasks.define: {', '.join(unused)} is not among the tasks of the run"
            f"{did_you_mean(unused[0], names)}"
        )
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
    kind = str(definition.get("kind", spec.get("kind", "")))
    for over in (section.by_kind.get(kind, {}), definition):
        spec = _described_over(spec, over, kind)
    try:
        return TaskSpec.from_dict({"name": name, **spec})
    except (ValueError, TypeError) as error:
        if not spec and not definition:
            raise UserError(_no_label(name, manifest)) from None
        place = f"define.{name}" if definition or kind not in section.by_kind else f"by_kind.{kind}"
        raise UserError(f"tasks.{place}: {error}") from None


def _no_label(name: str, manifest: Manifest) -> str:
    labels = sorted(name for name, field in manifest.fields.items() if field.kind != "image")
    shown = shortened(", ".join(labels), _LONGEST) or "none"
    return (
        f"tasks.names: found {name!r}, which is no label of {manifest.dataset} and not described "
        f"by tasks.define.{name}; labels in {manifest.dataset}: {shown}{did_you_mean(name, labels)}"
    )


def _described_over(under: dict[str, Any], over: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the attributes of both, where both have one that of `over`.

    Options of the loss are joined, unless `over` names another loss.
    """
    joined = {**under, **over}
    default = TASK_KINDS[kind].default_loss if kind in TASK_KINDS else ""
    same_loss = joined.get("loss", default) == (under.get("loss") or default)
    options = [spec.get("loss_options", {}) for spec in ((under, over) if same_loss else (over,))]
    if all(isinstance(part, dict) for part in options) and any(options):
        joined["loss_options"] = {name: value for part in options for name, value in part.items()}
    elif not same_loss and "loss_options" not in over:
        joined.pop("loss_options", None)
    return joined


def _spec_of_field(name: str, kind: str, field: Field) -> dict[str, Any]:
    attributes = get_kind(kind).from_field(field) if kind in TASK_KINDS else {}
    return {"name": name, "kind": kind, **attributes}


def label_requests(tasks: tuple[TaskSpec, ...]) -> list[LabelRequest]:
    """Return what the loader must read for the tasks, and how each task understands it."""
    return [_label_request(task) for task in tasks]


def _label_request(task: TaskSpec) -> LabelRequest:
    kind = get_kind(task.kind)
    return LabelRequest(
        task.name,
        task.field,
        channels=kind.stored_channels(task),
        kind=kind.stored_as,
        num_classes=len(kind.class_names(task)) or None,
        ignore_index=task.ignore_index,
    )
