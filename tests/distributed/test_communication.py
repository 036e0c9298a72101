"""The formulas of the scaling document give the bytes that real engines send, and its numbers."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from torch import nn

from trainer.planning.traffic import Traffic, traffic

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def benchmark():
    """The scripts of benchmarks/, by name."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def communication(benchmark):
    return benchmark("communication")


@pytest.fixture(scope="module")
def scaling(benchmark):
    return benchmark("scaling")


def results(script):
    return json.loads(script.RESULTS.read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        ("ddp", "fp32"), ("fsdp2", "fp32"), ("zero1", "fp32"), ("zero2", "fp32"), ("zero3", "fp32"),
        ("zero2", "bf16"), ("zero3", "bf16"),
    ],
)  # fmt: skip
def test_a_real_step_sends_what_the_formula_says(stage, precision, communication):
    measured = communication.measure(stage, precision)
    assert communication.agrees(measured), measured
    assert measured["reduced"] > 2e6  # of 604 thousand parameters


def test_a_wrong_formula_is_noticed(communication):
    for own in results(communication)["measured"].values():
        assert communication.agrees(own)
        assert not communication.agrees({**own, "reduced": 1.01 * own["reduced"]})
        assert not communication.agrees({**own, "gathered": 1.01 * own["gathered"] + 1})


def test_bytes_of_a_network_that_can_be_counted_by_hand():
    network = nn.Sequential(nn.Linear(400, 400, bias=False), nn.LayerNorm(100))
    large, small = 4 * 160_000, 4 * 200
    expected = {
        ("ddp", False): (large + small, 0, 0),
        ("zero1", False): (large + small, 0, large + small),
        ("zero2", True): (3 * (large / 2 + small), 0, large + small),
        ("zero3", False): (0, 3 * (large + small), 3 * large + small),
        ("zero3", True): (0, 3 * (large / 2 + small), 3 * large / 2 + small),
        ("fsdp2", True): (0, large + small, 6 * (large + small)),
    }
    for (stage, bf16), (reduced, scattered, gathered) in expected.items():
        found = traffic(stage, network, 3, bf16=bf16)
        assert (found.all_reduce, found.reduce_scatter, found.all_gather) == (
            reduced, scattered, gathered,
        ), (stage, bf16)  # fmt: skip
    assert Traffic(800, 80, 8).sent(8) == (1600 + 80 + 8) * 7 / 8


def test_the_document_s_tables_are_the_results(scaling, tmp_path):
    copy = tmp_path / "scaling.md"
    copy.write_text(scaling.DOCUMENT.read_text())
    scaling.write_tables(results(scaling), copy)
    assert copy.read_text() == scaling.DOCUMENT.read_text()


def test_the_results_are_of_the_recipe_as_it_is(scaling):
    assert scaling.scale("celeba9_k2") == results(scaling)["recipes"]["celeba9_k2"]
