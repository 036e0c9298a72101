"""The photos that are predicted, from files or from shards with their labels.

Legend: C channels, H, W size of a photo, h, w size of the network's images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from data_pipelines.decode.codecs import decode
from data_pipelines.errors import DataError
from data_pipelines.reading.fields import Label, LabelRequest, resolve_labels
from data_pipelines.reading.samples import builders_by_source
from data_pipelines.shards.manifest import Manifest
from data_pipelines.shards.sources import Location, open_folder
from data_pipelines.shards.store import ShardStore
from data_pipelines.transforms import Geometry
from dmtg.names import one_line, to_file_name
from dmtg.pictures import check_photo, read_photo
from model.kinds.kind import get_kind
from model.preprocessing import Photo, resized
from model.tasks.display import Picture
from model.tasks.spec import TaskSpec
from trainer.doctor.contact_sheet import label_picture
from trainer.prediction.files import PhotoFile, names_of
from trainer.tasks import label_requests

_SHOWN_PIXELS = 600  # of the longer side of the photo in the overview


@dataclass(frozen=True)
class Read:
    """A photo with what is known about it.

    Attributes:
        photo: uint8 [H,W,3].
        labels: Labels of scalar tasks by task, as JSON can hold them.
        drawn: Labels of dense tasks by task: a picture and its caption.
    """

    photo: Photo
    labels: dict[str, Any] = field(default_factory=dict)
    drawn: dict[str, tuple[Picture, str]] = field(default_factory=dict)


class Photos(Protocol):
    """Photos by number.

    Attributes:
        names: Of their outputs, each once; `/` separates folders.
        sources: Where each is from, as a record says it.
        inputs: The files that are read, which no output replaces.
    """

    names: list[str]
    sources: list[str]
    inputs: list[Path]

    def check(self, number: int) -> None:
        """Check what can be checked without decoding a photo.

        Raises:
            DataError: It cannot be read.
        """

    def __call__(self, number: int) -> Read:
        """Return a photo.

        Raises:
            DataError: It cannot be read.
        """


class PhotoFiles:
    """Photos in files, see `Photos`."""

    def __init__(self, files: Sequence[PhotoFile]) -> None:
        self.names = names_of(files)
        self.inputs = [file.path for file in files]
        self.sources = [str(path) for path in self.inputs]

    def check(self, number: int) -> None:
        """Read the header of the file."""
        check_photo(self.inputs[number])

    def __call__(self, number: int) -> Read:
        """Return a photo."""
        return Read(read_photo(self.sources[number], self.inputs[number]))


class ShardPhotos:
    """Photos in shards with the labels that they have, see `Photos`.

    Args:
        location: Folder or URL of the shards.
        split: Name of the split.
        tasks: Of the model.
        image_size: h and w, in which labels are drawn.
        limit: Number of samples; None for all.

    Attributes:
        unlabelled: Why tasks have no labels here, by task.

    Raises:
        DataError: The shards cannot be read.
    """

    def __init__(
        self,
        location: Location,
        split: str,
        tasks: Sequence[TaskSpec],
        image_size: tuple[int, int],
        limit: int | None = None,
    ) -> None:
        folder = open_folder(location)
        manifest = Manifest.load(folder)
        samples = manifest.split(split)
        self.inputs: list[Path] = []
        self._tasks = {task.name: task for task in tasks}
        labels = self._labels(manifest, split, tasks)
        self._builders = builders_by_source(manifest, labels, Geometry(image_size))
        self._store = ShardStore(folder, samples.shards)
        count = samples.num_samples if limit is None else min(limit, samples.num_samples)
        self.sources = [self._store.read(number, ())[0] for number in range(count)]
        self.names = _numbered([to_file_name(key) for key in self.sources])

    def _labels(
        self, manifest: Manifest, split: str, tasks: Sequence[TaskSpec]
    ) -> tuple[Label, ...]:
        requests = label_requests(tuple(tasks))
        reasons = [_why_unlabelled(manifest, split, request) for request in requests]
        self.unlabelled = {
            request.task: reason
            for request, reason in zip(requests, reasons, strict=True)
            if reason
        }
        labelled = [request for request in requests if request.task not in self.unlabelled]
        return resolve_labels(manifest, split, labelled, flip=False)

    def check(self, number: int) -> None:
        """Do nothing: a shard is compared with its index when it is read."""

    def __call__(self, number: int) -> Read:
        """Return a photo and its labels."""
        builder = self._builders[self._store.shard(number).source]
        key, members = self._store.read(number, builder.members)
        member = builder.image_member
        try:
            sample = builder.build(key, members, np.random.default_rng(0))
            picture = decode(member, members[member])
        except DataError as error:
            place = f"{self._store.where(number)}: sample {one_line(key)}"
            raise DataError(f"{place}: {error}") from error
        assert isinstance(picture, np.ndarray), "an image is no record"
        labels, drawn, row = {}, {}, -1
        for label, valid in zip(builder.labels, sample.valid, strict=True):
            row += label.field.is_scalar
            task = self._tasks[label.task]
            if not valid:
                continue
            if task.dense:
                drawn[task.name] = label_picture(task, sample.dense[task.name])
            else:
                stored = float(sample.scalars[row])
                labels[task.name] = get_kind(task.kind).label_value(task, stored)
        photo = np.ascontiguousarray(np.broadcast_to(picture, (3, *picture.shape[1:])))
        return Read(photo.transpose(1, 2, 0), labels, drawn)


@dataclass(frozen=True)
class Prepared:
    """A photo as the network takes it, and what its outputs need of it.

    Attributes:
        number: Of the photo.
        image: uint8 [h,w,3]; None where the photo cannot be read.
        size: H and W of the photo.
        shown: The photo in a size for the overview; None without one.
        labels: See `Read`.
        drawn: See `Read`.
        error: Why it cannot be read.
    """

    number: int
    image: Photo | None = None
    size: tuple[int, int] = (0, 0)
    shown: Picture | None = None
    labels: dict[str, Any] = field(default_factory=dict)
    drawn: dict[str, tuple[Picture, str]] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Prepare:
    """Read a photo and keep what is needed of it, which is small; can be sent to other processes.

    Attributes:
        photos: The photos.
        image_size: h and w.
        overview: Whether the photo is shown in an overview.
    """

    photos: Callable[[int], Read]
    image_size: tuple[int, int]
    overview: bool

    def __call__(self, number: int) -> Prepared:
        """Return a photo, or why it cannot be read."""
        try:
            read = self.photos(number)
        except DataError as error:
            return Prepared(number, error=str(error))
        photo = read.photo
        return Prepared(
            number,
            resized(photo, self.image_size),
            (photo.shape[0], photo.shape[1]),
            _reduced(photo) if self.overview else None,
            read.labels,
            read.drawn,
        )


def _why_unlabelled(manifest: Manifest, split: str, request: LabelRequest) -> str:
    """Return why the shards have no labels for a task; empty where they have."""
    try:
        resolve_labels(manifest, split, [request], flip=False)
    except DataError as error:
        return str(error)
    return ""


def _reduced(picture: Picture) -> Picture:
    """Return a picture of a size that matplotlib resizes in little memory."""
    factor = max(picture.shape) // _SHOWN_PIXELS
    return np.asarray(Image.fromarray(picture).reduce(factor)) if factor > 1 else picture


def _numbered(names: list[str]) -> list[str]:
    """Return names in which each that has come before gets a number that makes it unique."""
    taken: set[str] = set()
    result = []
    for name in names:
        unique, number = name, 2
        while unique.casefold() in taken:
            unique, number = f"{name}-{number}", number + 1
        taken.add(unique.casefold())
        result.append(unique)
    return result
