"""Ten steps of every recipe are those of the CPU, and wait for the device only where they log."""

import contextlib

import pytest
import torch

import trainer.loop
from dmtg.plugins import RECIPES
from tests.gpu.devices import ON_CPU, ON_THE_CPU, assert_same_curve, records
from trainer.config.loading import load_config
from trainer.loop import _Due

NAMES = RECIPES.names()
LATE = ("pruning.begin=1", "pruning.end=1")
TEN = ("run.steps=10", "run.checkpoint_every=10", "pruning.end=0.8")
PRECISIONS = ON_THE_CPU if ON_CPU else ("fp32", "tf32", "bf16")
SEARCHES = ("tag", "grad_tag", "hoa")


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    path = tmp_path_factory.mktemp("groups") / "groups.json"
    path.write_text(
        '{"groups": [["depth_zbuffer", "normal"], ["segment_semantic", "has_sphere"], '
        '["num_solids", "camera_pitch"]]}'
    )
    return path


@pytest.fixture(scope="module")
def config_of(rooms_yaml, groups, tmp_path_factory):
    def make(recipe, *overrides):
        given = (f"grouping.groups={groups}",) if recipe == "fixed" else ()
        if recipe in SEARCHES:
            key = "search_steps" if recipe == "hoa" else "search_every"
            given = (f"grouping.{key}=2",)
        out = tmp_path_factory.mktemp(recipe) / "run"
        options = (f"run.out={out}", f"grouping.recipe={recipe}", *given, *TEN, *overrides)
        return load_config(rooms_yaml, options)

    return make


@pytest.fixture(scope="module")
def reference(config_of, train):
    """The runs of the CPU in fp32, each trained once."""
    runs = {}

    def find(recipe, *overrides):
        if (recipe, overrides) not in runs:
            runs[recipe, overrides] = train(config_of(recipe, *overrides), on_cpu=True)
        return runs[recipe, overrides]

    return find


def undecided(recipe):
    """Overrides with which heads are switched off after the last step only."""
    warmup = {"affinity": "0.9", "evidence": "0.99"}.get(recipe)
    return LATE if warmup is None else (*LATE, f"grouping.warmup={warmup}")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("recipe", NAMES)
def test_ten_steps_are_those_of_the_cpu(recipe, precision, config_of, train, reference):
    # In other precisions a decision about the groups may be another one.
    overrides = () if precision == "fp32" else undecided(recipe)
    run = train(config_of(recipe, f"run.precision={precision}", *overrides))
    expected = reference(recipe, *overrides)
    assert len(records(run, "train")) == 10
    if recipe in SEARCHES:
        search = "search/round-01" if recipe == "hoa" else "search"
        assert_same_curve(run / search, expected / search, precision)
    if precision == "fp32" or recipe not in SEARCHES:
        assert_same_curve(run, expected, precision)


@pytest.mark.gpu(emulated=False)
@pytest.mark.parametrize("recipe", NAMES)
def test_the_device_is_waited_for_only_where_something_is_logged(
    recipe, config_of, train, monkeypatch
):
    """From the third step on; the labels of the first ones are checked on the host."""
    step, after_step = trainer.loop.train_step, _Due.after_step

    def checked_step(session, micro_batches):
        if session.step >= 2:
            torch.cuda.set_sync_debug_mode("error")
        return step(session, micro_batches)

    def due(session, stop_cause):
        result = after_step(session, stop_cause)
        if result.anything or session.step < 2:
            torch.cuda.set_sync_debug_mode("default")
        return result

    monkeypatch.setattr(trainer.loop, "train_step", checked_step)
    monkeypatch.setattr(_Due, "after_step", due)
    with contextlib.ExitStack() as stack:
        stack.callback(torch.cuda.set_sync_debug_mode, "default")
        train(config_of(recipe, "log.every=10", "data.global_batch=32", "data.workers=2"))
