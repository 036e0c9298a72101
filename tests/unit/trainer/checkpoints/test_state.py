import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.subset import subset_state
from trainer import loop
from trainer.builders import build_network
from trainer.checkpoints import state as state_module
from trainer.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from trainer.checkpoints.state import (
    NamedState,
    load_weights,
    read_state,
    read_weights,
    write_moments,
)
from trainer.engines.accelerator import make_accelerator
from trainer.engines.engine import Engine
from trainer.run_data import build_train_loader, open_manifest
from trainer.session import start_session
from trainer.snapshot import save_session
from trainer.tasks import resolve_tasks

NAMES = ("weights", "moments", "grouping")


def losses(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r["losses"] for r in records if r["kind"] == "train"}


def assert_same_state(found, expected):
    assert found.weights.keys() == expected.weights.keys()
    assert found.optimizer_step == expected.optimizer_step
    for name, value in expected.weights.items():
        assert torch.equal(found.weights[name], value), name
    for moment, values in expected.moments.items():
        assert found.moments[moment].keys() == values.keys()
        for name, value in values.items():
            assert torch.equal(found.moments[moment][name], value), (moment, name)


class CopiedBytes(TorchDispatchMode):
    """Counts the bytes that copies of this thread write."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("_to_copy", "clone", "copy_"):
            self.count += sum(t.nbytes for t in tree_leaves(result) if torch.is_tensor(t))
        return result


def num_bytes(tensors):
    return sum(value.nbytes for value in tensors.values())


def steps(engine, config, first, last):
    """Plain optimizer steps on the sum of all losses, from step to step."""
    manifest = open_manifest(config)
    tasks = resolve_tasks(config.tasks, manifest)
    loader = build_train_loader(
        config, manifest, tasks, start_step=first, end_step=30, rank=0, world_size=1
    )
    module = engine.module
    for _, batch in zip(range(first, last), loader, strict=False):
        targets = module.labels.targets(batch.scalars, batch.dense, batch.valid_rows)
        with engine.accumulate():
            engine.backward(
                engine.network(batch.images, module.select(module.heads), targets)["losses"].sum()
            )


@pytest.mark.usefixtures("forget_accelerate")
def test_state_read_and_written_back_continues_exactly(rooms_config):
    config = rooms_config("run.steps=6")
    accelerator = make_accelerator(config)
    tasks = resolve_tasks(config.tasks, open_manifest(config))

    whole = Engine(accelerator, build_network(config, tasks), config)
    steps(whole, config, 0, 3)
    middle = read_state(whole)
    assert middle.optimizer_step == 3
    steps(whole, config, 3, 6)
    end = read_state(whole)
    assert not torch.equal(
        end.weights["branches.0.0.patch_embeddings.weight"],
        middle.weights["branches.0.0.patch_embeddings.weight"],
    )

    torch.manual_seed(99)
    module = build_network(config.model_copy(update={"run": config.run}), tasks)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    load_weights(module, middle)
    continued = Engine(accelerator, module, config)
    write_moments(continued, middle)
    assert_same_state(read_state(continued), middle)
    steps(continued, config, 3, 6)
    assert_same_state(read_state(continued), end)


@pytest.mark.usefixtures("forget_accelerate")
def test_state_before_the_first_step_has_no_moments(rooms_config):
    config = rooms_config()
    tasks = resolve_tasks(config.tasks, open_manifest(config))
    engine = Engine(make_accelerator(config), build_network(config, tasks), config)
    state = read_state(engine)
    assert state.optimizer_step == 0 and state.moments == {"exp_avg": {}, "exp_avg_sq": {}}
    write_moments(engine, state)
    assert_same_state(read_state(engine), state)


@pytest.mark.usefixtures("forget_accelerate")
def test_a_rank_that_does_not_write_gathers_the_same_tensors_and_keeps_none(
    rooms_config, monkeypatch
):
    config = rooms_config()
    tasks = resolve_tasks(config.tasks, open_manifest(config))
    engine = Engine(make_accelerator(config), build_network(config, tasks), config)
    steps(engine, config, 0, 1)
    gathered = []

    def gather(tensor):
        gathered.append(tuple(tensor.shape))
        return tensor

    monkeypatch.setattr(state_module, "whole", gather)
    state = read_state(engine)
    on_the_writer = list(gathered)
    gathered.clear()
    with CopiedBytes() as copied:
        none = read_state(engine, keep=False)
    assert copied.count == 0
    assert gathered == on_the_writer and len(gathered) == 3 * len(list(engine.module.parameters()))
    assert none == NamedState({}, optimizer_step=1)
    name, parameter = next(engine.module.named_parameters())
    before = state.weights[name].clone()
    with torch.no_grad():
        parameter.add_(1.0)
    assert torch.equal(state.weights[name], before), "a copy"


RESNET = (
    "model.encoder.options={model_type: resnet, embedding_size: 8, hidden_sizes: [8, 16], "
    "depths: [1, 1], layer_type: basic}"
)


@pytest.fixture
def gpu_layout(monkeypatch):
    """Weights of convolutions are stored as on a GPU."""
    monkeypatch.setattr("trainer.engines.engine._keeps_layout", lambda _: True)


@pytest.mark.usefixtures("forget_accelerate", "gpu_layout")
def test_a_checkpoint_is_one_copy_of_the_state(rooms_config, tmp_path, monkeypatch):
    """Also where weights have another layout than in the file."""
    config = rooms_config(RESNET, "run.steps=2")
    taken = []
    with start_session(config, make_accelerator(config)) as session:
        loop.train(session)
        monkeypatch.setattr(session.writer, "start", taken.append)
        with CopiedBytes() as copied:
            save_session(session)
    (snapshot,) = taken
    parts = (snapshot.state.weights, *snapshot.state.moments.values(), snapshot.grouping)
    assert copied.count == sum(map(num_bytes, parts))
    with CopiedBytes() as copied:
        path = save_checkpoint(tmp_path / "checkpoints", snapshot, keep_last=1)
    assert copied.count == 0
    assert_same_state(load_checkpoint(path).state, snapshot.state)


@pytest.mark.usefixtures("forget_accelerate", "gpu_layout")
@pytest.mark.parametrize("encoder", [RESNET, "model.trunk_depth=0"], ids=["resnet", "convnext"])
def test_weights_that_are_stored_channels_last_continue_exactly(rooms_config, encoder):
    config = rooms_config(encoder, "run.steps=6")
    accelerator = make_accelerator(config)
    tasks = resolve_tasks(config.tasks, open_manifest(config))
    whole = Engine(accelerator, build_network(config, tasks), config)
    kernels = [m.weight for m in whole.module.modules() if isinstance(m, nn.Conv2d)]
    for kernel in kernels:  # of a depthwise one, `is_contiguous` holds for both layouts
        layout = torch.empty(kernel.shape, memory_format=torch.channels_last)
        assert kernel.stride() == layout.stride()
    steps(whole, config, 0, 3)
    middle = read_state(whole)
    assert all(value.is_contiguous() for value in middle.weights.values())
    steps(whole, config, 3, 6)

    module = build_network(config, tasks)
    load_weights(module, middle)
    continued = Engine(accelerator, module, config)
    write_moments(continued, middle)
    for parameter, moments in continued.optimizer.state.items():
        assert moments["exp_avg"].stride() == moments["exp_avg_sq"].stride() == parameter.stride()
    assert_same_state(read_state(continued), middle)
    steps(continued, config, 3, 6)
    assert_same_state(read_state(continued), read_state(whole))


@pytest.mark.usefixtures("forget_accelerate")
def test_where_the_moments_are_dropped_they_are_not_gathered(rooms_config, monkeypatch):
    config = rooms_config()
    tasks = resolve_tasks(config.tasks, open_manifest(config))
    engine = Engine(make_accelerator(config), build_network(config, tasks), config)
    steps(engine, config, 0, 1)
    expected = NamedState(read_state(engine).weights)
    gathered = []
    monkeypatch.setattr(state_module, "whole", lambda tensor: gathered.append(tensor) or tensor)
    assert_same_state(read_weights(engine), expected)
    assert len(gathered) == len(list(engine.module.parameters()))


def test_state_of_another_network_is_refused():
    with pytest.raises(RuntimeError, match="Missing key"):
        load_weights(torch.nn.Linear(2, 2), NamedState({"bias": torch.zeros(2)}))


@pytest.mark.parametrize(
    ("recipe", "starts"),
    [("published", (1, 5, 7, 8, 9, 11)), ("affinity", (1, 3, 5, 8)), ("evidence", (1, 3, 5, 8))],
)
def test_a_run_continued_from_any_checkpoint_ends_the_same(
    rooms_config, train_here, tmp_path, recipe, starts
):
    """Among them the steps before and after heads fall and the network gets smaller.

    The others have a warm-up of five steps, in which checkpoints hold statistics.
    """
    options = (
        "run.steps=12", "run.checkpoint_every=1", "run.keep_last=100", "pruning.begin=0.1",
        f"grouping.recipe={recipe}", *(["grouping.warmup=0.4"] if recipe != "published" else []),
    )  # fmt: skip
    config = rooms_config(*options, "pruning.end=0.7", "model.branches=4")
    whole = train_here(config).folder

    def holds_signals(step):
        state = load_file(whole.checkpoints / f"step-{step:09d}/grouping.safetensors")
        return any(name.startswith("gradient_statistics.") for name in state)

    assert [step for step in range(1, 13) if holds_signals(step)] == (
        [2, 3, 4] if recipe != "published" else []
    )
    for step in starts:
        copy = tmp_path / f"from{step}"
        name = f"step-{step:09d}"
        shutil.copytree(whole.checkpoints / name, copy / "checkpoints" / name)
        for file in (whole.config, whole.metrics):
            shutil.copy(file, copy)
        resumed = rooms_config(
            *options, "pruning.end=0.7", "model.branches=4", f"run.out={copy}", "run.resume=auto"
        )
        session = train_here(resumed)
        assert session.folder.metrics.read_bytes() == whole.metrics.read_bytes(), step
        for kind in NAMES:
            files = [
                f.checkpoints / f"step-{12:09d}/{kind}.safetensors" for f in (session.folder, whole)
            ]
            assert files[0].read_bytes() == files[1].read_bytes(), (step, kind)


def test_compaction_changes_nothing_but_the_size(rooms_config, train_here, tmp_path, monkeypatch):
    """The large network with the same heads switched off gives the same losses and weights."""
    # The start values decide: with this seed the tasks choose two of the four branches.
    options = (
        "run.steps=14", "run.seed=0", "model.branches=4", "grouping.logits_noise=3.0",
        "pruning.begin=0.5", "pruning.end=0.5",
    )  # fmt: skip
    small = train_here(rooms_config(*options, f"run.out={tmp_path / 'small'}"))
    monkeypatch.setattr(loop, "compact", lambda session: range(session.engine.module.num_branches))
    large = train_here(rooms_config(*options, f"run.out={tmp_path / 'large'}"))

    assert len(large.engine.module.heads) == 24 and len(small.engine.module.heads) == 6
    assert small.engine.module.num_branches == 2  # branches without tasks are gone
    found, expected = losses(small.folder.out), losses(large.folder.out)
    assert list(found) == list(range(1, 15))
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, rel=1e-6), step

    heads = large.learner.grouping.heads()
    state, layout = read_state(large.engine), large.engine.module.layout
    kept = NamedState(
        subset_state(state.weights, layout, heads),
        {m: subset_state(v, layout, heads) for m, v in state.moments.items()},
    )
    last = small.folder.checkpoints / f"step-{14:09d}"
    for name, value in load_file(last / "weights.safetensors").items():
        torch.testing.assert_close(value, kept.weights[name], rtol=1e-5, atol=1e-6)
    for name, value in load_file(last / "moments.safetensors").items():
        moment, _, parameter = name.partition("/")
        torch.testing.assert_close(value, kept.moments[moment][parameter], rtol=1e-4, atol=1e-6)
