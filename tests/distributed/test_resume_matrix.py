"""A run may go on under another engine and with another number of processes at any checkpoint."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.distributed.cells import PLAIN, Cell, Launch
from tests.distributed.closeness import relative_error
from trainer.checkpoints.checkpoint import load_checkpoint

pytestmark = pytest.mark.distributed

NUM_STEPS = 16
RECIPES = ("published", "affinity", "evidence")
FAST = ("published", "evidence")
OPTIONS = (
    f"run.steps={NUM_STEPS}", "run.checkpoint_every=4", "run.keep_last=100", "run.resume=auto",
    "pruning.end=0.5",
)  # fmt: skip
WARMUP = ("grouping.warmup=0.2",)
KEYS = {"published": (), "affinity": WARMUP, "evidence": WARMUP}
BEFORE, AFTER, LATE = 4, 8, 12  # the compaction, which step 8 ends with
LOSS = 1e-4  # relative
MOMENTS, WEIGHTS = 1e-3, 1e-5  # relative to the largest of a tensor, and absolute

PAIR, ZERO3 = Launch("ddp_cpu"), Launch("zero3_cpu")
ZERO2, ZERO2_ALONE = Launch("zero2_cpu"), Launch("zero2_cpu", 1)
ALL = (PLAIN, PAIR, Launch("zero1_cpu"), ZERO2, ZERO3, Launch("fsdp2_cpu"), ZERO2_ALONE)


def fresh(launch: Launch, recipe: str) -> Cell:
    """An uninterrupted run; those of one process are the reference."""
    return Cell(launch, f"resume-{recipe}", (f"grouping.recipe={recipe}", *KEYS[recipe], *OPTIONS))


def continued(launch: Launch, source: Cell, *steps: int, torn: bool = False) -> Cell:
    """What a launch makes of a run that was killed some steps after these checkpoints."""
    name = f"{source.name}-{source.launch}-{steps[-1]}"
    return Cell(launch, name, source.overrides, source, steps, torn)


# ZeRO 2, ZeRO 3, DDP, one process; and ZeRO 2 with two, with one, DDP with two.
FIRST, SECOND = fresh(ZERO2, "published"), fresh(ZERO2, "evidence")
ON_ZERO3 = continued(ZERO3, FIRST, BEFORE, AFTER, torn=True)
ON_DDP = continued(PAIR, ON_ZERO3, AFTER)
ON_PLAIN = continued(PLAIN, ON_DDP, LATE)
ALONE = continued(ZERO2_ALONE, SECOND, BEFORE)
ON_PAIR = continued(PAIR, ALONE, AFTER)


def all_to(target: Launch) -> list[Cell]:
    """What a launch makes of the runs of all others, before and after the compaction."""
    sources = [fresh(launch, recipe) for launch in ALL if launch != target for recipe in RECIPES]
    return [continued(target, source, step) for source in sources for step in (BEFORE, AFTER)]


def cells(target=None, recipe=None, cell=None, **_):
    if recipe is not None:
        return [fresh(PLAIN, recipe)]
    if target is not None:
        return [*(fresh(PLAIN, recipe) for recipe in RECIPES), *all_to(target)]
    return [*(fresh(PLAIN, recipe) for recipe in FAST), cell or ON_PLAIN, ON_PAIR]


@pytest.fixture(scope="module")
def reference(trained):
    """The uninterrupted run of one process with a recipe."""
    return lambda recipe: trained(fresh(PLAIN, recipe))


def records(run, kind):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def assert_continues(run: Path, expected: Path) -> None:
    """The curve and the end of a run are those of the one that was never interrupted."""
    found, wanted = records(run, "train"), records(expected, "train")
    assert [r["step"] for r in found] == [r["step"] for r in wanted] == [*range(1, NUM_STEPS + 1)]
    for now, then in zip(found, wanted, strict=True):
        for task, value in then["losses"].items():
            error = abs(now["losses"][task] - value) / max(abs(value), 1e-12)
            assert error < LOSS, (run.name, now["step"], task, error)
        assert (now["heads"], now["branches"]) == (then["heads"], then["branches"])
    for kind in ("prune", "compact"):
        assert records(run, kind) == records(expected, kind)
    last = f"checkpoints/step-{NUM_STEPS:09d}"
    for name, limit in (("weights", WEIGHTS), ("moments", MOMENTS), ("grouping", MOMENTS)):
        tensors, others = (load_file(r / last / f"{name}.safetensors") for r in (run, expected))
        assert tensors.keys() == others.keys()
        for key, value in others.items():
            if name == "weights":
                error = float((tensors[key].float() - value.float()).abs().max())
            else:
                error = relative_error(tensors[key], value, least_scale=1e-8)
            assert error < limit, (run.name, name, key, error)
    ends = [load_checkpoint(r / last).progress for r in (run, expected)]
    assert ends[0].optimizer_step == ends[1].optimizer_step
    assert ends[0].logits_updates == ends[1].logits_updates


def assert_goes_on_from(run: Path, source: Path, step: int) -> None:
    """What the source had written up to the step is still there, and was not computed again."""
    log = (run / "logs" / "rank-0.log").read_text()
    assert f"continuing from {run / f'checkpoints/step-{step:09d}'}" in log
    kept = load_checkpoint(source / f"checkpoints/step-{step:09d}").progress.metrics_bytes
    contents = [(r / "metrics.jsonl").read_bytes()[:kept] for r in (run, source)]
    assert kept > 0 and contents[0] == contents[1]


@pytest.mark.parametrize(
    "recipe", [*FAST, *(pytest.param(r, marks=pytest.mark.slow) for r in RECIPES if r not in FAST)]
)
def test_the_network_gets_smaller_between_the_checkpoints(recipe, reference):
    heads = {
        step: len(load_checkpoint(reference(recipe) / f"checkpoints/step-{step:09d}")
                  .progress.network["heads"])
        for step in (BEFORE, AFTER)
    }  # fmt: skip
    assert heads[AFTER] == 6 < heads[BEFORE]
    assert records(reference(recipe), "compact")


@pytest.mark.parametrize(
    ("cell", "step"), [(ON_ZERO3, BEFORE), (ALONE, BEFORE), (ON_DDP, AFTER), (ON_PAIR, AFTER),
    (ON_PLAIN, LATE)], ids=lambda value: str(getattr(value, "launch", value))
)  # fmt: skip
def test_a_launch_goes_on_from_what_another_left(cell, step, trained):
    assert_goes_on_from(trained(cell), trained(cell.source), step)


def test_a_torn_checkpoint_is_passed_over_on_all_ranks(trained):
    """Rank 0 alone looks at all of them, and every rank takes the one that it chose."""
    run = trained(ON_ZERO3)
    logs = [(run / "logs" / f"rank-{rank}.log").read_text() for rank in (0, 1)]
    torn = run / f"checkpoints/step-{AFTER:09d}"
    told = f"passing over checkpoint {torn}: weights.safetensors has 1000 "
    assert [log.count(told) for log in logs] == [1, 0]
    assert [log.count("continuing from") for log in logs] == [1, 1]


def test_from_engine_to_engine_and_two_processes_to_one_to_two(trained, reference):
    assert_continues(trained(ON_PLAIN), reference("published"))
    assert_continues(trained(ON_PAIR), reference("evidence"))


@pytest.mark.slow
@pytest.mark.parametrize("target", ALL, ids=str)
def test_any_to_any(target, trained, reference):
    """All ways to start but this one hand a run over to it, before and after the compaction."""
    for cell in all_to(target):
        run = trained(cell)
        assert_goes_on_from(run, trained(cell.source), cell.steps[-1])
        (recipe,) = (name for name in RECIPES if f"grouping.recipe={name}" in cell.overrides)
        assert_continues(run, reference(recipe))
