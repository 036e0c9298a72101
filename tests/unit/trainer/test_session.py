"""What a session opens it closes, however the run ends."""

import json
import logging

import pytest

import trainer.session
import trainer.snapshot
from data_pipelines.synthetic.planted import PlantedProblem
from trainer.bench.planted import PlantedData, planted_config
from trainer.checkpoints.state import NamedState
from trainer.engines.accelerator import make_accelerator
from trainer.errors import Preempted, UserError
from trainer.loop import train
from trainer.session import Session, start_session
from trainer.snapshot import save_session
from trainer.step import train_step

STEPS = 6


@pytest.fixture
def start(tmp_path, forget_accelerate):
    """Starts a run on four planted tasks with two branches."""

    def make(*overrides):
        forget_accelerate()
        config = planted_config(tmp_path / "run", 2, 0, "published", STEPS, 8, overrides)
        data = PlantedData(PlantedProblem(4, 2, seed=0), config)
        return start_session(config, make_accelerator(config), data)

    return make


def handlers(session):
    """The handlers that write the log file of a session."""
    files = [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]
    return [file for file in files if file.baseFilename == str(session.folder.logs / "rank-0.log")]


def test_a_session_that_ends_has_closed_everything(start):
    with start() as session:
        assert len(handlers(session)) == 1 and session.folder._lock is not None
        train(session)
        assert session.step == STEPS
    assert handlers(session) == [] and session.folder._lock is None
    assert session.engine.network is None and session.engine.optimizer is None
    assert session.log._file.closed


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_a_session_that_fails_closes_its_files(start, monkeypatch, error, num_processes):
    """With other ranks, which may be gone, the engine is left to the end of the process."""
    with pytest.raises(type(error)), start() as session:
        accelerator = type(session.accelerator)
        monkeypatch.setattr(accelerator, "num_processes", property(lambda _: num_processes))
        raise error
    assert handlers(session) == [] and session.folder._lock is None and session.log._file.closed
    assert (session.engine.network is None) == (num_processes == 1)
    lines = (session.folder.logs / "rank-0.log").read_text()
    assert "the run failed" in lines and f"{type(error).__name__}" in lines
    assert "raise error" in lines, "the traceback"


def test_a_session_that_is_preempted_has_not_failed(start):
    with pytest.raises(Preempted), start() as session:
        raise Preempted(3, "SIGTERM")
    assert (
        handlers(session) == [] and session.folder._lock is None and session.engine.network is None
    )
    assert "the run failed" not in (session.folder.logs / "rank-0.log").read_text()


def test_a_start_that_fails_leaves_the_folder_free(start, monkeypatch):
    """The record of metrics is shorter than when the checkpoint was written."""
    with start("run.checkpoint_every=2", "log.every=1") as session:
        train(session)
    session.folder.metrics.write_text("")
    released = []
    release = trainer.session.RunFolder.release
    monkeypatch.setattr(
        trainer.session.RunFolder, "release", lambda self: released.append(self) or release(self)
    )
    with pytest.raises(UserError, match=r"metrics\.jsonl: has 0 bytes"):
        start("run.checkpoint_every=2", "log.every=1", "run.resume=auto")
    assert len(released) == 1 and released[0]._lock is None


def test_a_session_is_built_by_keyword_only(start):
    with start() as session, pytest.raises(TypeError, match="positional"):
        Session(session.config, session.folder)


def test_all_heads_are_selected_once_and_sampled_heads_in_every_step(start, tmp_path):
    with start() as session:
        batches = list(session.data.train_batches(0, 3, rank=0, world_size=1))
        selection = session.selection
        for batch in batches:
            train_step(session, [batch])
            session.step += 1
            assert session.selection is selection
    with start("grouping.sampled_heads=1", f"run.out={tmp_path / 'sampled'}") as session:
        seen = []
        for batch in batches:
            train_step(session, [batch])
            session.step += 1
            seen.append(session.selection)
        assert len({id(selection) for selection in seen}) == 3
        assert [len(selection.heads) for selection in seen] == [4, 4, 4]


@pytest.mark.parametrize("main", [True, False])
def test_only_the_rank_that_writes_copies_the_state(start, monkeypatch, main):
    """The others make the same collective calls and keep nothing."""
    kept, written = [], []
    read = trainer.snapshot.read_state

    def record(engine, *, keep):
        state = read(engine, keep=keep)
        kept.append(state)
        return state

    with start() as session:
        monkeypatch.setattr(trainer.snapshot, "read_state", record)
        monkeypatch.setattr(session.writer, "start", written.append)
        accelerator = type(session.accelerator)
        monkeypatch.setattr(accelerator, "is_main_process", property(lambda _: main))
        save_session(session)
        (state,), (snapshot,) = kept, written
        if main:
            assert state.weights.keys() == session.engine.module.state_dict().keys()
            assert snapshot.state is state and snapshot.progress.step == 0
        else:
            assert state == NamedState({}) and snapshot is None


def test_the_records_of_a_run_tell_its_end(start):
    with start("log.every=2") as session:
        train(session)
    kinds = [json.loads(line)["kind"] for line in session.folder.metrics.read_text().splitlines()]
    assert kinds.count("train") == STEPS // 2 and kinds[-1] == "eval"
