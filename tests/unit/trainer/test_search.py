import json
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate.utils import DistributedType

from dmtg.plugins import RECIPES
from trainer import search
from trainer.engines.accelerator import make_accelerator
from trainer.errors import UserError
from trainer.recipes.task_losses import check_engine


@pytest.fixture
def search_here(forget_accelerate):
    """Searches as trainer/main.py does, and returns what was found."""

    def run(config):
        forget_accelerate()
        search.search_groups(config, make_accelerator(config))
        return json.loads((config.run.out / "search" / "groups.json").read_text())

    return run


def search_config(config):
    return search._search_config(config, config.grouping)


def config_of(rooms_config, tmp_path, name, *overrides):
    short = ("grouping.search_every=2", "run.steps=8", "run.checkpoint_every=3")
    return rooms_config(f"run.out={tmp_path / name}", *short, *overrides)


@pytest.mark.parametrize("recipe", ["tag", "grad_tag"])
def test_the_groups_found_are_trained(recipe, rooms_config, search_here, train_here, tmp_path):
    config = config_of(rooms_config, tmp_path, "run", f"grouping.recipe={recipe}")
    found = search_here(config)
    names = [name for group in found["groups"] for name in group]
    assert sorted(names) == sorted(found["tasks"]) and 1 < len(found["groups"]) <= 3
    affinity = np.array(found["affinity"])
    assert affinity.shape == (6, 6) and np.all(affinity.diagonal() > 0)
    session = train_here(config)
    heads = session.learner.grouping.heads()
    assert [found["tasks"][t] in found["groups"][b] for t, b in heads] == [True] * 6
    assert session.folder.load_config().grouping.recipe == recipe


@pytest.mark.parametrize("recipe", ["tag", "grad_tag"])
def test_a_search_that_was_stopped_goes_on(
    recipe, rooms_config, search_here, tmp_path, monkeypatch
):
    overrides = (f"grouping.recipe={recipe}", "run.resume=auto")
    whole = search_here(config_of(rooms_config, tmp_path, "whole", *overrides))
    observe = RECIPES[recipe].observe

    def stop(section, session, micro_batches):
        if session.step == 7:
            raise KeyboardInterrupt
        observe(section, session, micro_batches)

    monkeypatch.setattr(RECIPES[recipe], "observe", stop)
    config = config_of(rooms_config, tmp_path, "stopped", *overrides)
    with pytest.raises(KeyboardInterrupt):
        search_here(config)
    assert not (config.run.out / "search" / "groups.json").exists()
    monkeypatch.setattr(RECIPES[recipe], "observe", observe)
    assert search_here(config) == whole


def test_groups_that_were_found_are_kept(rooms_config, search_here, tmp_path, monkeypatch):
    config = config_of(rooms_config, tmp_path, "run", "grouping.recipe=grad_tag", "run.resume=auto")
    first = search_here(config)
    monkeypatch.setattr(search, "start_session", lambda *_: pytest.fail("searched again"))
    assert search_here(config) == first
    other = config_of(
        rooms_config, tmp_path, "run", "grouping.recipe=grad_tag", "run.resume=auto", "run.seed=9"
    )
    with pytest.raises(UserError, match=r"search holds another run:\n.*run\.seed was 5, is 9"):
        search_here(other)
    fresh = config_of(rooms_config, tmp_path, "run", "grouping.recipe=grad_tag")
    with pytest.raises(UserError, match=r"search already holds a run; set run\.resume=auto"):
        search_here(fresh)


def test_a_search_may_be_shorter_than_the_run(rooms_config, search_here, tmp_path):
    config = config_of(
        rooms_config, tmp_path, "run", "grouping.recipe=tag", "grouping.search_steps=2"
    )
    search_here(config)
    records = (config.run.out / "search" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(r)["step"] for r in records if '"train"' in r] == [1, 2]


def test_the_search_is_one_branch_without_what_belongs_to_the_training(rooms_config):
    own = search_config(
        rooms_config(
            "grouping.recipe=tag", "model.init_from=[a, b, c]", "finetune.steps=5", "eval.every=3"
        )
    )
    assert own.grouping.recipe == "multitask" and own.run.out.name == "search"
    assert own.model.init_from == () and own.finetune.steps == 0
    assert (own.eval.every, own.eval.limit) == (0, own.eval.batch_size)
    one = search_config(rooms_config("grouping.recipe=tag", "model.init_from=[a]"))
    assert [str(path) for path in one.model.init_from] == ["a"]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_engines_that_hold_parts_of_the_gradients_are_refused(stage):
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED,
        deepspeed_plugin=SimpleNamespace(zero_stage=stage),
    )
    if stage == 1:
        check_engine(accelerator, "tag")
        return
    with pytest.raises(UserError, match=f"'tag' looks at whole gradients, which ZeRO {stage}"):
        check_engine(accelerator, "tag")
