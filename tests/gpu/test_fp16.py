"""fp16 recovers from a loss scale that is too large: in one process and under ZeRO.

On the CPU these checks are those of tests/distributed/test_fp16.py.
"""

import pytest

from tests.distributed import fp16_steps
from tests.distributed.test_fp16 import (  # noqa: F401
    SCRIPT,
    test_moments_are_those_of_fp32,
    test_the_scale_is_halved_after_every_step_that_is_skipped,
    test_the_weights_are_trained_once_the_gradient_is_finite,
)
from tests.gpu.devices import launch

ALONE = "one process"
# accelerate makes no loss scaler on the CPU.
ONLY_A_GPU = pytest.param(ALONE, marks=pytest.mark.gpu(emulated=False))
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module", params=(ONLY_A_GPU, "zero1", "zero2", "zero3", "zero3_offload"))
def out(request, session_launcher, here, tmp_path_factory):
    """The folder of the three runs of `fp16_steps.py`."""
    folder = tmp_path_factory.mktemp("fp16")
    if request.param == ALONE:
        with here():
            fp16_steps.train_all(folder)
        return folder
    start = launch(request.param)
    end = session_launcher.start(
        str(folder), engine=start.engine, flags=("--num_processes", str(start.num_processes)),
        script=SCRIPT,
    ).finish()  # fmt: skip
    assert end.code == 0, end.stderr[-4000:]
    return folder
