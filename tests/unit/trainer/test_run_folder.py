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
    folder.claim(config(folder.out))
    folder.create(config(folder.out))
    yield folder
    folder.release()


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
    message = r"run.keep_every: found 2500; must be a multiple of run.checkpoint_every, 1000"
    with pytest.raises(UserError, match=message):
        config(tmp_path, run__keep_every=2500)


@pytest.mark.parametrize(
    "changes",
    [
        {"run__checkpoint_every": 3},
        {"run__device": "cpu"},
        {"run__keep_last": 7},
        {"run__keep_every": 5000},
        {"run__async_checkpoint": False},
        {"data__shards": "moved"},
        {"data__workers": 5},
        {"eval__batch_size": 3},
        {"eval__every": 9},
        {"log__every": 1, "log__progress": False},
        {"run__steps": 11},
        {"run__steps": None, "run__epochs": 2},
        {"optim__lr": 1, "optim__heads_lr": 2},
        {"optim__schedule": "constant"},
        {"optim__schedule": {"name": "multistep", "milestones": [0.5]}},
        {"optim__warmup_steps": 3, "optim__weight_decay": 0.1, "optim__max_grad_norm": 1},
        {"data__eval_split": "test"},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_what_may_change(changes, folder):
    folder.check(config(folder.out, **changes))
    named = {path.replace("__", ".") for path in changes}
    assert named <= {text.split(" was ")[0].removesuffix(".name") for text in folder.changes}


def test_where_to_and_whether_to_resume_are_no_changes_of_a_run(folder):
    folder.check(config(folder.out, log__every=3))
    assert folder.changes == ["log.every was 10, is 3"]
    folder.check(config(folder.out))
    assert folder.changes == []


def test_a_comparison_may_not_change_what_is_learned(folder):
    folder.check(config(folder.out, log__every=3), may_change=False)
    with pytest.raises(UserError, match=r"run\.steps was 10, is 11\nname another folder"):
        folder.check(config(folder.out, run__steps=11), may_change=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run__seed": 1}, "run.seed was 0, is 1"),
        ({"run__precision": "bf16"}, "run.precision was None, is 'bf16'"),
        ({"data__global_batch": 16}, "data.global_batch was 8, is 16"),
        ({"data__flip": True}, "data.flip was False, is True"),
        ({"tasks__names": ["b", "a"]}, "tasks.names was ('a', 'b'), is ('b', 'a')"),
        ({"model__branches": 2}, "model.branches was 3, is 2"),
        ({"model__encoder__name": "mlp"}, "model.encoder.name was 'residual64', is 'mlp'"),
        ({"grouping__warmup": 0.2}, "grouping.warmup was 0.1, is 0.2"),
        ({"grouping__recipe": "published"}, "grouping.recipe was 'evidence', is 'published'"),
        ({"optim__name": "adam"}, "optim.name was 'adamw', is 'adam'"),
        ({"pruning__every": 1}, "pruning.every was 50, is 1"),
        ({"optim__betas": [0.5, 0.9]}, "optim.betas was (0.9, 0.999), is (0.5, 0.9)"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_may_not_change(changes, message, folder):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        folder.check(config(folder.out, **changes))
    text = str(error.value)
    assert "holds another run" in text
    assert "a resume may change run.steps, run.epochs, optim.lr" in text
    assert text.endswith("model.init_from=[model.safetensors]")


def test_all_changes_are_listed(folder):
    with pytest.raises(UserError) as error:
        folder.check(config(folder.out, run__seed=4, data__flip=True, optim__lr=2))
    assert len(str(error.value).splitlines()) == 4


def test_a_folder_that_is_not_a_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="exists and is not the folder of a run"):
        RunFolder(tmp_path / "file").check(config(tmp_path / "file"))
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="exists and is not the folder of a run"):
        RunFolder(tmp_path / "other").check(config(tmp_path / "other"))
    with pytest.raises(UserError, match=r"holds no run \(config.yaml is missing\)"):
        RunFolder(tmp_path / "other").load_config()


def test_a_claim_of_which_nothing_came_leaves_nothing(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b" / "run")
    folder.claim(config(folder.out))
    assert [path.name for path in folder.out.iterdir()] == ["lock"]
    folder.release()
    assert list(tmp_path.iterdir()) == []


def test_a_claim_deletes_nothing_that_it_did_not_make(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("")
    folder = RunFolder(tmp_path / "run")
    folder.claim(config(folder.out))
    folder.release()
    assert [path.name for path in folder.out.iterdir()] == ["mine"]


def test_a_claim_within_a_claim(folder):
    inner = RunFolder(folder.out)
    inner.claim(config(folder.out))
    inner.release()
    assert folder._lock.is_locked and folder.config.exists()
    folder.release()
    assert (folder.out / "lock").exists(), "of a run"


def test_a_claim_that_is_refused_is_released(folder):
    other = RunFolder(folder.out)
    with pytest.raises(UserError, match="holds another run"):
        other.claim(config(folder.out, run__seed=4))
    assert other._lock is None and folder._lock.is_locked


def test_credentials_are_neither_saved_nor_compared(tmp_path):
    folder = RunFolder(tmp_path / "run")
    first = config(folder.out, data__tar_urls="https://me:key1@host/{0..9}.tar?sig=1")
    folder.claim(first)
    folder.create(first)
    folder.release()
    assert "key1" not in folder.config.read_text() and "sig" not in folder.config.read_text()
    assert folder.load_config().data.tar_urls == "https://host/{0..9}.tar"
    folder.check(config(folder.out, data__tar_urls="https://me:key2@host/{0..9}.tar?sig=2"))
    with pytest.raises(UserError, match=r"data\.tar_urls was 'https://host/\{0\.\.9\}\.tar', is"):
        folder.check(config(folder.out, data__tar_urls="https://me:key2@other/{0..9}.tar"))
