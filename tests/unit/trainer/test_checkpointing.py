import json
import logging
import re

import pytest
import torch

from trainer.checkpointing import (
    Progress,
    check_fits,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from trainer.errors import UserError
from trainer.state import NamedState

TASKS = [{"name": "a", "kind": "binary"}, {"name": "b", "kind": "regression"}]


def progress(step):
    return Progress(
        step=step, optimizer_step=step, logits_updates=step + 1, network={"tasks": TASKS},
        data="digest", metrics_bytes=17, loss_scale={"scale": 2.0},
    )  # fmt: skip


def state(step):
    values = {"x.weight": torch.full((2, 3), float(step)), "x.count": torch.tensor([step])}
    moments = {m: {"x.weight": torch.rand(2, 3)} for m in ("exp_avg", "exp_avg_sq")}
    return NamedState(values, moments, step)


def save(folder, step, keep_last=2, saved=None):
    grouping = {"logits": torch.rand(2, 3), "alive": torch.tensor([[True, False, True]] * 2)}
    saved = saved or state(step)
    path = save_checkpoint(folder, progress(step), saved, grouping, keep_last=keep_last)
    return path, saved, grouping


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path):
    path, saved, grouping = save(tmp_path, 3)
    found = load_checkpoint(path)
    assert found.progress == progress(3) and found.state.optimizer_step == 3
    for expected, loaded in (
        (saved.weights, found.state.weights),
        (saved.moments["exp_avg"], found.state.moments["exp_avg"]),
        (saved.moments["exp_avg_sq"], found.state.moments["exp_avg_sq"]),
        (grouping, found.grouping),
    ):
        assert expected.keys() == loaded.keys()
        for name, value in expected.items():
            assert torch.equal(value, loaded[name]) and value.dtype == loaded[name].dtype


def test_views_of_one_tensor_are_stored_as_they_look(tmp_path):
    whole = torch.arange(6.0).view(2, 3)
    saved = NamedState({"t": whole.T})
    path, *_ = save(tmp_path, 1, saved=saved)
    assert torch.equal(load_checkpoint(path).state.weights["t"], whole.T)


def test_only_the_last_ones_are_kept_and_latest_points_to_the_newest(tmp_path):
    for step in (1, 2, 10):
        save(tmp_path, step)
    assert names(tmp_path) == ["latest", "step-000000002", "step-000000010"]
    assert (tmp_path / "latest").read_text() == "step-000000010"
    assert newest_checkpoint(tmp_path).name == "step-000000010"


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 1)
    path, saved, _ = save(tmp_path, 1, saved=NamedState({"w": torch.ones(1)}))
    assert torch.equal(load_checkpoint(path).state.weights["w"], saved.weights["w"])
    assert names(tmp_path) == ["latest", "step-000000001"]


def test_no_folder_has_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_written(bad, tmp_path):
    save(tmp_path, 1)
    broken = state(2)
    broken.weights["x.weight"][0, 0] = bad
    with pytest.raises(ValueError, match=r"weights of x\.weight \(and 0 more\) are not finite"):
        save(tmp_path, 2, saved=broken)
    assert names(tmp_path) == ["latest", "step-000000001"]


def test_a_leftover_partial_folder_is_no_checkpoint_and_is_replaced(tmp_path):
    save(tmp_path, 1)
    partial = tmp_path / "step-000000002.partial"
    partial.mkdir()
    (partial / "weights.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path).name == "step-000000001"
    path, *_ = save(tmp_path, 2)
    assert load_checkpoint(path).progress.step == 2 and not partial.exists()


FILES = ("weights.safetensors", "moments.safetensors", "grouping.safetensors", "progress.json")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (truncate, "has {less} bytes or another content than when written"),
        (flip, "has {same} bytes or another content than when written"),
        (lambda path: path.unlink(), "is missing"),
    ],
    ids=["truncated", "flipped", "gone"],
)
def test_a_damaged_file_is_named_and_the_one_before_is_taken(name, harm, message, tmp_path, caplog):
    save(tmp_path, 1)
    path, *_ = save(tmp_path, 2)
    size = (path / name).stat().st_size
    harm(path / name)
    expected = f"{name} {message.format(less=size - 1, same=size)}"
    with pytest.raises(UserError, match=re.escape(f"checkpoint {path}: {expected}")):
        load_checkpoint(path)
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path).name == "step-000000001"
    assert f"passing over checkpoint {path}: {expected}" in caplog.text


@pytest.mark.parametrize("content", [None, "", "{"])
def test_a_checkpoint_without_its_list_of_files_is_not_whole(content, tmp_path):
    path, *_ = save(tmp_path, 1)
    (path / "files.json").unlink()
    if content is not None:
        (path / "files.json").write_text(content)
    with pytest.raises(UserError, match=r"files\.json is missing or unreadable"):
        load_checkpoint(path)
    with pytest.raises(UserError, match="none of 1 checkpoints is whole"):
        newest_checkpoint(tmp_path)


def test_saving_after_passing_over_a_damaged_checkpoint_keeps_the_new_one(tmp_path):
    for step in (1, 9):
        save(tmp_path, step)
    (tmp_path / "step-000000009/progress.json").unlink()
    path, *_ = save(tmp_path, 3, keep_last=1)
    assert newest_checkpoint(tmp_path) == path
    assert sorted(p.name for p in tmp_path.glob("step-*")) == [path.name]


def test_check_fits(tmp_path):
    path, *_ = save(tmp_path, 1)
    checkpoint = load_checkpoint(path)
    check_fits(checkpoint, json.loads(json.dumps(TASKS)), "digest", path)
    with pytest.raises(UserError, match=r"its tasks are \['a', 'b'\], the run's are \['b'\]"):
        check_fits(checkpoint, TASKS[1:], "digest", path)
    changed = [TASKS[0], {"name": "b", "kind": "binary"}]
    with pytest.raises(UserError, match=r"task b was .*regression.*, is .*binary"):
        check_fits(checkpoint, changed, "digest", path)
    with pytest.raises(UserError, match=r"digest digest, data\.shards has other"):
        check_fits(checkpoint, TASKS, "other", path)
