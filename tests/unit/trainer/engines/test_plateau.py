"""The schedule `plateau` against torch's own scheduler, and that a run keeps its state."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ReduceLROnPlateau

from trainer.config.optim import PlateauSchedule
from trainer.engines.plateau import Plateau

CPU = torch.device("cpu")
LR = 1e-3


def torchs(losses, section):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = ReduceLROnPlateau(
        optimizer, "min", section.gamma, section.patience, section.threshold,
        threshold_mode="rel", min_lr=section.min_lr,
    )  # fmt: skip
    rates = []
    for loss in losses:
        scheduler.step(loss)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@given(
    losses=st.lists(st.floats(0.01, 10.0), min_size=1, max_size=60),
    patience=st.integers(0, 4),
    threshold=st.sampled_from([0.0, 1e-4, 0.1, 0.5]),
    gamma=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_as_torch_has_it(losses, patience, threshold, gamma):
    section = PlateauSchedule(patience=patience, threshold=threshold, gamma=gamma)
    plateau = Plateau(section, LR, 1, CPU)
    found = []
    for loss in losses:
        plateau.end_epoch(loss)
        found.append(LR * plateau.factor)
    assert found == pytest.approx(torchs(losses, section), rel=1e-9, abs=2e-8)


def test_published_values_on_a_loss_that_stops_falling():
    plateau = Plateau(PlateauSchedule(), LR, 1, CPU)
    factors = []
    for _epoch in range(40):
        plateau.end_epoch(1.0)
        factors.append(plateau.factor)
    assert factors[:13] == [1] * 4 + [0.5] * 4 + [0.25] * 4 + [0.125]
    assert factors[-1] == pytest.approx(0.03)  # 3e-5 of 1e-3


def test_it_sees_the_mean_over_an_epoch():
    plateau = Plateau(PlateauSchedule(patience=0), LR, 3, CPU)
    sums = [3.0, 1.0, 2.0, 1.9, 1.9, 1.9, 1.0, 1.0, 1.0]  # means 2, 1.9 (not 10 % less), 1
    factors = []
    for step, value in enumerate(sums, 1):
        plateau.update(step, torch.tensor([value / 2, value / 2]))
        factors.append(plateau.factor)
    assert factors == [1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]
    assert plateau.state()["best"] == pytest.approx(1.0)


@given(losses=st.lists(st.floats(0.1, 10.0), min_size=2, max_size=30), data=st.data())
def test_a_reloaded_state_goes_on_as_if_never_stopped(losses, data):
    cut = data.draw(st.integers(1, len(losses) - 1))
    section = PlateauSchedule(patience=1)
    whole, first, second = (Plateau(section, LR, 2, CPU) for _ in range(3))

    def train(plateau, start, values):
        for step, value in enumerate(values, start + 1):
            plateau.update(step, torch.tensor([value]))

    train(whole, 0, losses)
    train(first, 0, losses[:cut])
    second.load(json.loads(json.dumps(first.state())))
    train(second, cut, losses[cut:])
    assert second.state() == whole.state()


class Reference:
    """The decision as it was computed before torch's scheduler made it."""

    def __init__(self, section, lr):
        self.factor, self.best, self.bad_epochs = 1.0, None, 0
        self.section, self.floor = section, min(1.0, section.min_lr / lr)

    def end_epoch(self, loss):
        if self.best is None or loss < self.best * (1.0 - self.section.threshold):
            self.best, self.bad_epochs = loss, 0
            return
        self.bad_epochs += 1
        if self.bad_epochs > self.section.patience:
            self.factor = max(self.factor * self.section.gamma, self.floor)
            self.bad_epochs = 0


@given(
    losses=st.lists(st.floats(0.01, 10.0), min_size=1, max_size=60),
    patience=st.integers(0, 3),
    threshold=st.sampled_from([0.0, 1e-4, 0.1, 0.5]),
    gamma=st.sampled_from([1e-3, 0.1, 0.5, 0.9]),
    min_lr=st.sampled_from([0.0, 1e-12, 3e-5, LR]),
)
def test_the_numbers_are_those_of_earlier_versions(losses, patience, threshold, gamma, min_lr):
    """Bit for bit, also for factors below the least change that torch makes by default."""
    section = PlateauSchedule(patience=patience, threshold=threshold, gamma=gamma, min_lr=min_lr)
    plateau, reference = Plateau(section, LR, 1, CPU), Reference(section, LR)
    for loss in losses:
        plateau.end_epoch(loss)
        reference.end_epoch(loss)
        state = {"best": reference.best, "bad_epochs": reference.bad_epochs, "sum": 0.0}
        assert plateau.state() == {"factor": reference.factor, **state}


def test_a_state_of_an_earlier_version_is_continued():
    """With patience 3, the second of these epochs is the fourth that is not better."""
    plateau = Plateau(PlateauSchedule(), LR, 2, CPU)
    assert plateau.state() == {"factor": 1.0, "best": None, "bad_epochs": 0, "sum": 0.0}
    plateau.load({"factor": 0.25, "best": 2.0, "bad_epochs": 2, "sum": 1.5})
    assert plateau.factor == 0.25
    plateau.update(2, torch.tensor([1.0, 1.5]))  # with the sum, a mean of 2
    assert plateau.state() == {"factor": 0.25, "best": 2.0, "bad_epochs": 3, "sum": 0.0}
    plateau.end_epoch(2.0)
    assert plateau.factor == 0.125
    plateau.load({"factor": 1.0, "best": None, "bad_epochs": 0, "sum": 0.0})
    plateau.end_epoch(9.0)
    assert plateau.state()["best"] == 9.0


def test_a_run_lowers_its_rate_and_resumes_within_an_epoch(rooms_config, train_here, tmp_path):
    """36 rooms in batches of 8: epochs of 4 steps, and the checkpoint of step 6 lies within one."""
    options = (
        "run.steps=14", "run.checkpoint_every=6", "run.keep_last=9", "optim.schedule=plateau",
        "optim.schedule.threshold=0.9", "optim.schedule.patience=0", "optim.schedule.min_lr=1e-6",
        "optim.warmup_steps=0",
    )  # fmt: skip
    whole = train_here(rooms_config(*options, f"run.out={tmp_path / 'whole'}")).folder
    lines = [json.loads(line) for line in whole.metrics.read_text().splitlines()]
    rates = [r["lr"] for r in lines if r["kind"] == "train"]
    assert rates == pytest.approx([3e-4] * 8 + [1.5e-4] * 4 + [0.75e-4] * 2)
    part = rooms_config(*options, f"run.out={tmp_path / 'part'}", "run.resume=auto")
    folder = train_here(part).folder
    for file in (folder.checkpoints / "step-000000014").iterdir():
        file.unlink()
    for file in (folder.checkpoints / "step-000000012").iterdir():
        file.unlink()
    train_here(part)
    for name in ("weights", "moments"):
        file = f"step-000000014/{name}.safetensors"
        assert (folder.checkpoints / file).read_bytes() == (whole.checkpoints / file).read_bytes()
    assert folder.metrics.read_bytes() == whole.metrics.read_bytes()
