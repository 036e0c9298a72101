"""The converter for Taskonomy's layout, `DOMAIN/BUILDING/point_P_view_V_domain_D.png`."""
# Shapes: C channels, H, W.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.convert.jobs import ConversionJobs, shuffled
from data_pipelines.convert.options import ConversionOptions
from data_pipelines.convert.pictures import stored_image, stored_label
from data_pipelines.convert.run import convert
from data_pipelines.convert.tally import MissingLabel, Tally
from data_pipelines.convert.taskonomy.buildings import BuildingSplits
from data_pipelines.convert.taskonomy.tree import DOMAINS, IMAGE, list_views, present_domains
from data_pipelines.decode.codecs import decode
from data_pipelines.errors import DataError
from data_pipelines.shards.encoded import EncodedSample, Storage
from data_pipelines.shards.manifest import Field, Manifest
from dmtg.plugins import register_converter


@dataclass(frozen=True)
class _Views:
    """Read views; a reference is `BUILDING/point_P_view_V`."""

    root: Path
    name_ends: Mapping[str, str]  # domain -> part of the file name after the view
    image_size: int | None
    storage: Storage

    @property
    def fields(self) -> dict[str, Field]:
        member = self.storage.image_member(IMAGE)
        fields = {IMAGE: Field(member=member, kind="image", channels=3)}
        for name in self.name_ends:
            if name != IMAGE:
                domain = DOMAINS[name]
                fields[name] = Field(
                    member=self.storage.label_member(name),
                    kind="dense_classification" if domain.classes else "dense_regression",
                    channels=domain.channels,
                    dtype=domain.dtype_name,
                    classes=domain.classes,
                    on_flip=domain.on_flip,
                )
        return fields

    def samples(self, refs: Sequence[str], tally: Tally) -> Iterator[EncodedSample]:
        for ref in refs:
            try:
                image = self._read(IMAGE, ref)
                stored = stored_image(self.storage, image, self.image_size)
            except MissingLabel as missing:  # noqa: PERF203
                tally.skipped[f"rgb: {missing}"] += 1
            else:
                yield self._sample(ref, image, stored, tally)

    def _sample(self, ref: str, image: np.ndarray, stored: bytes, tally: Tally) -> EncodedSample:
        members = {self.storage.image_member(IMAGE): stored}
        for name in self.name_ends:
            if name == IMAGE:
                continue
            try:
                label = self._read(name, ref)
                data = stored_label(self.storage, label, self.image_size, image.shape[1:])
                members[self.storage.label_member(name)] = data
            except MissingLabel as missing:
                tally.missing[name][str(missing)] += 1
        return EncodedSample(ref.replace("/", "-").replace(".", "_"), members, {})

    def _read(self, name: str, ref: str) -> np.ndarray:
        domain = DOMAINS[name]
        try:
            data = (self.root / name / f"{ref}{self.name_ends[name]}").read_bytes()
            picture = decode("source.png", data)
        except FileNotFoundError as error:
            raise MissingLabel("no file") from error
        except (OSError, DataError) as error:
            raise MissingLabel("unreadable") from error
        assert isinstance(picture, np.ndarray), "a png is a picture"
        if picture.dtype != domain.dtype_name or len(picture) < domain.channels:
            raise MissingLabel("wrong dtype or channels")
        if domain.classes and picture.max() >= len(domain.classes):
            raise MissingLabel("class id out of range")
        return picture[: domain.channels]


@register_converter("taskonomy")
def convert_taskonomy(root: Path, out: Path, options: ConversionOptions) -> Manifest:
    """Write shards with the splits of the release's table, or else by a hash of the buildings.

    Raises:
        DataError: See `write_taskonomy`.
    """
    return write_taskonomy(root, out, BuildingSplits(), options)


def write_taskonomy(
    root: Path, out: Path, splits: BuildingSplits, options: ConversionOptions
) -> Manifest:
    """Write shards of a Taskonomy release; a rerun with the same arguments continues.

    Args:
        root: Folder of the domains' folders.
        out: Folder of the shards.
        splits: The assignment of buildings to splits.
        options: Its tasks are domains.

    Raises:
        DataError: The source or `out` cannot be used.
    """
    domains = present_domains(root, options.tasks)
    tree = list_views(root, domains)
    assigned = splits.assign(root, tree.views)
    refs: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for building, views in tree.views.items():
        if building in assigned:
            refs[assigned[building]] += [f"{building}/{view}" for view in views]
    left_over = sum(len(v) for name, v in tree.views.items() if name not in assigned)
    skipped = tree.skipped | ({"building in no split": left_over} if left_over else {})
    jobs = ConversionJobs(
        source="taskonomy",
        arguments=options.arguments([name for name in domains if name != IMAGE]),
        splits=shuffled(refs, seed=options.seed, limit=options.limit),
        samples_per_shard=options.samples_per_shard,
        skipped=skipped,
    )
    source = _Views(root, tree.name_ends, options.image_size, Storage(options.portable))
    return convert(
        out, "taskonomy", IMAGE, source, jobs, workers=options.workers, progress=options.progress
    )
