"""A run that is killed and started again ends as the run that was never interrupted, to the bit."""

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

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
MORE = ((None, 0), ("ddp_cpu", 0), ("ddp_cpu", 2), ("zero2_cpu", 0))  # engine, workers
ENGINES = {None: "precision=fp32", "ddp_cpu": "precision=fp32", "zero2_cpu": "precision=bf16"}


@dataclass(frozen=True)
class Whole:
    """A run that was left alone, and the seconds from its first checkpoint to its last."""

    out: Path
    seconds: float


@pytest.fixture(scope="module")
def overrides() -> Callable[[str | None], tuple[str, ...]]:
    return lambda engine: (*RUN, f"run.{ENGINES[engine]}")


@pytest.fixture(scope="module")
def uninterrupted(
    session_launcher, rooms_yaml, overrides, tmp_path_factory
) -> Callable[[str | None], Whole]:
    root = tmp_path_factory.mktemp("uninterrupted")
    runs: dict[str | None, Whole] = {}

    def get(engine: str | None) -> Whole:
        if engine not in runs:
            out = root / (engine or "plain")
            process = session_launcher.train(
                rooms_yaml, f"run.out={out}", *overrides(engine), engine=engine
            )
            end = process.finish()
            assert end.code == 0, end.stderr[-4000:]
            times = [path.stat().st_mtime for path in (out / "checkpoints").glob("step-*")]
            runs[engine] = Whole(out, max(times) - min(times))
        return runs[engine]

    return get


def wait_for(path: Path, process, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.running and time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("engine", "workers"),
    [
        (None, 2),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE),
    ],
)
def test_killed_and_resumed_run_equals_the_uninterrupted_one(
    engine, workers, launcher, rooms_yaml, overrides, uninterrupted, tmp_path
):
    whole = uninterrupted(engine)
    seed = time.time_ns() % 2**32
    rng = random.Random(seed)
    out = tmp_path / "run"
    arguments = (f"run.out={out}", *overrides(engine), f"data.workers={workers}")
    for _attempt in range(4):  # a busy machine may let the run end before the kill
        process = launcher.train(rooms_yaml, *arguments, "run.resume=auto", engine=engine)
        wait_for(out / f"checkpoints/step-{EVERY:09d}", process)
        time.sleep(rng.uniform(0, 0.8 * whole.seconds))
        process.kill()
        if not (out / FINAL).exists():
            break
        out = tmp_path / f"run{_attempt}"
        arguments = (f"run.out={out}", *arguments[1:])
    note = f"engine {engine}, workers {workers}, seed {seed}"
    assert not (out / FINAL).exists(), note
    end = launcher.train(rooms_yaml, *arguments, "run.resume=auto", engine=engine).finish()
    assert end.code == 0, note + end.stderr[-4000:]
    assert "continuing from" in end.stderr, note
    for name in SAME_FILES:
        assert (out / name).read_bytes() == (whole.out / name).read_bytes(), (name, note)


def test_the_interrupted_runs_cover_pruning_and_a_smaller_network(uninterrupted):
    lines = (uninterrupted(None).out / "metrics.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert kinds.count("prune") > 1 and "compact" in kinds and kinds.count("eval") == 3
