"""One room as a stored sample: a pure function of (seed, split, index, size)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipelines.decode.codecs import encode_json
from data_pipelines.shards.encoded import EncodedSample, Storage
from data_pipelines.synthetic.attributes import (
    ATTRIBUTES_MEMBER,
    attribute_fields,
    attributes,
    shows_its_labels,
)
from data_pipelines.synthetic.labels import DENSE_LABELS, dense_labels
from data_pipelines.synthetic.raycast import Hits, cast
from data_pipelines.synthetic.scene import Scene, draw_layout, draw_scene
from data_pipelines.synthetic.shading import render

SPLITS = ("train", "val")
IMAGE = "rgb"
# Independent random streams of a sample: dropping labels must not change the picture.
_SCENE_STREAM, _MISSING_STREAM = range(2)
_SCENE_TRIES = 1000
_LABELS = (*DENSE_LABELS, *attribute_fields())


@dataclass(frozen=True)
class Job:
    """What identifies a sample, the share of its labels to drop and how it is stored."""

    seed: int
    split: str
    index: int
    size: int
    missing: float
    portable: bool = False


def make_sample(job: Job) -> EncodedSample:
    """Draw, render and encode one sample."""
    rng = _stream(job, _SCENE_STREAM)
    scene, hits = visible_scene(rng, job.size)
    picture = render(scene, hits, job.size, rng)
    dropped = _dropped(job)
    storage = Storage(job.portable)
    members = {storage.image_member(IMAGE): storage.encode_image(picture)}
    for name, array in dense_labels(scene, hits, picture).items():
        if name not in dropped:
            members[storage.label_member(name)] = storage.encode_label(array)
    kept = {k: v for k, v in attributes(scene, hits).items() if k not in dropped}
    members[ATTRIBUTES_MEMBER] = encode_json(kept)
    return EncodedSample(f"{job.split}-{job.index:07d}", members, kept)


def visible_scene(rng: np.random.Generator, size: int) -> tuple[Scene, Hits]:
    """The first drawn scene whose size x size picture shows all that its labels speak of."""
    layout = draw_layout(rng)
    for _ in range(_SCENE_TRIES):
        scene = draw_scene(rng, layout)
        if scene is not None:
            hits = cast(scene, size)
            if shows_its_labels(scene, hits):
                return scene, hits
    raise AssertionError(f"no visible scene for {layout} in {_SCENE_TRIES} attempts")


def _stream(job: Job, stream: int) -> np.random.Generator:
    return np.random.default_rng([job.seed, SPLITS.index(job.split), job.index, stream])


def _dropped(job: Job) -> frozenset[str]:
    draws = _stream(job, _MISSING_STREAM).random(len(_LABELS))
    return frozenset(name for name, draw in zip(_LABELS, draws, strict=True) if draw < job.missing)
