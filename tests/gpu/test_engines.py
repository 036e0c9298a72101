"""Every engine over NCCL trains as one process on the CPU does, and each continues the others."""

import json

import pytest
from safetensors.torch import load_file

from tests.distributed.cells import PLAIN, Cell
from tests.distributed.test_resume_matrix import assert_goes_on_from
from tests.gpu.devices import assert_same_curve, distance, launch, records

ENGINES = ("ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2")
HALF, NUM_STEPS = 8, 16
OPTIONS = (
    "grouping.recipe=published", f"run.steps={NUM_STEPS}", f"run.checkpoint_every={HALF}",
    "run.keep_last=10", "run.resume=auto", "pruning.end=0.5",
)  # fmt: skip
LATE = ("pruning.begin=1", "pruning.end=1")
# In bf16 without a decision about heads, which could be another one.
PRECISIONS = {"fp32": (), "bf16": ("run.precision=bf16", *LATE)}


def fresh(where, precision="fp32"):
    """A run from the start."""
    return Cell(where, precision, (*OPTIONS, *PRECISIONS[precision]))


def reference(precision):
    """One process on the CPU, in fp32."""
    return fresh(PLAIN) if precision == "fp32" else Cell(PLAIN, "late", (*OPTIONS, *LATE))


def continued(where, source):
    """The second half of a run, after the first under another engine."""
    return Cell(where, f"after-{source.launch}", source.overrides, source, (HALF,))


def before(engine):
    """The launch whose run an engine continues: the engine before it, the CPU before the first."""
    place = ENGINES.index(engine)
    return launch(ENGINES[place - 1]) if place else PLAIN


def handed_over(engine):
    """A run that goes from the CPU to the device, or from one engine there to the next."""
    return continued(launch(engine), fresh(before(engine)))


def brought_back(engine):
    """A run that goes from the device to the CPU."""
    return continued(PLAIN, fresh(launch(engine)))


def cells(engine, precision="fp32", **_):
    return [
        reference(precision), fresh(launch(engine), precision), handed_over(engine),
        brought_back(engine),
    ]  # fmt: skip


pytestmark = [pytest.mark.distributed, pytest.mark.parametrize("engine", ENGINES)]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_losses_are_those_of_one_process_on_the_cpu(engine, precision, trained):
    run = trained(fresh(launch(engine), precision))
    assert_same_curve(run, trained(reference(precision)), precision)
    if precision == "fp32":
        assert records(run, "compact"), "the network was rebuilt in between"


def test_nothing_of_the_old_network_is_reachable_after_compaction(engine, trained):
    run = trained(fresh(launch(engine)))
    for path in sorted(run.glob("record-*.json")):
        record = json.loads(path.read_text())
        assert record["replaced"] and record["remains"] == [], path


@pytest.mark.parametrize("cell_of", [handed_over, brought_back])
def test_a_run_goes_on_elsewhere(engine, cell_of, trained):
    cell = cell_of(engine)
    run, reference = trained(cell), trained(fresh(PLAIN))
    assert_goes_on_from(run, trained(cell.source), HALF)
    assert_same_curve(run, reference)
    for name in ("weights", "moments"):
        found, expected = (
            load_file(r / f"checkpoints/step-{NUM_STEPS:09d}/{name}.safetensors")
            for r in (run, reference)
        )
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert distance(found[key], value) < 1e-2, (name, key)
