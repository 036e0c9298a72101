import json
import shutil
import sys
from pathlib import Path

import pytest

from model.tasks.spec import TaskSpec
from tests.runs import probability_at, write_run
from trainer.commands.report import report
from trainer.errors import UserError
from trainer.report.page import MAX_RUNS, write_page
from trainer.report.records import expand_comparisons

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures" / "version1"
TASKS = [TaskSpec("a", "binary"), TaskSpec("b", "regression", unit="m")]


def content_of(page):
    text = page.read_text()
    start = text.index('type="application/json">') + len('type="application/json">')
    return json.loads(text[start : text.index("</script>", start)])


def test_facts_of_a_run(tmp_path):
    write_run(tmp_path / "run", TASKS, 2, errors=(0.25, 3.0))
    reference = {"a": {"error": 0.5}, "b": {"mae": 1.5}}
    out = tmp_path / "deep" / "page.html"
    write_page([tmp_path / "run"], out, reference=reference, reference_name="x", use_data=False)
    found = content_of(out)
    (run,) = found["runs"]
    assert found["reference_name"] == "x" and run["reference"] == [0.5, 1.5]
    assert run["metrics"] == [{"error": 0.25}, {"mae": 3.0}]
    assert run["change_reference"] == {"mean": -25.0, "tasks": 2, "better": 1}
    assert run["chosen"] == [0, 1] and run["constants"] == [None, None]
    assert run["curves"]["metric_values"] == [[0.75, 0.375, 0.25], [9.0, 4.5, 3.0]]
    assert run["curves"]["losses"][1][0] == pytest.approx(1 / 6, rel=1e-4)
    assert run["speed"]["process_gib"] == [1.5] * 12
    assert "--no-data" in run["no_data"] and run["samples"] is None
    assert len(run["history"]["steps"]) == 12 and probability_at(60, 2) == 1.0


def test_a_run_of_an_earlier_version(tmp_path):
    write_run(tmp_path / "run", TASKS, 2, recorded=False)
    write_page([tmp_path / "run"], tmp_path / "page.html", use_data=False)
    (run,) = content_of(tmp_path / "page.html")["runs"]
    assert run["history"]["steps"] == [0, 40, 60] and not run["history"]["recorded"]
    assert "has recorded no affinities" in run["affinity"]["missing"]
    assert "has recorded no evidence" in run["evidence"]["missing"]


def test_co_assignments_are_letters(tmp_path):
    """Of the lower triangle in the order of the rows: a twentieth each, A is never, U is always."""
    tasks = [TaskSpec(name, "binary") for name in "abc"]
    write_run(tmp_path / "run", tasks, 2)  # c shares the branch of a
    write_page([tmp_path / "run"], tmp_path / "page.html", use_data=False)
    (run,) = content_of(tmp_path / "page.html")["runs"]
    assert run["affinity"]["order"] == [0, 2, 1] and run["affinity"]["together"] == "TTTBBT"


def test_constants_that_the_run_has_kept_need_no_data(tmp_path):
    write_run(tmp_path / "run", TASKS, 2, errors=(0.25, 3.0))
    result = {"step": 60, "constants": {"a": {"error": 0.5}, "b": {"mae": 2.0, "rmse": None}}}
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    write_page([tmp_path / "run"], tmp_path / "page.html")
    (run,) = content_of(tmp_path / "page.html")["runs"]
    assert run["constants"] == [0.5, 2.0] and run["change_constant"]["mean"] == 0.0
    (tmp_path / "run" / "result.json").write_text(json.dumps({**result, "step": 40}))
    write_page([tmp_path / "run"], tmp_path / "page.html", use_data=False)
    assert content_of(tmp_path / "page.html")["runs"][0]["constants"] == [None, None]


def test_data_that_cannot_be_read_are_named(tmp_path):
    write_run(tmp_path / "run", TASKS, 2)
    write_page([tmp_path / "run"], tmp_path / "page.html")
    (run,) = content_of(tmp_path / "page.html")["runs"]
    assert run["no_data"].startswith("The data of this run could not be read: ")
    assert "manifest.json" in run["no_data"]


def test_the_single_task_run_among_the_runs_is_the_reference(tmp_path):
    write_run(tmp_path / "a", TASKS, 2, errors=(0.2, 1.0))
    write_run(tmp_path / "b", TASKS, 2, errors=(0.4, 2.0), recipe="single_task")
    write_page([tmp_path / "a", tmp_path / "b"], tmp_path / "page.html", use_data=False)
    found = content_of(tmp_path / "page.html")
    assert found["reference_name"] == "single-task (b)"
    assert [run["reference"] for run in found["runs"]] == [[0.4, 2.0]] * 2
    assert found["runs"][0]["change_reference"]["mean"] == 50.0
    assert found["comparison"]["pairs"][0]["name"] == "single_task"


def test_what_cannot_be_one_page(tmp_path):
    write_run(tmp_path / "run", TASKS, 2)
    out = tmp_path / "page.html"
    with pytest.raises(UserError, match="a run is named twice"):
        write_page([tmp_path / "run", tmp_path / "x" / ".." / "run"], out, use_data=False)
    with pytest.raises(UserError, match=f"found {MAX_RUNS + 1} runs; allowed: at most {MAX_RUNS}"):
        write_page([tmp_path / "run"] * (MAX_RUNS + 1), out, use_data=False)
    with pytest.raises(UserError, match="holds no run"):
        write_page([tmp_path / "none"], out, use_data=False)
    (tmp_path / "run" / "checkpoints" / "latest").unlink()
    for path in (tmp_path / "run" / "checkpoints").glob("step-*/*"):
        path.unlink()
    with pytest.raises(UserError, match="checkpoint"):
        write_page([tmp_path / "run"], out, use_data=False)
    assert not out.exists()


def test_without_the_charting_library_the_message_names_it(tmp_path, monkeypatch):
    write_run(tmp_path / "run", TASKS, 2)
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(UserError, match="vl-convert-python is needed"):
        write_page([tmp_path / "run"], tmp_path / "page.html", use_data=False)


def test_a_comparison_stands_for_its_finished_runs(tmp_path):
    for name, status in (("a/seed-0", "done"), ("a/seed-1", "failed"), ("b/seed-0", "done")):
        (tmp_path / "c" / name).mkdir(parents=True)
        (tmp_path / "c" / name / "cell.json").write_text(json.dumps({"status": status}))
    plain = tmp_path / "plain"
    found = expand_comparisons([plain, tmp_path / "c"])
    assert found == [plain, tmp_path / "c" / "a" / "seed-0", tmp_path / "c" / "b" / "seed-0"]
    (tmp_path / "c" / "a" / "seed-0" / "cell.json").write_text("{")
    (tmp_path / "c" / "b" / "seed-0" / "cell.json").write_text("[]")
    with pytest.raises(UserError, match="is a comparison without a finished run"):
        expand_comparisons([tmp_path / "c"])


def test_a_picture_is_of_one_run():
    with pytest.raises(UserError, match="--png: found 2 runs; allowed: one"):
        report([Path("a"), Path("b")], png=True)


@pytest.mark.parametrize("name", ["affinity", "published"])
def test_a_run_of_version_1(name, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(FIXTURES / name, run)
    write_page([run], tmp_path / "page.html", use_data=False)
    found = content_of(tmp_path / "page.html")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = [task["name"] for task in found["task_sets"][0]]
    last = [record for record in records if record["kind"] == "train"][-1]
    (shown,) = found["runs"]
    assert set(names) == set(last["losses"]) and shown["step"] == last["step"]
    assert shown["curves"]["heads"][-1] == last["heads"]
