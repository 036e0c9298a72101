import psutil
import pytest
import torch

from trainer.monitoring.timing import RankTimes, StepTimer, summarize

CPU = torch.device("cpu")


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def pass_by(self, seconds):
        self.now += seconds

    def slowly(self, values, seconds):
        """Values that take so long each."""
        for value in values:
            self.pass_by(seconds)
            yield value


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("trainer.monitoring.timing.time.perf_counter", lambda: clock.now)
    return clock


def one_step(timer, clock, batches, count=1, forward=0.0, rest=0.0):
    found = timer.next_step(batches, count)
    for _ in found:
        with timer.forward():
            clock.pass_by(forward)
    clock.pass_by(rest)
    timer.end_step()
    return found


def test_parts_of_a_step_are_told_apart(clock):
    timer, batches = StepTimer(CPU), clock.slowly(range(4), 0.25)
    steps = [one_step(timer, clock, batches, 2, forward=0.5, rest=0.125) for _ in range(2)]
    assert steps == [[0, 1], [2, 3]]
    times = timer.take()
    assert (times.step_seconds, times.data_seconds, times.forward_seconds) == (1.625, 0.5, 1.0)


def test_times_are_means_over_the_steps(clock):
    timer = StepTimer(CPU)
    for seconds in (1.0, 2.0, 6.0):
        one_step(timer, clock, clock.slowly(range(1), seconds), rest=1.0)
    assert timer.take().step_seconds == 4.0


def test_what_happens_between_two_steps_belongs_to_none(clock):
    timer, batches = StepTimer(CPU), iter(range(9))
    one_step(timer, clock, batches, rest=0.5)
    clock.pass_by(60.0)
    one_step(timer, clock, batches, rest=0.5)
    assert timer.take().step_seconds == 0.5


def test_every_look_begins_anew(clock):
    timer, batches = StepTimer(CPU), iter(range(9))
    one_step(timer, clock, batches, forward=8.0)
    assert timer.take().forward_seconds == 8.0
    one_step(timer, clock, batches, forward=1.0)
    times = timer.take()
    assert (times.step_seconds, times.forward_seconds) == (1.0, 1.0)


def test_the_end_of_the_data_counts_for_no_step(clock):
    timer = StepTimer(CPU)
    one_step(timer, clock, clock.slowly(range(1), 1.0))
    assert timer.next_step(clock.slowly((), 7.0), 1) == []
    clock.pass_by(7.0)
    assert timer.take().data_seconds == 1.0


def test_on_a_gpu_events_are_read_once_the_work_is_done(clock, monkeypatch):
    """The host hands the work over at once; only the events know when it was done."""

    class Event:
        waited = False

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = clock.now

        def elapsed_time(self, end):
            assert Event.waited, "the device is not to be waited for within a step"
            return 1e3 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: 3 * 2**30)
    timer = StepTimer(torch.device("cuda"))
    for _ in range(2):
        one_step(timer, clock, iter(range(2)), 2, forward=0.25, rest=0.5)
    Event.waited = True
    times = timer.take()
    assert (times.step_seconds, times.forward_seconds, times.device_gib) == (1.0, 0.5, 3.0)
    one_step(timer, clock, iter(range(1)), forward=0.125)
    assert timer.take().forward_seconds == 0.125


def test_memory_is_that_of_the_process(clock):
    timer, process = StepTimer(CPU), psutil.Process()
    held = []
    for _ in range(2):
        held.append(torch.ones(2**24))  # 64 MiB more
        one_step(timer, clock, iter(range(1)))
        times, resident = timer.take(), process.memory_info().rss
        assert times.process_gib == pytest.approx(resident / 2**30, abs=0.01)
        assert times.device_gib == 0.0


def times_of(*rows):
    return torch.tensor([[step, data, forward, 1.0, 0.0] for step, data, forward in rows])


def test_columns_are_the_fields_of_a_rank():
    summary = summarize(times_of((1.0, 0.2, 0.3), (3.0, 0.4, 0.1)), ["a", "b"])
    assert summary["step_seconds"] == 3.0
    assert summary["data_seconds"] == {"mean": 0.3, "max": 0.4, "max_rank": 1}
    assert summary["forward_seconds"] == {"mean": 0.2, "max": 0.3, "max_rank": 0}
    assert set(summary) == {*RankTimes.__dataclass_fields__, "slowest"}


@pytest.mark.parametrize(
    ("rows", "rank", "own", "others"),
    [
        # All steps take equally long, since the others wait for the slow rank.
        ([(1.0, 0.0, 0.1), (1.0, 0.9, 0.1), (1.0, 0.0, 0.2)], 1, 1.0, 0.1),
        ([(1.0, 0.0, 0.1), (1.0, 0.2, 0.1), (1.0, 0.0, 0.7)], 2, 0.7, 0.1),
    ],
    ids=["data", "forward"],
)
def test_the_slowest_rank_is_named_by_what_it_does_alone(rows, rank, own, others):
    slowest = summarize(times_of(*rows), ["a", "b", "c"])["slowest"]
    assert slowest == {
        "rank": rank,
        "host": "abc"[rank],
        "own_seconds": pytest.approx(own),
        "others_own_seconds": pytest.approx(others),
    }


def test_a_rank_alone_is_not_slow():
    assert summarize(times_of((1.0, 0.5, 0.5)), ["a"])["slowest"] is None
