"""Compare grouping recipes on real images: faces, several domains, drawings, rooms, digits.

python benchmarks/grouping_real.py PROBLEM --out runs/real [--celeba DIR] [--seeds 5]

Makes the shards of a problem once, and trains all recipes with `dmtg compare`: with each seed they
have the same initial weights and batches. Prints the verdict, and writes the tables to
OUT/PROBLEM. --celeba is the folder of the official download. docs/real_problems.md describes the
problems.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from data_pipelines.shards.manifest import MANIFEST_NAME
from trainer.config.grouping import DEFAULT_RECIPE
from trainer.figures import figure_file
from trainer.report.affinities import block_order

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = Path(__file__).resolve().parent / "real"
SIZE = 48
KEPT_LABELS = 0.02
RICH = (
    "Attractive", "Bangs", "Black_Hair", "Eyeglasses", "Male", "Mouth_Slightly_Open", "No_Beard",
    "Young",
)  # fmt: skip
ALL = "evidence,affinity,published,random,multitask,single_task,tag,grad_tag,hoa"
FEW = "evidence,affinity,published,random,multitask"  # where searches would take days


@dataclass(frozen=True)
class Problem:
    """What is trained.

    Attributes:
        config: Configuration file.
        shards: Makes the shards in a folder, from the folder of all data and that of CelebA.
        data: Name of their folder.
        branches: Numbers of branches that are compared.
        recipes: As `dmtg compare --recipes`.
        overrides: `section.key=value` for all runs.
    """

    config: Path
    shards: Callable[[Path, Path, Path | None], None]
    data: str
    branches: str
    recipes: str = ALL
    overrides: tuple[str, ...] = ()


def dmtg(*arguments: object) -> None:
    """Run the command line."""
    words = [str(argument) for argument in arguments]
    print(shlex.join(["dmtg", *words]), flush=True)
    code = "from trainer.commands.app import main; main()"
    subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, check=True)


def celeba_shards(out: Path, data: Path, celeba: Path | None) -> None:  # noqa: ARG001
    """Convert the official download."""
    if celeba is None:
        sys.exit("--celeba: this problem needs the folder of the official download")
    dmtg("shards", "celeba", "--root", celeba, "--size", SIZE, "--out", out)


def synthetic_shards(name: str, *options: object) -> Callable[[Path, Path, Path | None], None]:
    """Return the function that makes an embedded data set."""

    def make(out: Path, data: Path, celeba: Path | None) -> None:  # noqa: ARG001
        dmtg("shards", name, "--out", out, *options)

    return make


def mixed_shards(out: Path, data: Path, celeba: Path | None) -> None:
    """Join faces, digits, rooms and drawings; few samples are of rooms."""
    sources = {
        "faces": celeba_shards,
        "digits": synthetic_shards("digits"),
        "rooms": synthetic_shards("rooms", "--size", SIZE, "--samples", 1200),
        "drawings": synthetic_shards("icons", "--size", SIZE),
    }
    folders = []
    for name, make in sources.items():
        folder = data / ("celeba" if name == "faces" else f"domains-{name}")
        make_once(folder, lambda out, make=make: make(out, data, celeba))
        folders.append(f"{name}={folder}")
    dmtg("shards", "mix", *folders, "--out", out)


def few_label_shards(out: Path, data: Path, celeba: Path | None) -> None:
    """Convert CelebA with 2 % of the training labels of all attributes but those of `RICH`."""
    if celeba is None:
        sys.exit("--celeba: this problem needs the folder of the official download")
    table = data / "few_labels.csv"
    draw = random.Random(0)
    lines = (celeba / "list_attr_celeba.txt").read_text().splitlines()
    attributes = lines[1].split()
    parts = dict(
        line.split() for line in (celeba / "list_eval_partition.txt").read_text().splitlines()
    )
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", "split", *attributes])
        for line in lines[2:]:
            name, *values = line.split()
            split = ("train", "val", "test")[int(parts[name])]
            kept = [
                str(int(value == "1"))
                if split != "train" or attribute in RICH or draw.random() < KEPT_LABELS
                else ""
                for attribute, value in zip(attributes, values, strict=True)
            ]
            writer.writerow([name, split, *kept])
    dmtg(
        *("shards", "csv", table, "--images", celeba / "img_align_celeba"),
        *("--image-column", "picture", "--split-column", "split", "--size", SIZE, "--out", out),
    )


PROBLEMS = {
    "celeba9": Problem(
        CONFIGS / "celeba.yaml", celeba_shards, "celeba", "2,3,4",
        overrides=("tasks.preset=celeba9",),
    ),
    "celeba40": Problem(CONFIGS / "celeba.yaml", celeba_shards, "celeba", "4,8", FEW),
    "domains": Problem(CONFIGS / "domains.yaml", mixed_shards, "domains", "4", FEW),
    "few_labels": Problem(CONFIGS / "few_labels.yaml", few_label_shards, "few_labels", "4", FEW),
    "icons": Problem(
        ROOT / "experiments" / "icons.yaml", synthetic_shards("icons"), "icons", "4", FEW
    ),
    "rooms": Problem(
        ROOT / "experiments" / "demo.yaml", synthetic_shards("rooms"), "rooms", "3",
        overrides=("run.steps=300", "run.checkpoint_every=300", "eval.every=300"),
    ),
    "digits": Problem(
        ROOT / "experiments" / "digits.yaml", synthetic_shards("digits"), "digits", "2",
        overrides=("run.steps=600", "run.checkpoint_every=600", "eval.every=600"),
    ),
}  # fmt: skip


def make_once(folder: Path, make: Callable[[Path], None]) -> None:
    """Make shards unless they are there; the converters write the manifest last."""
    if not (folder / MANIFEST_NAME).exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        make(folder)


def main() -> None:
    """Run the comparisons of a problem."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("problem", choices=PROBLEMS)
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--celeba", type=Path, help="folder of the official download")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipes", help="instead of those of the problem")
    parser.add_argument("--k", help="numbers of branches instead of those of the problem")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for all runs")
    given = parser.parse_args()
    problem, out = PROBLEMS[given.problem], given.out.resolve()
    shards = out / "data" / problem.data
    make_once(shards, lambda folder: problem.shards(folder, out / "data", given.celeba))
    folder = out / given.problem
    dmtg(
        *("compare", problem.config, "--out", folder, "--seeds", given.seeds),
        *("--recipes", given.recipes or problem.recipes, "--k", given.k or problem.branches),
        *(f"data.shards={shards}", *problem.overrides, *given.overrides),
    )
    draw_groups(folder)


def draw_groups(folder: Path) -> None:
    """Draw how often two tasks share a branch over the seeds, for each row of the default recipe.

    The tasks are in the order of the groups of the seed that agrees best with the others.
    """
    cells = json.loads((folder / "compare.json").read_text())["cells"]
    rows: dict[str, list[list[list[str]]]] = {}
    for cell in cells:
        if cell["recipe"] == DEFAULT_RECIPE and cell["status"] == "done":
            rows.setdefault(f"k{cell.get('branches') or ''}", []).append(cell["groups"])
    for row, groupings in rows.items():
        names = [name for group in groupings[0] for name in group]
        labels = np.array([[label(name, groups) for name in names] for groups in groupings])
        together = (labels[:, :, None] == labels[:, None, :]).mean(axis=0)
        alike = (labels[:, :, None] == labels[:, None, :]).astype(float)
        middle = int(np.abs(alike - together).sum(axis=(1, 2)).argmin())
        order = block_order(together, labels[middle].tolist())
        side = 3 + len(names) / 6
        with figure_file(folder / f"groups-{row}.png", 1, 1, size=(side, side)) as axes:
            axis = axes[0, 0]
            axis.imshow(together[np.ix_(order, order)], cmap="Blues", vmin=0, vmax=1)
            axis.set_xticks(range(len(names)), [names[task] for task in order], rotation=90)
            axis.set_yticks(range(len(names)), [names[task] for task in order])
            edges = np.flatnonzero(np.diff(labels[middle][order])) + 0.5
            for edge in edges:
                axis.axhline(edge, color="black", linewidth=0.8)
                axis.axvline(edge, color="black", linewidth=0.8)
            axis.set_title(f"share of {len(groupings)} runs in which two tasks share a branch")


def label(name: str, groups: list[list[str]]) -> int:
    """Return the number of the group of a task."""
    return next(number for number, group in enumerate(groups) if name in group)


if __name__ == "__main__":
    main()
