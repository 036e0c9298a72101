import json
import logging

import pytest

from trainer.monitoring.timing_file import TimingFile


def records(folder):
    return [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]


def test_records_of_all_starts_stay(tmp_path):
    first = TimingFile(tmp_path)
    first.append(0, "start", {"hosts": ["a"]})
    first.append(10, "steps", {"x": 1.5})
    TimingFile(tmp_path).append(5, "steps", {"x": 2.5})
    found = [(r["step"], r["kind"], r.get("x")) for r in records(tmp_path)]
    assert found == [(0, "start", None), (10, "steps", 1.5), (5, "steps", 2.5)]


def test_hours_add_up_over_starts(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("trainer.monitoring.timing_file.time.monotonic", lambda: now[0])
    file = TimingFile(tmp_path)
    now[0] += 1800
    assert file.append(1, "steps", {}) == 0.5
    now[0] += 7200  # not counted: nothing ran
    again = TimingFile(tmp_path)
    now[0] += 900
    assert again.append(2, "steps", {}) == 0.75
    assert [record["hours"] for record in records(tmp_path)] == [0.5, 0.75]


@pytest.mark.parametrize("rest", [b'{"step": 3, "ki', b"\x00\x00\x00", b""])
def test_what_a_kill_left_half_written_goes(rest, tmp_path):
    path = tmp_path / "timing.jsonl"
    path.write_bytes(b'{"step": 2, "hours": 1.25}\n' + rest)
    TimingFile(tmp_path).append(3, "steps", {})
    assert [record["step"] for record in records(tmp_path)] == [2, 3]
    assert records(tmp_path)[-1]["hours"] == pytest.approx(1.25, abs=1e-3)


def test_hours_are_found_before_a_broken_line(tmp_path):
    (tmp_path / "timing.jsonl").write_bytes(b'{"step": 2, "hours": 1.25}\n\x00\x00\n')
    assert TimingFile(tmp_path).append(3, "steps", {}) == pytest.approx(1.25, abs=1e-3)


def test_a_file_that_cannot_be_written_is_one_warning(tmp_path, caplog):
    file = TimingFile(tmp_path)
    (tmp_path / "timing.jsonl").mkdir()
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            file.append(step, "steps", {})
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'timing.jsonl'} cannot be written: Is a directory"
    ]
