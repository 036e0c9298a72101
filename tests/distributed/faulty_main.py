"""Runs trainer/main.py with one fault on one rank: `faulty_main.py KIND:RANK:STEP ARGUMENTS`."""

import os
import runpy
import signal
import sys
import time
from pathlib import Path

import torch

import trainer.loop
import trainer.step
from trainer.health.damaged_samples import DamagedSampleCounter

ROOT = Path(__file__).resolve().parents[2]


def fail_error() -> None:
    raise RuntimeError("an error that nobody expects")


def fail_kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def fail_memory() -> None:
    """The device, or the host without one, has no such memory."""
    torch.empty(2**50, dtype=torch.uint8, device="cuda" if torch.cuda.is_available() else "cpu")


def spoil_nan(losses: torch.Tensor) -> torch.Tensor:
    """The losses of the first task become NaN."""
    return torch.cat([losses[:1] * torch.nan, losses[1:]])


def spoil_gradient(losses: torch.Tensor) -> torch.Tensor:
    """The losses stay what they are, their gradients become NaN."""
    return losses + (0.0 * losses).sqrt()


def before_step(fault, rank: int, steps: range) -> None:
    original = trainer.loop.train_step

    def step(session, micro_batches):
        if session.accelerator.process_index == rank and session.step in steps:
            fault()
        return original(session, micro_batches)

    trainer.loop.train_step = step


def in_losses(fault, rank: int, steps: range) -> None:
    original = trainer.step.forward

    def forward(session, *arguments, **options):
        output = original(session, *arguments, **options)
        if session.accelerator.process_index == rank and session.step in steps:
            output["losses"] = fault(output["losses"])
        return output

    trainer.step.forward = forward


def read_slowly(rank: int, steps: range) -> None:
    """The data of a rank stays away for ten minutes."""
    original = DamagedSampleCounter.count

    def count(counter, batches):
        for step, batch in enumerate(original(counter, batches)):
            if step in steps and int(os.environ.get("RANK", "0")) == rank:
                time.sleep(600)
            yield batch

    DamagedSampleCounter.count = count


def skew_clock(rank: int) -> None:
    """The wall clock of a rank is half a day behind, and goes twice as fast."""
    if int(os.environ.get("RANK", "0")) == rank:
        true, start = time.time, time.time()
        time.time = lambda: start - 43200.0 + 2.0 * (true() - start)


def main(fault: str, *arguments: str) -> None:
    kind, rank, steps = fault.split(":")
    first, _, last = steps.partition("-")
    span = range(int(first), int(last or first) + 1)
    if kind == "clock":
        skew_clock(int(rank))
    elif kind == "data":
        read_slowly(int(rank), span)
    elif f"spoil_{kind}" in globals():
        in_losses(globals()[f"spoil_{kind}"], int(rank), span)
    else:
        before_step(globals()[f"fail_{kind}"], int(rank), span)
    sys.argv = [str(ROOT / "trainer" / "main.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
