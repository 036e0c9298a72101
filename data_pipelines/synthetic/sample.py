"""One room as an encoded sample: a pure function of (seed, split, index, image size)."""

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
# Independent random generators of a sample: dropping labels must not change the picture.
_SCENE_RNG, _MISSING_RNG = range(2)
_SCENE_TRIES = 1000
_LABELS = (*DENSE_LABELS, *attribute_fields())


@dataclass(frozen=True)
class RoomJob:
    """One sample to make, the probability of dropping a label, and the encoding."""

    seed: int
    split: str
    index: int
    image_size: int
    missing: float
    portable: bool = False


def make_sample(job: RoomJob) -> EncodedSample:
    """Draw, render and encode one sample."""
    rng = _generator(job, _SCENE_RNG)
    scene, hits = visible_scene(rng, job.image_size)
    picture = render(scene, hits, job.image_size, rng)
    dropped = _dropped(job)
    storage = Storage(job.portable)
    members = {storage.image_member(IMAGE): storage.encode_image(picture)}
    for name, array in dense_labels(scene, hits, picture).items():
        if name not in dropped:
            members[storage.label_member(name)] = storage.encode_label(array)
    kept = {k: v for k, v in attributes(scene, hits).items() if k not in dropped}
    members[ATTRIBUTES_MEMBER] = encode_json(kept)
    return EncodedSample(f"{job.split}-{job.index:07d}", members, kept)


def visible_scene(rng: np.random.Generator, image_size: int) -> tuple[Scene, Hits]:
    """Return the first drawn scene whose picture shows everything that its labels describe."""
    layout = draw_layout(rng)
    for _ in range(_SCENE_TRIES):
        scene = draw_scene(rng, layout)
        if scene is not None:
            hits = cast(scene, image_size)
            if shows_its_labels(scene, hits):
                return scene, hits
    raise AssertionError(f"no visible scene for {layout} in {_SCENE_TRIES} attempts")


def _generator(job: RoomJob, number: int) -> np.random.Generator:
    return np.random.default_rng([job.seed, SPLITS.index(job.split), job.index, number])


def _dropped(job: RoomJob) -> frozenset[str]:
    draws = _generator(job, _MISSING_RNG).random(len(_LABELS))
    return frozenset(name for name, draw in zip(_LABELS, draws, strict=True) if draw < job.missing)
