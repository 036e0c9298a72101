"""One step against plain autograd over the whole objective."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from trainer.accelerator import make_accelerator
from trainer.run_data import build_train_loader
from trainer.session import start_session
from trainer.step import train_step


@pytest.fixture
def session(rooms_config, forget_accelerate):
    forget_accelerate()
    config = rooms_config("optim.clip=null", "optim.warmup=0", "optim.weight_decay=0")
    session = start_session(config, make_accelerator(config))
    yield session
    session.log.close()


def micro_batches(session, count):
    config = session.config.model_copy(
        update={"optim": session.config.optim.model_copy(update={"accumulation": count})}
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
    targets = module.targets(batch.scalars, batch.dense, batch.valid_rows)
    sums = module(batch.images, module.plan(module.heads), targets)
    expected_losses = sums / module.weights(targets)[:, None]
    objective = (z * expected_losses).sum()
    parameters = list(module.parameters())
    *gradients, logit_gradient = torch.autograd.grad(objective, [*parameters, logits])
    before = [p.detach().clone() for p in (*parameters, logits)]

    losses, shares = train_step(session, [batch])

    expected_shares = (z * expected_losses).sum(dim=1).detach()
    torch.testing.assert_close(shares, expected_shares, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses, expected_losses.detach(), rtol=1e-5, atol=1e-6)
    rates = [3e-4] * len(parameters) + [0.1]
    for old, new, gradient, lr in zip(
        before, (*parameters, logits), (*gradients, logit_gradient), rates, strict=True
    ):
        # The first update of Adam: lr * g / (|g| + eps).
        update = lr * gradient / (gradient.abs() + 1e-8)
        sure = gradient.abs() > 1e-6  # where rounding does not decide the sign
        torch.testing.assert_close((old - new.detach())[sure], update[sure], rtol=2e-2, atol=1e-7)


def test_micro_batches_change_nothing(rooms_config, train_here, tmp_path):
    """Adam does not see the scale of a gradient, but its moments do."""

    def run(parts):
        options = ("run.steps=4", "optim.clip=null", f"optim.accumulation={parts}")
        folder = train_here(rooms_config(*options, f"run.out={tmp_path / str(parts)}")).folder
        records = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        losses = [list(r["losses"].values()) for r in records if r["kind"] == "train"]
        return losses, load_file(folder.checkpoints / "step-000000004/moments.safetensors")

    losses, moments = run(1)
    for parts in (2, 4):
        found_losses, found_moments = run(parts)
        np.testing.assert_allclose(found_losses, losses, rtol=1e-4)
        for name, value in moments.items():
            error = float((found_moments[name] - value).abs().max())
            assert error <= 1e-2 * float(value.abs().max()), (parts, name)
