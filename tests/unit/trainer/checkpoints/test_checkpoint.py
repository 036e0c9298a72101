import logging
import re

import pytest
import torch
from safetensors import SafetensorError

from trainer.checkpoints import checkpoint as checkpointing
from trainer.checkpoints.checkpoint import (
    Checkpoint,
    Progress,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from trainer.checkpoints.state import NamedState
from trainer.errors import UserError

TASKS = [{"name": "a", "kind": "binary"}, {"name": "b", "kind": "regression"}]


def progress(step):
    return Progress(
        step=step, optimizer_step=step, logits_updates=step + 1, network={"tasks": TASKS},
        data="digest", metrics_bytes=17, loss_scale={"scale": 2.0}, dataset="rooms",
    )  # fmt: skip


def state(step):
    values = {"x.weight": torch.full((2, 3), float(step)), "x.count": torch.tensor([step])}
    moments = {m: {"x.weight": torch.rand(2, 3)} for m in ("exp_avg", "exp_avg_sq")}
    return NamedState(values, moments, step)


def save(folder, step, keep_last=2, saved=None, keep_every=None):
    grouping = {"logits": torch.rand(2, 3), "alive": torch.tensor([[True, False, True]] * 2)}
    saved = saved or state(step)
    checkpoint = Checkpoint(progress(step), saved, grouping)
    path = save_checkpoint(folder, checkpoint, keep_last=keep_last, keep_every=keep_every)
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


def test_steps_to_keep_for_good_are_kept_beside_the_last_ones(tmp_path):
    for step in range(2, 15, 2):
        save(tmp_path, step, keep_last=1, keep_every=4)
    kept = [f"step-{step:09d}" for step in (4, 8, 12, 14)]
    assert names(tmp_path) == ["latest", *kept]


def test_a_whole_checkpoint_of_the_step_is_left_as_it_is(tmp_path):
    path, saved, _ = save(tmp_path, 1)
    save(tmp_path, 1, saved=NamedState({"w": torch.ones(1)}))
    assert load_checkpoint(path).state.weights.keys() == saved.weights.keys()
    assert names(tmp_path) == ["latest", "step-000000001"]


def test_a_damaged_checkpoint_of_the_step_is_replaced(tmp_path):
    path, *_ = save(tmp_path, 1)
    (path / "progress.json").unlink()
    save(tmp_path, 1, saved=NamedState({"w": torch.ones(1)}))
    assert torch.equal(load_checkpoint(path).state.weights["w"], torch.ones(1))
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


def test_a_save_that_fails_leaves_no_trace(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(_, path):
        path.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(checkpointing, "save_file", full)
    with pytest.raises(SafetensorError):
        save(tmp_path, 2)
    assert names(tmp_path) == ["latest", "step-000000001"]


FILES = ("weights.safetensors", "moments.safetensors", "grouping.safetensors", "progress.json")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def remove(path):
    path.unlink()


def flip(path):
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (truncate, "has {less} bytes, {size} were written"),
        (flip, "has another content than was written"),
        (remove, "is missing"),
    ],
    ids=["truncated", "flipped", "gone"],
)
def test_a_damaged_file_is_named_and_the_one_before_is_taken(name, harm, message, tmp_path, caplog):
    save(tmp_path, 1)
    path, *_ = save(tmp_path, 2)
    size = (path / name).stat().st_size
    harm(path / name)
    expected = f"{name} {message.format(less=size - 1, size=size)}"
    with pytest.raises(UserError, match=re.escape(f"checkpoint {path}: {expected}")):
        load_checkpoint(path)
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path).name == "step-000000001"
    assert f"passing over checkpoint {path}: {expected}" in caplog.text


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"weights.safetensors": 3}'])
def test_a_checkpoint_without_its_list_of_files_is_not_whole(content, tmp_path):
    path, *_ = save(tmp_path, 1)
    (path / "files.json").unlink()
    if content is not None:
        (path / "files.json").write_text(content)
    expected = "does not list weights" if content == "[]" else "is missing or unreadable"
    with pytest.raises(UserError, match=rf"files\.json {expected}"):
        load_checkpoint(path)
    with pytest.raises(UserError, match="none of 1 checkpoints is whole"):
        newest_checkpoint(tmp_path)


def test_a_list_that_leaves_out_a_file_is_not_whole(tmp_path):
    path, *_ = save(tmp_path, 1)
    (path / "files.json").write_text("{}")
    with pytest.raises(UserError, match=r"files\.json does not list weights\.safetensors"):
        load_checkpoint(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    path, *_ = save(tmp_path, 1)

    def broken(file, *_):
        raise OSError(5, "Input/output error", str(file))

    monkeypatch.setattr("builtins.open", broken)
    message = r"step-\d+: cannot be read: .*Input/output error: '.*\.safetensors'"
    with pytest.raises(UserError, match=message):
        load_checkpoint(path)


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    path, *_ = save(tmp_path, 1)
    (path / "progress.json").write_text('{"steps": 1}')
    with pytest.raises(UserError, match=r"progress\.json cannot be used: .*'steps'"):
        load_checkpoint(path, verified=True)


def test_a_rank_that_does_not_see_the_folder_says_so(tmp_path):
    with pytest.raises(UserError, match=r"step-1: cannot be read: .*No such file"):
        load_checkpoint(tmp_path / "step-1", verified=True)
