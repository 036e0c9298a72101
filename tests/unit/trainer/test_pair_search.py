import json
import re

import numpy as np
import pytest
import torch

from data_pipelines.synthetic.planted import NUM_FEATURES, NUM_HIDDEN, NUM_INPUTS, PlantedProblem
from trainer import pair_search, search
from trainer.bench.planted import PlantedData, planted_config
from trainer.engines.accelerator import make_accelerator
from trainer.errors import DataError, UserError
from trainer.monitoring.status import read_status
from trainer.recipes.groups import groups_of_labels

NAMES = ["depth_zbuffer", "normal", "has_sphere", "num_solids", "camera_pitch"]


@pytest.fixture
def search_here(forget_accelerate):
    """Searches as trainer/main.py does, and returns what was found."""

    def run(config, data=None):
        forget_accelerate()
        search.search_groups(config, make_accelerator(config), data)
        return json.loads((config.run.out / "search" / "groups.json").read_text())

    return run


@pytest.fixture
def config_of(rooms_config, tmp_path):
    def make(name, *overrides):
        return rooms_config(
            f"run.out={tmp_path / name}",
            "grouping.recipe=hoa",
            f"tasks.names=[{','.join(NAMES)}]",
            "grouping.search_steps=3",
            "run.checkpoint_every=2",
            *overrides,
        )

    return make


def test_the_groups_found_are_trained(config_of, search_here, train_here):
    config = config_of("run", "run.steps=4", "log.trackers=[tensorboard]")
    found = search_here(config)
    folder = config.run.out / "search"
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == [
        f"round-{n:02d}" for n in (1, 2, 3, 4, 5)
    ]
    assert found["tasks"] == NAMES and 1 <= len(found["groups"]) <= config.model.branches
    losses, gains = np.array(found["losses"]), np.array(found["affinity"])
    assert losses.shape == (5, 5) and np.isfinite(losses).all()
    assert gains == pytest.approx(1 - losses / losses.diagonal(), abs=1e-5)
    for number in range(1, 6):
        run = folder / f"round-{number:02d}"
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [r["step"] for r in records if r["kind"] == "train"][-1] == 3
        saved = json.loads((run / "losses.json").read_text())["losses"]
        for task, branch in records[0]["heads"]:
            (other,) = {t for t, b in records[0]["heads"] if b == branch} - {task} or {task}
            assert losses[other, task] == pytest.approx(saved[NAMES[task]], rel=1e-5)
        assert not (run / "checkpoints").exists() and not (run / "tensorboard").exists()
    session = train_here(config)
    trained = groups_of_labels([branch for _, branch in session.learner.grouping.heads()])
    assert {tuple(NAMES[t] for t in g) for g in trained} == {tuple(g) for g in found["groups"]}


def test_a_search_that_was_stopped_goes_on(config_of, search_here, monkeypatch):
    whole = search_here(config_of("whole"))
    config, train = config_of("stopped", "run.resume=auto"), pair_search.train
    started = []

    def stop(session):
        started.append((session.folder.out.name, session.step))
        return train(session, interrupt if len(started) == 3 else None)

    def interrupt(session, _):
        if session.step == 2:  # after the checkpoint
            raise KeyboardInterrupt

    monkeypatch.setattr(pair_search, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        search_here(config)
    assert not (config.run.out / "search" / "groups.json").exists()
    assert search_here(config) == whole
    assert [name for name, _ in started] == [f"round-{n:02d}" for n in (1, 2, 3, 3, 4, 5)]
    assert [step for _, step in started] == [0, 0, 0, 2, 0, 0]
    monkeypatch.setattr(pair_search, "start_session", lambda *_: pytest.fail("searched again"))
    assert search_here(config) == whole
    other = config_of("stopped", "run.resume=auto", "run.seed=9")
    with pytest.raises(UserError, match=r"round-01 holds another run:\n.*run\.seed was 5, is 9"):
        search_here(other)
    with pytest.raises(UserError, match=r"round-01 already holds a run; set run\.resume=auto"):
        search_here(config_of("stopped"))


def test_losses_of_rounds_are_checked_when_a_search_goes_on(config_of, search_here):
    config = config_of("run", "run.resume=auto")
    search_here(config)
    folder = config.run.out / "search"
    (folder / "groups.json").unlink()
    other = config_of("run", "run.resume=auto", "eval.limit=4")
    expected = "found the losses of {'split': 'val', 'limit': None}, this start compares {'split': "
    with pytest.raises(UserError, match=re.escape(expected)):
        search_here(other)
    (folder / "round-02" / "losses.json").write_text('{"compared_on": 1')
    with pytest.raises(UserError, match=r"round-02/losses\.json: does not hold the losses of a ro"):
        search_here(config)


def test_pairs_are_compared_on_the_split_that_is_named(config_of, search_here):
    config = config_of("run", "grouping.search_split=train", "grouping.search_steps=1")
    on_train = np.array(search_here(config)["losses"])
    on_val = np.array(search_here(config_of("other", "grouping.search_steps=1"))["losses"])
    assert not np.allclose(on_train, on_val, rtol=1e-2)
    with pytest.raises(DataError, match=r"'tset'"):
        search_here(config_of("third", "grouping.search_split=tset"))
    assert not config_of("third").run.out.exists()


def test_a_round_is_the_run_with_a_network_for_each_group(config_of):
    config = config_of(
        "run",
        "model.init_from=[a, b, c]",
        "finetune.steps=5",
        "eval.every=3",
        "grouping.search_steps=null",
        "run.steps=33",
    )
    round_one = pair_search.round_config(config, 1, [NAMES[:2], NAMES[2:]])
    assert round_one.grouping.groups == (tuple(NAMES[:2]), tuple(NAMES[2:]))
    assert round_one.run.out == config.run.out / "search" / "round-01"
    assert (round_one.run.steps, round_one.model.branch_init) == (7, "copies")
    assert round_one.model.init_from == () and round_one.finetune.steps == 0
    assert round_one.eval.every == 0 and round_one.log.trackers == ()
    epochs = config_of("run", "grouping.search_steps=null", "run.steps=null", "run.epochs=10")
    assert pair_search.round_config(epochs, 12, [NAMES]).run.epochs == pytest.approx(2.0)


def test_the_status_is_that_of_the_round(config_of, search_here, monkeypatch):
    config, seen = config_of("run"), []

    def train(_):
        seen.append(read_status(config.run.out)["state"])
        raise KeyboardInterrupt

    monkeypatch.setattr(pair_search, "train", train)
    with pytest.raises(KeyboardInterrupt):
        search_here(config)
    assert len(seen) == 1 and seen[0] in ("starting", "running")


def test_planted_pairs_are_found(tmp_path, search_here):
    """Tasks of a group need one feature, and the networks have one: other pairs lose much."""
    problem = PlantedProblem(6, 2, seed=1)
    generator = torch.Generator().manual_seed(0)
    first = torch.ones(6, NUM_FEATURES) * torch.tensor([1.0, -1.0, 0.5, 0.2])
    problem._readouts = first + 0.1 * torch.randn(6, NUM_FEATURES, generator=generator)
    problem.groups = torch.tensor([0, 1, 1, 0, 1, 0])
    widths = f"model.encoder.options={{widths: [{NUM_INPUTS}, {NUM_HIDDEN}, 1]}}"
    overrides = [widths, "optim.lr=0.01", "grouping.search_steps=60"]
    config = planted_config(tmp_path / "run", 2, 0, "hoa", 60, 128, overrides)
    found = search_here(config, PlantedData(problem, config))
    assert [[int(name[4:]) for name in group] for group in found["groups"]] == [
        [0, 3, 5],
        [1, 2, 4],
    ]


def test_a_task_without_labels_in_the_split_gains_nothing(tmp_path, search_here, caplog):
    class Unlabelled(PlantedData):
        def eval_batches(self, **place):
            for batch in super().eval_batches(**place):
                batch.valid_rows[2] = False
                yield batch

    problem = PlantedProblem(4, 2, seed=1)
    config = planted_config(tmp_path / "run", 2, 0, "hoa", 10, 32)
    found = search_here(config, Unlabelled(problem, config))
    gains = np.array(found["affinity"])
    assert (gains[:, 2] == 0).all() and (gains[2, [0, 1, 3]] != 0).all()
    assert [row[2] for row in found["losses"]] == [None] * 4
    assert "the split 'val' has no labels of task0002: their gains count as 0" in caplog.text
