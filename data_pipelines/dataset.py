"""One sample from the shards: read, decoded, checked, transformed."""
# Shapes: N tasks, N_s scalar tasks, C channels, H, W of the geometry's size.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from data_pipelines.codecs import decode
from data_pipelines.errors import DataError
from data_pipelines.fields import Label, LabelRequest, resolve_labels
from data_pipelines.manifest import Manifest
from data_pipelines.order import FILLER
from data_pipelines.store import ShardStore
from data_pipelines.transforms import Geometry, Params


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample as arrays; a filler has an empty key and no valid label."""

    key: str
    image: np.ndarray  # [3,H,W] uint8
    scalars: np.ndarray  # [N_s] float32, 0 where invalid
    dense: dict[str, np.ndarray]  # task -> [C,H,W] as stored; a missing label is absent
    valid: np.ndarray  # [N] bool


class ShardDataset(Dataset[Sample]):
    """Samples of one split by (epoch, id).

    A sample's augmentation depends on the seed, the epoch and its id alone, so it does not
    matter which worker or process reads it.

    Args:
        root: Folder of the shards.
        manifest: Its manifest.
        split: Name of the split.
        requests: One per task, in the order of `Sample.valid`.
        geometry: What is done to the pictures.
        seed: Seed of the augmentation.

    Raises:
        DataError: A request cannot be met.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        split: str,
        requests: Sequence[LabelRequest],
        geometry: Geometry,
        seed: int = 0,
    ) -> None:
        self.labels = resolve_labels(manifest, split, requests, flip=geometry.flip)
        self.image_member = manifest.fields[manifest.image].member
        self.members = frozenset({self.image_member, *(lb.field.member for lb in self.labels)})
        self.num_scalars = sum(label.field.is_scalar for label in self.labels)
        self.store = ShardStore(root, manifest.split(split).shards)
        self.geometry = geometry
        self.seed = seed

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        """The sample of an (epoch, id) pair; id -1 gives a filler.

        Raises:
            DataError: The sample is damaged or has a value that its field does not allow.
        """
        epoch, sample_id = item
        if sample_id == FILLER:
            image = np.zeros((3, *self.geometry.size), np.uint8)
            return self._with_labels("", image, {}, None)
        key, members = self.store.read(sample_id, self.members)
        rng = np.random.default_rng([self.seed, epoch, sample_id])
        try:
            decoded = {member: decode(member, data) for member, data in members.items()}
            picture = _checked_image(self.image_member, decoded)
            params = self.geometry.draw(rng, *picture.shape[1:])
            image = self.geometry.apply(picture, params, "bilinear")
            image = np.broadcast_to(image, (3, *image.shape[1:]))
            return self._with_labels(key, image, decoded, params)
        except DataError as error:
            raise DataError(f"{self.store.path(sample_id)}: sample {key}: {error}") from error

    def _with_labels(
        self, key: str, image: np.ndarray, decoded: dict[str, Any], params: Params | None
    ) -> Sample:
        scalars = np.zeros(self.num_scalars, np.float32)
        valid = np.zeros(len(self.labels), bool)
        dense = {}
        row = -1
        for number, label in enumerate(self.labels):
            row += label.field.is_scalar
            content = decoded.get(label.field.member)
            if content is None or params is None:
                continue
            if label.field.is_scalar:
                value = label.scalar(content)
                if value is None:
                    continue
                scalars[row] = value
            else:
                dense[label.task] = self._dense(label, content, params)
            valid[number] = True
        return Sample(key, image, scalars, dense, valid)

    def _dense(self, label: Label, picture: np.ndarray, params: Params) -> np.ndarray:
        if len(picture) < label.channels:
            raise DataError(
                f"field {label.request.field}: {label.field.member} has {len(picture)} channels, "
                f"task {label.task} needs {label.channels}"
            )
        return self.geometry.apply(
            picture[: label.channels],
            params,
            "nearest",
            negate_x=label.field.on_flip == "negate_x",
        )


def _checked_image(member: str, decoded: dict[str, Any]) -> np.ndarray:
    picture = decoded.get(member)
    if picture is None:
        raise DataError(f"no member {member}, every sample needs its image")
    if picture.dtype != np.uint8 or len(picture) not in (1, 3):
        raise DataError(
            f"{member} is {picture.dtype} with {len(picture)} channels, an image is uint8 with "
            "1 or 3"
        )
    return picture
