"""Do to runs what can happen to them, and compare what comes of it with docs/failures.md.

python benchmarks/faults.py [--all] [--only FAULT ...] [--fast] [--kills N] [--seed S]

Without --all only SIGKILL: a run of one process on the CPU saves a checkpoint after every step,
alternately in the background and in the training loop. It is killed at random times, every second
time while an unfinished checkpoint exists, and started again with run.resume=auto. At the end its
records and its last checkpoint are compared byte by byte with those of an uninterrupted run.

--all: also full disks and read-only folders, two starts at once, damaged shards, broken servers,
SIGTERM during start-up, ranks that fail, and damaged checkpoints, with real processes; about 15
minutes on two cores. --only names some of them, --fast tries few cases of each.

Writes benchmarks/results/faults.json and docs/results/faults.md (with --all and all cases); the
exit code is 1 if a case does not end as documented.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest
import torch
from fault_matrix.cases import FAULTS, Case, Fault, Result
from fault_matrix.kills import Kill, Kills, kill_often
from fault_matrix.runs import Site
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "faults.json"
TABLE = ROOT / "docs" / "results" / "faults.md"
KILLS = "kills"
FAST_KILLS = 8
COLUMNS = ("documented", "silent", "hung", "lost")


@dataclass
class Row:
    """What came of the cases of one fault."""

    key: str
    name: str
    expected: str
    results: dict[str, Result] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def count(self, column: str) -> int:
        """Return the number of cases of a column of the table."""
        return sum(getattr(result, column) for result in self.results.values())

    def good(self) -> bool:
        """Return whether every case ended as documented."""
        bad = any(self.count(column) for column in COLUMNS[1:])
        return self.count("documented") == len(self.results) and not bad

    def to_json(self) -> dict[str, Any]:
        """Return the counts, and the cases that did not end as documented."""
        others = {name: r for name, r in self.results.items() if not r.documented or r.lost}
        return {
            "fault": self.name,
            "expected": self.expected,
            "cases": len(self.results),
            **{column: self.count(column) for column in COLUMNS},
            "seconds": round(self.seconds),
            "skipped": self.skipped,
            "others": {name: asdict(result) for name, result in others.items()},
        }


def try_fault(fault: Fault, cases: Sequence[Case], tick: Callable[[], object]) -> Row:
    """Try the cases of a fault."""
    row, began = Row(fault.key, fault.name, fault.expected), time.perf_counter()
    for name, run in cases:
        try:
            row.results[name] = run()
        except pytest.skip.Exception as skip:
            row.skipped[name] = str(skip)
        tick()
    row.seconds = time.perf_counter() - began
    return row


def try_kills(site: Site, kills: int, seed: int, tick: Callable[[], object]) -> tuple[Row, Kills]:
    """Kill a run many times."""
    row, began = Row(KILLS, "SIGKILL at any moment", "goes on from the last save"), time.time()
    done = Kills([], {})
    for step in kill_often(site, kills, seed):
        if isinstance(step, Kill):
            tick()
        else:
            done = step
    for number, kill in enumerate(done.each):
        good = kill.resumed == kill.saved
        detail = "" if good else f"resumed from {kill.resumed}, saved was {kill.saved}"
        row.results[f"kill {number}"] = Result(good, lost=kill.unreadable > 0, detail=detail)
    differs = [name for name, same in done.same.items() if not same]
    row.results["result"] = Result(not differs, bool(differs), detail=", ".join(differs))
    aimed = sum(kill.during_save for kill in done.each)
    enough = len(done.each) == kills and aimed >= 0.4 * kills
    row.results["kills"] = Result(enough, detail=f"{len(done.each)}, {aimed} during a save")
    row.seconds = time.time() - began
    return row, done


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        ("fault", "documented end", "cases", "as documented", *COLUMNS[1:]),
        ("---",) * 7,
        *(
            (r.name, r.expected, str(len(r.results)), *(str(r.count(c)) for c in COLUMNS))
            for r in rows
        ),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(rows: list[Row], kills: dict[str, Any]) -> str:
    """Return the page of the documentation."""
    same = kills["same_as_uninterrupted"]
    numbers = {
        "SIGKILLs": kills["kills"],
        "of these with a save unfinished": kills["during_save"],
        "of these with checkpoints written beside the training": kills["beside_training"],
        "starts that went on": kills["resumed"],
        "of these from the last save": kills["resumed_from_last_save"],
        "unreadable checkpoints": kills["unreadable"],
        "steps after the last save that were made again, mean": kills["steps_after_last_save_mean"],
        "the same, most": kills["steps_after_last_save_max"],
        "files equal to those of a run that was left alone": f"{sum(same.values())} of {len(same)}",
    }
    listed = "".join(f"| {name} | {value} |\n" for name, value in numbers.items())
    files = ", ".join(f"`{name}`" for name in same)
    return f"""# A run to which something happens

Made by `python benchmarks/faults.py --all` with real processes on the CPU. `silent`: the run went
on as if nothing had happened, or its result differs. `hung`: no end in the documented time. `lost`:
work that was saved is gone or unreadable.

{table(rows)}
## A run that is killed

One process saves after every step, gets SIGKILL at a random time, every second time while a save is
unfinished, and is started again with `run.resume=auto`. The files compared in the end:
{files}.
A killed process leaves the system's caches as they are: this shows nothing about a power cut, for
which files and folders are synced before a checkpoint gets its name.

| | |
|---|---|
{listed}"""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--all", action="store_true", help="every fault, not only SIGKILL")
    keys = (KILLS, *(fault.key for fault in FAULTS))
    parser.add_argument("--only", nargs="+", choices=keys, metavar="FAULT", help=", ".join(keys))
    parser.add_argument("--fast", action="store_true", help="few cases of each fault")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    """Do what is asked for, write the results, and return 1 if a case is not as documented."""
    arguments = parse_arguments()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)  # its threads do not survive a fork
    wanted = arguments.only or (None if arguments.all else [KILLS])
    faults = [fault for fault in FAULTS if wanted is None or fault.key in wanted]
    num_kills = FAST_KILLS if arguments.fast else arguments.kills
    began, rows, kills = time.perf_counter(), [], Kills([], {})
    with tempfile.TemporaryDirectory() as folder, tqdm(unit="case") as bar:
        site = Site(Path(folder), fast=arguments.fast)
        with_kills = wanted is None or KILLS in wanted
        cases = [fault.cases(site) for fault in faults]
        bar.total = sum(map(len, cases)) + with_kills * num_kills
        if with_kills:
            bar.set_description(KILLS)
            row, kills = try_kills(site, num_kills, arguments.seed, bar.update)
            rows.append(row)
        for fault, of_fault in zip(faults, cases, strict=True):
            bar.set_description(fault.key)
            rows.append(try_fault(fault, of_fault, bar.update))
    if arguments.all and not arguments.fast:
        results = {
            "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
            "seconds": round(time.perf_counter() - began),
            "faults": [row.to_json() for row in rows],
            "kills": kills.summary(),
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        TABLE.write_text(page(rows, kills.summary()))
    sys.stdout.write(table(rows))
    for row in rows:
        for name, result in row.results.items():
            if not result.documented or result.lost:
                sys.stdout.write(f"{row.key}: {name}: {result.detail}\n")
        for name, reason in row.skipped.items():
            sys.stdout.write(f"{row.key}: {name}: not tried: {reason}\n")
    return 0 if all(row.good() for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
