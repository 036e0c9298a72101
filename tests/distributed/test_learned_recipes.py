"""`evidence` and `affinity` find in two processes, under DDP and ZeRO 2, what one process finds."""

import json

import pytest
import torch

from tests.distributed.cells import PLAIN, Cell, Launch
from tests.distributed.closeness import relative_error

pytestmark = pytest.mark.distributed

ACCUMULATION = {None: 1, "ddp_cpu": 2, "zero2_cpu": 1}
STEPS, WARMUP = 45, 9
# Tasks of `evidence` move only after some tens of steps.
RUNS = {
    "affinity": ("run.steps=20", "grouping.warmup=0.3", "pruning.threshold=0.1"),
    "evidence": (f"run.steps={STEPS}", "grouping.warmup=0.2", "pruning.threshold=1e-6"),
}
RECIPES = [pytest.param("affinity", marks=pytest.mark.slow), "evidence"]
ENGINES = ["ddp_cpu", "zero2_cpu"]


def cell(engine, recipe):
    launch = Launch(engine) if engine else PLAIN
    overrides = (
        f"grouping.recipe={recipe}", *RUNS[recipe], "model.branches=4",
        f"optim.gradient_accumulation_steps={ACCUMULATION[engine]}",
    )  # fmt: skip
    return Cell(launch, f"learned-{recipe}", overrides)


def cells(recipe="evidence", engine=None):
    return [cell(None, recipe), *([cell(engine, recipe)] if engine else [])]


def records(folder, kind, file="metrics.jsonl"):
    lines = (folder / file).read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def of_rank(folder, rank):
    return json.loads((folder / f"record-{rank}.json").read_text())


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_process_finds_groups(recipe, trained):
    run = trained(cell(None, recipe))
    heads = [record["heads"] for record in records(run, "train")]
    assert heads[:6] == [24] * 6 and heads[-1] == 6
    assert len({branch for _, branch in of_rank(run, 0)["heads"]}) > 1
    assert records(run, "prune")


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_process_records_how_it_found_them(recipe, trained):
    run, first = trained(cell(None, recipe)), {"affinity": 6, "evidence": WARMUP}[recipe]
    found = [records(run, kind, "grouping.jsonl") for kind in ("affinity", "co_assignment")]
    assert [len(each) for each in found] == [1, int(recipe == "evidence")]
    for (record,) in found[: sum(map(len, found))]:
        assert record["step"] == first
        assert [len(row) for row in record[record["kind"]]] == [*range(1, 7)]
    probabilities = records(run, "probabilities", "grouping.jsonl")
    assert [record["step"] for record in probabilities[:6]] == [*range(1, 7)]
    assert probabilities[0]["probabilities"] == [[0.25] * 4] * 6
    started = next(record for record in probabilities if record["step"] > first)
    assert max(map(max, started["probabilities"])) > 0.5, "groups start together"


def test_one_process_has_evidence_in_the_end(trained):
    run = trained(cell(None, "evidence"))
    margins = of_rank(run, 0)["margins"]
    assert len(margins) == 6 and all(margin is not None for margin in margins)
    assert len({round(mean, 9) for mean, _ in margins}) == 6
    assert all(error > 0 for _, error in margins)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("recipe", ["affinity", "evidence"])
def test_two_processes_find_the_same_with_the_same_losses(trained, recipe, engine):
    run, alone = trained(cell(engine, recipe)), trained(cell(None, recipe))
    found, expected = of_rank(run, 0), of_rank(alone, 0)
    assert found["heads"] == expected["heads"]
    for kind in ("prune", "compact"):
        assert records(run, kind) == records(alone, kind)
    for now, then in zip(records(run, "train"), records(alone, "train"), strict=True):
        assert now["losses"] == pytest.approx(then["losses"], rel=1e-4), now["step"]
        assert now["heads"] == then["heads"]
    assert found["learned"].keys() == expected["learned"].keys() != set()
    for name, value in expected["learned"].items():
        error = relative_error(torch.tensor(found["learned"][name]), torch.tensor(value))
        assert error < 1e-4, (name, error)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_have_the_evidence_of_one(trained, engine):
    """A difference of two losses is smaller than they are, so that its rounding is larger."""
    run, alone = trained(cell(engine, "evidence")), trained(cell(None, "evidence"))
    found, expected = of_rank(run, 0), of_rank(alone, 0)
    for now, then in zip(found["margins"], expected["margins"], strict=True):
        assert now[0] == pytest.approx(then[0], abs=0.02 * then[1])
        assert now[1] == pytest.approx(then[1], rel=0.02)
    (now,), (then,) = (records(r, "co_assignment", "grouping.jsonl") for r in (run, alone))
    assert now == then


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("recipe", ["affinity", "evidence"])
def test_both_ranks_have_the_same_groups_evidence_and_metrics(trained, recipe, engine):
    run = trained(cell(engine, recipe))
    assert of_rank(run, 0) == of_rank(run, 1)
    (logged,) = records(run, "eval")
    assert of_rank(run, 1)["metrics"] == logged["metrics"]
