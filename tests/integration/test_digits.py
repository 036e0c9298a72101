"""experiments/digits.yaml at full length on real digits."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_digits_learns_to_tell_left_from_right(tmp_path):
    """experiments/digits.yaml at full length, about ten minutes on two cores."""

    def python(*arguments):
        subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, check=True)

    shards, out = tmp_path / "shards", tmp_path / "run"
    dmtg = ("-c", "from trainer.commands.app import main; main()")
    python(*dmtg, "shards", "digits", "--out", shards)
    python("trainer/main.py", "--config", "experiments/digits.yaml", f"run.out={out}",
           f"data.shards={shards}", "log.progress=false")  # fmt: skip
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    metrics = [r for r in records if r["kind"] == "eval"][-1]["metrics"]
    names = [f"{side}_is_{digit}" for side in ("left", "right") for digit in range(10)]
    assert np.mean([metrics[name]["error"] for name in names]) <= 0.02
    assert [r for r in records if r["kind"] == "train"][-1]["heads"] == 24
