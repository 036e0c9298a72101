"""A step with missing labels has the gradients of the closed form over the labels that exist."""
# Legend: N tasks, K branches, B samples.

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.decode.codecs import encode_json, encode_png
from data_pipelines.shards.manifest import Field, Manifest
from data_pipelines.shards.writer import ShardWriter
from trainer.loop import _batches
from trainer.step import train_step

SIDE = 16
BATCH = 8
CLASSES = ("none", "a", "b", "c")
FIELDS = {
    "rgb": Field(member="rgb.png", kind="image", channels=3),
    "depth": Field(member="depth.png", kind="dense_regression", mean=1000.0, std=500.0),
    "seg": Field(member="seg.png", kind="dense_classification", classes=CLASSES),
    "hat": Field(member="a.json", key="hat", kind="binary"),
    "shape": Field(member="a.json", key="shape", kind="multiclass", classes=("x", "y", "z")),
    "weight": Field(member="a.json", key="weight", kind="regression"),
}
TASKS = ("depth", "seg", "hat", "shape", "weight")
DEFINE = {
    "depth": {"valid_below": 3000.0},
    "seg": {"ignore_index": 0},
    "weight": {"loss": "mse"},
}


def raw_labels(number):
    rng = np.random.default_rng(number)
    return {
        "depth": rng.integers(0, 4000, (SIDE, SIDE)).astype(np.uint16),
        "seg": rng.integers(0, 4, (SIDE, SIDE)).astype(np.uint8),
        "hat": int(rng.integers(2)),
        "shape": int(rng.integers(3)),
        "weight": float(np.float32(rng.normal())),
    }


def image_of(number):
    rng = np.random.default_rng([7, number])
    return rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)


def write(root, labelled_tasks):
    """Samples with the labels that are named for each; a shard holds four samples."""
    counts = dict.fromkeys(FIELDS, 0)
    with ShardWriter(root, "train", 4) as writer:
        for number, tasks in enumerate(labelled_tasks):
            labels = {name: value for name, value in raw_labels(number).items() if name in tasks}
            members = {"rgb.png": encode_png(image_of(number))}
            members |= {f"{n}.png": encode_png(labels[n]) for n in ("depth", "seg") if n in labels}
            members["a.json"] = encode_json(
                {name: value for name, value in labels.items() if name not in ("depth", "seg")}
            )
            writer.write(f"s{number}", members)
            for name in labels:
                counts[name] += 1
    Manifest(dataset="toy", fields=FIELDS, splits={"train": writer.split(counts)}).save(root)
    return root


def task_loss(task, prediction, number):
    """Sum of the losses of one sample, and what it counts in the mean over labels."""
    value = raw_labels(number)[task]
    if task == "depth":
        raw = torch.from_numpy(value.astype(np.float64))
        counts = raw < 3000
        error = (prediction[0].double() - (raw - 1000) / 500).abs()
        return error[counts].sum() / raw.numel(), 1
    if task == "seg":
        ids = torch.from_numpy(value.astype(np.int64))
        losses = F.cross_entropy(
            prediction.double()[None], ids[None], reduction="none", ignore_index=0
        )
        return losses.sum(), int((ids != 0).sum())
    if task == "hat":
        log = F.logsigmoid(prediction[0].double() * (1 if value else -1))
        return -log, 1
    if task == "shape":
        return -prediction.double().log_softmax(0)[value], 1
    return (prediction[0].double() - value) ** 2, 1


def closed_form(session, numbers, labelled_tasks, weights):
    """Gradients of sum_nk z_nk * loss_nk, each loss a mean over the labels that exist."""
    module = session.engine.module
    images = torch.from_numpy(np.stack([image_of(n).transpose(2, 0, 1) for n in numbers]))
    objective = torch.zeros((), dtype=torch.float64)
    for branch in range(module.num_branches):
        heads = [(task, branch) for task in range(len(TASKS))]
        predictions = module(images, module.select(heads))["predictions"]
        for row, task in enumerate(TASKS):
            parts = [
                task_loss(task, predictions[task][place], number)
                for place, number in enumerate(numbers)
                if task in labelled_tasks[number]
            ]
            count = sum(weight for _, weight in parts)
            if count:
                objective = objective + weights[row, branch] * sum(p for p, _ in parts) / count
    module.zero_grad()
    objective.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in module.named_parameters()
    }


def gradients_of_step(session, micro_batches):
    """The gradients that the optimizer is given in one step, and the weights z [N,K]."""
    module, found = session.engine.module, {}
    optimizer = session.engine.optimizer
    names = {id(p): name for name, p in module.named_parameters()}

    def keep(*_):
        for group in optimizer.param_groups:
            for p in group["params"]:
                found[names[id(p)]] = torch.zeros_like(p) if p.grad is None else p.grad.clone()

    hook = optimizer.optimizer.register_step_pre_hook(keep)
    weights = session.learner.weights(session.step, BATCH).detach()
    train_step(session, micro_batches)
    hook.remove()
    return found, weights


def check(session, labelled_tasks):
    """Compares the first step with the closed form on the weights it started from."""
    micro_batches = next(_batches(session))
    numbers = [int(key[1:]) for batch in micro_batches for key in batch.keys]
    before = {name: p.detach().clone() for name, p in session.engine.module.named_parameters()}
    found, weights = gradients_of_step(session, micro_batches)
    with torch.no_grad():
        for name, parameter in session.engine.module.named_parameters():
            parameter.copy_(before[name])
    expected = closed_form(session, numbers, labelled_tasks, weights.double())
    assert set(found) == set(expected)
    largest = max(float(g.abs().max()) for g in expected.values())
    assert largest > 0
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * largest, msg=name)
    return expected


def start(session_of, root, recipe="published", **sections):
    sections = {
        "tasks": {"names": list(TASKS), "define": DEFINE},
        "grouping": {"recipe": recipe},
        **sections,
    }
    return session_of(root, SIDE, batch=BATCH, **sections)


# Any pattern in which every task has a label somewhere, which the loader asks for
patterns = st.lists(st.sets(st.sampled_from(TASKS)), min_size=2 * BATCH, max_size=2 * BATCH).filter(
    lambda samples: set().union(*samples) == set(TASKS)
)


@given(labelled_tasks=patterns)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_pattern(session_of, tmp_path_factory, labelled_tasks):
    root = write(tmp_path_factory.mktemp("pattern"), labelled_tasks)
    run = {"out": str(root / "run")}
    check(start(session_of, root, run=run), labelled_tasks)


@pytest.mark.parametrize("recipe", ["published", "affinity", "evidence"])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_separate_shard_sets(session_of, tmp_path, accumulation, recipe):
    """Each shard is labelled for one task only; micro-batches then miss whole tasks.

    The recipes `affinity` and `evidence` collect statistics in the step, which must not show in the
    gradients.
    """
    labelled_tasks = [{TASKS[number // 4]} for number in range(4 * len(TASKS))]
    root = write(tmp_path / "data", labelled_tasks)
    session = start(session_of, root, recipe, optim={"gradient_accumulation_steps": accumulation})
    assert session.learner.collects(0) == (recipe != "published")
    check(session, labelled_tasks)
    sizes = [int(batch.valid_rows.any(dim=1).sum()) for batch in next(_batches(session))]
    assert max(sizes) <= BATCH // accumulation  # tasks with a label in a micro-batch


def test_a_task_without_labels_in_the_batch_does_not_move(session_of, tmp_path):
    """Adam without weight decay leaves a parameter alone that has never had a gradient."""
    labelled_tasks = [{"hat"} if number else set(TASKS) for number in range(80)]
    root = write(tmp_path / "data", labelled_tasks)
    session = start(session_of, root, optim={"name": "adam"})
    module = session.engine.module
    [stack] = [name for name in module.stacked_heads if name.startswith("dense_regression")]
    before = [parameter.detach().clone() for parameter in module.stacked_heads[stack].parameters()]
    for micro_batches in _batches(session):
        if all("s0" not in batch.keys for batch in micro_batches):
            train_step(session, micro_batches)
            break
    assert session.learner.updates == 1
    after = list(module.stacked_heads[stack].parameters())
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
