"""Mutated model files, opened as `dmtg predict` and `dmtg eval` open them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors.torch import load_file

from model.bundle import KEY, PrunedModel, load_pruned, save_bundle
from model.encoders import build_encoder
from model.errors import BundleError
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec
from tests.security.fuzzing import Case, Format
from tests.security.mutations import (
    changed_tree,
    join_safetensors,
    json_texts,
    safetensors_files,
    split_safetensors,
    to_text,
)

FILE = "model.safetensors"
SIZE = (16, 16)
_TASKS = (
    TaskSpec("depth", "dense_regression", unit="m", unit_scale=0.5),
    TaskSpec("shape", "multiclass", channels=3, classes=("cube", "ball", "none")),
    TaskSpec("lamp", "binary"),
)
_ENCODERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("residual64", {"channels": 8}),
    (
        "backbone",
        {
            "model_type": "convnextv2", "hidden_sizes": [8, 16], "depths": [1, 1], "patch_size": 4,
            "num_stages": 2,
        },
    ),
)  # fmt: skip


def model_format() -> Format:
    """Return the format of exported models."""
    files = [_exported(name, options) for name, options in _ENCODERS]
    return Format(
        name="model file",
        error=BundleError,
        valid=Case({FILE: files[0]}, "nothing"),
        cases=st.one_of(*map(_cases, files)),
        load=_predict,
        wrong=_wrong,
    )


def _exported(name: str, options: dict[str, Any]) -> bytes:
    torch.manual_seed(0)
    encoder = build_encoder(name, 2, image_size=SIZE, options=options)
    heads = [(0, 1), (1, 0), (2, 1)]
    network = MultiTaskNetwork(_TASKS, encoder, SIZE, heads=heads, dense_widths=(8,))
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(Path(folder) / FILE, network, {"step": 7})
        return (Path(folder) / FILE).read_bytes()


def _predict(folder: Path) -> tuple[Path, PrunedModel]:
    """Load a model and predict one image with it, as the commands do."""
    model = load_pruned(folder / FILE)
    model(torch.zeros(1, 3, *model.image_size, dtype=torch.uint8))
    return folder / FILE, model


def _wrong(_: Case, result: tuple[Path, PrunedModel], __: object) -> str | None:
    """Nothing covers a model's weights: what counts is that they are numbers, and the file's."""
    path, model = result
    stored = load_file(path)
    for name, weight in model.network.state_dict().items():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            return f"{name} holds numbers that are not finite"
        if name in stored and stored[name].dtype != weight.dtype:
            return f"{name} is {stored[name].dtype} in the file, {weight.dtype} in the model"
        if name in stored and not torch.equal(stored[name], weight):
            return f"{name} is not what the file holds"
    return None


def _cases(file: bytes) -> SearchStrategy[Case]:
    header, data = split_safetensors(file)
    text = header["__metadata__"][KEY]

    def described(mutant: tuple[Any, str]) -> Case:
        description, note = mutant
        metadata = {KEY: description if isinstance(description, str) else to_text(description)}
        return Case(
            {FILE: join_safetensors({**header, "__metadata__": metadata}, data)},
            f"description: {note}",
        )

    tree = json.loads(text)
    decoded: Callable[[tuple[bytes, str]], tuple[str, str]] = lambda mutant: (  # noqa: E731
        mutant[0].decode(errors="replace"),
        mutant[1],
    )
    return st.one_of(
        changed_tree(tree, most=3).map(described),
        changed_tree(tree["network"]).map(
            lambda mutant: described(({**tree, "network": mutant[0]}, mutant[1]))
        ),
        changed_tree(tree["network"]["encoder"]).map(
            lambda mutant: described(
                ({**tree, "network": {**tree["network"], "encoder": mutant[0]}}, mutant[1])
            )
        ),
        json_texts(text.encode()).map(decoded).map(described),
        safetensors_files(file).map(lambda mutant: Case({FILE: mutant[0]}, mutant[1])),
    )
