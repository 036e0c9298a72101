"""Every engine, precision, number of processes and of micro-batches trains as one process does."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainer.export import export_run

pytestmark = pytest.mark.distributed

ENGINES = ("ddp_cpu", "zero1_cpu", "zero2_cpu", "zero3_cpu", "zero3_offload_cpu", "fsdp2_cpu")
NUM_STEPS = 8
# Largest relative difference of any loss, absolute one of any weight and relative one of any logit.
TOLERANCE = {"fp32": (1e-5, 1e-6, 1e-4), "bf16": (2e-2, 1.5e-3, 1e-1)}


@dataclass(frozen=True)
class Cell:
    """One run: how it computes, in how many micro-batches, and how it finds the groups."""

    precision: str
    accumulation: int
    recipe: str

    def __str__(self) -> str:
        return f"{self.precision}-{self.accumulation}-{self.recipe}"

    @property
    def arguments(self) -> str:
        return (
            f"{self} run.steps={NUM_STEPS} run.precision={self.precision} "
            f"optim.gradient_accumulation_steps={self.accumulation} grouping.recipe={self.recipe}"
        )


RECIPES = ("published", "affinity")
WHOLE = tuple(Cell(p, 1, r) for p in TOLERANCE for r in RECIPES)
ALL = (*WHOLE, *(Cell(p, 4, r) for p in TOLERANCE for r in RECIPES))
FEW = (Cell("fp32", 4, "published"), Cell("bf16", 1, "affinity"))
LAUNCHES = [
    # Of the others, other tests here start two processes in some cell.
    *(pytest.param((e, 2, FEW), id=f"{e}-2-few") for e in ("fsdp2_cpu",)),
    *(
        pytest.param((e, n, ALL), id=f"{e}-{n}", marks=pytest.mark.slow)
        for e in ENGINES
        for n in (1, 2)
    ),
]


def launch(launcher, config, folder, cells, engine=None, num_processes=1) -> Path:
    flags = ("--num_processes", str(num_processes))
    arguments = (str(config), str(folder), *(cell.arguments for cell in cells))
    script = Path(__file__).with_name("train_cells.py")
    end = launcher.start(*arguments, engine=engine, flags=flags, script=script).finish(600)
    assert end.code == 0, end.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def plain(session_launcher, rooms_yaml, tmp_path_factory):
    """The runs of one process without an engine."""
    return launch(session_launcher, rooms_yaml, tmp_path_factory.mktemp("plain"), WHOLE)


@pytest.fixture(scope="module", params=LAUNCHES)
def launched(request, session_launcher, rooms_yaml, tmp_path_factory):
    """The cells, and the folder of their runs by one engine in the same processes."""
    engine, num_processes, cells = request.param
    folder = tmp_path_factory.mktemp(f"{engine}-{num_processes}")
    return cells, launch(session_launcher, rooms_yaml, folder, cells, engine, num_processes)


def records(run, kind):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def pairs(launched, plain):
    """Every cell with its run and that of one process on the whole batch."""
    cells, folder = launched
    for cell in cells:
        yield cell, folder / str(cell), plain / str(Cell(cell.precision, 1, cell.recipe))


def checkpoint(run, name):
    return load_file(run / f"checkpoints/step-{NUM_STEPS:09d}/{name}.safetensors")


def difference(found, expected):
    assert found.keys() == expected.keys()
    return max(float((found[k].float() - v.float()).abs().max()) for k, v in expected.items())


def test_the_runs_of_one_process_prune(plain):
    for cell in WHOLE:
        heads = [record["heads"] for record in records(plain / str(cell), "train")]
        assert len(heads) == NUM_STEPS and max(heads) > 6 and heads[-1] == 6, str(cell)


def test_losses(launched, plain):
    for cell, run, reference in pairs(launched, plain):
        found, expected = records(run, "train"), records(reference, "train")
        assert len(found) == len(expected) == NUM_STEPS
        for now, then in zip(found, expected, strict=True):
            for task, value in then["losses"].items():
                error = abs(now["losses"][task] - value) / max(abs(value), 1e-12)
                assert error < TOLERANCE[cell.precision][0], (str(cell), now["step"], task, error)


def test_weights(launched, plain):
    for cell, run, reference in pairs(launched, plain):
        error = difference(checkpoint(run, "weights"), checkpoint(reference, "weights"))
        assert error < TOLERANCE[cell.precision][1], (str(cell), error)


def test_logits_are_fp32_and_the_groups_the_same(launched, plain):
    for cell, run, reference in pairs(launched, plain):
        found, expected = checkpoint(run, "grouping"), checkpoint(reference, "grouping")
        assert found["logits"].dtype == torch.float32
        assert torch.equal(found["alive"], expected["alive"]), str(cell)
        scale = float(expected["logits"].abs().max())
        error = float((found["logits"] - expected["logits"]).abs().max()) / scale
        assert error < TOLERANCE[cell.precision][2], (str(cell), error)
        for kind in ("prune", "compact"):
            assert records(run, kind) == records(reference, kind), (str(cell), kind)


def test_exported_models_are_the_same(launched, plain, tmp_path):
    for cell, run, reference in pairs(launched, plain):
        if cell.precision != "fp32":
            continue
        files = [tmp_path / f"{cell}-{name}.safetensors" for name in ("engine", "plain")]
        for source, file in zip((run, reference), files, strict=True):
            export_run(source, file)
        assert difference(*map(load_file, files)) < 1e-6, str(cell)
