import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.encoders import build_encoder
from model.heads.layout import used_branches
from model.network import MultiTaskNetwork
from model.subset import subset, subset_state
from model.tasks.spec import TaskSpec

SIZE = (16, 12)
BATCH = 4
TASKS = [
    TaskSpec("edge", "dense_regression", mean=(100.0,), scale=(50.0,), valid_below=200.0),
    TaskSpec("sphere", "binary"),
    TaskSpec("colour", "multiclass", channels=3),
    TaskSpec("seg", "dense_classification", channels=4, ignore_index=0),
    TaskSpec("pitch", "regression", loss="mse", mean=(1.0,), scale=(2.0,)),
    TaskSpec("cube", "binary"),
    TaskSpec("depth", "dense_regression", mean=(10.0,), scale=(5.0,)),
]
SCALARS = [spec for spec in TASKS if not spec.dense]


def build(num_branches=3, trunk_depth=1, init="independent", heads=None, seed=0):
    torch.manual_seed(seed)
    encoder = build_encoder(
        "residual64",
        num_branches,
        image_size=SIZE,
        trunk_depth=trunk_depth,
        init=init,
        options={"channels": 8},
    )
    return MultiTaskNetwork(TASKS, encoder, SIZE, heads=heads, dense_widths=(8,))


def draw_batch(seed=0, share_valid=0.7):
    generator = torch.Generator().manual_seed(seed)

    def ids(high, *shape):
        return torch.randint(0, high, shape, generator=generator)

    images = ids(256, BATCH, 3, *SIZE).to(torch.uint8)
    scalars = torch.stack([ids(2, BATCH), ids(3, BATCH), ids(9, BATCH), ids(2, BATCH)]).float()
    dense = {
        "edge": ids(256, BATCH, 1, *SIZE).to(torch.uint16),
        "seg": ids(4, BATCH, 1, *SIZE).to(torch.uint8),
        "depth": ids(256, BATCH, 1, *SIZE).to(torch.uint8),
    }
    valid = torch.rand(len(TASKS), BATCH, generator=generator) < share_valid
    return images, scalars, dense, valid


def head_module(network, task, branch):
    """The head as plain torch modules, reading the rows of its stack."""
    spec = TASKS[task]
    name = "_".join(map(str, spec.signature))
    row = [h for h in network.heads if TASKS[h[0]].signature == spec.signature].index(
        (task, branch)
    )
    stack = network.stacked_heads[name]
    if not spec.dense:
        weight, bias = stack.weight[row], stack.bias[row]
        return lambda maps: maps.flatten(1) @ weight.T + bias

    def decode(maps):
        maps = F.conv2d(maps, stack.weight0[row], padding=1)
        mean, variance = maps.mean((1, 2, 3), True), maps.var((1, 2, 3), False, keepdim=True)
        maps = (maps - mean) / (variance + 1e-5).sqrt()
        maps = maps * stack.gain0[row][:, None, None] + stack.shift0[row][:, None, None]
        maps = nn.Upsample(scale_factor=2, mode="bilinear")(F.relu(maps))
        maps = F.conv2d(maps, stack.weight[row], stack.bias[row], padding=1)
        return F.interpolate(maps, SIZE, mode="bilinear")

    return decode


def naive_losses(network, batch):
    """The [N,K] matrix of summed losses from one head, one sample at a time."""
    images, scalars, dense, valid = batch
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    shared = network.trunk((images / 255.0 - mean) / std)
    rows = []
    for task, spec in enumerate(TASKS):
        for branch in network.branches:
            outputs = head_module(network, task, list(network.branches).index(branch))(
                branch(shared)
            )
            total = torch.zeros(())
            for i in torch.nonzero(valid[task])[:, 0]:
                out = outputs[i]
                if spec.name == "seg":
                    labels = dense["seg"][i, 0].long()
                    total = total + F.cross_entropy(
                        out[None], labels[None], ignore_index=0, reduction="sum"
                    )
                elif spec.dense:
                    raw = dense[spec.name][i].float()
                    error = (out - (raw - spec.mean[0]) / spec.scale[0]).abs()
                    kept = raw < (spec.valid_below or 1e9)
                    total = total + error[kept].sum() / kept.numel()
                else:
                    label = scalars[SCALARS.index(spec), i]
                    if spec.kind == "binary":
                        sign = 2 * label - 1
                        total = total + F.softplus(-sign * out[0])
                    elif spec.kind == "multiclass":
                        total = total - out.log_softmax(0)[int(label)]
                    else:
                        total = total + (out[0] - (label - 1) / 2) ** 2
            rows.append(total)
    return torch.stack(rows).view(len(TASKS), network.num_branches)


def losses_of(network, images, labels):
    """The losses of all heads."""
    selection = network.select(network.heads)
    return network(images, selection, network.labels.targets(*labels))["losses"]


def test_loss_matrix_and_gradients_against_a_loop_over_heads():
    network, batch = build(), draw_batch()
    images, *labels = batch
    scale = torch.rand(len(TASKS), 3)
    losses = losses_of(network, images, labels)
    assert losses.shape == (7, 3) and losses.dtype == torch.float32
    (losses * scale).sum().backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    expected = naive_losses(network, batch)
    (expected * scale).sum().backward()
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-3, msg=name)


def test_weights_count_labels_and_labelled_pixels():
    network, (_, scalars, dense, valid) = build(), draw_batch()
    weights = network.labels.label_counts(network.labels.targets(scalars, dense, valid))
    expected = valid.sum(dim=1).float()
    expected[3] = sum(int((dense["seg"][i] != 0).sum()) for i in range(BATCH) if valid[3, i])
    assert torch.equal(weights, expected)


def test_by_task_gives_every_task_its_own_labels():
    network, (_, scalars, dense, valid) = build(), draw_batch(share_valid=1.0)
    found = network.labels.by_task(network.labels.targets(scalars, dense, valid))
    assert set(found) == {spec.name for spec in TASKS}
    assert torch.equal(found["cube"][0], scalars[3])
    assert torch.equal(found["colour"][0], scalars[1].long())
    torch.testing.assert_close(found["depth"][0], (dense["depth"].float() - 10) / 5)
    assert torch.equal(found["seg"][1], dense["seg"][:, 0] != 0)


def test_a_partial_plan_computes_the_same_losses_and_zeros_elsewhere():
    network, (images, *labels) = build(), draw_batch()
    targets = network.labels.targets(*labels)
    everything = network(images, network.select(network.heads), targets)["losses"]
    some = [(0, 0), (6, 0), (6, 2), (1, 2), (5, 0), (4, 2)]
    part = network(images, network.select(some), targets)["losses"]
    for head in network.heads:
        if head in some:
            torch.testing.assert_close(part[head], everything[head])
        else:
            assert part[head] == 0


def test_a_branch_without_heads_is_not_computed():
    network, (images, *labels) = build(), draw_batch()
    calls = [0, 0, 0]

    def count(index):
        def hook(*_):
            calls[index] += 1

        return hook

    for index, branch in enumerate(network.branches):
        branch.register_forward_hook(count(index))
    selection = network.select([(n, 2 if n % 2 else 0) for n in range(len(TASKS))])
    network(images, selection, network.labels.targets(*labels))["losses"].sum().backward()
    network(images, selection)
    assert calls == [2, 0, 2]
    assert all(p.grad is None for p in network.branches[1].parameters())


def test_a_batch_without_labels_gives_zero_and_zero_gradients():
    network, (images, *labels) = build(), draw_batch(share_valid=0.0)
    targets = network.labels.targets(*labels)
    losses = network(images, network.select(network.heads), targets)["losses"]
    losses.sum().backward()
    assert not losses.any() and not network.labels.label_counts(targets).any()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_predictions_are_those_of_the_planned_heads():
    network, (images, *_) = build().eval(), draw_batch()
    branch_of = [0, 2, 1, 1, 0, 2, 2]
    predictions = network(images, network.select(list(enumerate(branch_of))))["predictions"]
    assert list(predictions) == [spec.name for spec in TASKS]
    shared = network.trunk((images.float() - network.image_mean) / network.image_std)
    for task, spec in enumerate(TASKS):
        size = SIZE if spec.dense else ()
        assert predictions[spec.name].shape == (BATCH, spec.outputs, *size)
        expected = head_module(network, task, branch_of[task])(
            network.branches[branch_of[task]](shared)
        )
        torch.testing.assert_close(predictions[spec.name], expected, rtol=1e-4, atol=1e-4)


def test_autocast_keeps_losses_and_predictions_in_fp32():
    network, (images, *labels) = build(), draw_batch()
    targets = network.labels.targets(*labels)
    selection = network.select([(n, 0) for n in range(len(TASKS))])
    exact = network(images, selection, targets)["losses"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = network(images, selection, targets)["losses"]
        predictions = network(images, selection)["predictions"]
    assert losses.dtype == torch.float32
    assert {p.dtype for p in predictions.values()} == {torch.float32}
    torch.testing.assert_close(losses, exact, rtol=0.05, atol=0.05)
    assert not torch.equal(losses, exact)


@pytest.mark.parametrize("init", ["copies", "independent"])
def test_branches_and_heads_start_equal_only_as_copies(init):
    network, (images, *labels) = build(init=init), draw_batch()
    losses = losses_of(network, images, labels)
    equal = torch.isclose(losses[:, :1], losses[:, 1:], rtol=1e-5)
    assert equal.all() if init == "copies" else not equal.any()
    assert not torch.isclose(losses[1, 0], losses[5, 0]), "heads of two tasks must differ"


SUBSET = [(0, 2), (1, 2), (2, 0), (3, 0), (4, 0), (5, 2), (6, 0), (6, 2)]


def test_a_subset_reproduces_the_outputs():
    network, (images, *labels) = build(), draw_batch()
    targets = network.labels.targets(*labels)
    network(images, network.select(network.heads), targets)  # moves the running statistics
    network.eval()
    small = subset(network, SUBSET)
    assert small.num_branches == 2 and not small.training
    assert sorted(small.heads) == sorted((n, {0: 0, 2: 1}[k]) for n, k in SUBSET)
    expected = network(images, network.select(SUBSET), targets)["losses"][:, [0, 2]]
    found = small(images, small.select(small.heads), small.labels.targets(*labels))["losses"]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_subset_is_a_copy_and_draws_no_random_numbers():
    network = build()
    state = torch.random.get_rng_state()
    small = subset(network, SUBSET)
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert all(stack.weight.any() for stack in network.stacked_heads.values())


def test_moments_by_parameter_name_are_cut_like_the_weights():
    network = build()
    small = subset(network, SUBSET)
    moments = {name: p.detach() * 2 for name, p in network.named_parameters()}
    cut = subset_state(moments, network.layout, SUBSET)
    assert set(cut) == {name for name, _ in small.named_parameters()}
    for name, parameter in small.named_parameters():
        assert torch.equal(cut[name], parameter.detach() * 2)


def test_config_round_trip_through_json():
    network, (images, *_) = build(), draw_batch()
    small = subset(network, SUBSET[:-1]).eval()
    twin = MultiTaskNetwork.from_config(json.loads(json.dumps(small.config()))).eval()
    assert twin.config() == small.config()
    twin.load_state_dict(small.state_dict())
    expected = small(images, small.select(small.heads))["predictions"]
    found = twin(images, twin.select(twin.heads))["predictions"]
    for name, prediction in expected.items():
        assert torch.equal(found[name], prediction)


def test_only_branches_that_have_heads_remain():
    assert used_branches(SUBSET) == (0, 2)
    assert len(subset(build(), SUBSET).branches) == 2


def test_faults():
    network, (images, scalars, dense, valid) = build(), draw_batch()
    selection = network.select(network.heads)
    with pytest.raises(ValueError, match=r"selection holds 21 heads, must hold one for each of 7"):
        network(images, selection)
    with pytest.raises(ValueError, match=r"images have shape \(4, 3, 16, 11\), must be \(B, 3, 16"):
        network(images[..., :11], selection)
    dense["edge"] = dense["edge"][..., :8, :]
    with pytest.raises(ValueError, match=r"labels of task 'edge' have shape \(4, 1, 8, 12\)"):
        network.labels.targets(scalars, dense, valid)
    with pytest.raises(ValueError, match="heads holds none of task 'sphere'"):
        subset(network, [(0, 0)])
