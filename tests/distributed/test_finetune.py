"""Fine-tuning by two processes under every engine equals that of one process, also resumed."""

import json

import pytest
from safetensors.torch import load_file

from tests.distributed.cells import PLAIN, Cell, Launch

pytestmark = pytest.mark.distributed

SEARCH, FINETUNE = 12, 4
WITHIN = SEARCH + FINETUNE + 2  # a step of the second phase
RUN = (
    f"run.steps={SEARCH}", f"finetune.steps={FINETUNE}", "run.checkpoint_every=1",
    "run.keep_last=100", "model.trunk_depth=1", "pruning.end=0.5", "run.seed=7",
    "tasks.define={}",
    "tasks.names=[normal, has_sphere, has_box, has_window, camera_pitch, floor_share]",
    "optim.schedule=plateau", "optim.schedule.patience=0", "optim.schedule.min_lr=0",
)  # fmt: skip
ENGINES = [
    "zero3_cpu",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddp_cpu", "zero2_cpu")),
]


def records(run, kind):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def whole(engine):
    return Cell(Launch(engine) if engine else PLAIN, "finetune", RUN)


def resumed(engine):
    """A run that was killed within the second phase, with all its checkpoints."""
    options = (*RUN, "run.resume=auto")
    steps = tuple(range(1, WITHIN + 1))
    return Cell(Launch(engine), "finetune-resumed", options, whole(engine), steps)


def cells(engine=None):
    return [whole(None), *([whole(engine), resumed(engine)] if engine else [])]


@pytest.fixture(scope="module")
def runs(trained):
    return lambda engine: trained(whole(engine))


def last(run):
    return max(path.name for path in (run / "checkpoints").glob("step-*"))


def test_the_one_process_run_has_several_phases(runs):
    phases = records(runs(None), "finetune")
    assert len(phases) > 1
    assert last(runs(None)) == f"step-{SEARCH + len(phases) * FINETUNE:09d}"


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_equal_one(engine, runs):
    run, alone = runs(engine), runs(None)
    assert records(run, "finetune") == records(alone, "finetune")
    found, expected = records(run, "train"), records(alone, "train")
    assert [r["step"] for r in found] == [r["step"] for r in expected]
    for now, then in zip(found, expected, strict=True):
        assert now["losses"] == pytest.approx(then["losses"], rel=1e-4), (engine, now["step"])
        assert now["lr"] == then["lr"]
    for name in ("weights", "moments"):
        tensors, theirs = (
            load_file(r / "checkpoints" / last(alone) / f"{name}.safetensors") for r in (run, alone)
        )
        assert tensors.keys() == theirs.keys()
        for key, value in theirs.items():
            scale = max(float(value.float().abs().max()), 1e-3)
            error = float((tensors[key].float() - value.float()).abs().max()) / scale
            assert error < 1e-2, (engine, name, key, error)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_phase_does_not_train_stays_to_the_bit(engine, runs):
    run, (phase, *_) = runs(engine), records(runs(engine), "finetune")
    before, after = (
        load_file(run / f"checkpoints/step-{step:09d}/weights.safetensors")
        for step in (phase["step"], phase["until"])
    )
    (branch,) = phase["branches"]
    for name, value in before.items():
        if name.startswith(f"branches.{branch}."):
            assert not value.equal(after[name]), name
        elif not name.startswith("stacked_heads."):
            assert value.equal(after[name]), name


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_resumed_within_a_phase_is_the_same_to_the_bit(engine, runs, trained):
    run, out = runs(engine), trained(resumed(engine))
    assert records(run, "finetune")[1]["step"] < WITHIN < records(run, "finetune")[1]["until"]
    log = (out / "logs" / "rank-0.log").read_text()
    assert f"continuing from {out / 'checkpoints'}/step-{WITHIN:09d}" in log
    names = [f"checkpoints/{last(run)}/{n}.safetensors" for n in ("weights", "moments")]
    for name in (*names, "metrics.jsonl"):
        assert (out / name).read_bytes() == (run / name).read_bytes(), name
