"""Fine-tuning after the search: what each phase trains, leaves alone, logs and resumes."""

import json

import pytest
import torch
from safetensors.torch import load_file

from trainer.checkpoints.checkpoint import load_checkpoint
from trainer.config.finetune import FinetuneSection
from trainer.phases import Phase, list_phases, phase_before

SEARCH, FINETUNE = 6, 4
GROUPS = [["normal", "has_sphere", "floor_share"], ["has_box", "has_window", "camera_pitch"]]
# A trunk with BatchNorm, and weight decay of heads of two groups in one stack: all that could
# change what is frozen.
RUN = (
    f"run.steps={SEARCH}", "run.checkpoint_every=1", "run.keep_last=100", "grouping.recipe=fixed",
    "model.branches=2", "model.trunk_depth=1", f"finetune.steps={FINETUNE}",
    "optim.weight_decay=0.1", "tasks.define={}",
    "tasks.names=[normal, has_sphere, has_box, has_window, camera_pitch, floor_share]",
    "model.encoder.options={model_type: resnet, embedding_size: 8, hidden_sizes: [8, 16], "
    "depths: [1, 1], layer_type: basic}",
)  # fmt: skip


def test_phases_follow_each_other():
    section = FinetuneSection(steps=4)
    phases = list_phases(section, 10, 4, (0, 1, 3))
    assert phases == (Phase(0, 10), Phase(10, 14, (0,)), Phase(14, 18, (1,)), Phase(18, 22, (3,)))
    together = list_phases(FinetuneSection(steps=4, order="together"), 10, 4, (0, 1, 3))
    assert together == (Phase(0, 10), Phase(10, 14, (0, 1, 3)))
    assert list_phases(FinetuneSection(), 10, 0, (0, 1)) == (Phase(0, 10),)


def test_a_step_belongs_to_the_phase_that_made_it():
    phases = list_phases(FinetuneSection(steps=4), 10, 4, (0, 1))
    found = [phase_before(phases, step).start for step in (0, 1, 10, 11, 14, 15, 18, 99)]
    assert found == [0, 0, 0, 10, 10, 14, 14, 14]


def weights_at(folder, step):
    return load_file(folder.checkpoints / f"step-{step:09d}/weights.safetensors")


def records(folder, kind):
    lines = folder.metrics.read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def changed(before, after):
    """Names of what changed; for stacked_heads with the rows that did."""
    found = set()
    for name, value in before.items():
        if name.startswith("stacked_heads."):
            rows = (value != after[name]).flatten(1).any(dim=1)
            found |= {(name, row) for row in rows.nonzero().flatten().tolist()}
        elif not torch.equal(value, after[name]):
            found.add(name)
    return found


@pytest.fixture
def config(rooms_config, tmp_path):
    path = tmp_path / "groups.json"
    path.write_text(json.dumps({"groups": GROUPS}))
    return lambda *overrides: rooms_config(*RUN, f"grouping.groups={path}", *overrides)


@pytest.fixture
def run(config, train_here):
    return lambda *overrides: train_here(config(*overrides))


def own_names(session, branch):
    """What a phase of this branch may change, from a layout of its own."""
    network = session.engine.module
    allowed = {name for name in network.state_dict() if name.startswith(f"branches.{branch}.")}
    for stack, members in network.layout.members.items():
        heads = sorted((h for h in network.heads if h[0] in members), key=lambda h: (h[1], h[0]))
        for key in network.stacked_heads[stack].state_dict():
            allowed |= {
                (f"stacked_heads.{stack}.{key}", row)
                for row, h in enumerate(heads)
                if h[1] == branch
            }
    return allowed


def test_one_by_one_trains_a_group_and_nothing_else(run):
    session = run()
    assert session.step == session.num_steps == SEARCH + 2 * FINETUNE
    assert [r["step"] for r in records(session.folder, "finetune")] == [6, 10]
    for branch, start in enumerate((SEARCH, SEARCH + FINETUNE)):
        before, after = (weights_at(session.folder, step) for step in (start, start + FINETUNE))
        moved, allowed = changed(before, after), own_names(session, branch)
        assert moved <= allowed
        heads = {name for name in allowed if isinstance(name, tuple)}
        assert heads <= moved and any(name in moved for name in allowed - heads)
        trained = [r["losses"] for r in records(session.folder, "train") if r["step"] == start + 1]
        groups = [session.tasks[t].name for t, k in session.engine.module.heads if k == branch]
        assert set(trained[0]) == set(groups)


def test_together_trains_all_groups_at_once_and_leaves_the_trunk(run):
    session = run("finetune.order=together")
    assert session.num_steps == SEARCH + FINETUNE
    moved = changed(*(weights_at(session.folder, step) for step in (SEARCH, session.step)))
    assert own_names(session, 0) | own_names(session, 1) >= moved
    assert {name.split(".")[1] for name in moved if "branches" in name} == {"0", "1"}


def test_the_trunk_may_go_on_learning_with_all_groups(run):
    session = run("finetune.order=together", "finetune.freeze_trunk=false")
    moved = changed(*(weights_at(session.folder, step) for step in (SEARCH, session.step)))
    assert any(isinstance(name, str) and name.startswith("trunk.") for name in moved)


def test_optimizer_and_schedule_start_anew(run):
    session = run("finetune.lr=1e-4", "optim.warmup_steps=2")
    found = {r["step"]: r["lr"] for r in records(session.folder, "train")}
    for start in (SEARCH, SEARCH + FINETUNE):
        assert [found[start + n] for n in (1, 2, 3)] == pytest.approx([0.5e-4, 1e-4, 1e-4])
        path = session.folder.checkpoints / f"step-{start + 1:09d}"
        checkpoint = load_checkpoint(path)
        assert checkpoint.progress.optimizer_step == 1
        names = set(checkpoint.state.moments["exp_avg"])
        branch = str(records(session.folder, "finetune")[start > SEARCH]["branches"][0])
        assert {n.split(".")[1] for n in names if n.startswith("branches")} == {branch}
        assert not any(name.startswith("trunk.") for name in names)


@pytest.mark.parametrize("step", [SEARCH, SEARCH + FINETUNE + 1])
def test_resumed_run_equals_the_whole_one(run, config, train_here, tmp_path, step):
    whole = run(f"run.out={tmp_path / 'whole'}").folder
    out = tmp_path / "part"
    first = config(f"run.out={out}", "run.resume=auto")
    train_here(first)
    for path in (out / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    session = train_here(first)
    last = f"step-{session.num_steps:09d}"
    for name in ("weights", "moments", "grouping"):
        file = f"{last}/{name}.safetensors"
        found, expected = ((f.checkpoints / file).read_bytes() for f in (session.folder, whole))
        assert found == expected, name
    assert session.folder.metrics.read_bytes() == whole.metrics.read_bytes()
