"""The recipe `affinity` finds in two processes, under DDP and ZeRO 2, what one process finds."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed

SLOW_DDP = pytest.param("ddp_cpu", marks=pytest.mark.slow)

ACCUMULATION = {None: 1, "ddp_cpu": 2, "zero2_cpu": 1}


@pytest.fixture(scope="module")
def runs(session_launcher, rooms_yaml, tmp_path_factory):
    """Per engine the folder of a run, with what every rank recorded beside it."""
    root, found = tmp_path_factory.mktemp("default"), {}
    for engine, accumulation in ACCUMULATION.items():
        folder = root / (engine or "plain")
        folder.mkdir()
        overrides = (
            f"run.out={folder / 'run'}", "run.steps=20", "grouping.recipe=affinity",
            "grouping.warmup=0.3", "model.branches=4", "pruning.threshold=0.1",
            f"optim.gradient_accumulation_steps={accumulation}",
        )  # fmt: skip
        end = session_launcher.start(
            str(folder), "--config", str(rooms_yaml), *overrides,
            engine=engine, script=Path(__file__).with_name("record_groups.py"),
        ).finish()  # fmt: skip
        assert end.code == 0, end.stderr[-4000:]
        found[engine] = folder
    return found


def records(folder, kind):
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def of_rank(folder, rank):
    return json.loads((folder / f"{rank}.json").read_text())


def test_one_process_finds_groups(runs):
    heads = [record["heads"] for record in records(runs[None], "train")]
    assert heads[:6] == [24] * 6 and heads[-1] == 6
    assert len({branch for _, branch in of_rank(runs[None], 0)["heads"]}) > 1
    assert records(runs[None], "prune")


@pytest.mark.parametrize("engine", [SLOW_DDP, "zero2_cpu"])
def test_two_processes_find_the_same_with_the_same_losses(runs, engine):
    found, expected = (of_rank(runs[name], 0) for name in (engine, None))
    assert found["heads"] == expected["heads"]
    for kind in ("prune", "compact"):
        assert records(runs[engine], kind) == records(runs[None], kind)
    for now, then in zip(*(records(runs[n], "train") for n in (engine, None)), strict=True):
        assert now["losses"] == pytest.approx(then["losses"], rel=1e-4), now["step"]
        assert now["heads"] == then["heads"]
    for now, then in zip(found["average"], expected["average"], strict=True):
        assert now == pytest.approx(then, rel=1e-4)


@pytest.mark.parametrize("engine", [SLOW_DDP, "zero2_cpu"])
def test_both_ranks_have_the_same_groups_averages_and_metrics(runs, engine):
    assert of_rank(runs[engine], 0) == of_rank(runs[engine], 1)
    (logged,) = records(runs[engine], "eval")
    assert of_rank(runs[engine], 1)["metrics"] == logged["metrics"]
