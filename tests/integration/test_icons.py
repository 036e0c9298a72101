"""docs/icons.md: the embedded icons, from shards to the scores of a model on the split test."""

import json

import pytest
import yaml

from tests.documents import run_page
from tests.processes import ROOT

NAME = "docs/icons.md"
SHORT = {
    "run": {"steps": 6, "checkpoint_every": 6},
    "data": {"image_size": [16, 16], "global_batch": 32, "workers": 0},
    "pruning": {"every": 1},
    "optim": {"warmup_steps": 2},
    "eval": {"every": 6},
}


@pytest.mark.slow
def test_the_page_about_icons(dmtg, like_a_process, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = yaml.safe_load((ROOT / "experiments" / "icons.yaml").read_text())
    for section, values in SHORT.items():
        tree[section] |= values
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "icons.yaml").write_text(yaml.safe_dump(tree))
    printed = run_page(NAME, dmtg, like_a_process)
    assert "samples: train 5032, val 1078, test 1078" in printed
    assert "512 of 5032 samples of train read: warning" in printed
    runs = tmp_path / "runs" / "icons"
    records = map(json.loads, (runs / "train" / "metrics.jsonl").read_text().splitlines())
    (metrics,) = (record["metrics"] for record in records if record["kind"] == "eval")
    assert len(metrics) == 103
    assert all(0 <= values["balanced_error"] <= 1 for values in metrics.values())
    assert (runs / "train" / "report.html").is_file() and "balanced_error" in printed
