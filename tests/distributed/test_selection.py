"""A search finds the same affinities in two processes as in one, and refuses ZeRO 2."""

import json

import numpy as np
import pytest

from tests.distributed.cells import PLAIN, Cell, Launch

pytestmark = pytest.mark.distributed

SHORT = ("run.steps=6", "grouping.search_every=2")
PAIRS = ("run.steps=6", "grouping.search_steps=3")


def both(recipe):
    """The search of one process and that of two."""
    overrides = (f"grouping.recipe={recipe}", *(PAIRS if recipe == "hoa" else SHORT))
    return {n: Cell(n, f"search-{recipe}", overrides) for n in (PLAIN, Launch("ddp_cpu"))}


def cells(recipe=None):
    return both(recipe).values() if recipe else ()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["tag", "grad_tag", "hoa"])
def test_two_processes_find_what_one_finds(recipe, trained):
    found = {}
    for launch, cell in both(recipe).items():
        out = trained(cell)
        found[launch.engine] = json.loads((out / "search" / "groups.json").read_text())
        last = (out / "metrics.jsonl").read_text().splitlines()[-1]
        assert json.loads(last)["kind"] == "eval", "the groups were trained too"
    one, two = (np.array(found[engine]["affinity"]) for engine in (None, "ddp_cpu"))
    assert np.abs(one).max() > 1e-3
    assert np.abs(one - two).max() < 1e-4 * np.abs(one).max()
    assert found[None]["groups"] == found["ddp_cpu"]["groups"]


def test_zero_2_is_refused_before_anything_is_trained(launcher, rooms_yaml, tmp_path):
    overrides = (f"run.out={tmp_path / 'run'}", "grouping.recipe=tag", *SHORT)
    end = launcher.train(rooms_yaml, *overrides, engine="zero2_cpu").finish()
    assert end.code != 0
    assert ": grouping.recipe: 'tag' looks at whole gradients, which ZeRO 2" in end.stderr
    assert not (tmp_path / "run").exists()
