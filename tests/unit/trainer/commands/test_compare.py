import json

import pytest
from typer.testing import CliRunner

from model.tasks.spec import TaskSpec
from trainer.commands.app import app
from trainer.compare import cells as compare
from trainer.errors import UserError

RESULT = {
    "tasks": [TaskSpec("sphere", "binary").to_dict(), TaskSpec("box", "binary").to_dict()],
    "metrics": {"sphere": {"error": 0.1, "f1": 0.5}, "box": {"error": 0.3, "f1": 0.5}},
    "train_loss": 0.5,
    "groups": [["sphere", "box"]],
    "parameters": 1000,
}


@pytest.fixture
def compare_with(rooms_yaml, tmp_path, monkeypatch):
    """Runs `dmtg compare` with a script in the place of trainer/main.py."""
    script = tmp_path / "main.py"
    monkeypatch.setattr(compare, "TRAIN_SCRIPT", script)
    monkeypatch.setattr(compare, "read_result", lambda _: RESULT)

    def run(code, *options):
        script.write_text(code)
        fixed = [str(rooms_yaml), "run.steps=2", "--recipes", "random,multitask", "--seeds", "2"]
        arguments = ["compare", *fixed, "--out", str(tmp_path / "out"), *options]
        return CliRunner().invoke(app, arguments)

    return run


FAILS = "import sys; sys.exit(5 if 'run.seed=0' in sys.argv else 0)"


def last_line(result):
    return json.loads(result.stdout.splitlines()[-1])


def test_tables_and_files(compare_with, tmp_path):
    result = compare_with("", "--json")
    assert result.exit_code == 0, result.output
    found = last_line(result)
    assert [r["recipe"] for r in found["recipes"]] == ["random", "multitask"]
    assert [r["done"] for r in found["recipes"]] == [2, 2]
    assert found["recipes"][0]["total_error"]["mean"] == pytest.approx(40.0)
    assert all((tmp_path / "out" / f"compare.{kind}").exists() for kind in ("md", "json", "png"))
    assert "Runs of `" in (tmp_path / "out" / "compare.md").read_text()


def test_a_failed_cell_stops_the_comparison(compare_with, tmp_path):
    result = compare_with(FAILS)
    assert result.exit_code == 1
    assert "error: cell 0 (random, seed 0) ended with exit code 5" in result.stderr
    assert not (tmp_path / "out" / "compare.md").exists()
    states = [cell["status"] for cell in last_line(compare_with("", "--list", "--json"))["cells"]]
    assert states == ["failed", "waiting", "waiting", "waiting"]


def test_keep_going_marks_failed_cells(compare_with, tmp_path):
    result = compare_with(FAILS, "--keep-going", "--json")
    assert result.exit_code == 1
    assert [(r["done"], r["failed"]) for r in last_line(result)["recipes"]] == [(1, 1), (1, 1)]
    assert "1 (1 failed)" in (tmp_path / "out" / "compare.md").read_text()


def test_one_cell_of_a_job_array(compare_with, tmp_path):
    result = compare_with("", "--only", "2", "--seed-base", "7", "--json")
    assert result.exit_code == 0
    found = last_line(result)
    assert (found["recipe"], found["seed"], found["status"]) == ("multitask", 7, "done")
    assert not (tmp_path / "out" / "compare.md").exists()
    *listed, folders = compare_with("", "--list", "--seed-base", "7").stdout.splitlines()
    assert folders == f"folders: {tmp_path / 'out'}/RECIPE/seed-SEED"
    assert [line.split() for line in listed] == [
        ["0", "random", "7", "waiting"],
        ["1", "random", "8", "waiting"],
        ["2", "multitask", "7", "done"],
        ["3", "multitask", "8", "waiting"],
    ]
    assert compare_with(FAILS, "--only", "2").exit_code == 1, "seed 0 this time"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--only", "4"), r"--only: found 4; allowed: 0 to 3"),
        (("--launch", "/none.yaml"), r"--launch /none\.yaml: no such file"),
        (("--k", "2,x"), r"--k: found '2,x'; allowed: numbers by commas, as in 1,2,4"),
        (("--k", "2,2"), r"--k: found 2,2; allowed: numbers from 1 to \d+, each once"),
        (("--single-task-chunk", "2"), r"needs the recipe single_task in --recipes"),
        (("--reference", "tag"), r"--reference: found 'tag'; allowed: random, multitask"),
        (
            ("--k", "2,3", "--reference", "random K=4"),
            r"found 'random K=4'; allowed: random K=2, random, random K=3, multitask",
        ),
    ],
)
def test_options_that_cannot_be(options, message, compare_with):
    result = compare_with("", *options)
    assert isinstance(result.exception, UserError)
    with pytest.raises(UserError, match=message):
        raise result.exception


STOPS = """
import json, pathlib, sys
out = pathlib.Path(next(a for a in sys.argv if a.startswith("run.out=")).partition("=")[2])
if out.parent.name == "random" and out.name == "seed-1":
    (out / "status.json").write_text(json.dumps({"state": "preempted"}))
"""


def test_a_stopped_cell_ends_the_comparison(compare_with, tmp_path):
    result = compare_with(STOPS, "--keep-going")
    assert result.exit_code == 75
    assert not (tmp_path / "out" / "compare.md").exists()
    states = [cell["status"] for cell in last_line(compare_with("", "--list", "--json"))["cells"]]
    assert states == ["done", "stopped", "waiting", "waiting"]
    assert compare_with("", "--only", "1").exit_code == 0


def test_numbers_of_branches_in_the_list_and_the_verdict(compare_with):
    lines = compare_with("", "--k", "1,2", "--list").stdout.splitlines()
    assert [line.split("  ") for line in lines[:-1]] == [
        ["0", "random K=2", "0", "waiting"],
        ["1", "random K=2", "1", "waiting"],
        ["2", "multitask", "0", "waiting"],
        ["3", "multitask", "1", "waiting"],
    ]
    result = compare_with("", "--k", "1,2", "--reference", "multitask", "--json")
    assert result.exit_code == 0, result.output
    found = last_line(result)
    # The stub gives every run the same metrics.
    assert found["sentences"] == [
        "random K=2 against multitask: no difference that 2 seeds can show (95 % interval 0.0 to "
        f"0.0, 2 tasks); {found['sentences'][0].partition('; ')[2]}"
    ]
    assert found["verdict"].startswith("No grouping is better than one branch by a difference")
    assert "nothing here, take K = 1" in found["verdict"]
    one = last_line(compare_with("", "--k", "1,2", "--only", "1", "--json"))
    assert (one["label"], one["branches"], one["status"]) == ("random K=2", 2, "done")


def test_a_failed_run_is_called_by_its_row(compare_with):
    result = compare_with("import sys; sys.exit(4)", "--k", "2")
    assert result.exit_code == 1
    assert "error: cell 0 (random K=2, seed 0) ended with exit code 4" in result.stderr
