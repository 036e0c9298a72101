import copy
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from trainer.recipes.grad_tag import gradient_similarity
from trainer.recipes.mean_affinity import mean_affinity
from trainer.recipes.searched import SearchSection
from trainer.recipes.tag import TagGroups, look_ahead_affinity

RATE = 0.005
RESNET = (
    "model.encoder.options={model_type: resnet, embedding_size: 8, hidden_sizes: [8], depths: [1], "
    "layer_type: basic}"
)


def losses_of(module, session, batch):
    """The tasks' losses, by the network and nothing else of the project."""
    targets = module.labels.targets(batch.scalars, batch.dense, batch.valid_rows)
    losses = module(batch.images, session.selection, targets)["losses"][:, 0]
    return losses / module.labels.label_counts(targets)


def naive_affinity(session, batch):
    """A deep copy of the network for every task, one step of its encoder, all losses again."""
    module = session.engine.module
    before = losses_of(module, session, batch).detach()
    rows = []
    for task in range(len(before)):
        moved = copy.deepcopy(module)
        losses_of(moved, session, batch)[task].backward()
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                if not name.startswith("stacked_heads.") and parameter.grad is not None:
                    parameter -= RATE * parameter.grad
        rows.append(1 - losses_of(moved, session, batch).detach() / before)
    return torch.stack(rows)


@pytest.mark.parametrize("encoder", [(), (RESNET,)], ids=["convnextv2", "resnet"])
def test_affinity_is_that_of_a_real_step(encoder, multitask_session, batches_of):
    session = multitask_session(*encoder)
    (batch,) = batches_of(session, 1)
    found, valid = look_ahead_affinity(session, batch, RATE)
    assert valid.all()
    expected = naive_affinity(session, batch)
    assert (found - expected).abs().max() < 1e-5
    assert expected.diag().min() > 1e-4, "a task's own step lowers its loss"
    assert not torch.allclose(found, found.T, atol=1e-4)


def test_the_network_is_left_as_it_was(multitask_session, batches_of):
    """Batch normalisation counts what it sees; the look ahead must not be among it."""
    session = multitask_session(RESNET)
    module = session.engine.module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    look_ahead_affinity(session, batches_of(session, 1)[0], RATE)
    assert any("running_mean" in name for name in before)
    assert all(value.equal(before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_a_task_without_labels_is_left_out(multitask_session, batches_of):
    session = multitask_session()
    (batch,) = batches_of(session, 1)
    lost = [task.name for task in session.tasks].index("has_sphere")
    rows = batch.valid_rows.clone()
    rows[lost] = False
    bare = replace(batch, valid_rows=rows)
    _, valid = look_ahead_affinity(session, bare, RATE)
    expected = torch.ones(6, 6, dtype=torch.bool)
    expected[lost] = expected[:, lost] = False
    assert valid.equal(expected)
    for each in (bare, batch):
        TagGroups.observe(SearchSection(recipe="tag"), session, [each])
    rate = session.config.optim.lr / session.config.optim.warmup_steps  # of the first step
    full, _ = look_ahead_affinity(session, batch, rate)
    partial, _ = look_ahead_affinity(session, bare, rate)
    mean = torch.where(expected, (full + partial) / 2, full)
    assert mean_affinity(session) == pytest.approx(mean.numpy(), abs=1e-7)


def test_only_every_nth_step_is_observed(multitask_session, batches_of):
    section, session = SearchSection(recipe="tag", search_every=4), multitask_session()
    micro_batches = batches_of(session, 1)
    for session.step in range(9):
        TagGroups.observe(section, session, micro_batches)
    assert session.observed["pairs"].eq(3).all()
    assert session.observed["affinity"].dtype == torch.float64


@pytest.mark.parametrize("observed", [look_ahead_affinity, gradient_similarity])
def test_observations_run_uncompiled(observed, multitask_session, batches_of):
    """They have copies of the buffers, for which CUDA graphs would be recorded each time."""
    session = multitask_session(RESNET)
    (batch,) = batches_of(session, 1)
    expected = observed(session, batch, 1)[0]
    counter = CompileCounterWithBackend("eager")
    session.engine.module.compile_parts(backend=counter)
    assert observed(session, batch, 1)[0].equal(expected)
    assert counter.frame_count == 0
    losses_of(session.engine.module, session, batch)
    assert counter.frame_count > 0
    torch.compiler.reset()
