"""Write the page of one run or several: one HTML file that needs no network.

The page has no code but its own and that of the charting library, both inlined and named by their
hashes in its content security policy. Names that come from data and folders are values of a JSON
block, which the page shows as text.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from dmtg.files import atomic_write
from trainer.errors import UserError
from trainer.export import program_version
from trainer.json_file import to_json
from trainer.report.differences import compare_runs
from trainer.report.run_facts import Budget, describe_change, describe_tasks, read_run, rounded
from trainer.scoring.summary import CHANGE, Metrics

MAX_BYTES = 5_000_000
MAX_RUNS = 30
# Of all runs of a page together. The page must stay below `MAX_BYTES`, with 0.9 MB of library.
_PROBABILITIES = 500_000
_CURVE_VALUES = 150_000
_AFFINITIES = 600_000
_PICTURE_BYTES = 700_000

_SCRIPTS = (
    "text.js",
    "data.js",
    "charts.js",
    "heatmap.js",
    "table.js",
    "summary.js",
    "grouping.js",
    "evidence.js",
    "affinity.js",
    "training.js",
    "tasks.js",
    "samples.js",
    "comparison.js",
    "main.js",
)


def write_page(
    runs: Sequence[Path],
    out: Path,
    *,
    reference: Metrics | None = None,
    reference_name: str = "",
    use_data: bool = True,
    progress: bool = False,
) -> None:
    """Write the page.

    Args:
        runs: Folders of the runs; with several the page compares them.
        out: HTML file, replaced if it exists.
        reference: Metrics to show beside those of the runs, by task and name; None takes those of
            a run of the recipe `single_task` among the runs.
        reference_name: How the page calls them.
        use_data: Whether to read the data of the runs, for constants and sample predictions.
        progress: Whether to show progress bars.

    Raises:
        UserError: A folder holds no run that has begun, or the page would be too large.
    """
    if len(runs) > MAX_RUNS:
        raise UserError(f"report: found {len(runs)} runs; allowed: at most {MAX_RUNS} in one page")
    content = _content(runs, reference, reference_name, use_data, progress)
    page = _render(content)
    if len(page) >= MAX_BYTES:
        raise UserError(
            f"report: the page would have {len(page) / 1e6:.1f} MB, allowed are "
            f"{MAX_BYTES / 1e6:.0f}; name fewer runs"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out, "wb", sync=False) as file:
        file.write(page)


def _content(
    folders: Sequence[Path],
    reference: Metrics | None,
    reference_name: str,
    use_data: bool,
    progress: bool,
) -> dict[str, Any]:
    """Return everything that the page shows."""
    share = len(folders)
    budget = Budget(
        _PROBABILITIES // share,
        _CURVE_VALUES // share,
        _AFFINITIES // share,
        _PICTURE_BYTES // share,
    )
    names = _names(folders)
    runs = [
        read_run(folder, name, budget, use_data=use_data, progress=progress)
        for folder, name in zip(folders, names, strict=True)
    ]
    if reference is None:
        single = next((run for run in runs if run.config.grouping.recipe == "single_task"), None)
        if single is not None:
            reference, reference_name = single.metrics, f"single-task ({single.name})"
    sets: list[list[dict[str, Any]]] = []
    for run in runs:
        described = describe_tasks(run.tasks)
        if described not in sets:
            sets.append(described)
        run.page["tasks"] = sets.index(described)
        run.page["change_reference"] = describe_change(run.tasks, run.metrics, reference or {})
        run.page["reference"] = [
            rounded((reference or {}).get(task["name"], {}).get(task["metric"]))
            for task in described
        ]
    return {
        "title": names[0] if len(names) == 1 else f"{len(names)} runs",
        "written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "version": program_version(),
        "task_sets": sets,
        "reference_name": reference_name if reference is not None else None,
        "change": CHANGE,
        "runs": [run.page for run in runs],
        "comparison": compare_runs(runs) if len(runs) > 1 else None,
    }


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that differ from each other."""
    parts = [folder.resolve().parts for folder in folders]
    longest = max(map(len, parts))
    for length in range(1, longest + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("report: a run is named twice")


def _render(content: dict[str, Any]) -> bytes:
    """Return the HTML file."""
    web = files("trainer.report") / "web"
    library = _library()
    script = "\n".join((web / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    # No text ends the block: `<` is written in JSON's own escape.
    data = to_json(content).replace("<", "\\u003c")
    return (
        Template((web / "page.html").read_text(encoding="utf-8"))
        .substitute(
            title=html.escape(content["title"]),
            policy=f"{_source(library)} {_source(_own(script))}",
            style=(web / "style.css").read_text(encoding="utf-8"),
            data=data,
            library=library,
            script=_own(script),
        )
        .encode()
    )


def _own(script: str) -> str:
    """Return our scripts as one function, so that no name of theirs is global."""
    return f'(() => {{\n"use strict";\n{script}}})();\n'


def _library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script that defines `vegaEmbed`.

    Raises:
        UserError: The package that holds them is not installed.
    """
    try:
        import vl_convert
    except ImportError:
        raise UserError(
            "report: the package vl-convert-python is needed for the page; install it, or draw "
            "the picture with --png"
        ) from None
    # The types of vl-convert 1.9 demand a snippet, which the function does not.
    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    assert "</script" not in bundle, "the block would end there"
    return bundle


def _source(script: str) -> str:
    """Return what allows a script in a content security policy."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
