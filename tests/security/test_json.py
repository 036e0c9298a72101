"""Values that are not numbers: no output is JSON with NaN in it, and no NaN counts as better."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

from model.encoders import build_encoder
from model.metrics import metric_for
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec
from trainer.commands.output import print_json
from trainer.compare.report import save_comparison
from trainer.compare.table import tabulate
from trainer.config.log import LogSection
from trainer.evaluation import MetricSums
from trainer.json_file import to_json, to_number, write_json
from trainer.monitoring.logs import RunLog
from trainer.monitoring.status import StatusFile
from trainer.monitoring.timing_file import TimingFile
from trainer.report.picture import read_metrics
from trainer.run_folder import RunFolder
from trainer.scoring.reference import read_reference, write_reference
from trainer.scoring.scores import Score, scores_json
from trainer.scoring.summary import summarise

BAD = {"nan": math.nan, "inf": math.inf, "deep": [{"x": (-math.inf, 1.5)}], "text": "NaN"}
NULLS = {"nan": None, "inf": None, "deep": [{"x": [None, 1.5]}], "text": "NaN"}


def strict(text):
    """Read JSON as a reader does that knows no NaN."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_number_that_is_not_finite_is_null(tmp_path, capsys):
    assert strict(to_json(BAD)) == NULLS
    write_json(tmp_path / "file", BAD, indent=1)
    assert strict((tmp_path / "file").read_text()) == NULLS
    print_json(BAD)
    assert strict(capsys.readouterr().out) == NULLS
    assert math.isnan(to_number(None)) and to_number(2.5) == 2.5


def test_the_files_of_a_run(tmp_path):
    section = LogSection(trackers=[], progress=False)
    log = RunLog(RunFolder(tmp_path), section, rank=0, start_step=0, num_steps=1, metrics_bytes=0)
    log.write(1, "train", loss=math.nan, losses={"a": math.inf})
    log.close()
    TimingFile(tmp_path).append(1, "steps", {"speed": math.nan})
    StatusFile(tmp_path).write("running", loss=math.nan)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert strict(line) == {"step": 1, "kind": "train", "loss": None, "losses": {"a": None}}
    assert strict((tmp_path / "timing.jsonl").read_text())["speed"] is None
    assert strict((tmp_path / "status.json").read_text())["loss"] is None
    assert read_metrics(tmp_path)[0]["loss"] is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "loss": NaN}\n')
    assert math.isnan(read_metrics(tmp_path)[0]["loss"]), "a file of an earlier version"


def test_a_reference_holds_numbers_only(tmp_path):
    write_reference(tmp_path / "ref", {"a": {"error": 0.5, "miou": math.nan}})
    assert strict((tmp_path / "ref").read_text()) == {"a": {"error": 0.5}}
    assert read_reference(tmp_path / "ref") == {"a": {"error": 0.5}}


@pytest.mark.parametrize("higher", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_such_a_score_is_never_better(bad, higher):
    for value, constant in ((bad, 0.5), (0.5, bad), (bad, bad)):
        score = Score("a", 0, "m", value, constant, higher)
        assert not score.beats_constant
        record = strict(to_json(scores_json([score])))[0]
        assert record["beats_constant"] is False and None in (record["value"], record["constant"])
    assert Score("a", 0, "m", 0.4, 0.5, False).beats_constant


KINDS = {
    "binary": {},
    "multiclass": {"channels": 3},
    "regression": {},
    "dense_regression": {},
    "dense_classification": {"channels": 3},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_that_is_nan_has_no_score(kind):
    """Also that of a class: the index of the largest NaN is not a prediction."""
    spec = TaskSpec("a", kind, **KINDS[kind])
    shape = (2, spec.outputs, 4, 4) if spec.dense else (2, spec.outputs)
    mask = torch.ones((2, 4, 4) if spec.dense else (2,), dtype=torch.bool)
    ids = kind in ("multiclass", "dense_classification")
    target = torch.zeros(mask.shape).long() if ids else torch.zeros(shape[:1] + shape[2:])
    target = target[:, None] if kind == "dense_regression" else target
    metric = metric_for(spec)
    prediction = torch.zeros(shape)
    prediction[1] = torch.nan
    sums = MetricSums([spec])
    sums.update({"a": prediction}, {"a": (target, mask)})
    assert math.isnan(sums.compute(sums.vector)["a"][metric.primary])
    mask[1] = False
    sums = MetricSums([spec])
    sums.update({"a": prediction}, {"a": (target, mask)})
    assert math.isfinite(sums.compute(sums.vector)["a"][metric.primary])


def test_a_gain_that_is_nan_is_null_and_not_positive():
    spec = TaskSpec("a", "binary")
    summary = summarise([spec], {"a": {"error": math.nan}}, {"a": {"error": 0.5}})
    assert not summary.gains["a"] > 0
    assert strict(to_json(summary.gains)) == {"a": None}


def test_a_comparison_with_a_diverged_run(tmp_path):
    """Its record is written, read and tabulated, with NaN where a number is missing."""
    encoder = build_encoder("mlp", 1, image_size=(1, 1), options={"widths": [2, 2]})
    task = MultiTaskNetwork([TaskSpec("a", "binary")], encoder, (1, 1)).tasks[0].to_dict()
    record = {
        "recipe": "multitask", "seed": 0, "status": "done", "seconds": 1.0, "tasks": [task],
        "metrics": {"a": {"error": math.nan}}, "train_loss": math.nan, "groups": [["a"]],
        "parameters": 3,
    }  # fmt: skip
    save_comparison([record], tmp_path, "A test.")
    read = strict((tmp_path / "compare.json").read_text())["cells"]
    assert read[0]["metrics"] == {"a": {"error": None}} and read[0]["train_loss"] is None
    (result,) = tabulate(read)
    assert math.isnan(result.tasks["a"].mean) and math.isnan(result.train_loss.mean)


def test_eval_refuses_a_model_of_nan(tmp_path):
    from safetensors.torch import load_file, save_file

    from model.bundle import save_bundle
    from trainer.commands.app import app

    encoder = build_encoder("mlp", 1, image_size=(1, 1), options={"widths": [2, 2]})
    network = MultiTaskNetwork([TaskSpec("a", "binary")], encoder, (1, 1))
    save_bundle(tmp_path / "m", network, {})
    from safetensors import safe_open

    with safe_open(tmp_path / "m", "pt") as file:
        metadata = file.metadata()
    tensors = {name: value.fill_(torch.nan) for name, value in load_file(tmp_path / "m").items()}
    save_file(tensors, tmp_path / "m", metadata=metadata)
    end = CliRunner().invoke(app, ["eval", str(tmp_path / "m"), "--shards", "nowhere", "--check"])
    assert end.exit_code != 0
    assert "values of tensor" in str(end.exception) and "NaN or infinite" in str(end.exception)
