"""The published step and this project's, on the same weights, inputs and noise."""

import pytest
import torch

from trainer.bench import step as bench_step
from trainer.bench.case import StepCase, our_step
from trainer.bench.floor import Rates, measure_rates
from trainer.bench.published import load_naive, naive_step
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


def test_a_checkout_is_needed(tmp_path):
    with pytest.raises(UserError, match=r"naive.py is missing: .* needs a checkout"):
        load_naive(tmp_path / "naive.py")


def test_the_floor_is_arithmetic_or_traffic():
    rates = Rates(flops=1e9, traffic=1e8)
    # 12 bytes of traffic for a weight in both passes, 28 in the optimizer
    assert rates.floor_ms(10**9, 10**6, optimizer=False) == pytest.approx(1000)
    assert rates.floor_ms(10**9, 10**6, optimizer=True) == pytest.approx(1000 + 280)
    assert rates.floor_ms(10**7, 10**6, optimizer=True) == pytest.approx(120 + 280)


def test_rates_are_those_of_a_machine():
    rates = measure_rates(torch.device("cpu"), torch.float32)
    assert 1e9 < rates.flops < 1e14 and 1e8 < rates.traffic < 1e13
