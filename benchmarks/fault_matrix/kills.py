"""SIGKILLs of a run at random times, half of them during a save; for `benchmarks/faults.py`."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from fault_matrix.runs import Run, Site

SAVES_AHEAD = 6  # approximate maximum of checkpoints between two kills


@dataclass(frozen=True)
class Kill:
    """One SIGKILL and its effect on the next start.

    Attributes:
        background: Whether checkpoints were written in the background.
        during_save: Whether the kill left an unfinished checkpoint.
        unreadable: Number of incomplete checkpoints with a final name.
        saved: Step of the newest checkpoint.
        done: Step of the last record in `metrics.jsonl`.
        resumed: Step from which the next start resumed; None if it did not resume.
    """

    background: bool
    during_save: bool
    unreadable: int
    saved: int
    done: int
    resumed: int | None = None


@dataclass(frozen=True)
class Kills:
    """All kills of a run, and which files of it equal those of a run that was left alone."""

    each: list[Kill]
    same: dict[str, bool]

    def summary(self) -> dict[str, Any]:
        """Return the numbers of the table."""
        repeated = [kill.done - kill.saved for kill in self.each]
        return {
            "kills": len(self.each),
            "during_save": sum(kill.during_save for kill in self.each),
            "beside_training": sum(kill.background for kill in self.each),
            "resumed": sum(kill.resumed is not None for kill in self.each),
            "resumed_from_last_save": sum(kill.resumed == kill.saved for kill in self.each),
            "unreadable": sum(kill.unreadable for kill in self.each),
            "steps_after_last_save_mean": round(fmean(repeated), 2),
            "steps_after_last_save_max": max(repeated),
            "same_as_uninterrupted": self.same,
        }


def kill_often(site: Site, kills: int, seed: int) -> Iterator[Kill | Kills]:
    """Kill a run `kills` times and let it finish; yield each kill, and all of them in the end."""
    rng, steps = random.Random(seed), kills * SAVES_AHEAD
    whole, cut = site.run(steps=steps), site.run(steps=steps)
    whole.run()
    done: list[Kill] = []
    for number in range(kills + 1):
        killed = None
        if number < kills:
            killed = _kill(cut, rng, background=number % 4 < 2, aimed=number % 2 == 0)
        else:
            cut.run()
        if done:
            done[-1] = replace(done[-1], resumed=cut.resumed())
        if killed is None:
            break
        done.append(killed)
        yield killed
    expected, result = whole.result(), cut.result()
    yield Kills(done, {name: result[name] == content for name, content in expected.items()})


def _kill(run: Run, rng: random.Random, *, background: bool, aimed: bool) -> Kill | None:
    """Kill a run after a few checkpoints; return None if it ends before.

    Args:
        run: Run to start and kill.
        rng: Generator of the times.
        background: Whether the run writes checkpoints in the background.
        aimed: Whether to wait for an unfinished checkpoint before the kill.
    """
    process = run.start(f"run.async_checkpoint={str(background).lower()}")
    target = run.newest() + 1 + rng.randrange(SAVES_AHEAD)
    while process.is_alive() and run.newest() < target:
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.1))
    while process.is_alive() and aimed and not run.is_saving():
        time.sleep(0.0002)
    time.sleep(rng.uniform(0, 0.01))
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        return None
    return Kill(background, run.is_saving(), run.unreadable(), run.newest(), run.done())
