"""Fine-tuning by two processes under every engine equals that of one process, also resumed."""

import json
import shutil

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.distributed

SEARCH, FINETUNE = 12, 4
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


@pytest.fixture(scope="module")
def runs(session_launcher, rooms_yaml, tmp_path_factory):
    root = tmp_path_factory.mktemp("finetune")
    finished = {}

    def get(engine):
        if engine not in finished:
            out = root / (engine or "plain")
            process = session_launcher.train(rooms_yaml, f"run.out={out}", *RUN, engine=engine)
            end = process.finish()
            assert end.code == 0, end.stderr[-4000:]
            finished[engine] = out
        return finished[engine]

    return get


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
def test_a_run_resumed_within_a_phase_is_the_same_to_the_bit(
    engine, runs, launcher, rooms_yaml, tmp_path
):
    whole, out = runs(engine), tmp_path / "run"
    shutil.copytree(whole, out)
    step = records(whole, "finetune")[1]["step"] + 2
    for path in (out / "checkpoints").glob("step-*"):
        if path.name > f"step-{step:09d}":
            shutil.rmtree(path)
    overrides = (f"run.out={out}", "run.resume=auto", *RUN)
    end = launcher.train(rooms_yaml, *overrides, engine=engine).finish()
    assert end.code == 0, end.stderr[-4000:]
    assert f"continuing from {out / 'checkpoints'}/step-{step:09d}" in end.stderr
    names = [f"checkpoints/{last(whole)}/{n}.safetensors" for n in ("weights", "moments")]
    for name in (*names, "metrics.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
