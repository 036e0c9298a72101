import json

import pytest

from model.tasks.spec import TaskSpec
from trainer.compare.report import recipe_rows, save_comparison, shown, task_rows, to_markdown
from trainer.compare.table import Spread, specs_of, tabulate

TASKS = [
    TaskSpec("sphere", "binary"),
    TaskSpec("solids", "multiclass", channels=4),
    TaskSpec("segments", "dense_classification", channels=5),
]


def record(recipe, seed, error, miou, *, groups=None, seconds=10.0, status="done"):
    if status == "failed":
        return {"recipe": recipe, "seed": seed, "status": "failed", "seconds": seconds}
    return {
        "recipe": recipe,
        "seed": seed,
        "status": status,
        "seconds": seconds,
        "tasks": [task.to_dict() for task in TASKS],
        "metrics": {
            "sphere": {"error": error, "f1": 0.5},
            "solids": {"error": 2 * error},
            "segments": {"miou": miou},
        },
        "train_loss": 0.5,
        "groups": groups or [["sphere", "solids"], ["segments"]],
        "parameters": 1000,
    }


RECORDS = [
    record("tag", 0, 0.10, 0.3, seconds=20.0),
    record("tag", 1, 0.14, 0.5, seconds=30.0, groups=[["sphere"], ["solids", "segments"]]),
    record("single_task", 0, 0.20, 0.4, groups=[["sphere"], ["solids"], ["segments"]]),
    record("single_task", 1, 0.20, 0.4, groups=[["sphere"], ["solids"], ["segments"]]),
]


def test_numbers_by_recipe():
    tag, single = tabulate(RECORDS)
    assert (tag.recipe, tag.done, tag.failed) == ("tag", 2, 0)
    assert tag.total_error.values == pytest.approx((30.0, 42.0))  # error + 2 error, in percent
    assert tag.total_error.mean == pytest.approx(36.0)
    assert tag.total_error.std == pytest.approx(6 * 2**0.5)
    # Seed 0: the errors fall by 50 %, the mIoU by 25 %; seed 1: by 30 %, and it grows by 25 %.
    assert tag.gain.values == pytest.approx(((50 + 50 - 25) / 3, (30 + 30 + 25) / 3))
    assert tag.gains["segments"].values == pytest.approx((-25.0, 25.0))
    assert tag.tasks["sphere"].mean == pytest.approx(0.12)
    assert tag.seconds.mean == 25.0 and tag.parameters.mean == 1000
    assert tag.groups.values == (2, 2) and single.groups.values == (3, 3)
    assert tag.agreement == pytest.approx(-0.5)  # of three tasks in 2+1 and 1+2
    assert single.agreement == 1.0 and single.gain.mean == pytest.approx(0.0)


def test_without_the_reference_there_are_no_gains():
    (tag,) = tabulate(RECORDS[:2])
    assert tag.gain is None and tag.gains == {}
    header = recipe_rows([tag])[0]
    assert "total error" in header and not any("gain" in name for name in header)


def test_a_reference_of_zero_is_left_out():
    records = [*RECORDS[:2], record("single_task", 0, 0.0, 0.4)]
    tag, _ = tabulate(records)
    assert set(tag.gains) == {"segments"}
    assert tag.gain.values == pytest.approx((-25.0, 25.0))


def test_failed_and_single_cells():
    results = tabulate([RECORDS[0], record("tag", 1, 0, 0, status="failed")])
    (tag,) = results
    assert (tag.done, tag.failed, tag.agreement) == (1, 1, None)
    assert tag.total_error == Spread(pytest.approx(30.0), None, (pytest.approx(30.0),))
    row = dict(zip(*recipe_rows(results), strict=True))
    assert row["seeds"] == "1 (1 failed)" and row["total error"] == "30"
    nothing = tabulate([record("tag", 0, 0, 0, status="failed")])
    assert recipe_rows(nothing) == [["recipe", "seeds"], ["tag", "0 (1 failed)"]]


def test_numbers_as_shown():
    assert shown(None) == "-"
    assert shown(Spread.of([1.23456])) == "1.235"
    assert shown(Spread.of([1.0, 2.0]), 3) == "1.5 ± 0.71"
    assert Spread.of([None, None]) is None


def test_tables_of_tasks_and_markdown():
    results = tabulate(RECORDS)
    rows = task_rows(results, specs_of(RECORDS))
    assert rows[0] == ["task", "metric", "tag", "single_task"]
    assert rows[1] == ["sphere", "error ↓", "0.12 ± 0.028", "0.2 ± 0"]
    assert rows[3][:3] == ["segments", "miou ↑", "0.4 ± 0.14"]
    text = to_markdown([rows], "Words.")
    assert text.splitlines()[:4] == [
        "Words.",
        "",
        "| task | metric | tag | single_task |",
        "| --- | --- | --- | --- |",
    ]


def test_files_of_a_comparison(tmp_path):
    save_comparison(RECORDS, tmp_path, "Two recipes.")
    text = (tmp_path / "compare.md").read_text()
    assert "Two recipes." in text and "| tag | 2 | 36 ± 8.5 |" in text
    saved = json.loads((tmp_path / "compare.json").read_text())
    assert saved["cells"] == RECORDS
    assert saved["recipes"][0]["total_error"]["mean"] == pytest.approx(36.0)
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    other = tmp_path / "failed"
    other.mkdir()
    save_comparison([record("tag", 0, 0, 0, status="failed")], other, "Nothing.")
    assert not (other / "compare.png").exists() and (other / "compare.md").exists()
