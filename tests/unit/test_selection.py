"""The script `benchmarks/selection.py` on a table of four tasks whose every number is known."""

import importlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
GROUPS = np.array([row for row in itertools.product((0, 1), repeat=4) if any(row)])


@pytest.fixture
def selection(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("selection")


@pytest.fixture
def table(selection):
    """Gains between -1 and 1; a task alone gains nothing."""
    generator = np.random.default_rng(3)
    gains = [generator.uniform(-1, 1, GROUPS.shape).round(2) * GROUPS for _ in range(3)]
    for values in gains:
        values[GROUPS.sum(axis=1) == 1] = 0.0
    test, validation, tag = gains
    of_pairs = selection._of_pairs(GROUPS.astype(bool), tag)
    return selection.Table("four", GROUPS.astype(bool), test, validation, of_pairs)


def row_of(group):
    return [tuple(np.nonzero(members)[0]) for members in GROUPS].index(tuple(group))


def naive_partitions(num_groups):
    for labels in itertools.product(range(num_groups), repeat=4):
        yield [[t for t in range(4) if labels[t] == n] for n in set(labels)]


def looked_up(gains, groups):
    return sum(gains[row_of(group), list(group)].sum() for group in groups) / 4


def test_every_partition_is_listed_once(selection):
    assert [len(list(selection.partitions(7, k))) for k in (1, 2, 3, 7)] == [1, 64, 365, 877]
    found = {frozenset(map(frozenset, groups)) for groups in selection.partitions(4, 3)}
    assert found == {frozenset(map(frozenset, groups)) for groups in naive_partitions(3)}
    assert len(found) == 14


@pytest.mark.parametrize("num_groups", [2, 3])
def test_partitions_score_what_the_table_holds(num_groups, selection, table, monkeypatch):
    monkeypatch.setattr(selection, "DRAWS", 400)
    scores = {s.method: s for s in selection.score_partitions(table, num_groups)}
    options = list(naive_partitions(num_groups))
    assert scores["best"].gain == pytest.approx(max(looked_up(table.test, g) for g in options))

    def by_pairs(groups):
        pairs = [(t, o) for g in groups for t in g for o in g if o != t]
        weight = {t: 1 / (len(g) - 1) for g in groups for t in g if len(g) > 1}
        return sum(weight[t] * table.validation[row_of(sorted((t, o))), t] for t, o in pairs)

    chosen = max(options, key=by_pairs)
    assert scores["HOA"].gain == pytest.approx(looked_up(table.test, chosen))
    chosen = max(options, key=lambda g: looked_up(table.validation, g))
    assert scores["all trained"].gain == pytest.approx(looked_up(table.test, chosen))
    random = scores["random"]
    assert random.low <= random.gain <= random.high <= scores["best"].gain + 1e-9
    assert scores["best"].better_than_random >= scores["HOA"].better_than_random


@pytest.mark.parametrize("num_groups", [1, 2, 3])
def test_covers_are_the_best_of_all_choices(num_groups, selection, table):
    allowed = np.where(table.groups, table.test, -np.inf)
    best = max(
        allowed[list(rows)].max(axis=0).sum()
        for rows in itertools.combinations(range(len(GROUPS)), num_groups)
    )
    exact = selection._exact_rows(table.groups, table.test, num_groups)
    local = selection._local_rows(np.where(table.groups, table.test, -1e6), num_groups)
    for rows in (exact, local):
        assert len(rows) <= num_groups
        assert allowed[rows].max(axis=0).sum() == pytest.approx(best)
        assert selection.cover_gain(table, table.test, rows) == pytest.approx(best / 4)


def test_a_task_uses_the_group_that_is_predicted_to_be_best(selection, table):
    rows = [row_of((0, 1, 2, 3)), row_of((0, 1))]
    predicted = np.zeros(GROUPS.shape)
    predicted[rows[1], [0, 1]] = [1.0, -1.0]
    expected = table.test[rows[1], 0] + table.test[rows[0], 1:].sum()
    assert selection.cover_gain(table, predicted, rows) == pytest.approx(expected / 4)


def test_hoa_predicts_every_group_of_the_table(selection, table):
    pairs = selection._of_pairs(table.groups, table.validation)
    values = table.predicted(pairs)
    group = (0, 2, 3)
    expected = np.mean([table.validation[row_of(p), 2] for p in ((0, 2), (2, 3))])
    assert values[row_of(group), 2] == pytest.approx(expected)
    assert values[row_of(group), 1] == 0 and (values[GROUPS.sum(axis=1) == 1] == 0).all()


def write(clone, name, values):
    path = clone / "gain_collection" / "collected_gain" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(" ".join(map(str, row)) + "\n" for row in values))
    return path


def test_a_clone_becomes_a_page(selection, table, tmp_path, monkeypatch, capsys):
    names = ("x.csv", "test.csv", "validation.csv", "tag.csv")
    source = selection.Source("four", *names, num_groups=(2,))
    monkeypatch.setattr(selection, "SOURCES", (source,))
    monkeypatch.setattr(selection, "DRAWS", 50)
    monkeypatch.setattr(selection, "RESULTS", tmp_path / "selection.json")
    monkeypatch.setattr(selection, "OUT", tmp_path)
    clone = tmp_path / "clone"
    assert selection.main([str(clone)]) == 2
    assert "x.csv: No such file or directory" in capsys.readouterr().err
    for name, values in zip(names, (GROUPS, table.test, table.validation, table.test), strict=True):
        write(clone, name, values)
    assert selection.main([str(clone)]) == 0
    content = json.loads((tmp_path / "selection.json").read_text())
    assert [s["method"] for s in content["scores"]] == 2 * [
        "best", "all trained", "HOA", "TAG", "random",
    ]  # fmt: skip
    assert "| four | partition | 2 |" in (tmp_path / "selection.md").read_text()
    assert (tmp_path / "selection.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("test.csv", GROUPS[1:], r"test\.csv: found a table of (14, 4), must be one of (15, 4)"),
        ("x.csv", GROUPS * 2, r"x.csv: must hold 0 and 1"),
        ("tag.csv", [["a"]], r"tag.csv: is not a table of numbers"),
    ],
)
def test_tables_that_cannot_be(name, values, message, selection, tmp_path):
    source = selection.Source("four", "x.csv", "test.csv", "validation.csv", "tag.csv", (2,))
    for each in ("x.csv", "test.csv", "validation.csv", "tag.csv"):
        write(tmp_path, each, GROUPS)
    write(tmp_path, name, values)
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        selection.read_table(tmp_path, source)


def test_a_table_without_a_pair(selection):
    rows = GROUPS[GROUPS.sum(axis=1) != 2].astype(bool)
    with pytest.raises(ValueError, match="a pair of the 4 tasks is missing"):
        selection._of_pairs(rows, rows * 1.0)
