"""Two processes weight the losses as one process does, on all engines, while heads are pruned."""

import json

import pytest
from safetensors.torch import load_file

from tests.distributed.cells import PLAIN, Cell, Launch

pytestmark = pytest.mark.distributed

# Micro-batches: the whole batch in one process.
ENGINES = {
    None: 1, "ddp_cpu": 2, "zero1_cpu": 1, "zero2_cpu": 2, "zero3_cpu": 2, "fsdp2_cpu": 1,
}  # fmt: skip
METHODS = {
    "famo": ("loss_weights={method: famo, lr: 0.1}",),
    "uncertainty": ("loss_weights={method: uncertainty, lr: 0.05}",),
    "dwa": ("loss_weights={method: dwa, every: 3}",),
    "given": ("loss_weights={method: given, weights: {normal: 3.0, has_sphere: 0.2}}",),
    "sampled": ("loss_weights=famo", "grouping.sampled_heads=2"),
}
OPTIONS = (
    "tasks.by_kind={binary: {loss_options: {pos_weight: auto, label_smoothing: 0.1}}, "
    "multiclass: {loss_options: {class_weights: auto}}, "
    "dense_classification: {loss: focal, loss_options: {gamma: 1.0}}, "
    "regression: {loss: huber, loss_options: {delta: 0.7}}}"
)
STEPS = 16


def cell(engine, method):
    overrides = (
        f"run.steps={STEPS}", OPTIONS, *METHODS[method],
        f"optim.gradient_accumulation_steps={ENGINES[engine]}",
    )  # fmt: skip
    return Cell(Launch(engine) if engine else PLAIN, f"loss-weights-{method}", overrides)


def cells(engine):
    return [cell(each, method) for method in METHODS for each in (None, engine)]


def records(run, kind):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def state(run, name):
    return load_file(run / "checkpoints" / f"step-{STEPS:09d}" / f"{name}.safetensors")


@pytest.mark.parametrize(
    "engine",
    [
        "zero3_cpu",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("ddp_cpu", "zero1_cpu", "zero2_cpu", "fsdp2_cpu")
        ),
    ],
)
def test_losses_weights_and_state_equal_those_of_one_process(engine, trained):
    for method in METHODS:
        run, plain = trained(cell(engine, method)), trained(cell(None, method))
        actual, expected = records(run, "train"), records(plain, "train")
        assert len(actual) == len(expected) == STEPS
        for now, then in zip(actual, expected, strict=True):
            for values in ("losses", "loss_weights"):
                assert now[values] == pytest.approx(then[values], rel=2e-3), (method, now["step"])
        assert expected[0]["heads"] > 6 == expected[-1]["heads"]
        if method != "given":
            assert expected[-1]["loss_weights"] != pytest.approx(expected[0]["loss_weights"])
        for kind in ("prune", "compact"):
            assert records(run, kind) == records(plain, kind)
        for name in ("weights", "grouping"):
            one, two = state(run, name), state(plain, name)
            assert one.keys() == two.keys()
            for key in two:
                assert one[key].isnan().equal(two[key].isnan())
                error = (one[key].float() - two[key].float()).nan_to_num(0.0).abs().max()
                scale = max(float(two[key].float().nan_to_num(0.0).abs().max()), 1e-3)
                assert error < 2e-2 * scale, (engine, method, name, key, error)
