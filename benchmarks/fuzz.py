"""Open mutated files of every format that strangers can hand to a user, and judge what came of it.

python benchmarks/fuzz.py [--cases N] [--seed S] [--only FORMAT ...] [--keep DIR]

A mutated file must load to something valid, or be refused with the documented error and a message
that names it: within a second of processor time and 200 MiB of memory, without a write outside of
its folder, another process, a connection or unpickling. `tests/security/fuzzing.py` judges it.

Writes benchmarks/results/fuzz.json and docs/results/fuzz.md (not with --only); the exit code is 1
if a case failed. --keep writes the files of the smallest case of each defect.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from tqdm import tqdm

from tests.security.fuzz_formats import FORMATS
from tests.security.fuzzing import (
    MAX_GROWTH,
    MAX_SECONDS,
    VERDICTS,
    Report,
    fuzz,
    write_files,
)

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"
TABLE = ROOT / "docs" / "results" / "fuzz.md"


def table(rows: list[dict[str, Any]]) -> str:
    """Return the outcomes by format as a Markdown table."""
    header = ("format", "cases", *VERDICTS, "most s", "most MiB")
    lines = [header, ("---",) * len(header)]
    for row in rows:
        counts = [row["counts"][verdict] for verdict in VERDICTS]
        cells = (row["format"], row["cases"], *counts, row["most_seconds"], row["most_mib"])
        lines.append(tuple(map(str, cells)))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(rows: list[dict[str, Any]]) -> str:
    """Return the page of the documentation."""
    return f"""# Mutated files

Made by `python benchmarks/fuzz.py`, which says what is done. `silent`: a damaged file was loaded
although a hash covers it, or what was loaded is not usable. `other error`: not the documented one,
or its message names no file. `over the bound`: more than {MAX_SECONDS:g} s of processor time or
{MAX_GROWTH // 2**20} MiB. `outside`: a write elsewhere, a process, a connection, or unpickling.

{table(rows)}"""


def row_of(report: Report) -> dict[str, Any]:
    """Return the numbers of a format."""
    return {
        "format": report.name,
        "cases": report.num_cases,
        "counts": {verdict: report.counts[verdict] for verdict in VERDICTS},
        "most_seconds": round(report.most_seconds, 2),
        "most_mib": round(report.most_growth / 2**20, 1),
        "defects": [
            {"count": f.count, "note": f.case.note[:300], **asdict(f.outcome)}
            for f in report.failures.values()
        ],
    }


def main() -> int:
    """Fuzz, write the results and return 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", type=int, default=5000, help="of each format")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=FORMATS, default=[])
    parser.add_argument("--keep", type=Path, help="folder for the files that showed a defect")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began, reports = time.perf_counter(), []
    names = arguments.only or list(FORMATS)
    with tqdm(total=len(names) * arguments.cases, unit="case") as bar:
        for name in names:
            bar.set_description(name)
            report = fuzz(FORMATS[name](), arguments.cases, number=arguments.seed, tick=bar.update)
            reports.append(report)
            for number, failure in enumerate(report.failures.values()):
                if arguments.keep is not None:
                    write_files(failure.case.files, arguments.keep / f"{name}-{number}")
    rows = [row_of(report) for report in reports]
    results = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "seconds": round(time.perf_counter() - began),
        "seed": arguments.seed,
        "cases": sum(row["cases"] for row in rows),
        "formats": rows,
    }
    if not arguments.only:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        TABLE.write_text(page(rows))
    sys.stdout.write(table(rows))
    for report in reports:
        if report.failures:
            sys.stdout.write(f"\n{report.describe()}\n")
    return 1 if any(report.failures for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
