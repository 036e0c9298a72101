import json
from types import SimpleNamespace

import pytest
import torch

from trainer.config.loading import parse_config
from trainer.monitoring.monitor import Monitor
from trainer.monitoring.timing import RankTimes

BATCH, RANKS = 32, 4


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in ("monitor", "timing_file"):
        monkeypatch.setattr(f"trainer.monitoring.{module}.time.monotonic", clock)
    return clock


@pytest.fixture
def monitor_of(tmp_path, monkeypatch):
    """Makes a monitor of four ranks, all of which take the same times."""
    names = [f"node{rank // 2}" for rank in range(RANKS)]
    monkeypatch.setattr("trainer.monitoring.monitor.gather_object", lambda _own: names)

    def make(main=True, flops=None, steps_per_epoch=5, device="cpu", precision=None, **log):
        tree = {
            "run": {"out": str(tmp_path), "steps": 100, "precision": precision},
            "data": {"shards": "s", "image_size": [8, 8], "global_batch": BATCH},
            "model": {"encoder": {"name": "residual64"}, "branches": 3},
            "log": log,
        }
        accelerator = SimpleNamespace(
            device=torch.device(device),
            mixed_precision="no",  # as under ZeRO, whose autocast is DeepSpeed's
            is_main_process=main,
            gather=lambda own: own.repeat(RANKS, 1),
        )
        monitor = Monitor(parse_config(tree, "test"), accelerator, steps_per_epoch)
        monitor._flops = SimpleNamespace(of=lambda *_network: flops)
        monkeypatch.setattr(monitor.timer, "take", lambda: RankTimes(0.5, 0.1, 0.2, 3.0, 2.0))
        return monitor

    return make


def status(folder):
    return json.loads((folder / "status.json").read_text())


def report(monitor, step):
    return monitor.report(step, 100, (None, None, []), {"loss": 1.5, "losses": {"a": 1.5}})


def test_speed_is_counted_over_all_processes(monitor_of):
    record = report(monitor_of(flops=int(4e12), peak_tflops=16.0), 10).record
    assert record["samples_per_second"] == 64.0  # 32 samples in half a second
    assert record["samples_per_second_per_process"] == 16.0
    assert (record["tflops_per_process"], record["share_of_peak"]) == (8.0, 0.5)


@pytest.mark.parametrize(
    ("flops", "peak", "expected"),
    [(None, 16.0, (None, None)), (int(4e12), None, (8.0, None))],
)
def test_what_is_not_known_is_null(flops, peak, expected, monitor_of):
    pace = report(monitor_of(flops=flops, peak_tflops=peak), 10)
    assert (pace.record["tflops_per_process"], pace.record["share_of_peak"]) == expected
    assert None not in pace.scalars().values() and "speed/share_of_peak" not in pace.scalars()


@pytest.mark.parametrize(
    ("precision", "launched", "share"),
    [("bf16", "no", 0.0256), ("tf32", "bf16", 0.0513), (None, "bf16", 0.0256), (None, "no", None)],
)
def test_the_peak_is_that_of_the_run_s_precision(
    precision, launched, share, monitor_of, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    monitor = monitor_of(flops=int(4e12), device="cuda", precision=precision)
    monitor._accelerator.device = torch.device("cpu")  # where the times are gathered
    found = report(monitor, 10).record["share_of_peak"]
    assert found == (None if share is None else pytest.approx(share, abs=1e-4))


def test_what_is_drawn(monitor_of):
    scalars = report(monitor_of(flops=int(4e12), peak_tflops=16.0), 10).scalars()
    assert scalars == pytest.approx(
        {
            "speed/samples_per_second": 64.0,
            "speed/samples_per_second_per_process": 16.0,
            "speed/step_seconds": 0.5,
            "speed/data_seconds": 0.1,
            "speed/share_of_peak": 0.5,
            "speed/slowest_rank": 0,
            "memory/process_gib": 3.0,
            "memory/device_gib": 2.0,
        }
    )


def test_progress_depends_on_the_step_alone(monitor_of, clock):
    monitor = monitor_of()
    first = monitor.progress(7)
    clock.now += 100
    assert monitor.progress(7) == first == {"samples": 224, "epoch": 1.4}
    assert monitor_of(steps_per_epoch=None).progress(7) == {"samples": 224}


def test_the_time_left_is_that_of_the_last_reports(monitor_of, clock, tmp_path):
    monitor = monitor_of()
    report(monitor, 10)
    assert status(tmp_path)["eta_seconds"] is None
    clock.now += 30
    report(monitor, 20)
    assert status(tmp_path)["eta_seconds"] == pytest.approx(80 * 3)
    assert status(tmp_path)["interval_seconds"] == pytest.approx(30)
    for step in range(21, 61):  # the run has become faster
        clock.now += 2
        report(monitor, step)
    assert status(tmp_path)["eta_seconds"] == pytest.approx(40 * 2)
    assert status(tmp_path)["progress"] == 0.6


def test_the_status_is_not_written_more_than_once_a_second(monitor_of, clock, tmp_path):
    monitor = monitor_of()
    report(monitor, 10)
    clock.now += 0.9
    report(monitor, 11)
    assert status(tmp_path)["step"] == 10
    clock.now += 0.2
    report(monitor, 12)
    assert status(tmp_path)["step"] == 12
    report(monitor, 100)
    assert status(tmp_path)["step"] == 100  # the last one always is
    steps = [json.loads(line)["step"] for line in (tmp_path / "timing.jsonl").open()]
    assert steps == [10, 11, 12, 100]


def test_an_evaluation_is_shown_while_it_lasts(monitor_of, tmp_path):
    monitor = monitor_of()
    report(monitor, 10)
    with monitor.evaluating(15):
        assert (status(tmp_path)["state"], status(tmp_path)["step"]) == ("evaluating", 15)
    assert (status(tmp_path)["state"], status(tmp_path)["loss"]) == ("running", 1.5)


def test_a_start_names_all_machines(monitor_of, tmp_path):
    monitor_of().begin(20, 100)
    (line,) = (tmp_path / "timing.jsonl").read_text().splitlines()
    assert json.loads(line)["hosts"] == ["node0", "node0", "node1", "node1"]
    found = status(tmp_path)
    assert (found["state"], found["step"], found["samples"]) == ("starting", 20, 640)


def test_other_processes_write_nothing(monitor_of, tmp_path):
    monitor = monitor_of(main=False)
    monitor.begin(0, 100)
    assert report(monitor, 10) is None
    with monitor.evaluating(10):
        pass
    assert list(tmp_path.iterdir()) == []
