"""The text of a starting configuration: YAML with a comment for every key."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from dmtg.names import one_line
from dmtg.yaml_text import YamlError, dump_yaml, parse_yaml
from model.tasks.spec import TaskSpec
from trainer.config.grouping import DEFAULT_RECIPE
from trainer.config.keys import all_keys
from trainer.initial_config.choices import Start

SCHEMA = "dmtg.schema.json"
_WIDTH = 100
_CLASSES = 5  # names of classes that a comment lists
# Keys that are off in the file, with the value that a first change may give them.
_SUGGESTED: dict[str, dict[str, Any]] = {
    "run": {"max_minutes": 60},
    "data": {"flip": True, "crop": 0.5, "workers": 8},
    "grouping": {"recipe": DEFAULT_RECIPE},
    "loss_weights": {"method": "uncertainty"},
    "finetune": {"epochs": 5, "lr": 1e-4},
    "log": {"trackers": ["tensorboard", "wandb"]},
}
_ORDER = (
    "run", "data", "tasks", "model", "grouping", "pruning", "loss_weights", "optim", "finetune",
    "eval", "log",
)  # fmt: skip


def starting_text(start: Start, command: str) -> str:
    """Return the text of the file.

    Args:
        start: What it starts with.
        command: The command that trains with it.
    """
    meanings = {key.path: " ".join((key.field.description or "").split()) for key in all_keys()}
    parts = [_head(start, command)]
    for section in _ORDER:
        if section == "tasks":
            parts.append(_tasks(start))
            continue
        lines = [f"{section}:" if section in start.values else f"# {section}:"]
        for name, value in start.values.get(section, {}).items():
            path = f"{section}.{name}"
            lines += [*_comment(_reason(path, start) or meanings[path]), *_yaml(name, value)]
        for name, value in _SUGGESTED.get(section, {}).items():
            lines += _comment(meanings[f"{section}.{name}"])
            lines += [f"  # {line.strip()}" for line in _yaml(name, value)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _head(start: Start, command: str) -> str:
    samples = ", ".join(f"{count} samples in {name}" for name, count in start.samples.items())
    tasks = f"{len(start.tasks)} tasks"
    text = f"Data set {one_line(start.dataset)}: {samples}; {tasks}. Written by dmtg init."
    return "\n".join([
        f"# yaml-language-server: $schema={SCHEMA}",
        *textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# "),
        f"# Train: {command}",
        "# Lines that begin with # are off. All keys: docs/configuration.md, or dmtg keys SECTION",
    ])  # fmt: skip


def _reason(path: str, start: Start) -> str:
    """Return why a value was chosen, where the meaning of its key does not say enough."""
    epochs, per_epoch = start.values["run"]["epochs"], start.steps_per_epoch
    data = start.values["data"]
    reasons = {
        "run.epochs": f"Passes over the train split: {epochs} x {per_epoch} = "
        f"{epochs * per_epoch} steps.",
        "model.branches": f"K, the largest number of groups, for {len(start.tasks)} tasks; "
        "branches that no group needs are dropped.",
        "model.encoder": "The network that is divided into trunk and branches, trained from "
        "random weights.",
    }
    if data["train_split"] == data["eval_split"]:
        reasons["data.eval_split"] = (
            "There is no split for evaluation: its numbers are of samples that were trained on."
        )
    return reasons.get(path, "")


def _tasks(start: Start) -> str:
    width = min(30, max(len(_scalar(task.name)) for task in start.tasks))
    lines = ["tasks:", "  # The labels to learn; remove a line to leave one out.", "  names:"]
    lines += [
        f"    - {_scalar(task.name):{width}}  # {_describe(task, start)}" for task in start.tasks
    ]
    lines += [
        f"    # - {_scalar(name)}  # left out: {one_line(reason, 200)}"
        for name, reason in start.left_out.items()
    ]
    return "\n".join(lines)


def _describe(task: TaskSpec, start: Start) -> str:
    """Return kind, classes and number of labels of a task, in one line."""
    parts = [task.kind]
    if task.classes:
        shown = ", ".join(one_line(name, 20) for name in task.classes[:_CLASSES])
        more = ", ..." if len(task.classes) > _CLASSES else ""
        parts.append(f"{len(task.classes)} classes: {shown}{more}")
    elif task.dense:
        parts.append(f"{task.channels} channels")
    total = start.samples[start.values["data"]["train_split"]]
    parts.append(f"{start.labelled[task.name]} of {total} labelled")
    return "; ".join(parts)


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="  # ", subsequent_indent="  # ")


def _yaml(name: str, value: Any) -> list[str]:  # noqa: ANN401 - any YAML value
    if isinstance(value, dict):
        inner = [line for key, part in value.items() for line in _yaml(key, part)]
        return [f"  {name}:", *(f"  {line}" for line in inner)]
    return [f"  {name}: {_scalar(value)}"]


def _scalar(value: Any) -> str:  # noqa: ANN401 - any YAML value
    """Return a value as YAML on one line."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_scalar, value)) + "]"
    if not isinstance(value, str):
        return dump_yaml(value).removesuffix("...\n").strip()
    try:
        is_plain = parse_yaml(f"[{value}]") == [value]
    except YamlError:
        is_plain = False
    return value if is_plain else json.dumps(value, ensure_ascii=False)
