"""Training runs that tests compare, and the batches in which one launch trains several of them.

A test module says in a function `cells` which runs its tests look at; it is called with the
parameters of every selected test. A launch trains, one after the other, all runs of its engine and
number of processes that the selected tests need. `train_cells.py` is what it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Launch:
    """A way to start processes.

    Attributes:
        engine: A file of accelerate_configs/; None is the process of the tests.
    """

    engine: str | None = None
    num_processes: int = 2

    def __str__(self) -> str:
        return f"{self.engine}-{self.num_processes}" if self.engine else "plain"


PLAIN = Launch(None, 1)


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        launch: What trains it.
        name: Of its folder, one per launch.
        overrides: `section.key=value` over the configuration of `rooms_yaml`.
        source: A run that this one continues, as if that had been killed.
        steps: The checkpoints that are taken from the source.
        torn: Whether the last of them is cut short.
        record_updates: Whether every rank keeps what the update of its logits was given.
    """

    launch: Launch
    name: str
    overrides: tuple[str, ...]
    source: Cell | None = None
    steps: tuple[int, ...] = ()
    torn: bool = False
    record_updates: bool = False

    def out(self, root: Path) -> Path:
        """The folder of the run."""
        return root / str(self.launch) / self.name

    def job(self, root: Path) -> dict[str, Any]:
        """What `train_cells.py` reads."""
        return {
            "out": str(self.out(root)),
            "overrides": self.overrides,
            "source": str(self.source.out(root)) if self.source else None,
            "steps": self.steps,
            "torn": self.torn,
            "record_updates": self.record_updates,
        }

    def ancestors(self) -> Iterator[Cell]:
        """The source, its source and so on."""
        cell = self.source
        while cell is not None:
            yield cell
            cell = cell.source


# Micro-batches per step and process; two of them in some engines, whose results must not differ.
_ACCUMULATION = {
    None: 1, "ddp_cpu": 1, "zero1_cpu": 2, "zero2_cpu": 1, "zero3_cpu": 2, "fsdp2_cpu": 2,
}  # fmt: skip


TWELVE_STEPS = ("run.steps=12", "log.every=3")


def thirty_steps(engine: str | None) -> Cell:
    """A run that several modules look at: thirty steps under an engine.

    With this seed a branch loses its last head in the middle of the run.
    """
    accumulation = f"optim.gradient_accumulation_steps={_ACCUMULATION[engine]}"
    launch = Launch(engine) if engine else PLAIN
    return Cell(launch, "thirty-steps", ("run.seed=7", "model.branches=4", accumulation))


def twelve_steps(engine: str) -> Cell:
    """A run that is compared with one that was started in another way."""
    return Cell(Launch(engine), "twelve-steps", TWELVE_STEPS)


def with_sources(cells: Iterable[Cell]) -> list[Cell]:
    """The cells and all that they continue, sources first, each once."""
    result: dict[Cell, None] = {}
    for cell in cells:
        result.update(dict.fromkeys([*reversed([*cell.ancestors()]), cell]))
    return list(result)


def next_batch(
    cell: Cell, wanted: Iterable[Cell], ended: Container[Cell], busy: Container[Launch]
) -> list[Cell]:
    """The runs that one launch trains when a test asks for a cell.

    These are all wanted runs of the cell's launch that have not ended, without those that continue
    a run of a launch in `busy` that has not ended, and without those that continue, by way of
    another launch, a run of this one. A run in this process is trained alone: it costs no start.

    Args:
        busy: Launches that wait for this one.
    """
    if cell.launch == PLAIN:
        return [cell]
    batch = []
    for other in with_sources([cell, *wanted]):
        if other.launch != cell.launch or other in ended:
            continue
        waiting = [source for source in other.ancestors() if source not in ended]
        abroad = next((n for n, s in enumerate(waiting) if s.launch != cell.launch), len(waiting))
        if all(s.launch != cell.launch and s.launch not in busy for s in waiting[abroad:]):
            batch.append(other)
    return batch


def train(
    cell: Cell,
    wanted: Iterable[Cell],
    ended: Container[Cell],
    launch: Callable[[Launch, list[Cell]], None],
    busy: frozenset[Launch] = frozenset(),
) -> None:
    """Train a cell, what it continues, and all that the same launches can train for other tests.

    Args:
        wanted: All runs that tests look at.
        ended: Runs that are not to be trained again, kept by `launch`.
        launch: Trains a batch, and ends at least one of its runs.
        busy: Launches that wait for this cell.
    """
    for source in reversed([*cell.ancestors()]):
        if source.launch != cell.launch and source not in ended:
            train(source, wanted, ended, launch, busy)
    while cell not in ended:
        batch = next_batch(cell, wanted, ended, busy)
        assert cell in batch, f"{cell} waits for itself"
        for source in (source for other in batch for source in other.ancestors()):
            if source.launch != cell.launch and source not in ended:
                train(source, wanted, ended, launch, busy | {cell.launch})
        launch(cell.launch, batch)
