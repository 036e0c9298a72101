"""Model cards: what they say, and that names of others stay names."""

import pytest
import yaml

from model.bundle import load_pruned
from trainer.deployment.card import RunMetrics, check_card, model_card, write_card
from trainer.errors import UserError

METRICS = {
    "cube": {"error": 0.125, "f1": 0.5},
    "age": {"mae": 3.2512345678},
    "round things": {"error": 0.25},
    "depth": {"mae": None},
}


@pytest.fixture(scope="module")
def model(model_file):
    return load_pruned(model_file)


def rows(card, title):
    """The cells of the table below a title."""
    lines = card.partition(f"## {title}\n")[2].partition("\n## ")[0].splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][2:]


def test_a_card_describes_the_model(model):
    card = model_card(model, "rooms", ["rooms.safetensors", "rooms.onnx"], RunMetrics(METRICS, {}))
    assert rows(card, "Groups") == [
        ["0", "`wall`, `round things`, `shape`"], ["1", "`depth`, `cube`, `age`"]
    ]  # fmt: skip
    assert [row[0] for row in rows(card, "Tasks")] == [f"`{task.name}`" for task in model.tasks]
    assert rows(card, "Metrics")[0] == ["`depth`", "mae", "no labels", "lower"]
    assert rows(card, "Metrics")[2:4] == [
        ["`cube`", "error", "0.125", "lower"], ["`round things`", "error", "0.25", "lower"]
    ]  # fmt: skip
    facts = dict(rows(card, "Data and training"))
    assert facts["data set"] == "rooms (train: 36 samples in 4 shards)" and facts["step"] == "40"
    assert 'load_pruned("rooms.safetensors")' in card and "`rooms.onnx` needs nothing but" in card
    metadata = yaml.safe_load(card.split("---\n")[1])
    (index,) = metadata["model-index"]
    found = {result["task"]["name"]: result["metrics"] for result in index["results"]}
    assert found.keys() == {"cube", "round things", "age"} and len(found["cube"]) == 1
    assert found["age"][0]["value"] == 3.2512
    assert index["name"] == "rooms" and metadata["library_name"] == "dmtg"
    assert [(m["type"], m["value"]) for m in found["cube"]] == [("error", 0.125)]
    assert index["results"][0]["dataset"]["name"] == "rooms"


def test_the_constant_predictions_are_beside_the_metrics(model):
    evaluated = RunMetrics(METRICS, {"cube": {"error": 0.5, "f1": 0.0}, "age": {"mae": 9.87654}})
    card = model_card(model, "rooms", ["rooms.safetensors"], evaluated)
    found = {row[0]: row[1:] for row in rows(card, "Metrics")}
    assert found["`cube`"] == ["error", "0.125", "0.5", "lower"]
    assert found["`age`"] == ["mae", "3.251", "9.877", "lower"]
    assert "| task | metric | value | constant | better is |" in card


def test_without_metrics_there_are_none(model):
    card = model_card(model, "rooms", ["rooms.safetensors"])
    assert "## Metrics" not in card and "model-index" not in card


def test_names_of_classes_are_no_markdown(model):
    card = model_card(model, "a*b*\n# c", ["m.safetensors"])
    assert r"a\|b \<i\>\*x\*\</i\>" in card
    assert "\n# a\\*b\\* \\# c\n" in card and "\n# c" not in card


def test_a_card_replaces_only_a_card(model, model_file, tmp_path):
    out = tmp_path / "model.onnx"
    write_card(out, model, model_file)
    first = (tmp_path / "README.md").read_text()
    write_card(out, model, model_file)
    assert (tmp_path / "README.md").read_text() == first
    (tmp_path / "README.md").write_text("# My project\n")
    with pytest.raises(UserError, match=r"--card: .*README\.md exists and is no model card"):
        check_card(tmp_path / "README.md")
    with pytest.raises(UserError, match="no model card"):
        write_card(out, model, model_file)
    assert (tmp_path / "README.md").read_text() == "# My project\n"
