import json
from pathlib import Path

import pytest

from model.tasks.spec import TaskSpec
from trainer.compare.report import (
    notes,
    recipe_rows,
    save_comparison,
    shown,
    task_rows,
    to_markdown,
)
from trainer.compare.table import Spread, choose_reference, merge_parts, specs_of, tabulate

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
    assert choose_reference(RECORDS) == "single_task"
    tag, single = tabulate(RECORDS, "single_task")
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
    assert choose_reference(RECORDS[:2]) is None, "there is nothing to compare"
    (tag,) = tabulate(RECORDS[:2])
    assert tag.gain is None and tag.gains == {}
    header = recipe_rows([tag])[0]
    assert not any("change" in name or "error" in name for name in header)


def test_the_reference_is_a_finished_recipe():
    other = [record("random", 0, 0.3, 0.4)]
    multitask = record("multitask", 0, 0.2, 0.4)
    published = [record("published", 0, 0.3, 0.4)]
    assert choose_reference([*RECORDS, *other]) == "random"
    assert choose_reference([*RECORDS, multitask]) == "single_task"
    assert choose_reference([*RECORDS[:2], *published]) == "tag"
    assert choose_reference([*RECORDS[:2], *published, multitask]) == "multitask"
    assert choose_reference([*RECORDS, multitask], "random") is None, "it has no run"
    assert choose_reference([*RECORDS, *other], "single_task") == "single_task"
    failed = record("random", 0, 0, 0, status="failed")
    assert choose_reference([*RECORDS[:2], *published, failed]) == "tag"


def test_a_recipe_that_is_worse_ranks_lower_whatever_its_kind_of_task():
    """The total error puts `worse` first, because it does not see the overlap."""
    records = [
        record("multitask", 0, 0.20, 0.6),
        record("worse", 0, 0.19, 0.1),
        record("better", 0, 0.21, 0.7),
    ]
    worse, better = (r for r in tabulate(records, "multitask") if r.recipe != "multitask")
    assert worse.total_error.mean < better.total_error.mean
    # 5, 5 and -83.3; -5, -5 and 16.7.
    assert worse.gain.mean == pytest.approx((5 + 5 - 250 / 3) / 3)
    assert better.gain.mean == pytest.approx((-5 - 5 + 50 / 3) / 3)


def test_the_definition_is_beside_the_table():
    text = notes(tabulate(RECORDS, "single_task"), 3, "single_task")
    assert "mean over 3 of 3 tasks and over the seeds, of runs with the same seed, against " in text
    assert "against single_task, in brackets its 95 % interval" in text
    assert "(reference - value) / reference where lower is better" in text
    header = recipe_rows(tabulate(RECORDS, "single_task"), "single_task")[0]
    assert "change against single_task, %" in header


def test_a_reference_of_zero_is_left_out():
    records = [*RECORDS[:2], record("single_task", 0, 0.0, 0.4)]
    tag, _ = tabulate(records, "single_task")
    assert set(tag.gains) == {"segments"} and tag.gain.left_out == ("sphere", "solids")
    # Only the seed that both have is compared.
    assert tag.gain.seeds == (0,) and tag.gain.values == pytest.approx((-25.0,))
    assert "Without a change: sphere, solids." in notes([tag], 3, "single_task")


def test_failed_and_single_cells():
    results = tabulate([RECORDS[0], record("tag", 1, 0, 0, status="failed")])
    (tag,) = results
    assert (tag.done, tag.failed, tag.agreement) == (1, 1, None)
    assert tag.total_error == Spread(pytest.approx(30.0), None, (pytest.approx(30.0),))
    row = dict(zip(*recipe_rows(results), strict=True))
    assert row["seeds"] == "1 (1 failed)" and row["training loss"] == "0.5"
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
    # The changes are 25 and 28.3, those of the tasks 40, 40 and 0: s²/n are 2.8 and 177.8, and
    # Student's t has 2.06 degrees of freedom.
    assert "Two recipes." in text and "| tag | 2 | +26.7 [-29.5, +82.8] |" in text
    saved = json.loads((tmp_path / "compare.json").read_text())
    assert saved["cells"] == RECORDS
    assert saved["recipes"][0]["total_error"]["mean"] == pytest.approx(36.0)
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    other = tmp_path / "failed"
    other.mkdir()
    save_comparison([record("tag", 0, 0, 0, status="failed")], other, "Nothing.")
    assert not (other / "compare.png").exists() and (other / "compare.md").exists()


def labelled(recipe, branches, error, *, seeds=(0, 1), parameters=1000, **more):
    label = {"label": f"{recipe} K={branches}", "branches": branches} if branches else {}
    return [
        {**record(recipe, seed, error, 0.5), "parameters": parameters, **label, **more}
        for seed in seeds
    ]


def test_each_number_of_branches_has_its_own_reference():
    records = [
        *labelled("affinity", 2, 0.09), *labelled("affinity", 4, 0.05),
        *labelled("random", 2, 0.10, parameters=2000), *labelled("random", 4, 0.10),
        *labelled("multitask", None, 0.20, parameters=500, groups=[[t.name for t in TASKS]]),
        *labelled("single_task", None, 0.10, groups=[[t.name] for t in TASKS]),
    ]  # fmt: skip
    assert choose_reference(records) == "random"
    rows = {row.recipe: row for row in tabulate(records, "random")}
    assert {label: row.gain.reference for label, row in rows.items()} == {
        "affinity K=2": "random K=2", "affinity K=4": "random K=4",
        "random K=2": "random K=2", "random K=4": "random K=4",
        # Of one group and of three: the nearest number of branches.
        "multitask": "random K=2", "single_task": "random K=4",
    }  # fmt: skip
    assert [label for label, row in rows.items() if row.is_reference] == [
        "random K=2",
        "random K=4",
    ]
    assert rows["affinity K=2"].gains["sphere"].mean == pytest.approx(10.0)
    assert rows["affinity K=4"].gains["sphere"].mean == pytest.approx(50.0)
    assert rows["affinity K=4"].one_branch.by_task["sphere"] == pytest.approx((75.0, 75.0))
    assert rows["multitask"].one_branch is None
    assert rows["affinity K=4"].fewer.reference == "affinity K=2"
    assert rows["affinity K=2"].fewer.reference == "multitask"
    assert rows["single_task"].fewer is None
    assert rows["multitask"].times_parameters == 0.25
    header, first, *_ = recipe_rows(list(rows.values()), "random")
    assert "change against random with the same K, %" in header and first[0] == "affinity K=2"


def test_one_row_may_be_the_reference_of_all():
    records = [*labelled("affinity", 2, 0.1), *labelled("affinity", 4, 0.1)]
    assert choose_reference(records) == "affinity K=2"
    assert choose_reference(records, "affinity K=4") == "affinity K=4"
    rows = tabulate(records, "affinity K=4")
    assert {row.gain.reference for row in rows} == {"affinity K=4"}
    # Random groups alone are no reference: every row would be its own.
    records = [*labelled("random", 2, 0.1), *labelled("random", 4, 0.1)]
    assert choose_reference(records) == "random K=2"


def part(number, names, *, status="done"):
    whole = record("single_task", 0, 0.1, 0.5, status=status, seconds=5.0)
    if status == "done":
        whole["tasks"] = [task.to_dict() for task in TASKS if task.name in names]
        whole["metrics"] = {name: whole["metrics"][name] for name in names}
        whole["groups"] = [[name] for name in names]
    return {**whole, "part": [number, 2]}


def test_runs_of_some_tasks_count_as_one():
    parts = [part(1, ["sphere"]), part(2, ["solids", "segments"])]
    (merged,) = merge_parts(parts)
    assert specs_of([merged]) == TASKS and "part" not in merged
    assert merged["groups"] == [["sphere"], ["solids"], ["segments"]]
    assert (merged["seconds"], merged["parameters"], merged["train_loss"]) == (10.0, 2000, 1.0)
    single, _ = tabulate(merge_parts([*parts, *RECORDS[:2]]), "tag")
    assert single.done == 1 and set(single.gain.by_task) == {"sphere", "solids", "segments"}
    assert merge_parts(RECORDS) == RECORDS


@pytest.mark.parametrize("status", ["failed", "stopped", "running", "waiting"])
def test_runs_of_some_tasks_are_done_when_all_are(status):
    parts = [part(1, ["sphere"]), part(2, ["solids", "segments"], status="failed")]
    parts[1]["status"] = status
    (merged,) = merge_parts(parts)
    assert merged["status"] == status
    assert tabulate([merged])[0].done == 0


def test_a_task_that_only_some_rows_have_a_metric_of():
    without = record("tag", 0, 0.1, 0.3)
    del without["metrics"]["segments"]
    tag, _ = tabulate([without, RECORDS[2]], "single_task")
    assert tag.gain.left_out == ("segments",) and tag.gain.mean == pytest.approx(50.0)


def test_published_comparisons_of_earlier_versions_can_be_read(tmp_path):
    saved = Path(__file__).parents[4] / "docs" / "results" / "rooms" / "compare.json"
    cells = json.loads(saved.read_text())["cells"]
    comparison = save_comparison(cells, tmp_path, "Rooms.")
    by_recipe = {result.recipe: result for result in comparison.results}
    errors = [
        [c["metrics"]["has_box"]["error"] for c in cells if c["recipe"] == recipe]
        for recipe in ("affinity", "random")
    ]
    mean = sum(errors[1]) / len(errors[1])
    differences = [100 * (b - a) / mean for a, b in zip(*errors, strict=True)]
    assert by_recipe["affinity"].gains["has_box"].values == pytest.approx(tuple(differences))
    assert comparison.verdict in (tmp_path / "compare.md").read_text()
    assert len(comparison.sentences) == len(by_recipe) - 1
    tree = json.loads((tmp_path / "compare.json").read_text())
    assert tree["verdict"] == comparison.verdict and tree["level"] == 0.95
    gain = tree["recipes"][0]["gain"]
    assert (
        gain["seeds"] == sorted({c["seed"] for c in cells})
        and gain["low"] < gain["mean"] < gain["high"]
    )
