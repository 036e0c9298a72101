"""The converter for CelebA: aligned faces, forty attributes and the official partition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.convert.foreign import convert_image
from data_pipelines.convert.jobs import ConversionJobs, shuffled
from data_pipelines.convert.options import ConversionOptions
from data_pipelines.convert.run import convert
from data_pipelines.convert.tally import MissingLabel, Tally
from data_pipelines.decode.codecs import encode_json
from data_pipelines.errors import DataError
from data_pipelines.shards.encoded import EncodedSample, Storage
from data_pipelines.shards.manifest import Field, Manifest
from dmtg.names import FILE_NAME_RULE, is_file_name, shortened
from dmtg.plugins import register_converter

IMAGE, ATTRIBUTES_MEMBER = "rgb", "attributes.json"
SPLITS = ("train", "val", "test")  # in the order of the partition's numbers
# Folders of the files: all in one folder, or in the folders of the official download.
_FOLDERS = {
    "img_align_celeba": ("", "Img"),
    "list_attr_celeba.txt": ("", "Anno"),
    "list_eval_partition.txt": ("", "Eval"),
}
_VALUES = {"1": 1, "-1": 0}


@dataclass(frozen=True)
class _Faces:
    """Read faces; a reference is a file name."""

    folder: Path
    tasks: tuple[str, ...]
    attributes: Mapping[str, tuple[int | None, ...]]  # file name -> value of each task
    image_size: int | None
    storage: Storage

    @property
    def fields(self) -> dict[str, Field]:
        member = self.storage.image_member(IMAGE)
        labels = {
            task: Field(member=ATTRIBUTES_MEMBER, key=task, kind="binary") for task in self.tasks
        }
        return {IMAGE: Field(member=member, kind="image", channels=3), **labels}

    def samples(self, refs: Sequence[str], tally: Tally) -> Iterator[EncodedSample]:
        for ref in refs:
            image = self._image(ref, tally)
            if image is None:
                continue
            values = dict(zip(self.tasks, self.attributes[ref], strict=True))
            known = {task: value for task, value in values.items() if value is not None}
            for task in values.keys() - known.keys():
                tally.missing[task]["neither 1 nor -1"] += 1
            member = self.storage.image_member(IMAGE)
            members = {member: image, ATTRIBUTES_MEMBER: encode_json(known)}
            yield EncodedSample(ref.partition(".")[0], members, dict(known))

    def _image(self, ref: str, tally: Tally) -> bytes | None:
        try:
            return convert_image(self.storage, (self.folder / ref).read_bytes(), self.image_size)[0]
        except FileNotFoundError:
            tally.skipped["rgb: no file"] += 1
        except OSError:
            tally.skipped["rgb: unreadable"] += 1
        except MissingLabel as missing:
            tally.skipped[f"rgb: {missing}"] += 1
        return None


@register_converter("celeba")
def write_celeba(root: Path, out: Path, options: ConversionOptions) -> Manifest:
    """Write shards of CelebA; a rerun with the same arguments continues.

    Args:
        root: Folder with `img_align_celeba`, `list_attr_celeba.txt` and
            `list_eval_partition.txt`, together or in `Img`, `Anno` and `Eval`.
        out: Folder of the shards.
        options: Its tasks are attributes.

    Raises:
        DataError: The source or `out` cannot be used.
    """
    chosen, attributes = _read_attributes(_find(root, "list_attr_celeba.txt"), options.tasks)
    partition = _read_partition(_find(root, "list_eval_partition.txt"))
    refs: dict[str, list[str]] = {split: [] for split in SPLITS}
    skipped: Counter[str] = Counter()
    for name, split in partition.items():
        if name in attributes:
            refs[split].append(name)
        else:
            skipped["no attributes"] += 1
    unassigned = len(attributes.keys() - partition.keys())
    if unassigned:
        skipped["not in the partition"] = unassigned
    jobs = ConversionJobs(
        source="celeba",
        arguments=options.arguments(chosen),
        splits=shuffled(refs, seed=options.seed, limit=options.limit),
        samples_per_shard=options.samples_per_shard,
        skipped=skipped,
    )
    folder = _find(root, "img_align_celeba")
    faces = _Faces(folder, chosen, attributes, options.image_size, Storage(options.portable))
    return convert(
        out, "celeba", IMAGE, faces, jobs, workers=options.workers, progress=options.progress
    )


def _find(root: Path, name: str) -> Path:
    paths = [Path(folder, name) for folder in _FOLDERS[name]]
    for path in paths:
        if (root / path).exists():
            return root / path
    raise DataError(f"{root}: no {' nor '.join(map(str, paths))}")


def _read_attributes(
    path: Path, tasks: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, tuple[int | None, ...]]]:
    """Return the requested attributes, in the file's order, and their values by file name."""
    lines = _lines(path)
    names = lines[1].split() if len(lines) > 1 else []
    unknown = sorted(set(tasks or ()) - set(names))
    if unknown:
        raise DataError(f"{path}: tasks {', '.join(unknown)}: allowed are {', '.join(names)}")
    columns = [number for number, name in enumerate(names) if tasks is None or name in tasks]
    if not columns:
        raise DataError(f"{path}: no attribute names in line 2")
    attributes = {}
    for number, line in enumerate(lines[2:], start=3):
        name, *values = line.split()
        if len(values) != len(names):
            raise DataError(
                f"{path}: line {number}: {len(values)} values, the {len(names)} attributes of "
                "line 2 are needed"
            )
        attributes[name] = tuple(_VALUES.get(values[column]) for column in columns)
    return tuple(names[column] for column in columns), attributes


def _read_partition(path: Path) -> dict[str, str]:
    partition = {}
    for number, line in enumerate(_lines(path), start=1):
        name, *rest = line.split()
        if len(rest) != 1 or rest[0] not in ("0", "1", "2"):
            raise DataError(f"{path}: line {number}: {line!r} is not FILE and 0, 1 or 2")
        if not is_file_name(name):
            raise DataError(
                f"{path}: line {number}: the file is {shortened(repr(name))}, must be "
                f"{FILE_NAME_RULE}"
            )
        partition[name] = SPLITS[int(rest[0])]
    return partition


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
