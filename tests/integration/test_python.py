"""Training from Python: the same run as by the command, callbacks, and what can be read of it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import trainer as trainer_package
from tests.processes import ROOT
from trainer import Callback, Trainer, UserError, fit
from trainer.results.groups import read_groups

RUN = {"run.steps": 12, "run.checkpoint_every": 4, "log.every": 2, "eval.every": 6}
TASKS = {"depth_zbuffer", "normal", "segment_semantic", "has_sphere", "num_solids", "camera_pitch"}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("python") / "run"


class Recorder(Callback):
    """Records the calls and what they are given."""

    def __init__(self):
        self.calls = []

    def on_train_begin(self, session):
        self.calls.append(("begin", session.step))

    def on_step_end(self, session):
        self.calls.append(("step", session.step))

    def on_log(self, session, values):
        self.calls.append(("log", session.step, values["loss"], set(values["losses"])))

    def on_evaluate(self, session, metrics):
        self.calls.append(("evaluate", session.step, metrics))

    def on_save(self, session):
        self.calls.append(("save", session.step))

    def on_train_end(self, session, metrics):
        self.calls.append(("end", session.step, metrics))


@pytest.fixture(scope="module")
def trained(out, rooms_yaml, like_a_process):
    """A run from Python, with the calls of its callback."""
    recorder = Recorder()
    with like_a_process():
        run = Trainer(rooms_yaml, {**RUN, "run.out": str(out)}, callbacks=[recorder])
        result = run.train()
    return run, result, recorder.calls


def test_it_is_the_run_of_the_command(trained, main_script, rooms_yaml, tmp_path):
    overrides = [f"{key}={value}" for key, value in RUN.items()]
    end = main_script("--config", rooms_yaml, f"run.out={tmp_path / 'run'}", *overrides)
    assert end.code == 0, end.stderr
    for name in ("metrics.jsonl", "result.json"):
        written = [(folder / name).read_bytes() for folder in (trained[0].run, tmp_path / "run")]
        assert written[0] == written[1], name
    shown = end.stdout.replace(str(tmp_path / "run"), str(trained[0].run))
    assert shown == f"\n{trained[1]}\n"


def test_the_result(trained, out):
    run, result, _ = trained
    assert result.finished and (result.step, result.num_steps) == (12, 12)
    assert {name for group in result.groups for name in group} == TASKS
    assert result.groups == run.groups == read_groups(out).groups
    written = json.loads((out / "result.json").read_text())
    assert written["groups"] == result.groups and written["metrics"] == result.metrics
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["kind"], last["metrics"]) == ("eval", result.metrics)


def test_constants_are_those_of_dmtg_eval(trained, tmp_path):
    """Which computes them from the exported model, its own pass over the shards."""
    run, result, _ = trained
    evaluation = run.evaluate()
    assert {s.task: s.constant for s in evaluation.scores} == pytest.approx(
        {s.task: s.constant for s in result.scores}, rel=1e-5
    )
    assert {s.task: s.value for s in evaluation.scores} == pytest.approx(
        {s.task: s.value for s in result.scores}, rel=1e-3
    )
    report = run.export(tmp_path / "model.safetensors")
    assert (report.step, report.tasks) == (12, 6) and (tmp_path / "model.safetensors").is_file()


def test_callbacks(trained):
    calls = trained[2]
    assert calls[0] == ("begin", 0) and calls[-1] == ("end", 12, trained[1].metrics)
    steps = {kind: [c[1] for c in calls if c[0] == kind] for kind in ("step", "log", "save")}
    assert steps == {"step": list(range(1, 13)), "log": [2, 4, 6, 8, 10, 12], "save": [4, 8, 12]}
    assert [c[1] for c in calls if c[0] == "evaluate"] == [6, 12]
    assert all(c[3] <= TASKS for c in calls if c[0] == "log")


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, session):
        if session.step == self.step:
            session.request_stop()


def test_a_run_that_a_callback_stops_is_continued(trained, rooms_yaml, like_a_process, tmp_path):
    out = tmp_path / "run"
    with like_a_process():
        result = fit(rooms_yaml, {**RUN, "run.out": str(out)}, callbacks=[StopAt(5)])
        assert (result.finished, result.stopped_by, result.step) == (False, "a callback", 6)
        assert result.metrics == {} and "run.resume=auto continues it" in str(result)
        again = Trainer.from_run(out).train()
    assert again.finished
    assert (out / "metrics.jsonl").read_bytes() == (trained[0].run / "metrics.jsonl").read_bytes()


def test_ctrl_c_in_a_notebook(rooms_yaml, like_a_process, tmp_path):
    """The run is saved before the exception."""
    out = tmp_path / "run"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt():
        while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with (
            like_a_process(),
            pytest.raises(KeyboardInterrupt, match="interrupted by Ctrl-C"),
        ):
            fit(rooms_yaml, {"run.steps": 10**6, "run.out": str(out), "log.every": 1})
    finally:
        signal.signal(signal.SIGINT, before)
    assert (out / "checkpoints" / "latest").is_file()


def test_what_a_configuration_may_be(rooms_yaml, rooms_config):
    config = rooms_config("run.steps=3")
    assert Trainer(config).config == config
    assert Trainer(config.model_dump(mode="json")).config == config
    given = Trainer(str(rooms_yaml), [f"run.out={config.run.out}", "run.steps=3"])
    assert given.config == config
    named = Trainer(
        config, {"optim.schedule.name": "multistep", "optim.schedule.milestones": [0.5]}
    )
    assert named.config.optim.schedule.milestones == (0.5,)
    with pytest.raises(UserError, match=r"config: 1 error\(s\)\n  run\.step: unknown key"):
        Trainer(config, {"run.step": 3})
    with pytest.raises(UserError, match=r"override 'steps': expected section\.key"):
        Trainer(config, {"steps": 3})


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        Trainer.from_run(tmp_path)


def test_the_import_is_light():
    code = (
        "import sys, trainer; assert 'torch' not in sys.modules and 'pydantic' not in sys.modules;"
        "assert {'Trainer', 'fit', 'Callback'} <= set(dir(trainer));"
        "print(trainer.Trainer.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "Trainer\n", done.stderr
    with pytest.raises(AttributeError, match="has no attribute 'Learner'"):
        _ = trainer_package.Learner
