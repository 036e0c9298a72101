import json
import os
import re
import signal
import time

import pytest

from trainer.engines.accelerator import make_accelerator
from trainer.errors import Preempted, UserError
from trainer.health import preemption
from trainer.health.preemption import StopVote
from trainer.health.stop_signals import listening, received
from trainer.run import train_run


@pytest.fixture
def train_once(forget_accelerate):
    """One start of a run, to its end or until it is preempted."""

    def run(config):
        forget_accelerate()
        accelerator = make_accelerator(config)
        try:
            train_run(config, accelerator)
        except Preempted as stop:
            return stop
        return None

    return run


@pytest.fixture
def vote_of(rooms_config, forget_accelerate):
    forget_accelerate()
    return lambda minutes: StopVote(make_accelerator(rooms_config()), minutes)


def result(vote):
    vote.cast()
    return vote.result()


@pytest.fixture
def interruptible():
    """A shell may have started the tests with SIGINT ignored, as it does in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_signals_are_noted_while_listening_and_only_then():
    before = [signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)]
    with listening():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert received == {"SIGTERM", "SIGUSR1"}
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert not received, "a run without `listening` may follow in this process"
    assert [signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)] == before
    with listening():
        assert not received, "those of an earlier run"


def test_a_vote_of_one_process(vote_of):
    vote = vote_of(None)
    assert result(vote) is None
    with listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert result(vote) == "SIGTERM"


def test_the_time_limit_counts_from_the_start_of_the_program(vote_of, monkeypatch):
    monkeypatch.setattr(preemption, "_loaded", time.monotonic() - 60)
    assert result(vote_of(0.99)) == "run.max_minutes"
    assert result(vote_of(1.5)) is None


def test_limits_that_cannot_be(rooms_config):
    with pytest.raises(UserError, match=r"run\.max_minutes: found 0; allowed: a number above 0"):
        rooms_config("run.max_minutes=0")


def final_files(out):
    newest = out / "checkpoints" / (out / "checkpoints" / "latest").read_text()
    names = ("weights", "moments", "grouping")
    return [(out / "metrics.jsonl").read_bytes()] + [
        (newest / f"{name}.safetensors").read_bytes() for name in names
    ]


RUNS = {
    # Pruning, a smaller network, evaluations between, then two phases of fine-tuning.
    "finetune": (
        "run.steps=4", "finetune.steps=1", "eval.every=2", "pruning.every=1", "log.every=3",
    ),
    "search": (
        "run.steps=2", "grouping.recipe=grad_tag", "grouping.search_every=1", "log.every=3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_that_stops_after_every_step_equals_the_uninterrupted(
    kind, rooms_config, train_once, tmp_path, monkeypatch
):
    options = (*RUNS[kind], "run.resume=auto")
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert train_once(rooms_config(*options, f"run.out={whole}")) is None
    monkeypatch.setattr(preemption, "_loaded", time.monotonic() - 60)
    config = rooms_config(*options, f"run.out={out}", "run.max_minutes=1")
    stops = []
    while (stop := train_once(config)) is not None:
        assert len(stops) < 20, "it does not get on"
        stops.append(stop)
    assert {stop.cause for stop in stops} == {"run.max_minutes"}
    steps = [stop.step for stop in stops]
    assert steps == ([1, 2, 1, 2] if kind == "search" else list(range(1, steps[-1] + 1)))
    assert final_files(out) == final_files(whole)
    if kind == "search":
        found = [(run / "search" / "groups.json").read_bytes() for run in (out, whole)]
        assert found[0] == found[1]
    else:
        kinds = [json.loads(line)["kind"] for line in (out / "metrics.jsonl").open()]
        assert "compact" in kinds and kinds.count("finetune") > 0 and kinds.count("eval") == 4


def test_what_is_said(rooms_config, train_once):
    received.update({"SIGUSR1", "SIGTERM"})
    stop = train_once(rooms_config("run.steps=3"))
    assert str(stop) == "preempted by SIGUSR1 after step 1; the run is saved"
    assert (stop.step, stop.cause) == (1, "SIGUSR1")
    assert re.match(r"step-0+1$", (rooms_config().run.out / "checkpoints" / "latest").read_text())
