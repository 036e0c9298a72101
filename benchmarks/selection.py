"""Score methods that choose groups of tasks by lookup in published gains of trained groups.

git clone https://github.com/ShawnKS/MTG-Net
python benchmarks/selection.py MTG-Net

The authors of MTG-Net (Song et al., NeurIPS 2022) trained groups of tasks on three data sets and
published each task's gain in each group over its own network. So a choice of groups is scored
without training. docs/results/selection.md says what is looked up. Writes
benchmarks/results/selection.json, docs/results/selection.md and selection.png in a minute.

Legend: R groups in a table, N tasks, K groups that may be chosen.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from trainer.recipes.cover import best_cover
from trainer.recipes.groups import Groups, random_groups
from trainer.recipes.hoa import best_groups, predicted_gains

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "selection.json"
OUT = ROOT / "docs" / "results"
FOLDER = Path("gain_collection") / "collected_gain"
DRAWS = 10_000
_UNCOVERED = -1e6  # gain of a task that no chosen group has
_STARTS = 20  # of the local search in a table too large for the exact one
_MAX_EXACT = 1_000  # pairs of a group and a task in a table that is searched exactly


@dataclass(frozen=True)
class Source:
    """The files of a data set: groups, gains in the test and validation split, TAG's estimates."""

    name: str
    groups: str
    test: str
    validation: str
    tag: str
    num_groups: tuple[int, ...]


SOURCES = (
    Source(
        "Taskonomy", "taskonomy/taskonomy_x.csv", "taskonomy/taskonomy.csv",
        "taskonomy/taskonomy.csv", "taskonomy/taskonomy_TAGHOA.csv", (2, 3, 4),
    ),
    Source(
        "ETTm1", "ETT/ETTm1_x.csv", "ETT/ETTm1_y.csv", "ETT/ETTm1_val_y.csv",
        "ETT/ETTm1_TAG_HOA.csv", (2, 3, 4, 5),
    ),
    Source(
        "MIMIC-III", "mimic27/mimic_x.csv", "mimic27/mimic_y_test.csv",
        "mimic27/mimic_y_valid.csv", "mimic27/mimic_TAGHOA.csv", (2, 3, 4, 5, 8),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Groups of a data set and what is known of them.

    Attributes:
        name: Of the data set.
        groups: Which tasks are in a group, bool [R,N].
        test: Gain of each task in each group over its own network, in the test split [R,N].
        validation: The same in the split that a method may look at.
        tag: TAG's affinities, of the row's task onto the column's [N,N].
    """

    name: str
    groups: np.ndarray
    test: np.ndarray
    validation: np.ndarray
    tag: np.ndarray

    @property
    def num_tasks(self) -> int:
        """N."""
        return self.groups.shape[1]

    @property
    def complete(self) -> bool:
        """Whether every group of these tasks was trained."""
        return len(self.groups) == 2**self.num_tasks - 1

    def predicted(self, of_pairs: np.ndarray) -> np.ndarray:
        """Return the gains [R,N] that the gains of pairs [N,N] predict, as in HOA."""
        values = np.zeros(self.groups.shape)
        for row, members in enumerate(self.groups):
            (tasks,) = np.nonzero(members)
            values[row, tasks] = predicted_gains(of_pairs, tasks.tolist())
        return values


@dataclass(frozen=True)
class Score:
    """The mean gain of the tasks with the groups that a method has chosen.

    Attributes:
        dataset: Name of the data set.
        rule: `partition`, or `cover`, where groups may overlap.
        num_groups: K.
        method: How the groups are chosen.
        gain: Mean over the tasks; of random groups the mean over the draws.
        low: Of random groups the 2.5th percentile; else None.
        high: Of random groups the 97.5th percentile; else None.
        better_than_random: Fraction of the random draws with a lower gain; None for random groups.
    """

    dataset: str
    rule: str
    num_groups: int
    method: str
    gain: float
    low: float | None = None
    high: float | None = None
    better_than_random: float | None = None


def read_table(clone: Path, source: Source) -> Table:
    """Read the tables of a data set.

    Raises:
        ValueError: A file is missing or is not such a table.
    """
    groups = _read(clone / FOLDER / source.groups)
    test, validation, tag = (
        _read(clone / FOLDER / name, groups.shape)
        for name in (source.test, source.validation, source.tag)
    )
    table = Table(
        source.name, groups.astype(bool), test, validation, _of_pairs(groups.astype(bool), tag)
    )
    if not np.isin(groups, (0, 1)).all() or table.num_tasks not in groups.sum(axis=1):
        raise ValueError(f"{source.groups}: must hold 0 and 1, and the group of all tasks")
    return table


def _read(path: Path, shape: tuple[int, ...] | None = None) -> np.ndarray:
    try:
        lines = path.read_text(encoding="utf-8").replace(",", " ").splitlines()
        values = np.array([[float(v) for v in line.split()] for line in lines if line.strip()])
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}: is not a table of numbers ({error})") from None
    if values.ndim != 2 or not np.isfinite(values).all() or shape not in (None, values.shape):
        raise ValueError(f"{path}: found a table of {values.shape}, must be one of {shape}")
    return values


def _of_pairs(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the values [N,N] of the column's task in its pair with the row's.

    Raises:
        ValueError: A pair is missing.
    """
    num_tasks = groups.shape[1]
    matrix = np.full((num_tasks, num_tasks), np.nan)
    np.fill_diagonal(matrix, 0.0)
    for members, row in zip(groups, values, strict=True):
        if members.sum() == 2:
            first, second = np.nonzero(members)[0]
            matrix[first, second], matrix[second, first] = row[second], row[first]
    if np.isnan(matrix).any():
        raise ValueError(f"a pair of the {num_tasks} tasks is missing among the groups")
    return matrix


def score_partitions(table: Table, num_groups: int) -> Iterator[Score]:
    """Yield the scores of methods that put every task into one group, of a complete table."""
    rows = {tuple(np.nonzero(members)[0]): row for row, members in enumerate(table.groups)}

    def gain(groups: Groups, of: np.ndarray = table.test) -> float:
        return sum(of[rows[group], list(group)].sum() for group in groups) / table.num_tasks

    tasks, options = table.num_tasks, list(partitions(table.num_tasks, num_groups))
    pairs = _of_pairs(table.groups, table.validation)
    chosen = {
        "best": max(options, key=gain),
        "all trained": max(options, key=lambda groups: gain(groups, table.validation)),
        "HOA": best_groups(pairs, num_groups),
        "TAG": best_cover(table.tag, num_groups),
    }
    random = np.array([gain(random_groups(tasks, num_groups, seed)) for seed in range(DRAWS)])
    gains = {method: gain(groups) for method, groups in chosen.items()}
    yield from _scores(table, "partition", num_groups, gains, random)


def partitions(num_tasks: int, num_groups: int) -> Iterator[Groups]:
    """Yield all partitions of the tasks into at most `num_groups` groups."""

    def extend(groups: list[tuple[int, ...]], task: int) -> Iterator[Groups]:
        if task == num_tasks:
            yield tuple(groups)
            return
        for index, group in enumerate(groups):
            yield from extend([*groups[:index], (*group, task), *groups[index + 1 :]], task + 1)
        if len(groups) < num_groups:
            yield from extend([*groups, (task,)], task + 1)

    yield from extend([], 0)


def score_covers(table: Table, num_groups: int) -> Iterator[Score]:
    """Yield the scores of methods whose groups may overlap: a task uses one of its groups.

    A method predicts the gain of every task in every group of the table. The K groups with the
    highest sum are chosen in which each task uses the group that is best for it, by the prediction.
    """
    of_pairs = _of_pairs(table.groups, table.validation)
    predictions = {
        "best": table.test,
        "all trained": table.validation,
        "HOA": table.predicted(of_pairs),
        "TAG": table.predicted(table.tag),
    }
    gains = {
        method: cover_gain(table, predicted, best_rows(table.groups, predicted, num_groups))
        for method, predicted in predictions.items()
    }
    generator = np.random.default_rng(0)
    everything = int(np.nonzero(table.groups.all(axis=1))[0][0])
    random = np.empty(DRAWS)
    for draw in range(DRAWS):
        rows = [everything, *generator.choice(len(table.groups), num_groups - 1, replace=False)]
        random[draw] = cover_gain(table, generator.random(table.groups.shape[:1])[:, None], rows)
    yield from _scores(table, "cover", num_groups, gains, random)


def cover_gain(table: Table, predicted: np.ndarray, rows: Sequence[int]) -> float:
    """Return the mean test gain if each task uses the best of these groups by the prediction.

    Args:
        table: The groups and their gains.
        predicted: For every group and task, or the same for all tasks of a group [R,1].
        rows: The chosen groups.
    """
    rows = list(rows)
    values = np.where(table.groups[rows], predicted[rows], -np.inf)  # [K,N]
    return float(table.test[rows][values.argmax(axis=0), np.arange(table.num_tasks)].mean())


def best_rows(groups: np.ndarray, gains: np.ndarray, num_groups: int) -> list[int]:
    """Return the groups, at most K, with the highest sum of each task's highest gain in them.

    Every task is in one of them. The search is exact for small tables, else a local search.

    Args:
        groups: bool [R,N].
        gains: [R,N].
        num_groups: K.
    """
    if groups.sum() <= _MAX_EXACT:
        return _exact_rows(groups, gains, num_groups)
    return _local_rows(np.where(groups, gains, _UNCOVERED), num_groups)


def _exact_rows(groups: np.ndarray, gains: np.ndarray, num_groups: int) -> list[int]:
    """Integer program: a task uses one group that is chosen; at most K are."""
    (num_rows, num_tasks), (row, task) = groups.shape, np.nonzero(groups)
    uses = np.arange(len(row))  # the variables: which task uses which group, which are chosen
    width, each = len(row) + num_rows, np.ones(len(row))
    one = csr_matrix((each, (task, uses)), shape=(num_tasks, width))
    link = csr_matrix(
        (np.r_[each, -each], (np.r_[uses, uses], np.r_[uses, len(row) + row])),
        shape=(len(row), width),
    )
    count = np.r_[0 * each, np.ones(num_rows)][None]
    result = milp(
        np.r_[-gains[row, task], np.zeros(num_rows)],
        integrality=np.ones(width),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one, 1, 1),
            LinearConstraint(link, -np.inf, 0),
            LinearConstraint(count, 0, num_groups),
        ],
        options={"mip_rel_gap": 0.0},
    )
    assert result.x is not None, "the group of all tasks covers them"
    return np.nonzero(result.x[len(row) :] > 0.5)[0].tolist()


def _local_rows(values: np.ndarray, num_groups: int) -> list[int]:
    """Add the best group K times, then replace one while that is better; from several starts."""
    ends = []
    for start in np.argsort(-values.sum(axis=1))[:_STARTS]:
        rows = [int(start)]
        for _ in range(num_groups - 1):
            rows.append(_best_beside(values, rows))
        total, improved = -np.inf, True
        while improved:
            for place in range(num_groups):
                rows[place] = _best_beside(values, rows[:place] + rows[place + 1 :])
            new = float(values[rows].max(axis=0).sum())
            improved, total = new > total + 1e-12, new
        ends.append((total, rows))
    return max(ends)[1]


def _best_beside(values: np.ndarray, rows: Sequence[int]) -> int:
    """Return the group with which these groups have the highest sum."""
    there = values[list(rows)].max(axis=0) if rows else np.full(values.shape[1], -np.inf)
    return int(np.maximum(values, there).sum(axis=1).argmax())


def _scores(
    table: Table, rule: str, num_groups: int, gains: dict[str, float], random: np.ndarray
) -> Iterator[Score]:
    for method, gain in gains.items():
        worse = float((random < gain - 1e-12).mean())
        yield Score(table.name, rule, num_groups, method, float(gain), better_than_random=worse)
    low, high = np.percentile(random, [2.5, 97.5]).tolist()
    yield Score(table.name, rule, num_groups, "random", float(random.mean()), low, high)


def markdown(tables: Sequence[Table], scores: Sequence[Score], commit: str) -> str:
    """Return the page of the results."""
    methods = ("best", "all trained", "HOA", "TAG")
    cells = {(s.dataset, s.rule, s.num_groups, s.method): s for s in scores}
    settings = dict.fromkeys((s.dataset, s.rule, s.num_groups) for s in scores)
    lines = []
    for setting in settings:
        random = cells[(*setting, "random")]
        row = [str(part) for part in setting]
        for method in methods:
            score = cells[(*setting, method)]
            row.append(f"{100 * score.gain:+.1f} ({100 * (score.better_than_random or 0):.0f})")
        row.append(f"{100 * random.gain:+.1f} [{100 * random.low:+.1f}, {100 * random.high:+.1f}]")
        lines.append(f"| {' | '.join(row)} |")
    sizes = "; ".join(
        f"{t.name}: {t.num_tasks} tasks, {len(t.groups):,} groups, "
        f"{100 * t.test[t.groups.all(axis=1)].mean():+.1f} % for one network of all tasks"
        for t in tables
    )
    head = " | ".join(["data set", "rule", "K", *methods, "random"])
    return _PAGE.format(
        commit=commit, sizes=sizes, head=head, line="|---" * 8 + "|", rows="\n".join(lines),
        draws=DRAWS,
    )  # fmt: skip


_PAGE = """# Methods that choose groups, on published gains

Made by `python benchmarks/selection.py CLONE`, where CLONE is a clone of
[ShawnKS/MTG-Net](https://github.com/ShawnKS/MTG-Net) (commit {commit}). The authors of MTG-Net
(NeurIPS 2022) trained groups of tasks, each with a network of its own, and published the gain of
every task in every group: by what fraction it is better than in a network of its own. Nothing is
trained here; the gains of the groups that a method chooses are looked up. The repository has no
licence, so its tables are not copied into this one; it has no CelebA.

{sizes}.

Mean gain of the tasks in percent; in brackets how many percent of {draws:,} random choices are
worse. Of random choices: mean and central 95 %.

| {head} |
{line}
{rows}

![mean gain by number of groups](selection.png)

What is looked up:

- **partition**: each task is in one group, as in this project. It needs the gains of every group
  of the tasks, which Taskonomy and ETTm1 have. Random: `random_groups`, as the recipe `random`.
- **cover**: at most K groups of the table, which may overlap and cover all tasks; each task uses
  the one group that the method predicts to be best for it, as in the papers of HOA, TAG and
  MTG-Net. Random: the group of all tasks and K-1 others of the table; of a task's groups a random
  one is used.
- **best**: chosen by the gains that are looked up, which no method knows. **all trained**: chosen
  by the validation gains of all groups in the table. **HOA**: by the validation gains of all
  pairs, with the code of the recipe `hoa` (`predicted_gains`, `best_groups`). **TAG**: by the
  published affinities of all pairs, with `best_cover` as in the recipe `tag`, and in covers with
  their means. Covers are searched exactly for Taskonomy and ETTm1 by an integer program, for
  MIMIC-III by a local search, so that **best** is there the best that was found.
- Taskonomy has one table of gains for validation and test: there **all trained** is **best**, and
  the pairs that HOA sees are those that are looked up.
- The recipes `affinity` and `grad_tag` are missing: they need gradients of the tasks, which were
  not published.
"""


def plot(scores: Sequence[Score], path: Path) -> None:
    """Draw the mean gain over the number of groups, a panel for every data set and rule."""
    panels = list(dict.fromkeys((s.dataset, s.rule) for s in scores))
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.4))
    for axis, (dataset, rule) in zip(axes, panels, strict=True):
        here = [s for s in scores if (s.dataset, s.rule) == (dataset, rule)]
        for method in dict.fromkeys(s.method for s in here):
            line = [s for s in here if s.method == method]
            counts, gains = [s.num_groups for s in line], [100 * s.gain for s in line]
            axis.plot(counts, gains, "o--" if method == "random" else "o-", label=method, ms=4)
            if method == "random":
                low, high = ([100 * (v or 0.0) for v in column] for column in zip(
                    *((s.low, s.high) for s in line), strict=True
                ))  # fmt: skip
                axis.fill_between(counts, low, high, alpha=0.2, color=axis.lines[-1].get_color())
        axis.set_title(f"{dataset}, {rule}", fontsize=9)
        axis.set_xlabel("groups K")
        axis.set_xticks(sorted({s.num_groups for s in here}))
    axes[0].set_ylabel("mean gain of the tasks, %")
    axes[-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Score all methods on all data sets and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clone", type=Path, help="folder of a clone of ShawnKS/MTG-Net")
    clone: Path = parser.parse_args(arguments).clone
    scores: list[Score] = []
    try:
        tables = [read_table(clone, source) for source in SOURCES]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for table, source in zip(tables, SOURCES, strict=True):
        for num_groups in source.num_groups:
            if table.complete:
                scores += score_partitions(table, num_groups)
            scores += score_covers(table, num_groups)
            print(f"{table.name}: {num_groups} groups", flush=True)
    scores.sort(key=lambda s: ([t.name for t in tables].index(s.dataset), s.rule == "cover"))
    commit = subprocess.run(
        ["git", "-C", str(clone), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    command = "python benchmarks/selection.py CLONE"
    content = {
        "command": command,
        "commit": commit or None,
        "scores": [
            {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(score).items()}
            for score in scores
        ],
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    (OUT / "selection.md").write_text(markdown(tables, scores, commit or "unknown"))
    plot(scores, OUT / "selection.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
