"""A run that is killed and started again ends as the run that was never interrupted, to the bit."""

import json
import random

import pytest

from tests.distributed.cells import PLAIN, Cell, Launch

pytestmark = pytest.mark.distributed

NUM_STEPS, EVERY = 60, 6
FINAL = f"checkpoints/step-{NUM_STEPS:09d}"
SAME_FILES = (
    "metrics.jsonl",
    *(f"{FINAL}/{name}.safetensors" for name in ("weights", "moments", "grouping")),
)
# BatchNorm statistics, noise of each rank, evaluations, pruning and a smaller network: all of it
# must come back.
RUN = (
    f"run.steps={NUM_STEPS}", f"run.checkpoint_every={EVERY}", "run.keep_last=100",
    "grouping.noise=per_rank", "grouping.logits_noise=0.1", "pruning.end=0.6",
    "tasks.define={}", "data.flip=true", "data.crop=0.6", "eval.every=20",
    "model.encoder.options={model_type: resnet, embedding_size: 8, hidden_sizes: [8, 16], "
    "depths: [1, 1], layer_type: basic}",
)  # fmt: skip
ENGINES = {None: "precision=fp32", "ddp_cpu": "precision=fp32", "zero2_cpu": "precision=bf16"}


def uninterrupted(engine):
    overrides = (*RUN, f"run.{ENGINES[engine]}")
    return Cell(Launch(engine) if engine else PLAIN, "resume", overrides)


def cells(engine=None, **_):
    return [uninterrupted(engine)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "workers"),
    [(None, 0), (None, 2), ("ddp_cpu", 0), ("ddp_cpu", 2), ("zero2_cpu", 0)],
)
def test_killed_and_resumed_run_equals_the_uninterrupted_one(
    engine, workers, launcher, rooms_yaml, trained, tmp_path
):
    """Killed at any moment after a checkpoint, in one of the first two thirds of its steps."""
    cell = uninterrupted(engine)
    whole, step = trained(cell), random.SystemRandom().randrange(EVERY, 2 * NUM_STEPS // 3)
    for attempt in range(3):  # a busy machine may let the run end before the kill
        out = tmp_path / f"run-{attempt}"
        overrides = (*cell.overrides, f"data.workers={workers}", "run.resume=auto")
        arguments = (f"run.out={out}", *overrides)
        process = launcher.train(rooms_yaml, *arguments, engine=engine)
        process.wait_for(out / f"checkpoints/step-{EVERY:09d}")
        process.wait_for_step(out, step)
        process.kill()
        if not (out / FINAL).exists():
            break
    note = f"engine {engine}, workers {workers}, killed after step {step}"
    assert not (out / FINAL).exists(), note
    end = launcher.train(rooms_yaml, *arguments, engine=engine).finish()
    assert end.code == 0, note + end.stderr[-4000:]
    assert "continuing from" in end.stderr, note
    for name in SAME_FILES:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), (name, note)


def test_the_interrupted_runs_cover_pruning_and_a_smaller_network(trained):
    lines = (trained(uninterrupted(None)) / "metrics.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert kinds.count("prune") > 1 and "compact" in kinds and kinds.count("eval") == 3
