"""The times that a run reports are those of the device, and its batches come from pinned memory."""

import json
import time
from statistics import fmean

import pytest
import torch

import trainer.loop
import trainer.step
from tests.gpu.devices import ON_CPU, assert_same_curve
from trainer.data_sources.shards import ShardData

EVERY, NUM_STEPS = 5, 20


class Stopwatch:
    """Times calls of a function, by events on the device where there is one."""

    def __init__(self, function):
        self._function, self._times = function, []

    def __call__(self, *arguments, **options):
        begin = self._now()
        result = self._function(*arguments, **options)
        self._times.append((begin, self._now()))
        return result

    def _now(self):
        if ON_CPU:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, last):
        """The mean of the last so many calls."""
        times = self._times[-last:]
        if ON_CPU:
            return fmean(end - begin for begin, end in times)
        torch.cuda.synchronize()
        return fmean(begin.elapsed_time(end) for begin, end in times) / 1e3


def test_times_are_those_of_events(rooms_config, train, monkeypatch):
    step, forward = Stopwatch(trainer.loop.train_step), Stopwatch(trainer.step.forward)
    monkeypatch.setattr(trainer.loop, "train_step", step)
    monkeypatch.setattr(trainer.step, "forward", forward)
    out = train(rooms_config(f"run.steps={NUM_STEPS}", f"log.every={EVERY}", "pruning.begin=1",
                             "pruning.end=1"))  # fmt: skip
    lines = (out / "timing.jsonl").read_text().splitlines()
    record = [r for line in lines if (r := json.loads(line))["kind"] == "steps"][-1]
    assert record["forward_seconds"]["max"] == pytest.approx(forward.seconds(EVERY), rel=0.1)
    # The rest of a step is what the loop does on the host between two calls.
    computing = record["step_seconds"] - record["data_seconds"]["max"]
    assert step.seconds(EVERY) < computing * 1.1
    assert computing < 1.3 * step.seconds(EVERY) + 0.005
    assert (record["device_gib"]["max"] > 0) == (not ON_CPU)


def test_workers_fill_pinned_memory_with_the_same_samples(rooms_config, device):
    loaders = []
    for workers in (0, 2):
        config = rooms_config(f"data.workers={workers}", "data.flip=true")
        loaders.append(ShardData(config).train_batches(0, 6, rank=0, world_size=1))
    for alone, read in zip(*loaders, strict=True):
        for tensor in (read.images, read.scalars, *read.dense.values()):
            assert tensor.is_pinned() != ON_CPU
        moved = read.to(device)
        assert moved.images.device.type == device.type and moved.keys == alone.keys
        assert torch.equal(moved.images.cpu(), alone.images)
        for name, label in alone.dense.items():
            assert torch.equal(moved.dense[name].cpu(), label)


def test_a_run_with_workers_trains_on_the_same_samples(rooms_config, train, tmp_path):
    ten = ("run.steps=10", "pruning.end=0.8")
    reference = train(rooms_config(*ten, f"run.out={tmp_path / 'cpu'}"), on_cpu=True)
    run = train(rooms_config(*ten, "data.workers=2"))
    assert_same_curve(run, reference)
