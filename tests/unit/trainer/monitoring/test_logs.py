import json
import logging
import socket

import pytest
import torch

from trainer.config.log import LogSection
from trainer.errors import UserError
from trainer.monitoring.logs import RunLog, open_rank_log, setup_logging
from trainer.run_folder import RunFolder


@pytest.fixture
def open_log(tmp_path):
    folder = RunFolder(tmp_path)
    logs = []

    def make(rank=0, start_step=0, metrics_bytes=0, **section):
        options = LogSection(**{"trackers": [], "progress": False, **section})
        log = RunLog(
            folder, options, rank=rank, start_step=start_step, num_steps=10,
            metrics_bytes=metrics_bytes,
        )  # fmt: skip
        logs.append(log)
        return log

    yield make
    for log in logs:
        log.close()


def test_records_are_one_json_object_a_line(open_log, tmp_path):
    log = open_log()
    log.write(1, "train", loss=0.1)
    log.write(2, "prune", off=[[0, 1]])
    assert log.metrics_bytes == (tmp_path / "metrics.jsonl").stat().st_size
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "kind": "train", "loss": 0.1},
        {"step": 2, "kind": "prune", "off": [[0, 1]]},
    ]


def test_what_was_written_after_the_checkpoint_is_cut_off(open_log, tmp_path):
    log = open_log()
    log.write(1, "train", loss=1.0)
    size = log.metrics_bytes
    log.write(2, "train", loss=2.0)
    log.close()
    resumed = open_log(start_step=1, metrics_bytes=size)
    resumed.write(2, "train", loss=3.0)
    assert resumed.metrics_bytes == 2 * size
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").open()]
    assert losses == [1.0, 3.0]


def test_the_length_is_right_before_anything_is_written_after_a_resume(open_log, tmp_path):
    log = open_log()
    log.write(1, "train", loss=1.0)
    size = log.metrics_bytes
    log.write(2, "train", loss=2.0)
    log.close()
    assert open_log(start_step=1, metrics_bytes=size).metrics_bytes == size
    assert (tmp_path / "metrics.jsonl").stat().st_size == size


def test_a_file_that_lost_lines_is_refused(open_log, tmp_path):
    log = open_log()
    log.write(1, "train", loss=1.0)
    size = log.metrics_bytes
    log.close()
    handlers = list(logging.getLogger().handlers)
    with pytest.raises(UserError, match=rf"has {size} bytes, the checkpoint was written at 999"):
        open_log(start_step=1, metrics_bytes=999)
    assert logging.getLogger().handlers == handlers, "a log that is not opened writes no more"
    assert "the checkpoint was written at 999" in (tmp_path / "logs" / "rank-0.log").read_text()


def test_records_can_be_followed(open_log, tmp_path):
    open_log().write(1, "train", loss=1.0)
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"\n")


def test_other_processes_write_only_their_lines(open_log, tmp_path):
    log = open_log(rank=1, trackers=["tensorboard"], progress=True)
    log.write(1, "train", loss=1.0)
    log.scalars(1, {"a": 1.0})
    log.probabilities(1, torch.ones(2, 2))
    log.advance(1, {"loss": "1"})
    assert log.metrics_bytes == 0
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")] == [
        "logs/rank-1.log"
    ]


@pytest.fixture
def own_logging():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize(("rank", "world", "shown"), [(0, 1, ""), (0, 2, "[rank 0]")])
def test_lines_name_their_rank_only_among_several(rank, world, shown, capsys):
    setup_logging(rank, world)
    logging.getLogger("trainer.x").info("hello")
    assert ("[rank" in capsys.readouterr().err) == bool(shown)
    setup_logging(1, 2)
    logging.getLogger("trainer.x").info("hidden")
    logging.getLogger("trainer.x").warning("seen")
    text = capsys.readouterr().err
    assert "[rank 1] trainer.x: seen" in text and "hidden" not in text


@pytest.mark.usefixtures("own_logging")
def test_every_rank_has_a_file_with_all_its_lines(tmp_path, capsys):
    """Also those from before the folder was known, and after those of an earlier start."""
    for start in (1, 2):
        setup_logging(1, 2)
        logging.getLogger("trainer.x").info("early %d", start)
        handler = open_rank_log(RunFolder(tmp_path), 1)
        logging.getLogger("trainer.x").info("late %d", start)
        logging.getLogger().removeHandler(handler)
        handler.close()
        logging.getLogger("trainer.x").info("after %d", start)
    lines = (tmp_path / "logs" / "rank-1.log").read_text().splitlines()
    assert [line.split(": ")[1] for line in lines] == ["early 1", "late 1", "early 2", "late 2"]
    assert all(f" {socket.gethostname()} INFO trainer.x: " in line for line in lines)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("own_logging")
def test_a_closed_log_takes_no_lines(open_log, tmp_path):
    setup_logging(0, 1)
    log = open_log()
    logging.getLogger("trainer.x").info("open")
    log.close()
    logging.getLogger("trainer.x").info("closed")
    text = (tmp_path / "logs" / "rank-0.log").read_text()
    assert "open" in text and "closed" not in text
