import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch.nn import functional as F

from trainer.recipes.grad_tag import (
    GradTagGroups,
    GradTagSection,
    Sketch,
    cluster,
    gradient_similarity,
)


def exact_cosines(session, batch):
    module = session.engine.module
    targets = module.labels.targets(batch.scalars, batch.dense, batch.valid_rows)
    losses = module(batch.images, session.selection, targets)["losses"][:, 0]
    shared = [p for name, p in module.named_parameters() if not name.startswith("stacked_heads.")]
    rows = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, shared, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    unit = F.normalize(torch.stack(rows), dim=1)
    return unit @ unit.T


def test_similarities_are_the_gradients_cosines(multitask_session, batches_of):
    session = multitask_session()
    (batch,) = batches_of(session, 1)
    expected = exact_cosines(session, batch)
    assert expected.min() < 0.5, "there is something to tell apart"
    for size, tolerance in ((512, 0.2), (20_000, 0.03)):
        found, valid = gradient_similarity(session, batch, size)
        assert valid.all()
        assert (found - expected).abs().max() < tolerance
        assert found.diag().sub(1).abs().max() < 1e-5


def test_sketch_keeps_inner_products_in_the_mean():
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(300, generator=generator)
    second = first + torch.randn(300, generator=generator)
    truth = first @ second
    sketches = [Sketch([100, 200], 64, seed, "cpu") for seed in range(200)]
    parts = [(v[:100].view(10, 10), v[100:]) for v in (first, second)]
    products = torch.stack([s(parts[0]) @ s(parts[1]) for s in sketches])
    scale = first.norm() * second.norm()
    assert abs(products.mean() - truth) < 3 * scale / 64**0.5 / 200**0.5
    assert products.std() < 2 * scale / 64**0.5


def test_sketch_is_linear_and_follows_its_seed():
    vectors = torch.randn(2, 50, generator=torch.Generator().manual_seed(2))
    sketch = Sketch([50], 16, 3, "cpu")
    both = sketch([vectors[0] - 2 * vectors[1]])
    assert torch.allclose(both, sketch([vectors[0]]) - 2 * sketch([vectors[1]]), atol=1e-5)
    assert sketch([vectors[0]]).equal(Sketch([50], 16, 3, "cpu")([vectors[0]]))
    assert not sketch([vectors[0]]).equal(Sketch([50], 16, 4, "cpu")([vectors[0]]))


def test_only_the_late_part_is_observed(multitask_session, batches_of):
    section = GradTagSection(recipe="grad_tag", search_every=2)
    session = multitask_session("run.steps=12")
    micro_batches = batches_of(session, 1)
    for session.step in range(5):
        GradTagGroups.observe(section, session, micro_batches)
    assert not session.observed
    for session.step in range(5, 12):  # 6, 8, 10
        GradTagGroups.observe(section, session, micro_batches)
    assert session.observed["pairs"].eq(3).all()


@pytest.mark.parametrize(("num_tasks", "num_groups"), [(6, 3), (60, 3), (200, 8)])
def test_planted_clusters_are_found(num_tasks, num_groups):
    generator = np.random.default_rng(4)
    true = generator.permutation(np.arange(num_tasks) % num_groups)
    noise = 0.1 * generator.normal(size=(num_tasks, num_tasks))
    cosines = np.where(true[:, None] == true[None, :], 0.5, 0.0) + noise
    groups = cluster(cosines, num_groups)
    assert sorted(task for group in groups for task in group) == list(range(num_tasks))
    label = {task: number for number, group in enumerate(groups) for task in group}
    assert adjusted_rand_score(true, [label[task] for task in range(num_tasks)]) > 0.95


def test_clusters_that_need_no_search():
    cosines = np.eye(4)
    assert cluster(cosines, 1) == ((0, 1, 2, 3),)
    assert cluster(cosines, 4) == cluster(cosines, 9) == ((0,), (1,), (2,), (3,))


@pytest.mark.parametrize(("num_tasks", "num_groups"), [(6, 3), (40, 5)])
def test_equal_similarities_give_the_same_groups_in_every_run(num_tasks, num_groups):
    groups = {cluster(np.zeros((num_tasks, num_tasks)), num_groups) for _ in range(8)}
    assert len(groups) == 1
