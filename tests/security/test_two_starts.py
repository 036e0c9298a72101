"""Of two starts at once in one folder, one trains; the other decides when it has the lock."""

import json
from pathlib import Path

import pytest

from trainer.checkpoints.checkpoint import load_checkpoint, newest_checkpoint
from trainer.run_folder import RunFolder

pytestmark = pytest.mark.distributed

STEPS = ("run.steps=4", "run.checkpoint_every=2")


@pytest.fixture
def start_two(launcher, rooms_yaml):
    """Start two runs in one folder at the same moment; how they ended."""

    def run(out: Path, first=(), second=(), **options):
        arguments = [(f"run.out={out}", *STEPS, *more) for more in (first, second)]
        processes = [launcher.train(rooms_yaml, *each, **options) for each in arguments]
        return [process.finish() for process in processes]

    return run


def errors(end):
    return [line for line in end.stderr.splitlines() if line.startswith("error: ")]


def check_whole(out, seed):
    """The folder holds one finished run of this seed."""
    folder = RunFolder(out)
    assert folder.load_config().run.seed == seed and (out / "lock").exists()
    assert json.loads((out / "status.json").read_text())["state"] == "finished"
    assert load_checkpoint(newest_checkpoint(folder.checkpoints)).progress.step == 4
    records = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4]


@pytest.mark.parametrize("attempt", range(3))
def test_different_configurations(attempt, start_two, tmp_path):
    """The run of the first is not touched, and the second is refused with the difference."""
    out = tmp_path / str(attempt)
    ends = start_two(out, ("run.seed=1", "run.resume=auto"), ("run.seed=2", "run.resume=auto"))
    assert sorted(end.code for end in ends) == [0, 2], [end.stderr[-2000:] for end in ends]
    winner = next(number for number, end in enumerate(ends) if end.code == 0)
    check_whole(out, winner + 1)
    (message,) = errors(ends[1 - winner])
    assert f"run.out: {out} holds another run:" in message
    assert f"run.seed was {winner + 1}, is {2 - winner}" in ends[1 - winner].stderr


@pytest.mark.parametrize("attempt", range(2))
def test_equal_configurations_that_continue(attempt, start_two, tmp_path):
    """The second finds a run that is complete."""
    out = tmp_path / str(attempt)
    ends = start_two(out, ("run.resume=auto",), ("run.resume=auto",))
    assert [end.code for end in ends] == [0, 0], [end.stderr[-2000:] for end in ends]
    assert sum("is complete (4 steps)" in end.stderr for end in ends) == 1
    check_whole(out, 5)


def test_equal_configurations_that_do_not_continue(start_two, tmp_path):
    """The second is refused at once: whatever becomes of the first, this is not a new folder."""
    ends = start_two(tmp_path / "run")
    assert sorted(end.code for end in ends) == [0, 2], [end.stderr[-2000:] for end in ends]
    (message,) = errors(next(end for end in ends if end.code == 2))
    assert "uses" in message or "already holds a run; set run.resume=auto" in message
    check_whole(tmp_path / "run", 5)


def test_the_second_starts_anew_where_the_first_has_failed(start_two, tmp_path):
    """The folder that the first has made and deleted is made again."""
    out = tmp_path / "a" / "run"
    missing = ("data.shards=/no/such/folder", "run.seed=1", "run.resume=auto")
    ends = start_two(out, missing, ("run.seed=2", "run.resume=auto"))
    assert ends[1].code == 0, ends[1].stderr[-2000:]
    check_whole(out, 2)
    assert ends[0].code == 2
    assert "/no/such/folder" in ends[0].stderr or "holds another run" in ends[0].stderr


def test_recipes_that_search_first(start_two, tmp_path):
    """The search and the training are one claim."""
    out = tmp_path / "run"
    more = ("grouping.recipe=grad_tag", "grouping.search_every=1", "run.resume=auto")
    ends = start_two(out, (*more, "run.seed=1"), (*more, "run.seed=2"))
    assert sorted(end.code for end in ends) == [0, 2], [end.stderr[-2000:] for end in ends]
    winner = next(number for number, end in enumerate(ends) if end.code == 0)
    check_whole(out, winner + 1)
    assert RunFolder(out / "search").load_config().run.seed == winner + 1


@pytest.mark.slow
def test_several_processes_each(start_two, tmp_path):
    """All ranks of the second learn from its first one that they are refused."""
    out = tmp_path / "run"
    options = ("run.resume=auto",)
    ends = start_two(out, ("run.seed=1", *options), ("run.seed=2", *options), engine="ddp_cpu")
    assert sorted(end.code for end in ends) == [0, 1], [end.stderr[-2000:] for end in ends]
    winner = next(number for number, end in enumerate(ends) if end.code == 0)
    check_whole(out, winner + 1)
    (message,) = errors(ends[1 - winner])
    assert "holds another run" in message
