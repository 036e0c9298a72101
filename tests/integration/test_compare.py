"""`dmtg compare` as a user runs it: real trainings, each in a process of its own."""

import json
from pathlib import Path

import pytest

from model.bundle import groups_of
from model.network import MultiTaskNetwork

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
