import logging
import threading

import pytest
import torch
from accelerate import Accelerator

from trainer import loop
from trainer.checkpoints import writer as checkpoint_writer
from trainer.checkpoints.checkpoint import Checkpoint, Progress, load_checkpoint
from trainer.checkpoints.files import checkpoints
from trainer.checkpoints.state import NamedState
from trainer.checkpoints.writer import CheckpointWriter
from trainer.config.run import RunSection
from trainer.errors import SaveError


def snapshot(step, value=1.0):
    progress = Progress(step, step, step, {"tasks": []}, "digest", 0, {})
    return Checkpoint(progress, NamedState({"w": torch.tensor([value])}), {})


@pytest.fixture
def writer_of(tmp_path, forget_accelerate):
    forget_accelerate()
    accelerator = Accelerator(cpu=True)

    def make(**options):
        section = RunSection(out=tmp_path, steps=1, **options)
        return CheckpointWriter(accelerator, tmp_path, section)

    return make


@pytest.fixture
def gate(monkeypatch):
    """Holds every write until it is set."""
    opened, save = threading.Event(), checkpoint_writer.save_checkpoint

    def held(*arguments, **options):
        assert opened.wait(20)
        return save(*arguments, **options)

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", held)
    yield opened
    opened.set()


def steps(folder):
    return [int(path.name[5:]) for path in checkpoints(folder)]


def test_the_training_goes_on_while_a_checkpoint_is_written(writer_of, gate, tmp_path):
    writer = writer_of()
    writer.start(snapshot(1))
    writer.check()
    assert steps(tmp_path) == []
    gate.set()
    writer.wait()
    assert steps(tmp_path) == [1]
    assert load_checkpoint(tmp_path / "step-000000001").state.weights["w"] == 1.0


def test_without_async_checkpoint_the_training_waits(writer_of, tmp_path):
    writer = writer_of(async_checkpoint=False)
    writer.start(snapshot(1))
    assert steps(tmp_path) == [1]
    assert "checkpoint" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("ending", [None, KeyboardInterrupt, RuntimeError])
def test_what_is_being_written_when_the_training_ends_is_written(ending, writer_of, gate, tmp_path):
    def train():
        with writer_of() as writer:
            writer.start(snapshot(3))
            threading.Timer(0.1, gate.set).start()
            if ending is not None:
                raise ending

    if ending is None:
        train()
    else:
        with pytest.raises(ending):
            train()
    assert steps(tmp_path) == [3]


def test_the_keys_of_the_section_decide_what_stays(writer_of, tmp_path):
    writer = writer_of(keep_last=1, keep_every=2, checkpoint_every=1)
    for step in range(1, 6):
        writer.wait()
        writer.start(snapshot(step))
    writer.wait()
    assert steps(tmp_path) == [2, 4, 5]


def test_a_failed_write_is_raised_once_by_the_next_look(writer_of, tmp_path):
    writer = writer_of()
    writer.start(snapshot(1))
    writer.wait()
    (tmp_path / "step-000000002.partial").write_text("in the way")
    writer.start(snapshot(2))
    writer._thread.join()
    message = rf"checkpoint {tmp_path}/step-000000002 cannot be written: .*those before it are left"
    with pytest.raises(SaveError, match=message):
        writer.check()
    writer.wait()
    assert steps(tmp_path) == [1]


def test_weights_that_are_not_finite_are_a_failed_write(writer_of, tmp_path):
    writer = writer_of()
    writer.start(snapshot(1, float("nan")))
    with pytest.raises(SaveError, match=r"weights of w \(and 0 more\) are not finite"):
        writer.wait()
    assert steps(tmp_path) == []


def test_a_failed_write_does_not_hide_what_ended_the_training(writer_of, caplog):
    def train():
        with writer_of() as writer:
            writer.start(snapshot(1, float("nan")))
            raise RuntimeError("the cause")

    with caplog.at_level(logging.ERROR), pytest.raises(RuntimeError, match="the cause"):
        train()
    assert "step-000000001 cannot be written: weights of w" in caplog.text


@pytest.mark.parametrize("recipe", ["published", "affinity", "evidence"])
def test_a_snapshot_is_not_changed_by_the_steps_that_follow(
    recipe, rooms_config, train_here, tmp_path, monkeypatch
):
    """Writes that end after a later step leave what writes before it do."""
    options = (
        f"grouping.recipe={recipe}", "run.steps=5", "run.checkpoint_every=1", "run.keep_last=9",
        "pruning.end=0.8",
    )  # fmt: skip
    options += ("grouping.warmup=0.3",) if recipe != "published" else ()
    train_here(rooms_config(*options, "run.async_checkpoint=false", f"run.out={tmp_path / 'one'}"))
    save, step = checkpoint_writer.save_checkpoint, loop.train_step
    steps_made = []
    later_step = threading.Semaphore(0)

    def slow(*arguments, **keep):
        later_step.acquire(timeout=0.5)  # the last one is followed by none
        return save(*arguments, **keep)

    def step_and_tell(*arguments):
        result = step(*arguments)
        if steps_made:
            later_step.release()
        steps_made.append(result)
        return result

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", slow)
    monkeypatch.setattr(loop, "train_step", step_and_tell)
    train_here(rooms_config(*options, f"run.out={tmp_path / 'two'}"))
    for path in checkpoints(tmp_path / "one" / "checkpoints"):
        for file in path.iterdir():
            twin = tmp_path / "two" / file.relative_to(tmp_path / "one")
            assert file.read_bytes() == twin.read_bytes(), file
    assert steps(tmp_path / "two" / "checkpoints") == [1, 2, 3, 4, 5]
