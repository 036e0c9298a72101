"""No step waits for the device: on a GPU the host would stop, and the device idle afterwards."""

import pytest
import torch

from tests.waits import Waits
from trainer.engines.accelerator import make_accelerator
from trainer.loop import train
from trainer.recipes.grad_tag import GradTagSection
from trainer.recipes.learner import recipe_of
from trainer.recipes.searched import SearchSection
from trainer.session import start_session
from trainer.step import train_step

# Groups are made once in a run, and the schedule `plateau` reads a loss once in an epoch. With
# sampled heads, every tenth step reads the distributions.
ALLOWED = ("_start_groups", "engines/plateau.py", "_refresh")

RECIPES = {
    "affinity": ("grouping.recipe=affinity", "grouping.warmup=0.1"),
    "evidence": ("grouping.recipe=evidence", "grouping.warmup=0.1", "pruning.end=0.3"),
    "evidence-sampled": (
        "grouping.recipe=evidence", "grouping.warmup=0.1", "pruning.end=0.3",
        "grouping.sampled_heads=2", "model.branches=4",
    ),
    "multitask": ("grouping.recipe=multitask",),
    **{
        f"published-{sampler}": (f"grouping.sampler={sampler}",)
        for sampler in (
            "gumbel", "gumbel_per_sample", "relaxed_one_hot", "softmax", "straight_through",
            "diagonal",
        )
    },
    "entropy": ("grouping.entropy=0.1", "grouping.noise=per_rank"),
    "sampled": ("grouping.sampled_heads=2", "model.branches=4"),
}  # fmt: skip
OPTIONS = {
    "clipped": ("optim.max_grad_norm=1.0",),
    "micro-batches": ("optim.gradient_accumulation_steps=2",),
    "recomputed": ("model.activation_checkpointing=true",),
    "deconv": ("model.decoder=deconv",),
    "batch-norm": ("model.encoder.name=residual64", "model.encoder.options={channels: 8}"),
    "shifted": ("tasks.define={depth_zbuffer: {loss: l1_shift}}",),
    "plateau": ("optim.schedule={name: plateau}",),
    "loss-options": (
        "tasks.by_kind={binary: {loss: focal, loss_options: {class_weights: auto}}, "
        "multiclass: {loss_options: {class_weights: auto, label_smoothing: 0.1}}, "
        "dense_regression: {loss: huber, loss_options: {delta: 0.5}}}",
    ),
    "given": ("loss_weights={method: given, weights: {normal: 2.0}}",),
    "uncertainty": ("loss_weights=uncertainty",),
    "dwa": ("loss_weights={method: dwa, every: 2}",),
    "famo": ("loss_weights=famo",),
    "famo-micro-batches": ("loss_weights=famo", "optim.gradient_accumulation_steps=2"),
    "famo-sampled": ("loss_weights=famo", "grouping.sampled_heads=1"),
}
# Steps until a warm-up is over, tasks of `evidence` may move, and `plateau` has read a loss.
NUM_STEPS = {"affinity": 6, "evidence": 8, "evidence-sampled": 8, "plateau": 6}


def waits_of_steps(config, steps):
    waits = Waits(*ALLOWED)
    with start_session(config, make_accelerator(config)) as session:
        batches = iter(session.data.train_batches(0, steps, rank=0, world_size=1))
        for _ in range(steps):
            parts = [next(batches) for _ in range(config.optim.gradient_accumulation_steps)]
            with waits:
                result = train_step(session, parts)
                session.update_plateau(result.objective, result.loss_weights)
            session.step += 1
        assert result.objective.isfinite().all() and session.step == steps
    return sorted(set(waits.found))


@pytest.mark.usefixtures("forget_accelerate")
def test_nothing_waits_between_two_records(rooms_config, monkeypatch):
    """Of a whole run, from the loader to the evaluation, but for what is written."""
    config = rooms_config(
        "run.steps=8", "log.every=100", "eval.every=4", "pruning.begin=1.0", "pruning.end=1.0"
    )
    for module in ("dense", "scalar"):  # what `within` does on a GPU
        monkeypatch.setattr(
            f"model.metrics.{module}.within",
            lambda mask, values, filler: torch.where(mask, values, filler),
        )
    # Samples are decoded on the host, and `on_device` copies batches.
    of_the_host = ("data_pipelines/", "trainer/health/label_guard.py")
    at_records = ("_check_health", "_log_step", "compute", "_prune", "save_session", "chosen_heads")
    waits = Waits(*of_the_host, *at_records)
    with start_session(config, make_accelerator(config)) as session, waits:
        train(session)
    assert not waits.found


def test_waits_are_seen():
    values, place = torch.arange(4.0), torch.device("cpu")
    for wait in (
        lambda: values.sum().item(), lambda: bool(values[0] > 0), lambda: float(values[1]),
        lambda: values.tolist(), lambda: values[values > 1], lambda: values.nonzero(),
        lambda: torch.where(values > 1), lambda: torch.tensor([1.0], device=place),
        lambda: values.to(place), lambda: values.to("cpu"), lambda: values.cpu(),
        lambda: values.numpy(), lambda: torch.bincount(values.long()), lambda: values.equal(values),
    ):  # fmt: skip
        with Waits() as waits:
            wait()
        assert waits.found
    with Waits() as waits:
        torch.where(values > 1, values, 0.0)[values.long()].to(torch.float64).sum()
        torch.zeros(2, device=place).fill_(1.0)
    assert not waits.found


@pytest.mark.usefixtures("forget_accelerate")
@pytest.mark.parametrize("recipe", RECIPES)
def test_steps_of_a_recipe_do_not_wait(rooms_config, recipe):
    assert not waits_of_steps(rooms_config(*RECIPES[recipe]), NUM_STEPS.get(recipe, 3))


@pytest.mark.usefixtures("forget_accelerate")
@pytest.mark.parametrize("option", OPTIONS)
def test_steps_with_an_option_do_not_wait(rooms_config, option):
    assert not waits_of_steps(rooms_config(*OPTIONS[option]), NUM_STEPS.get(option, 3))


@pytest.mark.usefixtures("forget_accelerate")
@pytest.mark.parametrize("recipe", ["tag", "grad_tag"])
def test_observations_do_not_wait(rooms_config, recipe):
    config = rooms_config("grouping.recipe=multitask")
    section = {"tag": SearchSection, "grad_tag": GradTagSection}[recipe]
    observed = recipe_of(rooms_config(f"grouping.recipe={recipe}"))
    waits = Waits()
    with start_session(config, make_accelerator(config)) as session:
        session.step = 20
        batches = list(session.data.train_batches(20, 23, rank=0, world_size=1))
        with waits:
            for batch in batches:
                observed.observe(section(recipe=recipe, search_every=1), session, [batch])
    assert not waits.found and session.observed["pairs"].max() == 3
