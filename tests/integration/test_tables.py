"""What the commands print fits 80 columns, and numbers have a few digits."""

import re

import pytest

from model.tasks.spec import TaskSpec
from tests.runs import write_run
from trainer.commands.output import table_console
from trainer.compare.report import print_tables, save_comparison

LONG = "a_task_with_quite_a_long_name_that_a_label_column_may_well_have_in_practice"


def lines_of(end):
    assert end.code in (0, 1), end.stderr
    return end.stdout.splitlines()


def check(lines, *, paths=False):
    """No line is too wide, but one that ends with a path, and no number has many digits."""
    for line in lines:
        wide = len(line) > 80 and not (paths and "/" in line.rsplit(" ", 1)[-1])
        assert not wide, line
        numbers = re.findall(r"\d+\.\d+", line)
        assert all(len(n.replace(".", "").lstrip("0")) <= 8 for n in numbers), line


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def test_plan(dmtg, rooms_yaml):
    end = dmtg("plan", rooms_yaml, "--gpus", "8", "--gpu-memory", "16", "--tflops", "0.001")
    lines = lines_of(end)
    check(lines)
    text = "\n".join(lines)
    for engine in ("ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2"):
        assert engine in text
    assert "…" not in text


def test_status(run, dmtg):
    lines = lines_of(dmtg("status", run[0]))
    check(lines)
    assert any(re.match(r"loss: [\d.]{3,6}, ", line) for line in lines)


def test_export_and_eval(run, model, rooms, dmtg, tmp_path):
    reference = tmp_path / "ref.json"
    lines = lines_of(dmtg("eval", model[0], "--shards", rooms, "--out", reference))
    check(lines)
    assert any(line.startswith("Mean change against the constant prediction: ") for line in lines)
    check(lines_of(dmtg("eval", model[0], "--shards", rooms, "--reference", reference)))
    check(lines_of(dmtg("export", run[0], "--out", tmp_path / "m.safetensors")), paths=True)


def test_doctor(rooms, dmtg, tmp_path):
    check(lines_of(dmtg("doctor", rooms, "--out", tmp_path / "d.png", "--samples", 9)), paths=True)


def test_shards(dmtg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of the folder is long where tests run in workers
    end = dmtg("shards", "rooms", "--out", "s", "--samples", 4, "--size", 32)
    check(lines_of(end), paths=True)


@pytest.mark.slow
def test_bench_step(dmtg):
    options = ("--encoder", "none", "--tasks", 2, "--batch", 2, "--features", 4, "--repeats", 1)
    check(lines_of(dmtg("bench", "step", *options)))


def test_launch_files(dmtg):
    check(lines_of(dmtg("launch-files")), paths=True)


def test_report(dmtg, tmp_path):
    folder = write_run(tmp_path / "run", [TaskSpec("a", "binary"), TaskSpec("b", "binary")], 2)
    check(lines_of(dmtg("report", folder, "--no-data")), paths=True)


def test_compare_with_seven_recipes(capsys, tmp_path):
    tasks = [TaskSpec(name, "binary").to_dict() for name in (LONG, "sphere")]
    records = [
        {
            "recipe": recipe, "seed": seed, "status": "done", "seconds": 1234.5678 + seed,
            "tasks": tasks, "train_loss": 0.123456789 / (seed + 1), "parameters": 12_345_678,
            "metrics": {LONG: {"error": 0.1234567 + seed / 99}, "sphere": {"error": 0.3}},
            "groups": [[LONG], ["sphere"]],
        }
        for recipe in ("evidence", "published", "random", "multitask", "single_task", "grad_tag")
        for seed in range(3)
    ]  # fmt: skip
    comparison = save_comparison(records, tmp_path, "Runs.")
    print_tables(comparison.tables, table_console())
    table_console().print(comparison.notes, markup=False)
    lines = capsys.readouterr().out.splitlines()
    check(lines)
    text = "".join(lines)
    assert text.count("0.134 ± 0.01") == 6 and "single_task" in text
    notes = " ".join(" ".join(lines).split())
    assert "of 2 tasks and over the seeds, of runs with the same seed, against random" in notes
