"""The section `optim`: learning-rate schedules are a union discriminated by `name`."""

import pytest
from pydantic import ValidationError

from trainer.config.loading import parse_config
from trainer.config.optim import MultistepSchedule, OptimSection, PlateauSchedule
from trainer.errors import UserError


def errors_of(**optim):
    tree = {
        "run": {"out": "out", "steps": 10},
        "data": {"shards": "shards", "image_size": [64, 48], "global_batch": 8},
        "model": {"encoder": {"name": "residual64"}, "branches": 3},
        "optim": optim,
    }
    with pytest.raises(UserError) as error:
        parse_config(tree, "here.yaml")
    return [line.strip() for line in str(error.value).splitlines()[1:]]


@pytest.mark.parametrize("name", ["constant", "cosine", "plateau"])
def test_a_string_stands_for_the_name(name):
    assert OptimSection(schedule=name) == OptimSection(schedule={"name": name})
    assert OptimSection(schedule=name).schedule.name == name


def test_cosine_is_the_default():
    assert OptimSection() == OptimSection(schedule="cosine")


def test_keys_of_a_schedule():
    schedule = OptimSection(schedule={"name": "multistep", "milestones": [0.5]}).schedule
    assert schedule == MultistepSchedule(milestones=(0.5,), gamma=0.5)
    plateau = OptimSection(schedule={"name": "plateau", "patience": 7}).schedule
    assert plateau == PlateauSchedule(patience=7)
    with pytest.raises(ValidationError):
        OptimSection(schedule={"name": "multistep", "milestones": []})


def test_a_key_of_another_schedule_is_named_with_the_schedule_and_its_keys():
    assert errors_of(schedule={"name": "cosine", "gamma": 0.5}) == [
        "optim.schedule.gamma: unknown key of schedule 'cosine'; allowed: name; gamma is a key of "
        "schedule multistep or plateau"
    ]
    assert errors_of(schedule={"name": "multistep", "milestones": [0.5], "patience": 3}) == [
        "optim.schedule.patience: unknown key of schedule 'multistep'; allowed: gamma, "
        "milestones, name; patience is a key of schedule plateau"
    ]


def test_schedules_that_cannot_be():
    allowed = "allowed: constant, cosine, multistep, plateau"
    assert errors_of(schedule="step") == [
        f"optim.schedule.name: found 'step'; {allowed}; did you mean 'multistep'?"
    ]
    assert errors_of(schedule={"gamma": 0.1}) == [
        f"optim.schedule.name: required and not given; {allowed}"
    ]
    assert errors_of(schedule="multistep") == [
        "optim.schedule.milestones: required and not given; allowed: a list of one or more numbers "
        "from 0 to 1"
    ]
    (line,) = errors_of(schedule={"name": "plateau", "patience": -1})
    assert line.startswith("optim.schedule.patience: found -1; allowed: a whole number from 0")
