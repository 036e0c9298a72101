"""From shards to a run in two commands: `dmtg init`, then the command that it prints."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

from data_pipelines.synthetic.digits import write_digits
from dmtg.yaml_text import parse_yaml
from tests.processes import SETTINGS
from trainer.config.loading import load_config, parse_config
from trainer.run_data import open_data


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folder that the command is started in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_configuration_for_digits(dmtg, digits, here):
    end = dmtg("init", digits)
    assert end.code == 0, end.stderr
    assert "config: digits.yaml" in end.stdout
    assert "tasks: 24 (21 binary, 1 multiclass, 2 regression)" in end.stdout
    assert re.search(r"^next: dmtg train digits\.yaml$", end.stdout, re.MULTILINE)
    text = (here / "digits.yaml").read_text()
    config = load_config(here / "digits.yaml")
    assert str(config.data.shards) == str(digits) and config.run.resume == "auto"
    assert len(config.tasks.names) == 24 == len(open_data(config).tasks)
    assert re.search(r"^    - order +# multiclass; 3 classes: left_smaller, equal", text, re.M)
    assert max(map(len, text.splitlines())) <= 120
    schema = json.loads((here / "dmtg.schema.json").read_text())
    assert not list(Draft7Validator(schema).iter_errors(parse_yaml(text)))


def test_every_line_that_is_off_can_be_turned_on(dmtg, digits, here):
    assert dmtg("init", digits).code == 0
    lines = (here / "digits.yaml").read_text().splitlines()
    off = [n for n, line in enumerate(lines) if re.match(r" *# [a-z_]+:( |$)", line)]
    assert len(off) >= 8
    on = [re.sub(r"# ", "", line, count=1) if n in off else line for n, line in enumerate(lines)]
    tree = parse_yaml("\n".join(on))
    config = parse_config(tree, "all on")
    assert config.grouping.recipe == "evidence" and config.finetune.epochs and config.data.flip


def test_dense_labels_and_another_file(dmtg, rooms, here):
    end = dmtg("init", rooms, "--out", here / "sub" / "mine.yaml", "--json")
    values = json.loads(end.stdout.splitlines()[-1])
    assert (
        end.code == 0
        and values["config"] == str(here / "sub" / "mine.yaml")
        and not values["left_out"]
    )
    assert open_data(load_config(here / "sub" / "mine.yaml")).tasks
    assert re.search(
        r"- normal +# dense_regression; 3 channels; ", (here / "sub" / "mine.yaml").read_text()
    )


def test_no_file_is_replaced(dmtg, digits, here):
    (here / "digits.yaml").write_text("mine")
    (here / "dmtg.schema.json").write_text("mine")
    end = dmtg("init", digits)
    assert end.code == 2 and "digits.yaml: exists and would be replaced" in end.stderr
    assert (here / "digits.yaml").read_text() == "mine"
    assert dmtg("init", digits, "--overwrite").code == 0
    assert load_config(here / "digits.yaml").run.out
    assert (here / "dmtg.schema.json").read_text() == "mine"
    end = dmtg("schema", "--out", "dmtg.schema.json")
    assert end.code == 2 and "dmtg.schema.json: exists" in end.stderr


def test_a_folder_that_holds_no_shards(dmtg, here):
    end = dmtg("init", here / "nothing")
    assert end.code == 2 and "manifest.json" in end.stderr and not list(here.iterdir())


def test_credentials_are_not_written(dmtg, here):
    end = dmtg("init", "https://me:secret@host/shards")
    assert end.code == 2 and "secret" not in end.stderr and "user, a password" in end.stderr
    assert not list(here.iterdir())


def test_keys_of_a_section(dmtg):
    end = dmtg("keys", "optim.lr")
    assert end.stdout.splitlines() == [
        "optim.lr: a number above 0; default 0.001",
        "    Learning rate of trunk and branches.",
    ]
    end = dmtg("keys", "recipe published")
    assert "grouping.temperature.initial (recipe published): a number above 0" in end.stdout
    end = dmtg("keys", "optm")
    assert end.code == 2 and "did you mean 'optim'?" in end.stderr
    end = dmtg("keys", "optim", "--json")
    listed = json.loads(end.stdout.splitlines()[-1])["keys"]
    assert {"path", "of", "allowed", "default", "meaning", "is_section"} == set(listed[0])


def test_an_option_that_is_an_override(main_script, here):
    end = main_script("--config", here / "a.yaml", "--optim.lr=3")
    assert end.code == 2 and "an override has no dashes: optim.lr=3" in end.stderr


def test_a_configuration_with_a_similar_name(main_script, here):
    (here / "mine.yaml").write_text("run: {}")
    end = main_script("--config", here / "mien.yaml")
    assert end.code == 2 and f"did you mean {here / 'mine.yaml'}?" in end.stderr


@pytest.mark.slow
def test_it_trains_as_written(dmtg, here):
    write_digits(here / "data", train=64, val=32, progress=False)
    end = dmtg("init", "data")
    assert end.code == 0, end.stderr
    (command,) = re.findall(r"^next: (.*)$", end.stdout, re.MULTILINE)
    environment = {**os.environ, **SETTINGS, "CUDA_VISIBLE_DEVICES": "-1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    status = json.loads((here / "runs" / "digits" / "status.json").read_text())
    assert status["state"] == "finished" and status["step"] == 800
    records = map(json.loads, (here / "runs" / "digits" / "metrics.jsonl").read_text().splitlines())
    assert sum(record["kind"] == "eval" for record in records) >= 10
