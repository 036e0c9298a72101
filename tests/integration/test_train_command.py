"""`dmtg train` in one process, and what it refuses before anything is started."""

import pytest
import yaml

RUN = ("run.steps=4", "run.checkpoint_every=2", "log.every=2")


def test_it_trains_as_the_script(dmtg, main_script, rooms_yaml, tmp_path):
    ends = [
        dmtg("train", rooms_yaml, f"run.out={tmp_path / 'a'}", *RUN),
        main_script("--config", rooms_yaml, f"run.out={tmp_path / 'b'}", *RUN),
    ]
    assert [end.code for end in ends] == [0, 0], ends[0].stderr
    for name in ("metrics.jsonl", "result.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert ends[0].stdout == ends[1].stdout.replace(str(tmp_path / "b"), str(tmp_path / "a"))
    assert "Warning" not in ends[0].stderr


def test_the_engine_cpu_is_this_process(dmtg, rooms_yaml, tmp_path):
    out = tmp_path / "run"
    end = dmtg("train", rooms_yaml, "--engine", "cpu", f"run.out={out}", *RUN)
    assert end.code == 0, end.stderr
    assert f"{out}: finished after 4 steps" in end.stdout


def test_print_config(dmtg, rooms_yaml):
    end = dmtg("train", rooms_yaml, "run.steps=7", "--print-config")
    assert end.code == 0 and yaml.safe_load(end.stdout)["run"]["steps"] == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("run.step=3", "--processes", 2), "run.step: unknown key"),
        (("--processes", 3), "--processes: found 3; data.global_batch, 8, is no multiple of"),
        (("--engine", "zero"), "--engine: found 'zero'; allowed: cpu, ddp, ddp_cpu"),
        (("--engine", "zero2"), "--engine: zero2 trains on GPUs, and this machine has none"),
        (("data.shards=nowhere",), "nowhere/manifest.json: cannot be read"),
    ],
)
def test_an_error_is_one_line_and_leaves_nothing(options, message, dmtg, rooms_yaml, tmp_path):
    end = dmtg("train", rooms_yaml, f"run.out={tmp_path / 'run'}", *options)
    assert end.code == 2 and end.stderr.startswith("error: ") and message in end.stderr
    assert "Traceback" not in end.stderr and not (tmp_path / "run").exists()
