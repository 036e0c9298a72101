"""The watch over the losses: what it says, what it leaves out, what a bad step must not touch."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import trainer.loop
import trainer.step
from trainer.errors import NonFiniteLossError
from trainer.health.loss_guard import LossGuard

NAN = torch.nan


@pytest.fixture
def make_guard(forget_accelerate):
    forget_accelerate()
    return lambda **options: LossGuard(("a", "b", "c"), Accelerator(cpu=True), **options)


def test_it_names_the_first_bad_step_and_its_tasks(make_guard):
    guard, good = make_guard(), torch.ones(3, 2)
    guard.update(3, good, good)
    guard.check()
    bad = torch.tensor([[1.0, 1.0], [NAN, 1.0], [1.0, torch.inf]])
    guard.update(4, bad, bad)
    guard.update(5, good * NAN, good * NAN)
    with pytest.raises(NonFiniteLossError, match=r"in step 4: \['b', 'c'\]$"):
        guard.check()


def test_it_names_the_ranks_it_began_on(make_guard, monkeypatch):
    """The losses are those of all ranks; each rank tells of its own."""
    guard, good = make_guard(), torch.ones(3, 2)
    monkeypatch.setattr(
        type(guard._accelerator), "num_processes", property(lambda _: 6), raising=False
    )
    gathered = [None, "n0", "n1", "n1", "n2", "n2"]
    monkeypatch.setattr("trainer.health.loss_guard.gather_object", lambda _: gathered)
    guard.update(7, good * NAN, good)
    found = (
        r"\['a', 'b', 'c'\] on rank 1 \(n0\), rank 2 \(n1\), rank 3 \(n1\), rank 4 \(n2\) "
        r"and 1 more of 6 ranks$"
    )
    with pytest.raises(NonFiniteLossError, match=found):
        guard.check()
    gathered[0] = "n0"
    with pytest.raises(NonFiniteLossError, match=r"on all 6 ranks$"):
        guard.check()


def test_it_counts_what_is_left_out(make_guard, caplog):
    guard, bad = make_guard(allowed=2, total=1), torch.tensor([[1.0], [NAN], [1.0]])
    with caplog.at_level(logging.WARNING):
        guard.leave_out(5, bad, bad)
    assert guard.left_out and guard.record() == {"skipped": 2}
    assert "the loss became NaN or infinite in step 5: ['b']; left out, 2 of 2" in caplog.text
    with pytest.raises(NonFiniteLossError, match=r"a gradient .* step 6; .* allows 2 such steps"):
        guard.leave_out(6, torch.ones(3, 1), torch.ones(3, 1))
    guard.update(7, torch.ones(3, 1), torch.ones(3, 1))
    assert not guard.left_out
    guard.check()


def test_an_objective_is_spoilt_only_where_losses_are(make_guard):
    guard = make_guard(allowed=1)
    for value, finite in ((2.0, True), (torch.inf, False), (NAN, False)):
        weight = torch.tensor(3.0, requires_grad=True)
        losses = torch.stack([weight, weight.detach() * value])
        objective = guard.propagate_nonfinite(losses[0], losses)
        objective.backward()
        assert bool(weight.grad.isfinite()) is finite and bool(objective.isfinite()) is finite
    objective = torch.ones(())
    assert make_guard().propagate_nonfinite(objective, objective * NAN) is objective


# With BatchNorm, whose statistics a bad step spoils, and accumulation.
RUN = (
    "run.steps=8", "run.checkpoint_every=1", "run.keep_last=9",
    "optim.gradient_accumulation_steps=2",
    "pruning.begin=0.9", "pruning.end=0.9", "eval.limit=1",
    "model.encoder.options={model_type: resnet, embedding_size: 8, hidden_sizes: [8, 16], "
    "depths: [1, 1], layer_type: basic}",
)  # fmt: skip


@pytest.fixture
def spoil_steps(monkeypatch):
    """One of the two micro-batches of some steps holds NaN pixels."""
    original, steps = trainer.loop.train_step, set()

    def step(session, micro_batches):
        if session.step in steps:
            first, second = micro_batches
            micro_batches = [first, replace(second, images=second.images.float() * NAN)]
        return original(session, micro_batches)

    monkeypatch.setattr(trainer.loop, "train_step", step)
    return steps.update


def skips(folder):
    records = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [(r["step"], r["skipped"]) for r in records if r["kind"] == "skip"]


@pytest.mark.parametrize("recipe", ["published", "affinity", "evidence"])
def test_a_bad_step_changes_nothing_but_the_count(recipe, rooms_config, train_here, spoil_steps):
    """Weights, moments and running statistics are as before it; the steps after it learn."""
    spoil_steps({3, 4})
    options = (f"grouping.recipe={recipe}", "optim.skip_nonfinite=3")
    folder = train_here(rooms_config(*RUN, *options)).folder
    assert skips(folder) == [(4, 1), (5, 2)]
    for name in ("weights", "moments"):
        before, after, later = (
            load_file(folder.checkpoints / f"step-00000000{step}/{name}.safetensors")
            for step in (3, 5, 6)
        )
        assert name == "moments" or any("running_mean" in key for key in before)
        assert before.keys() == after.keys() == later.keys()
        assert all(torch.equal(after[key], value) for key, value in before.items())
        assert not all(torch.equal(later[key], value) for key, value in after.items())
    if recipe == "published":
        before, after = (
            load_file(folder.checkpoints / f"step-00000000{step}/grouping.safetensors")
            for step in (3, 5)
        )
        assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("recipe", ["affinity", "evidence"])
def test_a_bad_step_at_the_end_of_the_warm_up_does_not_stop_the_grouping(
    recipe, rooms_config, train_here, spoil_steps
):
    spoil_steps({3})
    options = (f"grouping.recipe={recipe}", "grouping.warmup=0.5", "optim.skip_nonfinite=1")
    session = train_here(rooms_config(*RUN, *options))
    assert skips(session.folder) == [(4, 1)]
    assert session.learner.finished and session.learner.updates == 3  # in steps 5, 6 and 7


def test_the_count_is_kept_over_a_restart(rooms_config, train_here, spoil_steps, monkeypatch):
    spoil_steps({2})
    config = rooms_config(*RUN, "optim.skip_nonfinite=1", "run.resume=auto")
    stop = RuntimeError("the evaluation is interrupted")

    def interrupted(session):
        if session.step == 4:
            raise stop

    with monkeypatch.context() as patch:
        patch.setattr(trainer.loop, "_evaluate", interrupted)
        with pytest.raises(RuntimeError, match="is interrupted"):
            train_here(rooms_config(*RUN, "optim.skip_nonfinite=1", "eval.every=4"))
    spoil_steps({6})
    with pytest.raises(NonFiniteLossError, match=r"step 6: .*optim.skip_nonfinite allows 1"):
        train_here(config)


def test_a_bad_gradient_of_a_good_loss_is_left_out(rooms_config, train_here, monkeypatch):
    original = trainer.step.forward

    def forward(session, *arguments, **options):
        output = original(session, *arguments, **options)
        if session.step == 2:
            output["losses"] = output["losses"] + (0.0 * output["losses"]).sqrt()
        return output

    monkeypatch.setattr(trainer.step, "forward", forward)
    folder = train_here(
        rooms_config(*RUN, "optim.skip_nonfinite=1", "optim.max_grad_norm=null")
    ).folder
    assert skips(folder) == [(3, 1)]


def test_one_bad_step_too_many_ends_the_run(rooms_config, train_here, spoil_steps):
    spoil_steps({2, 3, 4})
    with pytest.raises(NonFiniteLossError, match=r"step 4: .*optim.skip_nonfinite allows 2"):
        train_here(rooms_config(*RUN, "optim.skip_nonfinite=2"))
