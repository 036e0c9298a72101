"""What the page gets of the evidence for the branches."""

import json

import pytest

from model.tasks.spec import TaskSpec
from tests.runs import write_run
from trainer.report.evidence import describe_evidence

NAMES = ["a", "b", "c"]
TASKS = [TaskSpec(name, "binary") for name in NAMES]


def test_the_evidence_of_a_run(tmp_path):
    write_run(tmp_path / "run", TASKS, 2)
    found = describe_evidence(tmp_path / "run", NAMES)
    assert found["significant"] == [True, False, True]
    assert found["margin"] == pytest.approx([25, 25, 25], abs=7)
    assert found["firmness"] == pytest.approx([0.9] * 3)
    assert (found["agreement"], found["firm"]) == (pytest.approx(0.4), False)
    margins, firmness = found["sentences"]
    assert margins.startswith("Margins: 2 of 3 tasks") and margins.endswith("errors).")
    assert firmness.startswith("The groups are NOT firm") and firmness.endswith("(dmtg compare).")


def test_of_a_running_run_the_status_is_newer_than_the_checkpoint(tmp_path):
    write_run(tmp_path / "run", TASKS, 2)
    task = {"branch": 0, "probability": 0.5, "choices": 2, "margin": 1.5, "standard_error": 2.5}
    grouping = {"step": 70, "tasks": dict.fromkeys(NAMES[::-1], task)}
    grouping["tasks"]["c"] = {**task, "margin": None, "standard_error": None}
    (tmp_path / "run" / "status.json").write_text(json.dumps({"grouping": grouping}))
    found = describe_evidence(tmp_path / "run", NAMES)
    assert "missing" in found, "without a verdict nothing was compared"
    for values in grouping["tasks"].values():
        values["significant"] = False
    (tmp_path / "run" / "status.json").write_text(json.dumps({"grouping": grouping}))
    found = describe_evidence(tmp_path / "run", NAMES)
    assert (found["step"], found["margin"]) == (70, [1.5, 1.5, None])
    assert found["agreement"] is None and found["firm"] is None


def test_a_run_without_evidence_says_why(tmp_path):
    write_run(tmp_path / "run", TASKS, 2, recorded=False)
    assert "recorded no evidence" in describe_evidence(tmp_path / "run", NAMES)["missing"]
    assert "holds no run" in describe_evidence(tmp_path, NAMES)["missing"]
