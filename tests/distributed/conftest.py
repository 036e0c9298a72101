"""Runs of thirty steps, one per engine, made when a test first asks for them."""

from collections.abc import Callable
from pathlib import Path

import pytest

# Micro-batches per step and process; two of them in some engines, whose results must not differ.
ACCUMULATION = {None: 1, "ddp_cpu": 1, "zero1_cpu": 2, "zero2_cpu": 1, "zero3_cpu": 2}


@pytest.fixture(scope="session")
def engine_runs(session_launcher, rooms_yaml, tmp_path_factory) -> Callable[[str | None], Path]:
    """The folder of a finished run, by the name of its launch configuration; None is plain."""
    root = tmp_path_factory.mktemp("engines")
    finished: dict[str | None, Path] = {}

    def get(engine: str | None) -> Path:
        if engine not in finished:
            out = root / (engine or "plain")
            # With this seed a branch loses its last head in the middle of the run.
            overrides = (
                f"run.out={out}", "run.seed=7", "model.branches=4",
                f"optim.gradient_accumulation_steps={ACCUMULATION[engine]}",
            )  # fmt: skip
            end = session_launcher.train(rooms_yaml, *overrides, engine=engine).finish()
            assert end.code == 0, end.stderr[-4000:]
            finished[engine] = out
        return finished[engine]

    return get
