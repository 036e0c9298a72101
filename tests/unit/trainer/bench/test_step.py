"""The published step and this project's, on the same weights, inputs and noise."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.bench import step as bench_step
from trainer.bench.case import StepCase, our_step
from trainer.bench.floor import Rates, measure_rates, timed
from trainer.bench.published import naive_step
from trainer.errors import UserError

CASES = [
    StepCase("none", tasks=5, branches=3, batch=4, size=8, features=7),
    StepCase("none", tasks=2, branches=2, batch=3, size=32, heads="dense", features=4),
    StepCase("residual64", tasks=3, branches=2, batch=4, size=16),
    StepCase("residual64", tasks=2, branches=2, batch=4, size=16, heads="dense"),
]


def of(case):
    return f"{case.encoder}-{case.heads}"


@pytest.mark.usefixtures("forget_accelerate")
@pytest.mark.parametrize("case", CASES, ids=of)
def test_losses_agree_and_learning_goes_on(case):
    with our_step(case) as (ours, network):
        naive, _ = naive_step(case, network)
        own, published = ours(), naive()
        assert own.shape == (case.tasks, case.branches)
        torch.testing.assert_close(own, published, rtol=1e-4, atol=1e-6)
        assert len(own.unique()) == own.numel(), "every head has a loss of its own"
        again, published = ours(), naive()
        # Adam's first step is the sign of the gradient, which may be that of rounding.
        torch.testing.assert_close(again, published, rtol=2e-2, atol=1e-4)
        if case.encoder == "none":
            assert torch.equal(again, own), "heads alone are not trained"
        else:
            assert not torch.equal(again, own)


@pytest.mark.parametrize("case", CASES[:2], ids=of)
def test_gradients_of_the_features_agree(case):
    with our_step(case) as (ours, network):
        naive, published = naive_step(case, network)
        ours()
        naive()
        for own, other in zip(network.branches, published.encoders, strict=True):
            assert own.values.grad.abs().max() > 0
            torch.testing.assert_close(own.values.grad, other.values.grad, rtol=1e-3, atol=1e-6)


def test_losses_of_other_weights_are_refused():
    case = CASES[0]
    refused = pytest.raises(UserError, match=r"losses .* differ by .*allowed is 0.0001")
    with our_step(case) as (ours, _), refused:
        bench_step._check_losses(case, ours, naive_step(case)[0])


@pytest.mark.parametrize(("precision", "allowed"), [("tf32", 4e-3), ("fp16", 4e-3), ("bf16", 3e-2)])
def test_losses_may_differ_as_much_as_the_precision_does(precision, allowed):
    case = replace(CASES[0], precision=precision)
    published = torch.ones(5, 3)

    def check(difference):
        return bench_step._check_losses(case, lambda: published + difference, lambda: published)

    assert check(0.9 * allowed) == pytest.approx(0.9 * allowed, rel=1e-3)
    with pytest.raises(UserError, match=f"allowed is {allowed:g}"):
        check(1.1 * allowed)


@pytest.mark.parametrize("case", CASES[::2], ids=of)
@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_a_precision_of_gpus_is_refused_on_the_cpu(case, precision):
    with pytest.raises(UserError, match=f"run.precision: {precision} needs a GPU"):
        bench_step.measure_step(replace(case, precision=precision), 1)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize(
    ("precision", "exact"), [("fp32", True), ("tf32", False), ("bf16", False), ("fp16", False)]
)
@pytest.mark.parametrize("case", CASES[::2], ids=of)
def test_the_published_step_computes_with_the_arithmetic_of_ours(
    case, precision, exact, monkeypatch
):
    """In a process of its own it has no accelerator, which would set it."""
    settings = []

    def step():
        products = torch.get_float32_matmul_precision()
        settings.append((products, torch.backends.cudnn.allow_tf32))
        return torch.zeros(())

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2**20)
    monkeypatch.setattr(bench_step, "naive_step", lambda _: (step, None))
    torch.set_float32_matmul_precision("medium")
    assert bench_step._peak_mb(replace(case, precision=precision), "naive") == 1.0
    assert set(settings) == {("highest" if exact else "high", not exact)}


def test_heads_alone_in_low_precision():
    case = replace(CASES[0], precision="bf16")
    with our_step(case) as (ours, network):
        low = ours()
        naive, _ = naive_step(case, network)
        assert not torch.equal(low, naive())
        torch.testing.assert_close(low, naive(), rtol=3e-2, atol=1e-3)
    assert case.dtype == torch.bfloat16
    assert replace(case, precision="fp16").dtype == torch.float16
    assert replace(case, precision="tf32").dtype == torch.float32


class CountOperators(TorchDispatchMode):
    """Counts the operators that are called, in the backward pass too."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def operators(step):
    step()  # the first step allocates gradients
    with CountOperators() as counter:
        step()
    return counter.count


def test_only_the_published_step_calls_operators_for_every_head():
    cases = [StepCase("none", tasks, branches=3, batch=4, size=8, features=7) for tasks in (4, 40)]
    counts = {"ours": [], "naive": []}
    for case in cases:
        with our_step(case) as (ours, _):
            counts["ours"].append(operators(ours))
        counts["naive"].append(operators(naive_step(case)[0]))
    few, many = counts["ours"]
    assert few == many
    few, many = counts["naive"]
    assert many - few >= 3 * 36 * 3, "three operators at least for every further head"


def test_times_are_medians_of_steps_after_a_step_of_their_kind():
    calls = []
    seconds = {"ours": [0.5, 0.002, 0.003], "naive": [0.04, 9.0, 0.05]}

    def step_of(variant):
        return lambda: calls.append(variant)

    def timer(step, device):
        assert device == case.device
        step()
        calls[-1] = f"timed {calls[-1]}"
        return seconds[calls[-2]].pop(0)

    case = CASES[0]
    times = bench_step._paired(case, step_of("ours"), step_of("naive"), 3, timer)
    assert times == pytest.approx((3.0, 50.0))
    assert calls == ["ours", "timed ours", "naive", "timed naive"] * 3


def test_the_floor_is_arithmetic_or_traffic():
    rates = Rates(flops=1e9, traffic=1e8)
    # 12 bytes of traffic for a weight in both passes, 28 in the optimizer
    assert rates.floor_ms(10**9, 10**6, optimizer=False) == pytest.approx(1000)
    assert rates.floor_ms(10**9, 10**6, optimizer=True) == pytest.approx(1000 + 280)
    assert rates.floor_ms(10**7, 10**6, optimizer=True) == pytest.approx(120 + 280)


def test_rates_come_from_the_least_seconds():
    """Five runs each of a matrix product, a convolution and a copy, timed as given."""
    matmul, convolution, copy = [5, 4, 2, 4, 5], [3, 4, 2, 3, 3], [0.25, 1, 1, 1, 1]
    seconds = iter([*matmul, *convolution, *copy])
    results = []

    def timer(run, device):
        results.append(run())
        assert results[-1].device == device
        return next(seconds)

    rates = measure_rates(torch.device("cpu"), torch.float32, timer)
    assert [tuple(result.shape) for result in results[::5]] == [
        (2048, 2048), (64, 64, 32, 32), (2**28,)
    ]  # fmt: skip
    assert rates.flops == 2 * 2048**3 / 2
    assert rates.traffic == 2 * 2**28 / 0.25


def test_a_gpu_gets_work_that_takes_longer_than_its_start():
    results = []

    def timer(run, _device):
        results.append(run())
        return 1.0

    rates = measure_rates(torch.device("meta"), torch.bfloat16, timer)  # any but the CPU
    matmul, convolution, copy = results[::5]
    assert matmul.shape == (8192, 8192) and convolution.shape == (256, 256, 64, 64)
    assert matmul.dtype == convolution.dtype == torch.bfloat16
    assert rates.flops == 2 * convolution.numel() * 256 * 9
    assert min(rates.flops, 2 * 8192**3) > 1e12, "a millisecond of the fastest device"
    assert rates.traffic == 2 * copy.numel() == 2**31


def test_a_gpu_is_timed_between_two_events(monkeypatch):
    calls = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            self.number = len(calls)
            calls.append("made")

        def record(self):
            calls.append(f"recorded {self.number}")

        def synchronize(self):
            calls.append(f"waited for {self.number}")

        def elapsed_time(self, end):
            return 2.5 * (end.number - self.number)  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: calls.append("idle"))
    seconds = timed(lambda: calls.append("run"), torch.device("cuda"))
    assert seconds == pytest.approx(2.5e-3)
    assert calls == ["idle", "made", "made", "recorded 1", "run", "recorded 2", "waited for 2"]


def test_the_faster_of_product_and_convolution_counts():
    seconds = iter([64.0] * 5 + [0.5] * 5 + [1.0] * 5)
    rates = measure_rates(torch.device("cpu"), torch.float32, lambda *_: next(seconds))
    assert rates.flops == 2 * (64 * 64 * 32 * 32) * (64 * 3 * 3) / 0.5
