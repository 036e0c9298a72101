"""The logits keep fp32 arithmetic under bf16 ZeRO, and every rank holds the same ones."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.distributed.cells import Cell, Launch
from trainer.config.optim import OptimSection
from trainer.engines.schedules import learning_rate_factor

pytestmark = pytest.mark.distributed

NUM_STEPS, LR = 200, 2e-2


def adam(start, gradients, factors, dtype):
    """Adam as in its paper (Kingma and Ba, algorithm 1), one value of the logits per step."""
    logits = start.astype(dtype)
    first, second = np.zeros_like(logits), np.zeros_like(logits)
    history = []
    for step, (gradient, factor) in enumerate(
        zip(gradients.astype(dtype), factors, strict=True), 1
    ):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        logits = logits - LR * factor * (first / (1 - 0.9**step)) / corrected
        history.append(logits)
    return np.stack(history)


RUN = (
    f"run.steps={NUM_STEPS}", "run.precision=bf16",
    "tasks.names=[normal, has_sphere, num_solids]", "tasks.define={}",
    "grouping.noise=per_rank", f"grouping.lr={LR}", "grouping.logits_noise=0.5",
    # The heads fall after the last update, so that its logits have all their columns.
    "pruning.begin=1.0", "pruning.end=1.0", "log.every=50",
)  # fmt: skip
CELL = Cell(Launch("zero2_cpu"), "logits", RUN, record_updates=True)


def cells():
    return [CELL]


@pytest.fixture(scope="module")
def recorded(trained):
    return trained(CELL)


def test_logits_follow_fp32_arithmetic_for_200_steps(recorded):
    record = np.load(recorded / "updates-0.npz")
    optim = OptimSection(warmup_steps=3)
    expected = [learning_rate_factor(optim, step, NUM_STEPS) for step in range(NUM_STEPS)]
    np.testing.assert_allclose(record["factors"], expected, rtol=1e-12)
    first_update = adam(np.zeros((3, 3)), record["gradients"], record["factors"], np.float64)[0]
    start = record["logits"][0] - first_update
    replay = adam(start, record["gradients"], record["factors"], np.float64)
    assert np.abs(record["logits"][-1] - start).max() > 0.1  # they did move
    assert np.abs(replay - record["logits"]).max() < 1e-5


def test_bf16_logits_would_not_pass(recorded):
    """The tolerance tells fp32 from a logit that lives in bf16."""
    record = np.load(recorded / "updates-0.npz")
    bits = record["logits"].astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    assert np.abs(bits.view(np.float32) - record["logits"]).max() > 1e-4


def test_every_rank_has_the_same_logits(recorded):
    first, second = (np.load(recorded / f"updates-{rank}.npz") for rank in (0, 1))
    for name in ("gradients", "logits"):
        np.testing.assert_array_equal(first[name], second[name])


def test_checkpoint_holds_the_fp32_logits(recorded):
    record = np.load(recorded / "updates-0.npz")
    lines = (recorded / "metrics.jsonl").read_text().splitlines()
    (kept,) = [r["branches"] for line in lines if (r := json.loads(line))["kind"] == "compact"]
    saved = load_file(recorded / f"checkpoints/step-{NUM_STEPS:09d}/grouping.safetensors")
    np.testing.assert_array_equal(saved["logits"], record["logits"][-1][:, kept])
    assert saved["alive"].sum(axis=1).tolist() == [1, 1, 1]
