"""The model card of an exported model: what it predicts, its groups, metrics, data and use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from dmtg.files import atomic_write
from dmtg.names import one_line, to_file_name
from model.kinds.kind import get_kind
from model.metrics import metric_for
from model.pruned_model import PrunedModel
from model.tasks.spec import TaskSpec
from trainer.errors import UserError
from trainer.report.records import read_constants, read_metrics

CARD = "README.md"  # the name that a hub shows
Metrics = Mapping[str, Mapping[str, float]]

_PUNCTUATION = re.compile(r"([\\`*_{}\[\]<>#|!~$&])")  # which Markdown gives a meaning
_MAX_CLASSES = 12  # that are listed for a task
_MARK, _HEAD = "library_name: dmtg", 20  # a line among the first of a card
_TAGS = ["dmtg", "multi-task-learning", "task-grouping"]
_ON_THE_HUB = """\
from huggingface_hub import hf_hub_download
from model.bundle import load_pruned  # of the package dmtg

model = load_pruned(hf_hub_download("{source}", "{file}"))
prediction = model.predict("photo.jpg")
"""
_IN_A_FILE = """\
from model.bundle import load_pruned  # of the package dmtg

model = load_pruned("{file}")
prediction = model.predict("photo.jpg")
"""


class RunMetrics(NamedTuple):
    """What a run has logged at the step of its exported model.

    Attributes:
        metrics: Of the evaluation split, by task and name; empty if there are none.
        constants: Those of the best constant predictions; empty if the run has not evaluated them.
    """

    metrics: Metrics
    constants: Metrics


NOT_EVALUATED = RunMetrics({}, {})


def run_metrics(source: Path, model: PrunedModel) -> RunMetrics:
    """Return the metrics of a model: none if its source is no folder of a run."""
    if not source.is_dir():
        return NOT_EVALUATED
    step = int(model.metadata["step"])
    found = [r for r in read_metrics(source) if r["kind"] == "eval" and r["step"] == step]
    if not found:
        return NOT_EVALUATED
    return RunMetrics(found[-1]["metrics"], read_constants(source, step))


def write_card(out: Path, model: PrunedModel, source: Path) -> None:
    """Write a model card beside a model.

    Args:
        out: File of the model.
        model: The model.
        source: The folder of its run, whose metrics are in the card, or another file of it.

    Raises:
        UserError: See `check_card`.
    """
    check_card(out.parent / CARD)
    metrics = run_metrics(source, model)
    with atomic_write(out.parent / CARD) as file:
        file.write(model_card(model, out.stem, [out.name], metrics))


def check_card(path: Path) -> None:
    """Check that a model card replaces nothing but a model card of dmtg.

    Raises:
        UserError: It would replace another file.
    """
    if path.exists() and _MARK not in path.read_text(errors="replace").splitlines()[:_HEAD]:
        raise UserError(
            f"--card: {path} exists and is no model card of dmtg; name another folder with --out"
        )


def model_card(
    model: PrunedModel,
    name: str,
    files: Sequence[str],
    evaluated: RunMetrics = NOT_EVALUATED,
    *,
    repo: str | None = None,
    licence: str | None = None,
) -> str:
    """Return a model card as Markdown with the metadata of the Hugging Face hub.

    Nothing in it is from elsewhere than the exported model and the metrics: no folder, no URL.

    Args:
        model: The exported model.
        name: Its name.
        files: Names of the files that the card is beside, the exported model among them or not.
        evaluated: Metrics of the model and of the best constant predictions.
        repo: Repository of the hub where the files are going to be.
        licence: Identifier of the licence, such as `apache-2.0`.
    """
    facts = model.metadata
    parts = [
        f"---\n{_metadata(model, name, evaluated.metrics, licence)}\n---\n",
        f"# {_text(name)}\n",
        f"One network that predicts {_count(len(model.tasks), 'label')} for each image. The tasks "
        f"were assigned to {_count(len(model.groups), 'encoder branch', 'encoder branches')} by "
        f"the recipe `{to_file_name(str(facts.get('recipe', 'unknown')))}` of "
        "[DMTG, arXiv 2407.05082](https://arxiv.org/abs/2407.05082).\n",
        "## Groups\n",
        _table(
            ["group", "tasks"],
            [[str(number), _listed(names)] for number, names in enumerate(model.groups)],
        ),
        "## Tasks\n",
        _table(["task", "kind", "value", "unit or classes"], map(_task_row, model.tasks)),
    ]
    if evaluated.metrics:
        beside = ", beside the best constant prediction" if evaluated.constants else ""
        header = ["task", "metric", "value", *(["constant"] if beside else []), "better is"]
        parts += [
            "## Metrics\n",
            f"On the evaluation split of the run{beside}.\n",
            _table(header, _metric_rows(model.tasks, evaluated)),
        ]
    parts += ["## Data and training\n", _table(["", ""], _fact_rows(model))]
    parts += ["## Use\n", _use(model, files, repo)]
    return "\n".join(parts)


def _metadata(model: PrunedModel, name: str, metrics: Metrics, licence: str | None) -> str:
    dataset = _dataset(model)
    results = [
        EvalResult(
            task_type=task.kind.replace("_", "-"),
            task_name=task.name,
            dataset_type=to_file_name(dataset).lower(),
            dataset_name=dataset,
            dataset_config=task.name,  # results of one kind and data set would become one
            metric_type=metric,
            metric_name=f"{task.name}: {metric}",
            metric_value=float(f"{value:.5g}"),
        )
        for task in model.tasks
        for metric, value in metrics.get(task.name, {}).items()
        if metric == metric_for(task).primary and value is not None
    ]
    return ModelCardData(
        library_name="dmtg",
        license=licence,
        tags=_TAGS,
        model_name=one_line(name),
        eval_results=results or None,
    ).to_yaml()


def _dataset(model: PrunedModel) -> str:
    """Return the name of the data set; the metadata have its size, too."""
    return one_line(str(model.metadata.get("dataset", "unknown"))).partition(" (")[0] or "unknown"


def _task_row(task: TaskSpec) -> list[str]:
    kind = get_kind(task.kind)
    names = kind.class_names(task)
    shown = ", ".join(map(_text, names[:_MAX_CLASSES]))
    more = f" and {len(names) - _MAX_CLASSES} more" if len(names) > _MAX_CLASSES else ""
    form = "for every pixel" if task.dense else "for the image"
    return [f"`{task.name}`", task.kind, form, _text(task.unit) or f"{shown}{more}"]


def _metric_rows(tasks: Sequence[TaskSpec], evaluated: RunMetrics) -> list[list[str]]:
    rows = []
    shown = [evaluated.metrics, *([evaluated.constants] if evaluated.constants else [])]
    for task in tasks:
        metric = metric_for(task)
        values = [of.get(task.name, {}).get(metric.primary) for of in shown]
        cells = ["no labels" if value is None else f"{value:.4g}" for value in values]
        better = "higher" if metric.higher_is_better else "lower"
        rows.append([f"`{task.name}`", metric.primary, *cells, better])
    return rows


def _fact_rows(model: PrunedModel) -> list[list[str]]:
    facts = model.metadata
    height, width = model.image_size
    rows: list[tuple[str, Any]] = [
        ("data set", facts.get("dataset")),
        ("images", f"{height} x {width} pixels, resized as a whole"),
        ("step", facts.get("step")),
        ("precision of the training", facts.get("precision")),
        ("seed", facts.get("seed")),
        ("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
        ("dmtg", facts.get("trainer_version")),
    ]
    return [[name, _text(str(value))] for name, value in rows if value is not None]


def _use(model: PrunedModel, files: Sequence[str], repo: str | None) -> str:
    lines = []
    bundle = next((file for file in files if file.endswith(".safetensors")), None)
    if bundle is not None:
        code = _IN_A_FILE if repo is None else _ON_THE_HUB
        first = next((task for task in model.tasks if not task.dense), model.tasks[0])
        shown = f'print(prediction["{first.name}"]["value"])\n'
        lines.append(f"```python\n{code.format(source=repo, file=bundle)}{shown}```\n")
    for file in files:
        if file.endswith((".onnx", ".pt2")):
            runtime = "onnxruntime" if file.endswith(".onnx") else "`torch.export.load`"
            lines.append(
                f"`{file}` needs nothing but {runtime}. Its entry `dmtg` has names, units, classes "
                "and the preprocessing of the input as JSON.\n"
            )
    return "\n".join(lines)


def _table(header: Sequence[str], rows: Any) -> str:  # noqa: ANN401 - any iterable of rows
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _text(text: str) -> str:
    """Return text of others for a line of Markdown, in which it has no other meaning."""
    return _PUNCTUATION.sub(r"\\\1", one_line(text, 500))


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or f'{one}s'}"
