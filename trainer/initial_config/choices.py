"""The values of a starting configuration, chosen from what the shards hold.

Legend: K branches, N tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from data_pipelines.decode.codecs import decode
from data_pipelines.errors import DataError
from data_pipelines.reading.fields import resolve_labels
from data_pipelines.shards.manifest import Manifest
from data_pipelines.shards.sources import Location, open_folder
from data_pipelines.shards.store import ShardStore
from dmtg.names import to_file_name
from model.tasks.spec import TaskSpec
from trainer.config.model import DEFAULT_ENCODER, EncoderSection
from trainer.config.tasks import TasksSection
from trainer.errors import UserError
from trainer.tasks import label_requests, resolve_tasks

_EVALUATION = ("val", "validation", "valid", "dev", "test")  # names of splits, the best first
_MEASURED = 16  # images of which the size is read
_MAX_SIDE, _MULTIPLE = 224, 32  # pixels; of the shorter side, and what encoders divide by
_MAX_ASPECT = 2.0
_SAME_ASPECT = 1.25  # ratio of the widest to the narrowest image below which they keep their shape
_MAX_BATCH, _LEAST_BATCHES = 64, 8  # the latter of an epoch
_STEPS, _EPOCHS = 2000, (10, 100)
# Up to so many tasks K branches; more groups than these are rare, and superfluous branches go.
_BRANCHES = ((1, 1), (4, 2), (24, 3), (99, 4), (299, 6))
_MOST_BRANCHES = 8
_SMALL_IMAGE = 96  # pixels of the shorter side
_SMALL = EncoderSection(
    name="backbone",
    options={
        "model_type": "resnet",
        "layer_type": "basic",
        "embedding_size": 32,
        "hidden_sizes": [32, 64, 128],
        "depths": [1, 1, 1],
    },
)


@dataclass(frozen=True)
class Start:
    """What the shards hold and a run on them starts with.

    Attributes:
        shards: Folder or URL.
        dataset: Name of the data set.
        samples: Samples of each split.
        tasks: The tasks that can be trained.
        labelled: For each task, its labels in the train split.
        left_out: For each label that cannot be trained, why.
        values: The configuration as plain values, without `tasks`.
        steps_per_epoch: Steps of one epoch.
    """

    shards: str
    dataset: str
    samples: dict[str, int]
    tasks: tuple[TaskSpec, ...]
    labelled: dict[str, int]
    left_out: dict[str, str]
    values: dict[str, dict[str, Any]]
    steps_per_epoch: int


def choose(location: str) -> Start:
    """Return a start for shards.

    Args:
        location: Folder or URL of the shards.

    Raises:
        DataError: The shards cannot be read.
        UserError: No label can be trained.
    """
    manifest = Manifest.load(location)
    train, evaluation = _splits(manifest)
    tasks, left_out = _tasks(manifest, train, evaluation)
    if not tasks:
        reasons = "; ".join(left_out.values())
        raise UserError(f"{location}: no label can be trained: {reasons or 'there is none'}")
    num_samples = manifest.split(train).num_samples
    batch = _batch(num_samples)
    per_epoch = num_samples // batch
    epochs = min(max(math.ceil(_STEPS / per_epoch), _EPOCHS[0]), _EPOCHS[1])
    steps = epochs * per_epoch
    size = _image_size(location, manifest, train)
    small = min(size) <= _SMALL_IMAGE
    encoder = _SMALL if small else DEFAULT_ENCODER
    name = to_file_name(manifest.dataset)
    return Start(
        shards=location,
        dataset=manifest.dataset,
        samples={name: split.num_samples for name, split in manifest.splits.items()},
        tasks=tasks,
        labelled={t.name: manifest.split(train).labelled.get(t.field, 0) for t in tasks},
        left_out=left_out,
        steps_per_epoch=per_epoch,
        values={
            "run": {
                "out": f"runs/{name}",
                "epochs": epochs,
                "resume": "auto",
                "checkpoint_every": _every(steps, 10),
            },
            "data": {
                "shards": location,
                "train_split": train,
                "eval_split": evaluation,
                "image_size": list(size),
                "global_batch": batch,
            },
            "model": {
                "encoder": encoder.model_dump(include={"name", "options"}),
                "branches": _branches(len(tasks)),
                "trunk_depth": 0 if small else 2,
            },
            "pruning": {"every": max(1, min(50, steps // 40))},
            "optim": {
                "lr": 1e-3,
                "weight_decay": 1e-2,
                "warmup_steps": min(500, steps // 20),
                "max_grad_norm": 5.0,
            },
            "eval": {"every": _every(steps, 10)},
            "log": {"every": max(1, min(25, steps // 100))},
        },
    )


def _splits(manifest: Manifest) -> tuple[str, str]:
    """Return the splits to train and to evaluate on, the same one if there is no other."""
    names = sorted(manifest.splits, key=lambda name: -manifest.splits[name].num_samples)
    if not names:
        raise UserError(f"{manifest.dataset}: the manifest has no split")
    train = "train" if "train" in names else names[0]
    others = [name for name in _EVALUATION if name in names and name != train]
    return train, (others or [name for name in names if name != train] or [train])[0]


def _tasks(
    manifest: Manifest, train: str, evaluation: str
) -> tuple[tuple[TaskSpec, ...], dict[str, str]]:
    """Return the tasks that both splits have labels of, and why the others are left out."""
    tasks: list[TaskSpec] = []
    left_out: dict[str, str] = {}
    for name, field in manifest.fields.items():
        if field.kind == "image":
            continue
        try:
            (task,) = resolve_tasks(TasksSection(names=(name,)), manifest)
            for split in (train, evaluation):
                resolve_labels(manifest, split, label_requests((task,)), flip=False)
            tasks.append(task)
        except (DataError, UserError) as error:
            left_out[name] = str(error)
    return tuple(tasks), left_out


def _image_size(location: Location, manifest: Manifest, split: str) -> tuple[int, int]:
    """Return height and width near those of some images, at most `_MAX_SIDE` on the shorter side.

    Images of different shapes get a square.
    """
    sizes = _stored_sizes(location, manifest, split)
    height, width = (median(size[axis] for size in sizes) for axis in (0, 1))
    aspects = [size[1] / size[0] for size in sizes]
    if max(aspects) > _SAME_ASPECT * min(aspects):
        height = width = min(height, width)
    height, width = min(height, _MAX_ASPECT * width), min(width, _MAX_ASPECT * height)
    scale = min(1.0, _MAX_SIDE / min(height, width))
    return _rounded(scale * height), _rounded(scale * width)


def _rounded(side: float) -> int:
    return max(_MULTIPLE, _MULTIPLE * round(side / _MULTIPLE))


def _stored_sizes(location: Location, manifest: Manifest, split: str) -> Sequence[tuple[int, int]]:
    store = ShardStore(open_folder(location), manifest.split(split).shards)
    count = min(_MEASURED, len(store))
    sizes: list[tuple[int, int]] = []
    for number in range(count):
        sample = number * len(store) // count
        member = manifest.image_member(store.shard(sample).source)
        _, members = store.read(sample, [member])
        if member not in members:
            raise DataError(f"{store.where(sample)}: no member {member}, a sample needs its image")
        picture = decode(member, members[member])
        sizes.append((picture.shape[1], picture.shape[2]))  # type: ignore[union-attr]
    return sizes


def _batch(num_samples: int) -> int:
    """Return a power of two, with `_LEAST_BATCHES` in an epoch where there are enough samples."""
    most = max(min(2, num_samples), num_samples // _LEAST_BATCHES)
    return min(_MAX_BATCH, 2 ** int(math.log2(most)))


def _branches(num_tasks: int) -> int:
    return next((k for most, k in _BRANCHES if num_tasks <= most), _MOST_BRANCHES)


def _every(steps: int, times: int) -> int:
    """Return a round number of steps that fits about `times` times into the run."""
    exact = max(1, steps // times)
    unit = 10 ** max(0, len(str(exact)) - 2)
    return exact // unit * unit
