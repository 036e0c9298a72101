"""`dmtg compare` as a user runs it: real trainings, each in a process of its own."""

import json
from pathlib import Path

import pytest
import torch

from model.bundle import groups_of, save_bundle
from model.network import MultiTaskNetwork
from tests.conftest import TASKS

RECIPES = ("tag", "single_task")


@pytest.fixture(scope="module")
def comparison(dmtg, rooms_yaml, tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "out"
    arguments = [str(rooms_yaml), "run.steps=6", "run.checkpoint_every=3", "--seeds", "2"]
    arguments += ["--recipes", ",".join(RECIPES), "--seed-base", "4", "--out", str(out), "--json"]
    return out, arguments, dmtg("compare", *arguments)


def folders(out):
    return {(recipe, seed): out / recipe / f"seed-{seed}" for recipe in RECIPES for seed in (4, 5)}


def pruned_network(run: Path) -> MultiTaskNetwork:
    newest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text()
    progress = json.loads((newest / "progress.json").read_text())
    return MultiTaskNetwork.from_config(progress["network"])


@pytest.mark.slow
def test_the_table_holds_what_the_runs_have(comparison):
    out, _, finished = comparison
    assert finished.code == 0, finished.stderr
    found = {r["recipe"]: r for r in json.loads(finished.stdout.splitlines()[-1])["recipes"]}
    assert list(found) == list(RECIPES)
    for recipe, result in found.items():
        errors, angles, parameters, groups = [], [], [], []
        for seed in (4, 5):
            run = folders(out)[recipe, seed]
            last = (run / "metrics.jsonl").read_text().splitlines()[-1]
            assert json.loads(last)["kind"] == "eval"
            metrics = json.loads(last)["metrics"]
            rates = [metrics[task]["error"] for task in ("has_sphere", "num_solids")]
            errors.append(100 * sum(rates))
            angles.append(metrics["normal"]["angle"])
            network = pruned_network(run)
            parameters.append(sum(p.numel() for p in network.parameters()))
            groups.append(len(groups_of(network)))
        assert result["total_error"]["values"] == pytest.approx(errors)
        assert result["tasks"]["normal"]["values"] == pytest.approx(angles)
        assert result["parameters"]["values"] == parameters
        assert result["groups"]["values"] == groups
        assert result["seconds"]["mean"] > 1
    assert found["single_task"]["groups"]["values"] == [6, 6]
    assert found["single_task"]["agreement"] == 1.0
    assert found["single_task"]["gain"]["mean"] == pytest.approx(0.0, abs=1e-9)
    assert (folders(out)["tag", 4] / "search" / "groups.json").exists()


@pytest.mark.slow
def test_finished_runs_are_not_trained_again(comparison, dmtg):
    out, arguments, first = comparison
    logs = {run: run.joinpath("cell.log").read_bytes() for run in folders(out).values()}
    again = dmtg("compare", *arguments)
    assert again.code == 0
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    assert all(run.joinpath("cell.log").read_bytes() == text for run, text in logs.items())


def test_a_run_that_fails_is_reported(dmtg, rooms_yaml, tmp_path):
    options = ["tasks.names=[no_such]", "tasks.define={}", "--recipes", "random", "--seeds", "1"]
    finished = dmtg("compare", str(rooms_yaml), *options, "--out", str(tmp_path))
    assert finished.code == 1
    assert "cell 0 (random, seed 0) ended with exit code 2" in finished.stderr
    assert "error: tasks.names: found 'no_such', which is no label of " in finished.stderr


@pytest.fixture(scope="module")
def varied(dmtg, rooms_yaml, tmp_path_factory):
    """Numbers of branches, groups of a file, and single tasks in runs of three tasks each."""
    folder = tmp_path_factory.mktemp("varied")
    groups = {"groups": [list(TASKS[:3]), list(TASKS[3:])]}
    (folder / "halves.json").write_text(json.dumps(groups))
    recipes = f"random,single_task,fixed={folder / 'halves.json'}"
    arguments = [str(rooms_yaml), "run.steps=4", "--seeds", "2", "--recipes", recipes]
    arguments += ["--k", "1,2", "--single-task-chunk", "3", "--out", str(folder / "out")]
    return folder / "out", arguments, dmtg("compare", *arguments)


@pytest.mark.slow
def test_numbers_of_branches_files_of_groups_and_single_tasks(varied, dmtg):
    out, arguments, finished = varied
    assert finished.code == 0, finished.stderr
    tree = json.loads((out / "compare.json").read_text())
    rows = {row["recipe"]: row for row in tree["recipes"]}
    assert list(rows) == ["random K=2", "single_task", "fixed=halves", "multitask"]
    assert tree["reference"] == "random"
    assert all(row["gain"]["reference"] == "random K=2" for row in rows.values())
    assert all(row["gain"]["seeds"] == [0, 1] for row in rows.values())
    assert rows["single_task"]["groups"]["values"] == [6, 6]
    assert set(rows["single_task"]["gain"]["by_task"]) <= set(TASKS)
    assert rows["multitask"]["groups"]["values"] == [1, 1]
    assert rows["fixed=halves"]["agreement"] == 1.0
    # By hand, from the evaluations: the paired difference over the mean of the reference.
    folders = {"fixed=halves": "fixed-halves", "random K=2": "random-k2"}
    angles = {}
    for label, folder in folders.items():
        lines = [(out / folder / f"seed-{s}" / "metrics.jsonl").read_text() for s in (0, 1)]
        last = [json.loads(text.splitlines()[-1])["metrics"] for text in lines]
        angles[label] = [metrics["normal"]["angle"] for metrics in last]
    own, reference = angles["fixed=halves"], angles["random K=2"]
    expected = [100 * (b - a) / (sum(reference) / 2) for a, b in zip(own, reference, strict=True)]
    assert rows["fixed=halves"]["gain"]["by_task"]["normal"] == pytest.approx(expected)
    # The printed text: tables, sentences and verdict, of 80 columns.
    lines = finished.stdout.splitlines()
    text = " ".join(" ".join(lines).split())
    assert all(" ".join(sentence.split()) in text for sentence in tree["sentences"])
    assert tree["verdict"] and " ".join(tree["verdict"].split()) in text
    assert all(len(line) <= 80 or "/" in line for line in lines)
    assert "fixed=halves against random K=2: " in text
    listed = dmtg("compare", *arguments, "--list", "--json")
    cells = json.loads(listed.stdout.splitlines()[-1])["cells"]
    assert [cell["recipe"] for cell in cells[2:6]] == [
        "single_task, part 1 of 2", "single_task, part 2 of 2",
    ] * 2  # fmt: skip
    assert all(cell["status"] == "done" for cell in cells)
    # More numbers of branches leave what is trained as it is.
    more = [*arguments[: arguments.index("--k")], "--k", "1,2,3", *arguments[-4:], "--list"]
    waiting = [line for line in dmtg("compare", *more).stdout.splitlines() if "waiting" in line]
    assert len(waiting) == 2 and all("random K=3" in line for line in waiting)


@pytest.mark.slow
def test_all_recipes_of_a_comparison_start_with_the_same_weights(varied):
    out, _, finished = varied
    assert finished.code == 0, finished.stderr
    saved = [path.read_text() for path in sorted(out.glob("*/seed-*/config.yaml"))]
    assert len(saved) == 10 and all("paired_init: true" in text for text in saved)


@pytest.mark.slow
def test_single_tasks_in_one_run_equal_runs_of_one_task(rooms_config, train_here, tmp_path):
    """Nothing is shared without clipping: from the same weights both compute the same."""
    common = ("run.steps=5", "optim.max_grad_norm=null", "model.dense_widths=[8]")
    first = train_here(
        rooms_config("grouping.recipe=multitask", f"run.out={tmp_path / 'a'}", *common)
    )
    start = tmp_path / "start.safetensors"
    save_bundle(start, first.engine.module, {})
    common += ("grouping.recipe=single_task", f"model.init_from=[{start}]")
    together = train_here(rooms_config(f"run.out={tmp_path / 'b'}", *common))
    weights = together.engine.module.state_dict()
    for number, task in enumerate(TASKS[:4]):
        define = json.dumps({task: together.tasks[number].to_dict()})
        of_task = (f"tasks.names=[{task}]", f"tasks.define={define}", f"run.out={tmp_path / task}")
        alone = train_here(rooms_config(*common, *of_task)).engine.module
        for name, value in alone.branches[0].state_dict().items():
            torch.testing.assert_close(value, weights[f"branches.{number}.{name}"])
            assert not torch.equal(value, first.engine.module.branches[0].state_dict()[name])
