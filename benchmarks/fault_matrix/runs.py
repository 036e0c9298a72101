"""Small runs for `benchmarks/faults.py`, in processes that can be killed, and how they end."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import yaml

from data_pipelines.synthetic.rooms import write_rooms
from trainer.checkpoints.files import checkpoints, find_damage, folder_of_step
from trainer.health.failures import leave
from trainer.main import train

STEPS = 8  # of a short run, which saves after each
_ALLOWED = 120.0  # seconds for the end of a run, after which it counts as hung
# A forked process needs no imports and has no state of an earlier run.
_FORK = multiprocessing.get_context("fork")
_IMPORTED = (
    "aiohttp", "fsspec.implementations.http", "sklearn.cluster", "trainer.run",
    "transformers.models.convnextv2.modeling_convnextv2",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a process ended, and after how many seconds; the code of one that hung is None."""

    code: int | None
    text: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        """The lines with an error message."""
        return [line for line in self.text.splitlines() if line.startswith("error: ")]


class Run:
    """A training run in a separate folder, and in a process that can be killed.

    Args:
        folder: Of the run, its configuration and its log; created.
        shards: Folder or URL of the data.
        steps: Optimizer steps.
        overrides: Of the configuration, as `section.key=value`.
    """

    def __init__(self, folder: Path, shards: Path | str, steps: int, *overrides: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.out, self.config = folder / "run", folder / "run.yaml"
        self.steps, self.overrides = steps, overrides
        self.checkpoints = self.out / "checkpoints"
        self.config.write_text(yaml.safe_dump(_settings(self.out, shards, steps)))
        self._folder, self._log, self._began = folder, folder / "log-0", 0.0

    def start(self, *overrides: str, before: Callable[[], object] = lambda: None) -> BaseProcess:
        """Start the process, which begins or resumes the run.

        Args:
            overrides: Of this start only.
            before: Called in the process before the run.
        """
        self._log = self._folder / f"log-{time.monotonic_ns()}"
        self._log.touch()
        self._began = time.monotonic()
        process = _FORK.Process(target=self._train, args=(overrides, before))
        process.start()
        return process

    def _train(self, overrides: tuple[str, ...], before: Callable[[], object]) -> None:
        os.dup2(os.open(self._log, os.O_WRONLY | os.O_APPEND), sys.stderr.fileno())
        torch.set_num_threads(1)
        before()
        leave(train(self.config, [*self.overrides, *overrides]))

    def finish(self, process: BaseProcess, seconds: float = _ALLOWED) -> Ended:
        """Wait for the end of a process; kill it after so many seconds."""
        log, began = self._log, self._began
        process.join(seconds)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
        return Ended(code, log.read_text(errors="replace"), time.monotonic() - began)

    def run(self, *overrides: str, before: Callable[[], object] = lambda: None) -> Ended:
        """Start a process and wait for its end."""
        return self.finish(self.start(*overrides, before=before))

    def wait_for_step(self, process: BaseProcess, step: int) -> None:
        """Wait until the checkpoint of a step is there, or the process has ended."""
        while process.is_alive() and not folder_of_step(self.checkpoints, step).exists():
            time.sleep(0.001)

    def newest(self) -> int:
        """Return the step of the newest checkpoint with a final name; 0 without checkpoints."""
        paths = checkpoints(self.checkpoints)
        return int(paths[-1].name.removeprefix("step-")) if paths else 0

    def is_saving(self) -> bool:
        """Return whether there is an unfinished checkpoint."""
        return any(self.checkpoints.glob("step-*.partial"))

    def unreadable(self) -> int:
        """Return the number of incomplete checkpoints with a final name."""
        return sum(find_damage(path) is not None for path in checkpoints(self.checkpoints))

    def done(self) -> int:
        """Return the step of the last complete record; 0 without records."""
        lines = (self.out / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["step"]) if lines else 0

    def state(self) -> str | None:
        """Return the state in `status.json`; None without such a file."""
        path = self.out / "status.json"
        return str(json.loads(path.read_text())["state"]) if path.exists() else None

    def resumed(self) -> int | None:
        """Return the step from which the last start resumed; None if its log has no such line."""
        match = re.search(r"continuing from \S*step-(\d+)", self._log.read_text())
        return int(match[1]) if match else None

    def result(self) -> dict[str, bytes]:
        """Return the files of a finished run that are compared, by name."""
        final = folder_of_step(self.checkpoints, self.steps)
        names = ("weights", "moments", "grouping")
        files = (self.out / "metrics.jsonl", *(final / f"{name}.safetensors" for name in names))
        return {path.name: path.read_bytes() if path.exists() else b"" for path in files}


class Site:
    """The folder in which the faults happen.

    Args:
        root: An empty folder.
        fast: Whether to try few cases of each fault.
    """

    def __init__(self, root: Path, *, fast: bool) -> None:
        for name in _IMPORTED:
            importlib.import_module(name)
        os.environ["DMTG_CACHE_DIR"] = str(root / "cache")  # not the user's
        self.root, self.fast = root, fast
        self._runs = 0

    @cached_property
    def shards(self) -> Path:
        """48 train rooms in three shards, and 16 for the evaluation."""
        options = {"val_fraction": 0.25, "samples_per_shard": 16, "progress": False}
        write_rooms(self.root / "shards", 64, 32, 0, **options)
        return self.root / "shards"

    @cached_property
    def undisturbed(self) -> dict[str, bytes]:
        """The result of a short run that is left alone."""
        run = self.run()
        ended = run.run()
        assert ended.code == 0, ended.text
        return run.result()

    def run(self, *overrides: str, shards: Path | str | None = None, steps: int = STEPS) -> Run:
        """Return a new run, short unless it is said otherwise."""
        return Run(self.folder(), shards or self.shards, steps, *overrides)

    def folder(self) -> Path:
        """Return a folder that does not exist yet."""
        self._runs += 1
        return self.root / f"case-{self._runs}"


def _settings(out: Path, shards: Path | str, steps: int) -> dict[str, Any]:
    """Return the settings of a run with checkpoints of 1 MB, which prunes its network."""
    options = {
        "model_type": "convnextv2", "hidden_sizes": [16, 32], "depths": [1, 1], "patch_size": 4,
        "num_stages": 2,
    }  # fmt: skip
    return {
        "run": {
            "out": str(out), "steps": steps, "resume": "auto", "precision": "fp32",
            "checkpoint_every": 1,
        },
        "data": {
            "shards": str(shards), "image_size": [32, 32], "global_batch": 8, "workers": 0,
        },
        "tasks": {"names": ["depth_zbuffer", "normal", "has_sphere", "camera_pitch"]},
        "model": {
            "branches": 3, "dense_widths": [8], "encoder": {"name": "backbone", "options": options},
        },
        "eval": {"limit": 4},
        "log": {"every": 1, "trackers": [], "progress": False},
    }  # fmt: skip
