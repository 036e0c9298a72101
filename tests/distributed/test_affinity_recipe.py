"""The default recipe finds in two processes, under DDP and ZeRO 2, what one process finds."""

import json

import pytest

from tests.distributed.cells import PLAIN, Cell, Launch

pytestmark = pytest.mark.distributed

ACCUMULATION = {None: 1, "ddp_cpu": 2, "zero2_cpu": 1}


def cell(engine):
    launch = Launch(engine) if engine else PLAIN
    overrides = (
        "run.steps=20", "grouping.recipe=affinity", "grouping.warmup=0.3",
        "model.branches=4", "pruning.threshold=0.1",
        f"optim.gradient_accumulation_steps={ACCUMULATION[engine]}",
    )  # fmt: skip
    return Cell(launch, "affinity-recipe", overrides)


def cells(engine=None):
    return [cell(None), *([cell(engine)] if engine else [])]


def records(folder, kind, file="metrics.jsonl"):
    lines = (folder / file).read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def of_rank(folder, rank):
    return json.loads((folder / f"record-{rank}.json").read_text())


def test_one_process_finds_groups(trained):
    run = trained(cell(None))
    heads = [record["heads"] for record in records(run, "train")]
    assert heads[:6] == [24] * 6 and heads[-1] == 6
    assert len({branch for _, branch in of_rank(run, 0)["heads"]}) > 1
    assert records(run, "prune")


def test_one_process_records_how_it_found_them(trained):
    run = trained(cell(None))
    (affinity,) = records(run, "affinity", "grouping.jsonl")
    assert affinity["step"] == 6 and [len(row) for row in affinity["affinity"]] == [*range(1, 7)]
    probabilities = records(run, "probabilities", "grouping.jsonl")
    assert [record["step"] for record in probabilities[:6]] == [*range(1, 7)]
    assert probabilities[0]["probabilities"] == [[0.25] * 4] * 6
    assert max(map(max, probabilities[6]["probabilities"])) > 0.5, "groups start together"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp_cpu", "zero2_cpu"])
def test_two_processes_find_the_same_with_the_same_losses(trained, engine):
    run, alone = trained(cell(engine)), trained(cell(None))
    found, expected = of_rank(run, 0), of_rank(alone, 0)
    assert found["heads"] == expected["heads"]
    for kind in ("prune", "compact"):
        assert records(run, kind) == records(alone, kind)
    for now, then in zip(records(run, "train"), records(alone, "train"), strict=True):
        assert now["losses"] == pytest.approx(then["losses"], rel=1e-4), now["step"]
        assert now["heads"] == then["heads"]
    for now, then in zip(found["average"], expected["average"], strict=True):
        assert now == pytest.approx(then, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp_cpu", "zero2_cpu"])
def test_both_ranks_have_the_same_groups_averages_and_metrics(trained, engine):
    run = trained(cell(engine))
    assert of_rank(run, 0) == of_rank(run, 1)
    (logged,) = records(run, "eval")
    assert of_rank(run, 1)["metrics"] == logged["metrics"]
