"""What `dmtg plan` and `dmtg bench step` take for granted about a GPU."""

import pytest
import torch

from tests.unit.trainer.planning.test_cuda_autocast import CALLS
from trainer.bench.floor import measure_rates
from trainer.monitoring.throughput import peak_of_name

pytestmark = pytest.mark.gpu(emulated=False)
CUDA = torch.device("cuda")


@pytest.mark.parametrize("name", CALLS)
def test_autocast_computes_in_the_type_that_the_plan_assumes(name):
    call, _, on_cuda = CALLS[name]
    with CUDA, torch.autocast("cuda", torch.bfloat16):
        assert call(torch.randn(2, 4, 6, 6, dtype=torch.bfloat16)).dtype == on_cuda


def test_the_measured_rate_comes_near_the_data_sheet():
    peak = peak_of_name(torch.cuda.get_device_name())
    if peak is None:
        pytest.skip("the peak of this GPU is not known")
    # Tests of other modules may use the GPU at the same time.
    rate = max(measure_rates(CUDA, torch.bfloat16).flops for _ in range(10)) / 1e12
    assert 0.5 * peak < rate < 1.05 * peak
