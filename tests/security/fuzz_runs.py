"""Mutated checkpoints and configuration files."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.security.fuzzing import Case, Format, read_files
from tests.security.mutations import edited, json_texts, safetensors_files
from tests.security.yaml_mutations import repeated_key, yaml_texts
from trainer.checkpoints.checkpoint import (
    Checkpoint,
    Progress,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from trainer.checkpoints.state import NamedState
from trainer.config.config import Config
from trainer.config.loading import load_config
from trainer.errors import UserError

CONFIG = "run.yaml"
_STEP = "step-000000004"
_LIST = f"{_STEP}/files.json"
_TREE: dict[str, Any] = {
    "run": {"out": "run", "steps": 30, "seed": 5, "precision": "fp32", "resume": "auto"},
    "data": {"shards": "shards", "image_size": [32, 32], "global_batch": 8, "workers": 0},
    "tasks": {
        "names": ["depth_zbuffer", "camera_pitch"],
        "define": {"depth_zbuffer": {"loss": "mse", "valid_below": 8192.0}},
    },
    "model": {
        "branches": 3,
        "encoder": {"name": "backbone", "options": {"model_type": "resnet", "depths": [1, 1]}},
    },
    "grouping": {"recipe": "published", "lr": 0.1, "temperature": {"initial": 2.0, "final": 0.5}},
    "pruning": {"threshold": 0.2, "begin": 0.2, "end": 0.8, "every": 3},
    "optim": {"lr": 3e-4, "schedule": {"name": "cosine"}, "weight_decay": 0.01},
    "eval": {"batch_size": 5, "limit": 100},
    "log": {"every": 1, "trackers": [], "progress": False},
}


def configuration_format() -> Format:
    """Return the format of configuration files, as `trainer/main.py` reads them."""
    valid = {CONFIG: yaml.safe_dump(_TREE).encode()}
    return Format(
        name="configuration",
        error=UserError,
        valid=Case(valid, "nothing"),
        cases=yaml_texts(_TREE).map(lambda mutant: Case({CONFIG: mutant[0]}, mutant[1])),
        load=_load_config,
        wrong=lambda case, *_: repeated_key(case.files[CONFIG]),
    )


def _load_config(folder: Path) -> Config:
    config = load_config(folder / CONFIG)
    config.to_yaml()
    return config


def checkpoint_format() -> Format:
    """Return the format of checkpoints, as a run resumes from them."""
    with tempfile.TemporaryDirectory() as name:
        save_checkpoint(Path(name), _checkpoint(), keep_last=1)
        files = read_files(Path(name))
    names = [name for name in files if name.startswith(_STEP)]
    return Format(
        name="checkpoint",
        error=UserError,
        valid=Case(files, "nothing"),
        cases=st.one_of(
            st.sampled_from(names).flatmap(lambda name: _damaged(files, name)),
            st.sampled_from([name for name in names if name != _LIST]).flatmap(
                lambda name: _made(files, name)
            ),
            json_texts(files[_LIST]).map(
                lambda mutant: Case({**files, _LIST: mutant[0]}, mutant[1], covered=True)
            ),
        ),
        load=_resume,
        wrong=_wrong_checkpoint,
    )


def _checkpoint() -> Checkpoint:
    weights = {f"w{n}": torch.arange(6.0).reshape(2, 3) + n for n in range(3)}
    moments = {
        moment: {name: value.square() + at for name, value in weights.items()}
        for at, moment in enumerate(("exp_avg", "exp_avg_sq"))
    }
    network = {"tasks": [], "encoder": {"name": "mlp", "image_size": [8, 8]}}
    progress = Progress(
        step=4, optimizer_step=4, logits_updates=4, network=network, data="0" * 64,
        metrics_bytes=10, loss_scale={},
    )  # fmt: skip
    grouping = {"logits": torch.ones(2, 3), "alive": torch.ones(2, 3, dtype=torch.bool)}
    return Checkpoint(progress, NamedState(weights, moments, 4), grouping)


def _resume(folder: Path) -> Checkpoint:
    newest = newest_checkpoint(folder)
    if newest is None:
        raise UserError(f"{folder}: no checkpoint")
    return load_checkpoint(newest)


def _wrong_checkpoint(case: Case, result: Checkpoint, expected: Checkpoint) -> str | None:
    """Hashes cover damage, but not a checkpoint that was made on purpose."""
    if case.covered and not _equal(result, expected):
        return "loaded another content"
    if not isinstance(result.progress.step, int) or result.progress.step < 0:
        return f"step is {result.progress.step!r}"
    return None


def _equal(one: Checkpoint, other: Checkpoint) -> bool:
    def tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
        state = checkpoint.state
        moments = {f"{m}/{n}": v for m, values in state.moments.items() for n, v in values.items()}
        return {**state.weights, **moments, **checkpoint.grouping}

    ours, theirs = tensors(one), tensors(other)
    return (
        one.progress == other.progress
        and ours.keys() == theirs.keys()
        and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    )


def _damaged(files: Mapping[str, bytes], name: str) -> SearchStrategy[Case]:
    gone = {other: data for other, data in files.items() if other != name}
    return st.one_of(
        edited(files[name]).map(
            lambda mutant: Case({**files, name: mutant[0]}, f"{name}: {mutant[1]}", covered=True)
        ),
        st.just(Case(gone, f"{name} is missing", covered=True)),
    )


def _made(files: Mapping[str, bytes], name: str) -> SearchStrategy[Case]:
    """Return cases of a file with its new size and hash."""
    mutants = json_texts(files[name]) if name.endswith(".json") else safetensors_files(files[name])

    def case(mutant: tuple[bytes, str]) -> Case:
        data, note = mutant
        entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        listed = {**json.loads(files[_LIST]), Path(name).name: entry}
        changed = {**files, name: data, _LIST: json.dumps(listed).encode()}
        return Case(changed, f"{name}: {note}, with its hash")

    return mutants.map(case)
