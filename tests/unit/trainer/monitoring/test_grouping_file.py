import json
import logging

import numpy as np
import pytest
import torch

from trainer.monitoring.grouping_file import GroupingFile, is_due, read_grouping_file

PROBABILITIES = torch.tensor([[1 / 3, 2 / 3, 0.0]])


def steps_of(path):
    return [record["step"] for record in read_grouping_file(path)]


def test_probabilities_and_affinities_are_written_with_three_digits(tmp_path):
    path = tmp_path / "grouping.jsonl"
    file = GroupingFile(path, 0, log_every=5)
    file.probabilities(5, PROBABILITIES)
    file.probabilities(7, PROBABILITIES)  # the last step of a run, between two records
    file.probabilities(10, torch.eye(3)[:2])  # each task is certain
    file.pairs(8, "affinity", np.array([[1.0, 0.12345], [0.12345, 1.0]]))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 5, "kind": "probabilities", "probabilities": [[0.333, 0.667, 0.0]]},
        {"step": 8, "kind": "affinity", "affinity": [[1.0], [0.123, 1.0]]},
    ]


def test_a_resumed_run_writes_the_same_bytes(tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for path, starts in ((whole, [(0, 9)]), (resumed, [(0, 6), (4, 9)])):
        for start, end in starts:
            file = GroupingFile(path, start, log_every=1)
            for step in range(start + 1, end + 1):
                file.probabilities(step, PROBABILITIES / step)
    assert resumed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("rest", [b'{"step": 3, "ki', b"\x00\x00\x00\n", b"[3]\n"])
def test_what_a_kill_left_half_written_goes(rest, tmp_path):
    path = tmp_path / "grouping.jsonl"
    path.write_bytes(b'{"step": 2, "kind": "probabilities", "probabilities": [[1.0]]}\n' + rest)
    assert steps_of(path) == [2]
    GroupingFile(path, 4, log_every=1).probabilities(5, PROBABILITIES)
    assert steps_of(path) == [2, 5]


def test_the_number_of_records_grows_with_the_logarithm_of_the_steps():
    counts = {length: sum(is_due(10 * n, 10) for n in range(1, length + 1)) for length in
              (99, 199, 399, 799, 102_399)}  # fmt: skip
    assert counts == {99: 99, 199: 149, 399: 199, 799: 249, 102_399: 599}
    assert not is_due(15, 10)


def test_a_file_that_cannot_be_written_is_one_warning(tmp_path, caplog):
    path = tmp_path / "none" / "grouping.jsonl"
    file = GroupingFile(path, 0, log_every=1)
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            file.probabilities(step, PROBABILITIES)
    assert [record.message for record in caplog.records] == [
        f"{path} cannot be written: No such file or directory"
    ]
    assert read_grouping_file(path) == []
