import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.compare import cells as compare
from trainer.compare.cells import run_cell
from trainer.compare.plan import plan_cells
from trainer.config.loading import load_config
from trainer.errors import UserError


@pytest.fixture
def cells_of(rooms_yaml, tmp_path):
    def plan(recipes="random,multitask", seeds=(3, 4), overrides=("run.steps=2",)):
        return plan_cells(rooms_yaml, recipes.split(","), seeds, tmp_path / "out", overrides)

    return plan


@pytest.fixture
def main_of(tmp_path, monkeypatch):
    """Puts a script in the place of trainer/main.py, and a result in that of its run's."""

    def replace(code):
        script = tmp_path / "main.py"
        script.write_text(code)
        monkeypatch.setattr(compare, "TRAIN_SCRIPT", script)
        monkeypatch.setattr(compare, "read_result", lambda folder: {"groups": [folder.name]})

    return replace


def test_cells_and_their_arguments(cells_of, rooms_yaml, tmp_path):
    cells = cells_of()
    assert [(c.index, c.recipe, c.seed) for c in cells] == [
        (0, "random", 3),
        (1, "random", 4),
        (2, "multitask", 3),
        (3, "multitask", 4),
    ]
    folder = tmp_path / "out" / "random" / "seed-4"
    assert cells[1].folder == folder
    assert cells[1].arguments[:3] == ("--config", str(rooms_yaml), "run.steps=2")
    assert set(cells[1].arguments[3:]) == {
        f"run.out={folder}",
        "run.seed=4",
        "run.resume=auto",
        "grouping.recipe=random",
        "log.progress=false",
        "model.paired_init=true",
    }
    assert cells[0].load() == {"recipe": "random", "seed": 3, "status": "waiting", "seconds": 0.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"recipes": "random,best"},
            r"--recipes: found 'random,best'; allowed, each once: affinity",
        ),
        ({"recipes": "tag,tag"}, r"--recipes: found 'tag,tag'"),
        ({"overrides": ["run.seed=1"]}, r"override 'run\.seed=1': compare sets this key"),
        ({"overrides": ["grouping.recipe=tag"]}, r"compare sets this key for every cell"),
        ({"overrides": ["run.step=1"]}, r"run\.step: unknown key"),
        ({"recipes": "random,fixed"}, r"grouping\.groups: required and not given"),
        ({"overrides": ["grouping.lr=1"]}, r"'grouping\.lr=1': .*: no recipe here has it"),
        ({"overrides": ["grouping.search.every=1"]}, r"renamed to grouping\.search_every"),
    ],
)
def test_comparisons_that_cannot_be(arguments, message, cells_of):
    with pytest.raises(UserError, match=message):
        cells_of(**arguments)


def grouping_of(cell):
    _, path, *overrides = cell.arguments
    return load_config(Path(path), overrides).grouping.model_dump(mode="json")


def test_keys_of_the_file_apply_to_the_recipe_that_it_names(cells_of, rooms_config):
    cells = cells_of("affinity,published", (3,), ())
    assert grouping_of(cells[0]) == rooms_config("grouping.recipe=affinity").grouping.model_dump()
    assert grouping_of(cells[1]) == rooms_config().grouping.model_dump()
    assert rooms_config().grouping.lr == 0.1, "not the default"


def test_overrides_apply_to_the_recipes_that_have_the_key(cells_of):
    overrides = ["grouping.sampled_heads=2", "grouping.temperature=0.3", "grouping.noise=per_rank"]
    cells = cells_of("affinity,published,random", (3,), overrides)
    affinity, published, random = (grouping_of(cell) for cell in cells)
    assert (affinity["sampled_heads"], affinity["temperature"]) == (2, 0.3)
    assert (published["sampled_heads"], published["noise"]) == (2, "per_rank")
    assert published["temperature"]["initial"] == 2.0
    assert random == {"recipe": "random"}


def test_fixed_groups_are_compared_with_others(cells_of):
    fixed, random = cells_of("fixed,random", (3,), ["grouping.groups=groups.json"])
    assert grouping_of(fixed)["groups"] == "groups.json"
    assert "grouping.groups=groups.json" not in random.arguments


def test_recipes_of_a_plug_in_can_be_compared(cells_of, tmp_path, monkeypatch):
    (tmp_path / "cells_plugin.py").write_text(
        "from dmtg.plugins import register_recipe\n"
        "from trainer.recipes.multitask import Multitask\n"
        "register_recipe('of_cells')(type('OfCells', (Multitask,), {'__module__': __name__}))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="found 'of_cells'"):
        cells_of("of_cells", (3,))
    (cell,) = cells_of("of_cells", (3,), ["plugins=[cells_plugin]"])
    assert grouping_of(cell) == {"recipe": "of_cells"}


def test_a_folder_with_another_run(cells_of, rooms_config):
    cell = cells_of()[0]
    cell.folder.mkdir(parents=True)
    (cell.folder / "config.yaml").write_text(rooms_config("run.seed=3").to_yaml())
    with pytest.raises(UserError, match=r"seed-3 holds another run:\n.*run\.steps was 30, is 2"):
        cells_of()


def test_a_cell_is_trained_once_and_its_seconds_add_up(cells_of, main_of):
    cell = cells_of()[0]
    main_of("import sys, time; time.sleep(0.3); print('out', file=sys.stderr); sys.exit(3)")
    failed = run_cell(cell, None)
    assert (failed["status"], failed["exit_code"]) == ("failed", 3)
    assert cell.load() == failed
    main_of("import time; time.sleep(0.3)")
    done = run_cell(cell, None)
    assert done["status"] == "done" and done["groups"] == ["seed-3"]
    assert done["seconds"] > failed["seconds"] + 0.3 > 0.6
    assert "grouping.recipe=random" in done["command"].split()
    main_of("raise SystemExit(9)")
    assert run_cell(cell, None) == done == cell.load()


def test_the_message_of_a_failed_cell(cells_of, main_of):
    cell = cells_of()[2]
    main_of("for i in range(50): print('line', i)\nraise RuntimeError('lost')")
    message = run_cell(cell, None)["message"]
    assert message.startswith("cell 2 (multitask, seed 3) ended with exit code 1\n  command: ")
    assert sys.executable in message and "grouping.recipe=multitask" in message
    assert message.endswith("RuntimeError: lost") and "line 49" in message
    assert "line 20\n" not in message


def test_a_killed_process_is_a_failed_cell(cells_of, main_of):
    main_of("import os; os.kill(os.getpid(), 9)")
    record = run_cell(cells_of()[0], None)
    assert (record["status"], record["exit_code"]) == ("failed", -9)


def test_the_launcher_comes_before_the_script(cells_of, tmp_path):
    command = compare._command(cells_of()[0], tmp_path / "ddp.yaml")
    assert command[1:5] == [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(tmp_path / "ddp.yaml"),
    ]
    assert command.index("--config") > command.index(str(compare.TRAIN_SCRIPT)) > 5


def test_the_training_ends_with_the_comparison(cells_of, main_of, tmp_path, monkeypatch):
    """Terminated, the comparison takes its process along and keeps the seconds so far."""
    cell = cells_of()[0]
    main_of(f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()));"
            "time.sleep(60)")  # fmt: skip
    monkeypatch.setattr(compare, "_HEARTBEAT", 0.1)
    started, wait, sent = time.monotonic(), subprocess.Popen.wait, []

    def wait_and_terminate(process, timeout=None):
        if not sent and (tmp_path / "pid").exists() and time.monotonic() - started > 0.5:
            sent.append(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_and_terminate)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        run_cell(cell, None)
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    record = json.loads((cell.folder / "cell.json").read_text())
    assert record["status"] == "running" and record["seconds"] > 0.3


SAVES = """
import json, pathlib, signal, sys, time
out = pathlib.Path(next(a for a in sys.argv if a.startswith("run.out=")).partition("=")[2])

def save(number, frame):
    (out / "status.json").write_text(json.dumps({"state": "preempted", "updated": time.time()}))
    sys.exit(CODE)

signal.signal(signal.SIGUSR1, save)
(out / "ready").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("code", [0, 1], ids=["plain", "by a launcher"])
def test_a_cell_that_is_asked_to_stop(code, cells_of, main_of, monkeypatch):
    """The signal is passed on; the cell counts as stopped and goes on when it is started again."""
    cell = cells_of()[0]
    main_of(SAVES.replace("CODE", str(code)))
    wait, sent = subprocess.Popen.wait, []

    def wait_and_ask(process, timeout=None):
        if not sent:
            while not (cell.folder / "ready").exists():
                time.sleep(0.01)
            sent.append(signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR1)
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_and_ask)
    before = signal.getsignal(signal.SIGUSR1)
    stopped = run_cell(cell, None)
    assert signal.getsignal(signal.SIGUSR1) is before
    assert stopped["status"] == "stopped" and stopped == cell.load()
    assert "groups" not in stopped and "message" not in stopped
    main_of("raise SystemExit(4)")
    assert run_cell(cell, None)["status"] == "failed", "the status is of the start before"
    main_of("")
    done = run_cell(cell, None)
    assert done["status"] == "done" and done["seconds"] > stopped["seconds"]
