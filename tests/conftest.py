"""Small data written once per session, a configuration for it, and real processes to train with."""

import contextlib
import gc
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState

from data_pipelines.synthetic.digits import write_digits
from data_pipelines.synthetic.rooms import write_rooms
from tests.operations import remember_operations
from tests.processes import TIMM, Launcher, unused_port
from tests.servers import HubServer
from trainer.config.config import Config
from trainer.config.loading import load_config
from trainer.engines.accelerator import make_accelerator
from trainer.loop import train
from trainer.session import Session, start_session

TASKS = ("depth_zbuffer", "normal", "segment_semantic", "has_sphere", "num_solids", "camera_pitch")
# Kept indexes of this session; processes that tests start inherit it.
_CACHE = tempfile.TemporaryDirectory(prefix="dmtg-tests-")
os.environ["DMTG_CACHE_DIR"] = _CACHE.name
sys.path.append(str(TIMM))
# Tiny networks gain nothing from threads, and a run here is to equal one in a process below.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _operations_are_counted_once() -> None:
    """Let runs in this process share their counts of operations."""
    remember_operations()


@pytest.fixture(scope="module", autouse=True)
def _imports_are_not_collected() -> None:
    """Exclude what is there before a module from garbage collection: every run ends with one.

    Otherwise a third of the time of such tests is spent on the million objects of imported modules.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def rooms(tmp_path_factory) -> Path:
    """36 train rooms in 4 shards and 12 val rooms in 2, 32 pixels, every fifth label missing.

    Kept as PNG, so that a test can read them without this project's code.
    """
    root = tmp_path_factory.mktemp("rooms") / "shards"
    options = {"missing": 0.2, "val_fraction": 0.25, "samples_per_shard": 10, "portable": True}
    write_rooms(root, 48, 32, 3, **options, progress=False)
    return root


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """64 train and 24 val pairs of digits."""
    root = tmp_path_factory.mktemp("digits") / "shards"
    write_digits(root, train=64, val=24, progress=False)
    return root


@pytest.fixture(scope="session")
def rooms_yaml(rooms, tmp_path_factory) -> Path:
    """A run of seconds on the rooms: 3 dense and 3 scalar tasks, 3 branches, without BatchNorm."""
    tree = {
        "run": {"out": "nowhere", "steps": 30, "seed": 5, "precision": "fp32"},
        "data": {"shards": str(rooms), "image_size": [32, 32], "global_batch": 8, "workers": 0},
        # The gradient of l1 jumps where a prediction meets its label, which lets rounding grow.
        "tasks": {
            "names": list(TASKS),
            "define": {
                name: {"loss": "mse"} for name in ("depth_zbuffer", "normal", "camera_pitch")
            },
        },
        "model": {
            "branches": 3,
            "dense_widths": [8],
            "encoder": {
                "name": "backbone",
                "options": {
                    "model_type": "convnextv2",
                    "hidden_sizes": [8, 16],
                    "depths": [1, 1],
                    "patch_size": 4,
                    "num_stages": 2,
                },
            },
        },
        "grouping": {
            "recipe": "published",
            "lr": 0.1,
            "noise": "shared",
            "temperature": {"initial": 2.0, "final": 0.5},
        },
        "pruning": {"threshold": 0.2, "begin": 0.2, "end": 0.8, "every": 3},
        # About half of the steps are clipped, so the scale of the gradient shows in the moments.
        "optim": {"lr": 3e-4, "max_grad_norm": 12.0, "warmup_steps": 3, "weight_decay": 0.01},
        "eval": {"batch_size": 5},
        "log": {"every": 1, "trackers": [], "progress": False},
    }
    path = tmp_path_factory.mktemp("config") / "rooms.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def rooms_config(rooms_yaml, tmp_path) -> Callable[..., Config]:
    """The configuration of `rooms_yaml` with overrides; it writes below the test's own folder."""

    def make(*overrides: str) -> Config:
        return load_config(rooms_yaml, [f"run.out={tmp_path / 'run'}", *overrides])

    return make


@pytest.fixture
def arithmetic() -> Iterator[None]:
    """Set torch's arithmetic again to what it was before the test."""
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = tf32
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = False


@contextlib.contextmanager
def _like_a_process(*, with_gpus: bool = False) -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with pytest.MonkeyPatch.context() as patch:
        if not with_gpus:
            patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setenv("CUDA_VISIBLE_DEVICES", "-1")
        _forget_accelerate()
        try:
            yield
        finally:
            _forget_accelerate()
            root.handlers[:] = handlers
            root.setLevel(level)


@pytest.fixture(scope="session")
def like_a_process() -> Callable[..., contextlib.AbstractContextManager[None]]:
    """A context that a command may use as if it had a process to itself.

    It begins and ends without accelerate's state, and leaves logging as it was. GPUs are hidden
    unless it is given `with_gpus=True`.
    """
    return _like_a_process


@pytest.fixture
def forget_accelerate(monkeypatch) -> Iterator[Callable[[], None]]:
    """Drops accelerate's process-wide state, so that a test may set its own, on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    _forget_accelerate()
    yield _forget_accelerate
    _forget_accelerate()


def _forget_accelerate() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def free_port() -> Callable[[], int]:
    return unused_port


@pytest.fixture
def launcher(tmp_path) -> Launcher:
    return Launcher(tmp_path / "cwd")


@pytest.fixture(scope="session")
def session_launcher(tmp_path_factory) -> Launcher:
    return Launcher(tmp_path_factory.mktemp("cwd"))


@pytest.fixture
def train_here(forget_accelerate) -> Callable[[Config], Session]:
    """Train in this process, as trainer/main.py does, and return the session at its end."""

    def run(config: Config) -> Session:
        forget_accelerate()
        session = start_session(config, make_accelerator(config))
        try:
            train(session)
        finally:
            session.log.close()
        return session

    return run


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[HubServer]:
    """A hub of models, which huggingface_hub uses in this process, with a token that may write."""
    import huggingface_hub

    server, constants = HubServer("hf_secret"), huggingface_hub.constants
    changes = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        # The protocol of large files that any hub has; Xet needs a service of its own.
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
    }
    for name, value in changes.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", server.token)
    yield server
    server.shutdown()
    server.server_close()
