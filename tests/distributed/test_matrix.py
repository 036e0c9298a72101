"""Every engine, precision, number of processes and of micro-batches trains as one process does."""

import json
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.cells import PLAIN, Cell, Launch
from trainer.export import export_run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ENGINES = ("ddp_cpu", "zero1_cpu", "zero2_cpu", "zero3_cpu", "zero3_offload_cpu", "fsdp2_cpu")
NUM_STEPS = 8
# Largest relative difference of any loss, absolute one of any weight and relative one of any logit.
TOLERANCE = {"fp32": (1e-5, 1e-6, 1e-4), "bf16": (2e-2, 1.5e-3, 1e-1)}


@dataclass(frozen=True)
class Case:
    """How a run computes, in how many micro-batches, and how it finds the groups."""

    precision: str
    accumulation: int
    recipe: str

    def __str__(self) -> str:
        return f"{self.precision}-{self.accumulation}-{self.recipe}"

    def cell(self, launch: Launch) -> Cell:
        overrides = (
            f"run.steps={NUM_STEPS}", f"run.precision={self.precision}",
            f"optim.gradient_accumulation_steps={self.accumulation}",
            f"grouping.recipe={self.recipe}",
        )  # fmt: skip
        return Cell(launch, f"matrix-{self}", overrides)

    @property
    def reference(self) -> Cell:
        """The run of one process on the whole batch."""
        return Case(self.precision, 1, self.recipe).cell(PLAIN)


RECIPES = ("published", "affinity", "evidence")
WHOLE = tuple(Case(p, 1, r) for p in TOLERANCE for r in RECIPES)
ALL = (*WHOLE, *(Case(p, 4, r) for p in TOLERANCE for r in RECIPES))
LAUNCHES = [Launch(engine, n) for engine in ENGINES for n in (1, 2)]


def cells(launched=None):
    if launched is None:
        return [case.reference for case in WHOLE]
    return [case.cell(launched) for case in ALL]


@pytest.fixture(scope="module", params=LAUNCHES, ids=str)
def launched(request, trained):
    """Every case with its run by one engine, and that of one process on the whole batch."""
    launch = request.param
    return [(case, trained(case.cell(launch)), trained(case.reference)) for case in ALL]


def records(run, kind):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def checkpoint(run, name):
    return load_file(run / f"checkpoints/step-{NUM_STEPS:09d}/{name}.safetensors")


def difference(found, expected):
    assert found.keys() == expected.keys()
    return max(float((found[k].float() - v.float()).abs().max()) for k, v in expected.items())


def test_the_runs_of_one_process_prune(trained):
    for case in WHOLE:
        heads = [record["heads"] for record in records(trained(case.reference), "train")]
        assert len(heads) == NUM_STEPS and max(heads) > 6 and heads[-1] == 6, str(case)


def test_losses(launched):
    for case, run, reference in launched:
        found, expected = records(run, "train"), records(reference, "train")
        assert len(found) == len(expected) == NUM_STEPS
        for now, then in zip(found, expected, strict=True):
            for task, value in then["losses"].items():
                error = abs(now["losses"][task] - value) / max(abs(value), 1e-12)
                assert error < TOLERANCE[case.precision][0], (str(case), now["step"], task, error)


def test_weights(launched):
    for case, run, reference in launched:
        error = difference(checkpoint(run, "weights"), checkpoint(reference, "weights"))
        assert error < TOLERANCE[case.precision][1], (str(case), error)


def test_logits_are_fp32_and_the_groups_the_same(launched):
    for case, run, reference in launched:
        found, expected = checkpoint(run, "grouping"), checkpoint(reference, "grouping")
        assert found["logits"].dtype == torch.float32
        assert torch.equal(found["alive"], expected["alive"]), str(case)
        scale = float(expected["logits"].abs().max())
        error = float((found["logits"] - expected["logits"]).abs().max()) / scale
        assert error < TOLERANCE[case.precision][2], (str(case), error)
        for kind in ("prune", "compact"):
            assert records(run, kind) == records(reference, kind), (str(case), kind)


def test_exported_models_are_the_same(launched, tmp_path):
    for case, run, reference in launched:
        if case.precision != "fp32":
            continue
        files = [tmp_path / f"{case}-{name}.safetensors" for name in ("engine", "plain")]
        for source, file in zip((run, reference), files, strict=True):
            export_run(source, file)
        assert difference(*map(load_file, files)) < 1e-6, str(case)
