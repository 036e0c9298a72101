"""`dmtg shards csv` as a new user types it: from a table with empty cells to checked shards."""

import csv
import json
import random
import sys

import numpy as np
import pytest
from PIL import Image

from data_pipelines.shards.manifest import Manifest
from trainer.commands import app as cli

NUM_ROWS = 120


@pytest.fixture
def dmtg(monkeypatch, capsys, tmp_path):
    """Run a command in the folder of the table; return exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dmtg", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def rows():
    """Six tasks, with empty cells; pandas writes such a column of 0 and 1 as floats."""
    chance = random.Random(0)
    return [
        {
            "": number,
            "photo": f"{number:03d}.jpg",
            "person": f"p{number % 17}",
            "smiling": chance.choice(["0.0", "1.0", ""]),
            "glasses": chance.choice(["yes", "no", ""]),
            "old": chance.choice(["-1", "1"]),
            "mood": chance.choice(["glad", "sad", "angry", ""]),
            "age": "unknown" if number % 40 == 7 else chance.choice(["", f"{number / 7:.1f}"]),
            "fingers": chance.choice(["0.0", "1.0", "2.0", "3.0", ""]),
            "caption": f"photo number {number}",
        }
        for number in range(NUM_ROWS)
    ]


@pytest.fixture
def labels(tmp_path, rows):
    (tmp_path / "photos").mkdir()
    for number in range(NUM_ROWS):
        picture = np.random.default_rng(number).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / "photos" / f"{number:03d}.jpg")
    return write(tmp_path / "labels.csv", rows)


def write(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


COMMAND = ("shards", "csv", "labels.csv", "--images", "photos", "--out", "shards")


@pytest.mark.usefixtures("labels")
def test_one_command_from_a_table_to_shards(dmtg, tmp_path, rows):
    code, out, err = dmtg(*COMMAND, "--group-by", "person")
    assert code == 0, err
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    for expected in (
        "labels.csv: 120 rows, 10 columns",
        "age: not read: 'unknown' x 3",
        "mapping: shards/fields.yaml (correct it and give it back with --map)",
        "  dmtg doctor shards",
        "  dmtg init shards",
    ):
        assert any(line.startswith(expected) for line in lines), expected
    named = [line for line in lines if line.startswith("  ") and line.strip()]
    table = {line.split()[0]: line for line in reversed(named)}  # the first table
    assert "binary       0 x " in table["smiling"]
    assert "3 classes: angry, glad, sad" in table["mood"]
    assert "left out     120 different texts in 120 rows" in table["caption"]
    manifest = Manifest.load(tmp_path / "shards")
    kinds = {name: field.kind for name, field in manifest.fields.items()}
    assert kinds == {
        "photo": "image", "smiling": "binary", "glasses": "binary", "old": "binary",
        "mood": "multiclass", "age": "regression", "fingers": "multiclass",
    }  # fmt: skip
    for name in ("smiling", "glasses", "mood", "fingers"):
        stored = sum(split.labelled[name] for split in manifest.splits.values())
        assert stored == sum(row[name] != "" for row in rows)
    counts = [split.class_counts["smiling"] for split in manifest.splits.values()]
    positive = sum(row["smiling"] == "1.0" for row in rows)
    assert sum(count[1] for count in counts) == positive
    code, out, err = dmtg("doctor", "shards", "--samples", 20)
    assert code == 0, out + err


@pytest.mark.usefixtures("labels")
def test_the_mapping_is_corrected_and_given_back(dmtg, tmp_path):
    code, out, _ = dmtg(*COMMAND, "--dry-run")
    assert code == 0
    mapping = tmp_path / "shards" / "fields.yaml"
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["fields.yaml"]
    assert "#   caption: 120 different texts in 120 rows" in mapping.read_text()
    text = mapping.read_text().replace(
        "age: {kind: regression}", "age: {kind: regression, mean: 5, std: 2}"
    )
    mapping.write_text(text)
    code, _, err = dmtg(*COMMAND)
    assert code == 2
    assert "fields.yaml: differs from what is inferred now; give it with --map" in err
    assert mapping.read_text() == text  # nothing of the user's is lost
    code, out, err = dmtg(*COMMAND, "--map", "shards/fields.yaml")
    assert code == 0, err
    assert Manifest.load(tmp_path / "shards").fields["age"].std == 2
    assert "caption" in out and "not in the mapping" in out
    again = dmtg(*COMMAND, "--map", "shards/fields.yaml", "--json")
    assert again[0] == 0
    assert json.loads(again[1].splitlines()[-1])["missing"] == {"age": {"'unknown'": 3}}


@pytest.mark.usefixtures("labels")
def test_a_column_of_which_nothing_can_be_read_is_exit_code_1(dmtg, tmp_path):
    (tmp_path / "map.yaml").write_text(
        "image: photo\nfields: {photo: {kind: image}, caption: {kind: regression}}"
    )
    code, _, err = dmtg(*COMMAND, "--map", "map.yaml")
    assert code == 1
    assert err.startswith("error: fields.caption: none of 120 labels can be read, found 'photo num")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("labls.csv", "--images", "photos"), "labls.csv: cannot be read: "),
        (("labels.csv", "--images", "photo"), "--images photo: is no folder"),
        (
            ("labels.csv",),
            "column 'photo': none of the first 100 images is below ., such as '000.j",
        ),
        (("labels.csv", "--images", "photos", "--group-by", "persn"), "did you mean 'person'?"),
        (
            ("labels.csv", "--images", "photos", "--val-share", "1"),
            "val_share: found 1.0; allowed: a number below 1",
        ),
        (
            ("labels.csv", "--images", "photos", "--tasks", "smilng"),
            "tasks smilng: the map has age",
        ),
        (("labels.csv", "--images", "photos", "--map", "no.yaml"), "no.yaml: cannot be read"),
    ],
)
@pytest.mark.usefixtures("labels")
def test_a_wrong_argument_is_one_line(dmtg, tmp_path, arguments, fault):
    code, _, err = dmtg("shards", "csv", *arguments, "--out", "shards")
    assert code == 2
    assert fault in err
    assert "Traceback" not in err
    assert not (tmp_path / "shards" / "manifest.json").exists()
