import json

import pytest
from typer.testing import CliRunner

from model.bundle import save_bundle
from model.subset import subset
from trainer.builders import build_network
from trainer.commands.app import app
from trainer.config.loading import load_config
from trainer.errors import UserError
from trainer.run_data import open_manifest
from trainer.scoring.scores import score_model
from trainer.tasks import resolve_tasks


@pytest.fixture(scope="module")
def model(rooms_yaml, tmp_path_factory):
    """An exported model of six tasks that has learned nothing."""
    folder = tmp_path_factory.mktemp("model")
    config = load_config(rooms_yaml, [f"run.out={folder / 'run'}"])
    network = build_network(config, resolve_tasks(config.tasks, open_manifest(config)))
    path = folder / "model.safetensors"
    save_bundle(path, subset(network, [(task, task % 3) for task in range(6)]), {})
    return path


@pytest.fixture(scope="module")
def plain(model, rooms):
    return score_model(model, rooms)


def run(*arguments):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def test_without_a_reference_there_is_no_gain(plain):
    assert {score.gain for score in plain.scores} == {None}
    assert plain.summary.normalized_gain is None
    errors = [values["error"] for values in plain.metrics.values() if "error" in values]
    assert len(errors) == 2
    assert plain.summary.total_error == pytest.approx(100 * sum(errors))


def test_what_out_writes_is_a_reference_of_no_gain(model, rooms, plain, tmp_path):
    out = tmp_path / "reference.json"
    first = run(model, "--shards", rooms, "--out", out)
    assert first.exit_code == 0, first.output
    words = " ".join(first.output.split())
    assert "Mean change against the constant prediction: " in words and " of 6 tasks" in words
    assert "(reference - value) / reference where lower is better" in words
    assert "against reference" not in words and "total error" not in words
    assert json.loads(out.read_text()) == plain.metrics
    second = run(model, "--shards", rooms, "--reference", out, "--json")
    result = json.loads(second.output.splitlines()[-1])
    assert result["summary"]["normalized_gain"] == 0
    assert set(result["summary"]["gains"].values()) == {0}


def test_gains_over_a_file_written_by_hand(model, rooms, plain, tmp_path):
    """Twice every error and half of every overlap, for the tasks' primary metrics alone."""
    twice = {
        score.task: {score.metric: score.value * (0.5 if score.higher_is_better else 2)}
        for score in plain.scores
    }
    (tmp_path / "ref.json").write_text(json.dumps(twice))
    end = run(model, "--shards", rooms, "--reference", tmp_path / "ref.json", "--json")
    assert end.exit_code == 0, end.output
    result = json.loads(end.output.splitlines()[-1])
    expected = {score.task: 100 if score.higher_is_better else 50 for score in plain.scores}
    assert len(expected) == 6 and sorted(expected.values()) == [50] * 5 + [100]
    assert result["summary"]["gains"] == pytest.approx(expected)
    assert {s["task"]: s["gain"] for s in result["scores"]} == pytest.approx(expected)
    assert result["summary"]["normalized_gain"] == pytest.approx(350 / 6)
    words = " ".join(end.output.split())
    for word in ("+50.00", "+100.00", "Mean change against ref.json: +58.33 % over 6 of 6 tasks"):
        assert word in words
    assert max(map(len, end.output.splitlines()[:-1])) <= 80


def test_a_reference_is_judged_before_the_evaluation(model, tmp_path):
    with pytest.raises(UserError, match="task 'normal' lacks the metric 'angle'"):
        score_model(model, tmp_path / "no shards", reference={"normal": {"mae": 1.0}})


def test_a_task_that_the_reference_lacks(model, rooms, plain):
    known = {name: values for name, values in plain.metrics.items() if name != "normal"}
    with pytest.raises(UserError, match="reference: task 'normal' is missing; found: camera_pitch"):
        score_model(model, rooms, reference=known)
