"""What a run says about itself while it runs, after it and after a restart."""

import json
import shutil
import socket

import pytest

RUN = ("run.steps=12", "run.checkpoint_every=4", "run.keep_last=9", "log.every=2", "eval.every=6")


def records(run, name):
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(main_script, rooms_yaml, tmp_path_factory):
    """A finished run of twelve steps, with a trace of two."""
    out = tmp_path_factory.mktemp("monitoring") / "run"
    shown = ("run.profile=3:5", "log.peak_tflops=0.5")
    end = main_script("--config", rooms_yaml, f"run.out={out}", *RUN, *shown)
    assert end.code == 0, end.stderr
    return out


@pytest.fixture
def moved(whole, rooms_yaml, tmp_path):
    """A copy of the run, and the arguments that continue it."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    return out, ("--config", rooms_yaml, f"run.out={out}", *RUN, "run.resume=auto")


def test_a_run_measures_itself(whole):
    start, *steps = records(whole, "timing.jsonl")
    assert (start["kind"], start["hosts"]) == ("start", [socket.gethostname()])
    assert [record["step"] for record in steps] == [2, 4, 6, 8, 10, 12]
    for record in steps:
        seconds = record["step_seconds"]
        parts = record["data_seconds"]["mean"] + record["forward_seconds"]["mean"]
        assert 0 < parts < seconds
        assert record["samples_per_second"] == pytest.approx(8 / seconds, rel=1e-4)
        assert record["samples"] == 8 * record["step"]
        assert record["process_gib"]["mean"] > 0.1 and record["slowest"] is None
        share = record["tflops_per_process"] / 0.5
        assert record["share_of_peak"] == pytest.approx(share, rel=1e-4) and share > 0
    hours = [record["hours"] for record in (start, *steps)]
    assert hours == sorted(hours) and hours[-1] > 0


def test_metrics_hold_progress_and_no_times(whole):
    training = [r for r in records(whole, "metrics.jsonl") if r["kind"] == "train"]
    # 36 samples are 4 steps of 8.
    found = [(record["step"], record["samples"], record["epoch"]) for record in training]
    assert found[:2] == [(2, 16, 0.5), (4, 32, 1.0)]
    forbidden = {"time", "hours", "samples_per_second", "step_seconds"}
    assert not any(forbidden & record.keys() for record in training)


def test_the_trace_holds_our_operators(whole):
    (path,) = (whole / "profile").iterdir()
    assert path.name == "rank-0-steps-3-5.json"
    names = [event.get("name") for event in json.loads(path.read_text())["traceEvents"]]
    assert {"aten::convolution", "aten::group_norm", "aten::linear"} <= set(names)
    assert names.count("forward") == 2 and "wait for data" in names


def test_a_restart_writes_the_same_metrics_and_goes_on_timing(moved, main_script):
    out, arguments = moved
    metrics = (out / "metrics.jsonl").read_bytes()
    timing = records(out, "timing.jsonl")
    lines = (out / "logs" / "rank-0.log").read_text()
    for step in (8, 12):
        shutil.rmtree(out / "checkpoints" / f"step-{step:09d}")
    shutil.rmtree(out / "profile")
    # The window lies before the checkpoint of step 4: this start has nothing to trace.
    end = main_script(*arguments, "run.profile=3:5", "log.every=2")
    assert end.code == 0, end.stderr
    assert (out / "metrics.jsonl").read_bytes() == metrics
    assert not (out / "profile").exists()
    again = records(out, "timing.jsonl")
    assert again[: len(timing)] == timing
    later = [(record["kind"], record["step"]) for record in again[len(timing) :]]
    assert later == [("start", 4), *(("steps", step) for step in (6, 8, 10, 12))]
    assert again[-1]["hours"] > timing[-1]["hours"]
    added = (out / "logs" / "rank-0.log").read_text().removeprefix(lines)
    assert "continuing from" in added and added != lines


def test_the_status_of_a_finished_run(whole, dmtg):
    end = dmtg("status", whole, "--json")
    assert end.code == 0, end.stderr
    status = json.loads(end.stdout.splitlines()[-1])
    last = records(whole, "metrics.jsonl")[-2]
    assert (status["state"], status["step"], status["num_steps"]) == ("finished", 12, 12)
    assert (status["progress"], status["eta_seconds"], status["stale"]) == (1.0, 0.0, None)
    assert status["checkpoint"] == "step-000000012"
    assert last["kind"] == "train" and status["losses"] == last["losses"]
    assert status["error"] is None and status["world_size"] == 1
    text = dmtg("status", whole).stdout
    assert text.startswith("finished: step 12 of 12, epoch 3.00\n")
    assert "checkpoint: step-000000012\n" in text and "% of peak" in " ".join(text.split())


def test_the_status_of_a_run_that_failed(moved, main_script, dmtg):
    """The folder says what the last start came to."""
    out, arguments = moved
    before = json.loads((out / "status.json").read_text())
    end = main_script(*arguments, "data.shards=nowhere")
    assert end.code == 2
    end = dmtg("status", out)
    assert end.code == 1
    assert end.stdout.startswith("failed: step 12 of 12") and "error: " in end.stdout
    assert "nowhere" in json.loads((out / "status.json").read_text())["error"]
    assert before["error"] is None


def test_a_start_that_may_not_use_the_folder_leaves_its_status_alone(moved, main_script):
    out, arguments = moved
    before = (out / "status.json").read_bytes()
    assert main_script(*arguments, "run.seed=7").code == 2
    assert (out / "status.json").read_bytes() == before


def test_a_window_after_the_end_leaves_no_folder(main_script, rooms_yaml, tmp_path):
    end = main_script(
        "--config", rooms_yaml, f"run.out={tmp_path / 'run'}", *RUN, "run.profile=12:13"
    )
    assert end.code == 2 and "run.profile: 12:13 begins at step 12" in end.stderr
    assert not (tmp_path / "run").exists()


def test_status_of_a_folder_without_a_run(dmtg, tmp_path):
    end = dmtg("status", tmp_path)
    assert end.code == 2 and "has no status.json" in end.stderr
