"""A YAML file cannot drop a key, exhaust the memory, or hold numbers that are none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.convert.mapping import FieldMap, described_field
from data_pipelines.errors import DataError
from dmtg.yaml_text import MAX_BYTES, MAX_DEPTH, MAX_NODES
from trainer.config.loading import load_config
from trainer.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
run: {out: out, steps: 10}
data: {shards: shards, image_size: [64, 48], global_batch: 8}
model: {encoder: {name: residual64}, branches: 3}
"""


def load(kind, path):
    """Read a file as a configuration or as a mapping of fields; its error."""
    with pytest.raises((UserError, DataError)) as error:
        load_config(path) if kind == "config" else FieldMap.load(path)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.fixture
def refused(tmp_path):
    def run(kind, text):
        path = tmp_path / "file.yaml"
        path.write_text(text)
        return load(kind, path)

    return run


KINDS = pytest.mark.parametrize("kind", ["config", "mapping"])


@KINDS
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {a: 1}\nrun: {}\noptim: {}", "line 3: key 'optim' is given twice, first in l"),
        ("run:\n  a: 1\n  b: a\n  a: 2", "line 4: key 'a' is given twice, first in line 2"),
        ("- {a: 1, 'a': 2}", "line 1: key 'a' is given twice, first in line 1"),
        ("yes: 1\ntrue: 2", "line 2: key True is given twice"),
    ],
)  # fmt: skip
def test_a_key_that_is_given_twice(kind, text, message, refused):
    assert f"{message}" in refused(kind, text)


def test_a_key_that_an_override_gives_twice(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    with pytest.raises(UserError, match=r"tasks\.define=.*line 1: key 'a' is given twice"):
        load_config(tmp_path / "config.yaml", ["tasks.define={a: {unit: m}, a: {unit: s}}"])


@KINDS
def test_depth(kind, refused):
    expected = f"line 1: more than {MAX_DEPTH} lists and mappings in each other"
    for text in ("[" * 100_000, "{a: " * 1000, "- " * 1000 + "a"):
        assert expected in refused(kind, text)


@KINDS
def test_size(kind, refused):
    assert f"more than {MAX_BYTES} bytes" in refused(kind, f"a: {'b' * MAX_BYTES}")
    assert f"more than {MAX_BYTES} bytes" in load(kind, Path("/dev/zero"))
    assert f"more than {MAX_NODES} values" in refused(kind, f"[{'a,' * (MAX_NODES + 1)}]")


MEASURE = """
import json, resource, sys, time
from pathlib import Path
from data_pipelines.convert.mapping import FieldMap
from trainer.config.loading import load_config
read = load_config if sys.argv[2] == "config" else FieldMap.load
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    read(Path(sys.argv[1]))
except ValueError as error:
    message = str(error)
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([message, used / 1024, time.process_time() - start]))
"""
LEVELS = 60
BOMBS = {
    "lists": "\n".join(
        ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, LEVELS)]
    ),
    "merges": "\n".join(
        ["a0: &a0 {x: 1, y: 2}"]
        + [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, LEVELS)]
    ),
}  # fmt: skip


@KINDS
@pytest.mark.parametrize("bomb", BOMBS)
def test_an_alias_bomb_is_refused_within_a_second_and_little_memory(kind, bomb, tmp_path):
    path = tmp_path / "bomb.yaml"
    path.write_text(BOMBS[bomb])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), kind], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    message, mebibytes, seconds = json.loads(done.stdout)
    assert f"more than {MAX_NODES} values, each alias counted as what it stands for" in message
    assert mebibytes < 200 and seconds < 1


@KINDS
def test_an_alias_that_stands_for_itself(kind, refused):
    assert "line 2: alias *a stands for itself" in refused(kind, "x: &a\n- [*a]")


@pytest.mark.parametrize(
    "override",
    [
        "optim.lr=.inf", "optim.lr=.nan", "optim.weight_decay=.inf", "optim.max_grad_norm=.inf",
        "run.epochs=.inf", "run.max_minutes=.nan", "data.retry_seconds=.inf", "data.cache_gb=.inf",
        "finetune.lr=.inf", "log.peak_tflops=.inf", "grouping.temperature=.inf",
        "optim.schedule={name: multistep, milestones: [0.5], gamma: .inf}",
        "run.timeout_seconds=.inf",
    ],
)  # fmt: skip
def test_numbers_that_are_none(override, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG + "grouping: {recipe: affinity}\n")
    key = override.partition("=")[0]
    with pytest.raises(UserError, match=rf"{key}.*found (inf|nan); allowed: a number.*finite$"):
        load_config(tmp_path / "config.yaml", [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.encoder.options={a: [1, .inf]}", "model.encoder.options.a.1: found inf; allow"),
        ("tasks.define={depth: {clip: .nan}}", "tasks.define.depth.clip: found nan; allowed"),
        ("run.steps=10000000000000", "run.steps: found 10000000000000; allowed: a"),
        ("run.seed=99999999999999999999", "run.seed: found 99999999999999999999; allow"),
        ("data.workers=100000", "data.workers: found 100000; allowed: a whole"),
        ("data.image_size=[64, 1000000000]", "data.image_size.1: found 1000000000; a"),
        ("model.branches=1000000000", "model.branches: found 1000000000; allowed: a"),
        ("run.timeout_seconds=1e300", "run.timeout_seconds: found 1e+300; allowed: a"),
    ],
)  # fmt: skip
def test_numbers_that_nothing_can_hold(override, message, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "config.yaml", [override])
    assert message in str(error.value)


def test_a_count_of_classes_that_nothing_can_hold():
    with pytest.raises(DataError, match=r"fields\.a\.classes: 1000000000, allowed are at most"):
        described_field("fields.a", {"kind": "multiclass", "classes": 10**9})
