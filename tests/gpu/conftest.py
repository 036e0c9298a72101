"""The device of these tests: a GPU, or the CPU where DMTG_TEST_DEVICE=cpu tries the same bodies.

The marker `gpu` is given to every test of this folder. A test may say more with it:
`gpu(emulated=False)` for one that has no body on the CPU, `gpu(devices=2)` for one of two GPUs.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

# The hook lets `Runs` train what several tests look at.
from tests.distributed.conftest import (  # noqa: F401
    WANTED,
    Runs,
    pytest_collection_finish,
)
from tests.gpu.devices import DEVICE, ON_CPU, missing
from tests.gpu.report import Report
from tests.processes import Launcher
from trainer.config.config import Config
from trainer.engines.accelerator import make_accelerator
from trainer.run import train_run
from trainer.run_data import RunData

FOLDER = Path(__file__).parent
SECONDS = (600, 60) if ON_CPU else (120, 30)  # of a launch, and for each of its runs


def pytest_configure(config: pytest.Config) -> None:
    """Write the results to the file DMTG_TEST_REPORT, from the process that starts the workers."""
    path = os.environ.get("DMTG_TEST_REPORT")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Report(Path(path)))


@pytest.hookimpl(tryfirst=True)  # before tests are deselected by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and skip those whose devices are not there."""
    for item in items:
        if not item.path.is_relative_to(FOLDER):
            continue
        item.add_marker(pytest.mark.gpu)
        options: dict[str, object] = {}
        for marker in item.iter_markers("gpu"):
            options |= marker.kwargs
        reason = missing(**options)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def _devices_are_found() -> None:
    """Let CUDA find the devices before a run on the CPU hides them from this process."""
    if not ON_CPU:
        torch.cuda.init()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device of the tests."""
    return torch.device(DEVICE)


@pytest.fixture
def launcher(tmp_path) -> Launcher:
    """Starts processes that see the GPUs."""
    return Launcher(tmp_path / "cwd", with_gpus=not ON_CPU)


@pytest.fixture(scope="session")
def session_launcher(tmp_path_factory) -> Launcher:
    """Starts processes that see the GPUs."""
    return Launcher(tmp_path_factory.mktemp("cwd"), with_gpus=not ON_CPU)


@pytest.fixture(scope="session")
def trained(request, rooms_yaml, tmp_path_factory, session_launcher, like_a_process):
    """Train a cell, or find it trained; the launch without an engine is on the CPU."""
    wanted, root = request.config.stash[WANTED], tmp_path_factory.mktemp("cells")
    return Runs(wanted, rooms_yaml, root, session_launcher, like_a_process, SECONDS)


@pytest.fixture(scope="session")
def here(like_a_process) -> Callable[..., contextlib.AbstractContextManager[None]]:
    """A context that a run in this process needs, on the CPU or on the device of the tests."""

    def context(*, on_cpu: bool = ON_CPU) -> contextlib.AbstractContextManager[None]:
        return like_a_process(with_gpus=not on_cpu)

    return context


@pytest.fixture(scope="session")
def train(here) -> Callable[..., Path]:
    """Train a run in this process, and return its folder."""

    def run(config: Config, data: RunData | None = None, *, on_cpu: bool = ON_CPU) -> Path:
        with here(on_cpu=on_cpu):
            accelerator = make_accelerator(config)
            assert accelerator.device.type == ("cpu" if on_cpu else "cuda")
            train_run(config, accelerator, data)
        return config.run.out

    return run


os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product
