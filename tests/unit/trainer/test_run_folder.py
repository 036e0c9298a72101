import re

import pytest
import yaml

from trainer.config.loading import parse_config
from trainer.errors import UserError
from trainer.run_folder import RunFolder


def config(out, resume="auto", **changes):
    tree = {
        "run": {"out": str(out), "steps": 10, "resume": resume},
        "data": {"shards": "shards", "image_size": [64, 64], "global_batch": 8},
        "tasks": {"names": ["a", "b"]},
        "model": {"encoder": {"name": "residual64"}, "branches": 3},
        "grouping": {}, "pruning": {}, "optim": {}, "eval": {}, "log": {},
    }  # fmt: skip
    for path, value in changes.items():
        *sections, key = path.split("__")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    return parse_config(tree, "test")


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create(config(folder.out))
    return folder


def test_create_saves_the_resolved_config_and_nothing_partial(folder):
    assert folder.load_config() == config(folder.out)
    names = sorted(path.name for path in folder.out.iterdir())
    assert names == ["checkpoints", "config.yaml", "lock"]
    assert yaml.safe_load(folder.config.read_text())["optim"]["betas"] == [0.9, 0.999]


def test_a_new_or_empty_folder_is_free(tmp_path):
    RunFolder(tmp_path / "new").check(config(tmp_path / "new", resume="never"))
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty").check(config(tmp_path / "empty"))


def test_a_run_is_not_overwritten(folder):
    with pytest.raises(UserError, match=r"already holds a run; set run\.resume=auto"):
        folder.check(config(folder.out, resume="never"))


def test_the_same_run_may_be_continued(folder):
    folder.check(config(folder.out))


def test_checkpoints_to_keep_must_be_made(tmp_path):
    message = r"run: keep_every is 2500; must be a multiple of checkpoint_every, 1000"
    with pytest.raises(UserError, match=message):
        config(tmp_path, run__keep_every=2500)


@pytest.mark.parametrize(
    "changes",
    [
        {"run__checkpoint_every": 3},
        {"run__keep_last": 7},
        {"run__keep_every": 5000},
        {"run__async_checkpoint": False},
        {"data__shards": "moved"},
        {"data__workers": 5},
        {"eval__batch_size": 3},
        {"eval__every": 9},
        {"log__every": 1, "log__progress": False},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_what_may_change(changes, folder):
    folder.check(config(folder.out, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run__steps": 11}, "run.steps was 10, is 11"),
        ({"run__seed": 1}, "run.seed was 0, is 1"),
        ({"run__precision": "bf16"}, "run.precision was None, is 'bf16'"),
        ({"data__global_batch": 16}, "data.global_batch was 8, is 16"),
        ({"data__flip": True}, "data.flip was False, is True"),
        ({"tasks__names": ["b", "a"]}, "tasks.names was ('a', 'b'), is ('b', 'a')"),
        ({"model__branches": 2}, "model.branches was 3, is 2"),
        ({"model__encoder__name": "x"}, "model.encoder.name was 'residual64', is 'x'"),
        ({"grouping__loss_decay": 0.9}, "grouping.loss_decay was 0.98, is 0.9"),
        ({"grouping__recipe": "published"}, "grouping.recipe was 'affinity', is 'published'"),
        ({"optim__schedule": "constant"}, "optim.schedule.name was 'cosine', is 'constant'"),
        ({"pruning__every": 1}, "pruning.every was 50, is 1"),
        ({"optim__lr": 1}, "optim.lr was 0.001, is 1.0"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_may_not_change(changes, message, folder):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        folder.check(config(folder.out, **changes))
    assert "holds another run" in str(error.value)


def test_all_changes_are_listed(folder):
    with pytest.raises(UserError) as error:
        folder.check(config(folder.out, run__seed=4, optim__lr=2, data__workers=9))
    assert len(str(error.value).splitlines()) == 3


def test_a_folder_that_is_not_a_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="exists and is not the folder of a run"):
        RunFolder(tmp_path / "file").check(config(tmp_path / "file"))
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="exists and is not the folder of a run"):
        RunFolder(tmp_path / "other").check(config(tmp_path / "other"))
    with pytest.raises(UserError, match=r"holds no run \(config.yaml is missing\)"):
        RunFolder(tmp_path / "other").load_config()
