"""One step against plain autograd over the whole objective."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import trainer.loop
from model.tasks.spec import TaskSpec
from trainer.engines.accelerator import make_accelerator
from trainer.run_data import build_train_loader
from trainer.session import start_session
from trainer.step import train_step


@pytest.fixture
def session(rooms_config, forget_accelerate):
    forget_accelerate()
    config = rooms_config(
        "optim.max_grad_norm=null", "optim.warmup_steps=0", "optim.weight_decay=0"
    )
    with start_session(config, make_accelerator(config)) as session:
        yield session


def micro_batches(session, count):
    config = session.config.model_copy(
        update={
            "optim": session.config.optim.model_copy(update={"gradient_accumulation_steps": count})
        }
    )
    loader = build_train_loader(
        config,
        session.data.manifest,
        session.tasks,
        start_step=0,
        end_step=1,
        rank=0,
        world_size=1,
    )
    return [batch for _, batch in zip(range(count), loader, strict=False)]


def test_step_descends_the_objective(session):
    """z is softmax((A + g) / tau) with the step's noise g, and a loss the mean over its labels."""
    module, logits = session.engine.module, session.learner.grouping.logits
    (batch,) = micro_batches(session, 1)
    noise = -torch.log(
        -torch.log(
            torch.from_numpy(
                np.random.Generator(
                    np.random.Philox(key=[session.config.run.seed, 0], counter=[0, 0, 0, 0])
                ).random((6, 3))
            )
        )
    ).float()
    z = F.softmax((logits + noise) / 2.0, dim=1)
    targets = module.labels.targets(batch.scalars, batch.dense, batch.valid_rows)
    sums = module(batch.images, module.select(module.heads), targets)["losses"]
    expected_losses = sums / module.labels.label_counts(targets)[:, None]
    objective = (z * expected_losses).sum()
    parameters = list(module.parameters())
    *gradients, logit_gradient = torch.autograd.grad(objective, [*parameters, logits])
    before = [p.detach().clone() for p in (*parameters, logits)]

    result = train_step(session, [batch])

    expected_shares = (z * expected_losses).sum(dim=1).detach()
    torch.testing.assert_close(result.objective, expected_shares, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.losses, expected_losses.detach(), rtol=1e-5, atol=1e-6)
    rates = [3e-4] * len(parameters) + [0.1]
    for old, new, gradient, lr in zip(
        before, (*parameters, logits), (*gradients, logit_gradient), rates, strict=True
    ):
        # The first update of Adam: lr * g / (|g| + eps).
        update = lr * gradient / (gradient.abs() + 1e-8)
        sure = gradient.abs() > 1e-6  # where rounding does not decide the sign
        torch.testing.assert_close((old - new.detach())[sure], update[sure], rtol=2e-2, atol=1e-7)


@pytest.mark.usefixtures("forget_accelerate")
@pytest.mark.parametrize("parts", [1, 2])
def test_weights_of_every_sample(rooms_config, parts):
    """The gradients of sum_nks z_nks * loss_nks / labels_n, one sample after the other."""
    config = rooms_config(
        "grouping.sampler=gumbel_per_sample",
        "optim.max_grad_norm=null",
        f"optim.gradient_accumulation_steps={parts}",
    )
    session = start_session(config, make_accelerator(config))
    session.log.close()
    module, logits = session.engine.module, session.learner.grouping.logits
    batches = micro_batches(session, parts)
    random = np.random.Generator(
        np.random.Philox(key=[session.config.run.seed, 0], counter=[0, 0, 0, 0])
    ).random((6, 3, 8))
    noise = -torch.log(-torch.log(torch.from_numpy(random))).float()
    z = F.softmax((logits[:, :, None] + noise) / 2.0, dim=1)
    targets = [module.labels.targets(b.scalars, b.dense, b.valid_rows) for b in batches]
    labelled = sum(module.labels.label_counts(own) for own in targets)
    objective, losses, sample = 0.0, torch.zeros(6, 3), 0
    for batch in batches:
        for row in range(len(batch.images)):
            one = slice(row, row + 1)
            own = module.labels.targets(
                batch.scalars[:, one],
                {name: values[one] for name, values in batch.dense.items()},
                batch.valid_rows[:, one],
            )
            sums = module(batch.images[one], module.select(module.heads), own)["losses"]
            loss = torch.where(labelled[:, None] > 0, sums / labelled[:, None], 0.0)
            objective = objective + (z[..., sample] * loss).sum()
            losses, sample = losses + loss.detach(), sample + 1
    assert sample == 8
    parameters = dict(module.named_parameters())
    *expected, logit_gradient = torch.autograd.grad(objective, [*parameters.values(), logits])
    found = {}

    def keep(*_):
        found.update({name: p.grad.clone() for name, p in parameters.items()})

    session.engine.optimizer.optimizer.register_step_pre_hook(keep)
    result = train_step(session, batches)
    for (name, gradient), value in zip(found.items(), expected, strict=True):
        atol = 1e-5 * float(value.abs().max()) + 1e-9
        torch.testing.assert_close(gradient, value, rtol=1e-3, atol=atol, msg=name)
    # The first moment of Adam (Kingma and Ba, algorithm 1) after one step.
    moment = session.learner.tensors()["exp_avg"]
    torch.testing.assert_close(moment / (1 - 0.9), logit_gradient, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(result.losses, losses, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(result.objective.sum(), objective.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("recipe", ["published", "affinity", "evidence"])
def test_micro_batches_change_nothing(rooms_config, train_here, tmp_path, recipe):
    """Adam does not see the scale of a gradient, but its moments do.

    The firmness of `evidence` needs a warm-up of several steps: from two, rounding decides it.
    """
    steps, warmup = {"published": (4, None), "affinity": (4, 0.5), "evidence": (12, 0.75)}[recipe]

    def run(parts):
        options = (
            f"run.steps={steps}", "optim.max_grad_norm=null", f"grouping.recipe={recipe}",
            f"optim.gradient_accumulation_steps={parts}",
        )  # fmt: skip
        options += () if warmup is None else (f"grouping.warmup={warmup}",)
        folder = train_here(rooms_config(*options, f"run.out={tmp_path / str(parts)}")).folder
        records = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        losses = [list(r["losses"].values()) for r in records if r["kind"] == "train"]
        last = folder.checkpoints / f"step-{steps:09d}"
        grouping = load_file(last / "grouping.safetensors")
        return losses, load_file(last / "moments.safetensors"), grouping

    losses, moments, grouping = run(1)
    for parts in (2, 4):
        found_losses, found_moments, found_grouping = run(parts)
        np.testing.assert_allclose(found_losses, losses, rtol=1e-4)
        for name, value in grouping.items():
            torch.testing.assert_close(found_grouping[name], value, rtol=1e-2, atol=1e-4, msg=name)
        for name, value in moments.items():
            error = float((found_moments[name] - value).abs().max())
            assert error <= 1e-2 * float(value.abs().max()), (parts, name)


def test_the_line_of_an_evaluation_has_the_primary_metrics_of_tasks_with_labels():
    tasks = [TaskSpec(f"t{n}", "binary") for n in range(9)]
    metrics = {f"t{n}": {"error": 0.125, "f1": 1.0} for n in range(1, 9)}
    text = ", ".join(f"t{n} error 0.125" for n in range(1, 7))
    assert trainer.loop._primary(tasks, metrics) == f"{text} and 2 more tasks"
    assert trainer.loop._primary(tasks[:2], metrics) == "t1 error 0.125"
    assert trainer.loop._primary(tasks, {}) == "no task has a label in this split"
