"""A step under ZeRO does not wait for the device, and overlap changes no result."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed

SLOW = ("zero1_cpu", "zero3_cpu", "zero3_offload_cpu")
ENGINES = ("zero2_cpu", *(pytest.param(engine, marks=pytest.mark.slow) for engine in SLOW))


@pytest.fixture(scope="module", params=ENGINES)
def record(request, session_launcher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero")
    script = Path(__file__).with_name("zero_steps.py")
    end = session_launcher.start(str(folder), engine=request.param, script=script).finish()
    assert end.code == 0, end.stderr[-4000:]
    records = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    return request.param, records


def test_no_step_synchronises_with_the_device(record):
    _, records = record
    assert [each["synchronised"] for each in records.values()] == [0, 0, 0]


def test_overlap_is_that_of_the_configuration_and_changes_no_loss(record):
    engine, records = record
    overlaps = {name: each["overlaps"] for name, each in records.items()}
    assert overlaps == {"null": engine.startswith("zero3"), "true": True, "false": False}
    assert records["true"]["losses"] == records["false"]["losses"] == records["null"]["losses"]


def test_on_the_cpu_offloading_takes_no_more_threads(record):
    _, records = record
    assert {each["threads"] for each in records.values()} == {1}
