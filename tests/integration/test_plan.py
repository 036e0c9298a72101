"""`dmtg plan` as a user runs it."""

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
OPTIONS = ("--gpus", "2", "--gpu-memory", "16")


def test_a_run_on_shards(dmtg, rooms_yaml):
    end = dmtg("plan", str(rooms_yaml), "optim.lr=1e-4", *OPTIONS, "--json")
    assert end.code == 0, end.stderr
    *shown, last = end.stdout.splitlines()
    found = json.loads(last)
    assert found["samples"] == 36 and found["micro_batch"] == 4
    assert set(found["stages"]) == {"before", "after"}
    for stage in found["stages"].values():
        for engine, memory in stage["memory"].items():
            assert memory["total"] > stage["cost"]["peak"] > 0
            assert stage["time"][engine]["total"] > 0 and stage["epoch"][engine] > 0
    assert found["cheapest"] in found["fits"] and found["machine"]["gpus"] == 2
    text = " ".join(" ".join(shown).split())  # sentences are wrapped
    assert f"Take accelerate_configs/{found['cheapest']}.yaml" in text
    assert "measured" in text and "10% of a GPU" in text
    for part in ("cuDNN workspaces", "NCCL buffers"):
        assert f"│ {part}" in text
    assert "300 MiB for a communicator" in text


def test_nothing_fits(dmtg, rooms_yaml):
    end = dmtg("plan", str(rooms_yaml), "--gpu-memory", "0.001", "--tflops", "10")
    assert end.code == 0 and "No launch file fits." in end.stdout
    assert "optim.gradient_accumulation_steps=" in end.stdout or "not even one sample" in end.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gpus", "3"), "data.global_batch is 8; it must be a multiple of --gpus"),
        (("--tflops", "fast"), "--tflops: found 'fast'; allowed: a number above 0, or measured"),
        (("--tflops", "0"), "--tflops: found '0'"),
        (("optim.speed=3",), "optim.speed: unknown key; allowed: betas"),
    ],
)
def test_what_cannot_be_planned(dmtg, rooms_yaml, options, message):
    end = dmtg("plan", str(rooms_yaml), *options)
    assert end.code == 2 and message in end.stderr, end.stderr


@pytest.fixture
def benchmark(monkeypatch):
    """`benchmarks/plan.py`."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("plan")


def test_the_results_are_of_the_plan_as_it_is(benchmark):
    results = json.loads(benchmark.RESULTS.read_text())
    assert len(results["cases"]) == len(benchmark.CASES) and all(results["claims"].values())
    for model, engine in (("mlp", "cpu"), ("mlp", "zero3_cpu"), ("dense", "zero2_cpu")):
        recorded = results["cases"][f"{model} {engine} fp32 x1"]
        found = benchmark.predict(model, engine, "fp32", 1)
        assert found == pytest.approx(recorded["predicted"], rel=0.02)
        assert abs(found["peak"] / recorded["measured"]["peak"] - 1) < 0.15


@pytest.mark.slow
def test_a_real_step_takes_what_the_plan_says(benchmark):
    measured = benchmark.measure("digits", "cpu", "fp32", 1)
    predicted = benchmark.predict("digits", "cpu", "fp32", 1)
    assert predicted["parameters"] == measured["parameters"]
    assert predicted["peak"] == pytest.approx(measured["peak"], rel=0.15)


def test_what_is_left_out_of_a_trace(benchmark, tmp_path):
    def memory(time, size, place):
        return {"name": "[memory]", "ts": time, "args": {"Bytes": size, "Addr": place}}

    events = [
        *({"name": benchmark.STEP, "ts": time, "dur": 9} for time in (10, 20, 30)),
        {"name": "c10d::allreduce_", "ts": 25, "dur": 2},
        memory(1, 100, 1),
        memory(21, 2_000_000_000, 2),
        memory(22, 40, 3),
        memory(26, 5000, 4),
        memory(28, -40, 3),
        memory(31, 70, 3),
        memory(32, -70, 3),
        memory(33, -5000, 4),
    ]
    trace = tmp_path / "trace.json"
    trace.write_text(json.dumps({"traceEvents": events}))
    assert benchmark.allocations(trace) == (140, 100)
