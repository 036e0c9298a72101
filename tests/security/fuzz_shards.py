"""Mutated shards with their manifest and index, streams of tars, and mapping files."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st

from data_pipelines.convert.index import index_shards
from data_pipelines.convert.mapping import FieldMap
from data_pipelines.decode.codecs import encode_jpeg, encode_json, encode_png
from data_pipelines.decode.planes import encode_planes
from data_pipelines.errors import DataError
from data_pipelines.reading import streaming
from data_pipelines.reading.dataset import ShardDataset
from data_pipelines.reading.fields import LabelRequest, resolve_labels
from data_pipelines.reading.samples import Sample, SampleBuilder
from data_pipelines.shards.extract import extract_images
from data_pipelines.shards.manifest import MANIFEST_NAME, Manifest, check_shards, index_name
from data_pipelines.shards.store import ShardStore
from data_pipelines.transforms import Geometry
from tests.security.fuzzing import Case, Format, read_files, write_files
from tests.security.mutations import (
    changed_tree,
    edited,
    json_texts,
    safetensors_files,
    tar_bytes,
    tar_files,
    to_text,
)
from tests.security.yaml_mutations import repeated_key, yaml_texts

SHARD, MAP = "train-000000.tar", "fields.yaml"
_INDEX = index_name(SHARD)
_SIZE = (8, 12)
_FIELDS: dict[str, dict[str, Any]] = {
    "rgb": {"member": "rgb.jpg", "kind": "image", "channels": 3},
    "normal": {"member": "normal.png", "kind": "dense_regression", "channels": 3},
    "depth": {"member": "depth.planes", "kind": "dense_regression", "dtype": "uint16"},
    "odd": {"member": "attributes.json", "key": "odd", "kind": "binary"},
    "height": {"member": "attributes.json", "key": "height", "kind": "regression"},
    "kind": {"member": "kind.cls", "key": "cls", "kind": "multiclass", "classes": ["a", "b", "c"]},
}
_MAP = {"dataset": "small", "image": "rgb", "fields": _FIELDS}
_NUM_SAMPLES = 3


def _members() -> list[tuple[str, bytes]]:
    members = []
    for number in range(_NUM_SAMPLES):
        rng = np.random.default_rng(number)
        sample = {
            "rgb.jpg": encode_jpeg(rng.integers(0, 256, (*_SIZE, 3)).astype(np.uint8)),
            "normal.png": encode_png(rng.integers(0, 256, (*_SIZE, 3)).astype(np.uint8)),
            "depth.planes": encode_planes(rng.integers(0, 2**16, _SIZE).astype(np.uint16)),
            "attributes.json": encode_json({"odd": number % 2, "height": number / 4}),
            "kind.cls": str(number % 3).encode(),
        }
        members += [(f"s{number}.{suffix}", data) for suffix, data in sample.items()]
    return members


def _indexed() -> dict[str, bytes]:
    """Return a folder of one shard with its manifest and index."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {SHARD: tar_bytes(_members()), MAP: yaml.safe_dump(_MAP).encode()}
        write_files(files, folder)
        index_shards(folder, FieldMap.load(folder / MAP), progress=False)
        return read_files(folder)


Content = list[tuple[str, dict[str, bytes]]]


def _same(case: Case, result: Any, expected: Any) -> str | None:
    return "loaded another content" if case.covered and result != expected else None


def _rewritten(files: Mapping[str, bytes], **changes: object) -> dict[str, bytes]:
    """Return the files with other entries of the manifest's only shard, and no checksum."""
    manifest = json.loads(files[MANIFEST_NAME])
    shard = manifest["splits"]["train"]["shards"][0]
    shard.update(changes)
    manifest.pop("checksum")
    return {**files, MANIFEST_NAME: json.dumps(manifest).encode()}


def _entry(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _requests(manifest: Manifest) -> list[LabelRequest]:
    return [
        LabelRequest(name, name, field.channels)
        for name, field in manifest.fields.items()
        if field.kind != "image"
    ]


def _samples(folder: Path, manifest: Manifest) -> list[Sample]:
    samples = []
    for split in manifest.splits:
        data = ShardDataset(folder, manifest, split, _requests(manifest), Geometry(_SIZE))
        samples += [data[0, number] for number in range(min(len(data), 10))]
    return samples


def manifest_format() -> Format:
    """Return the format of manifests, read by `dmtg shards images` and by a run."""
    files = _indexed()
    text = files[MANIFEST_NAME]
    tree = json.loads(text)
    bare = {name: value for name, value in tree.items() if name != "checksum"}

    def case(mutant: tuple[Any, str]) -> Case:
        content, note = mutant
        data = content if isinstance(content, bytes) else to_text(content).encode()
        return Case({**files, MANIFEST_NAME: data}, note)

    def wrong(case: Case, result: Manifest, expected: Manifest) -> str | None:
        """The checksum covers all but the record of the conversion."""
        stored = json.loads(case.files[MANIFEST_NAME])
        if stored.get("checksum") is None or result.digest() == expected.digest():
            return None
        return "loaded another content under a checksum"

    return Format(
        name="manifest",
        error=DataError,
        valid=Case(files, "nothing"),
        cases=st.one_of(
            changed_tree(bare).map(case),
            changed_tree(bare, most=4).map(case),
            changed_tree(tree).map(case),
            json_texts(text).map(case),
        ),
        load=_load_manifest,
        wrong=wrong,
        places=("split train of small",),
    )


def _load_manifest(folder: Path) -> Manifest:
    manifest = Manifest.load(folder)
    for name, split in manifest.splits.items():
        check_shards(folder, split)
        extract_images(folder, folder / "images", split=name, limit=2)
    _samples(folder, manifest)
    return manifest


def index_format() -> Format:
    """Return the format of index files, whose hash is in the manifest."""
    files = _indexed()

    def damaged(mutant: tuple[bytes, str]) -> Case:
        return Case({**files, _INDEX: mutant[0]}, mutant[1], covered=True)

    def made(mutant: tuple[bytes, str]) -> Case:
        changed = _rewritten(files, index=_entry(mutant[0]))
        return Case({**changed, _INDEX: mutant[0]}, f"{mutant[1]}, with its hash")

    return Format(
        name="index file",
        error=DataError,
        valid=Case(files, "nothing"),
        cases=st.one_of(
            edited(files[_INDEX]).map(damaged), safetensors_files(files[_INDEX]).map(made)
        ),
        load=_read_all,
        wrong=_same,
    )


def _read_all(folder: Path) -> Content:
    """Return key and members of all samples, as a run reads them."""
    shards = Manifest.load(folder).split("train").shards
    store = ShardStore(folder, shards)
    suffixes = {field["member"] for field in _FIELDS.values()}
    return [store.read(number, suffixes) for number in range(len(store))]


def damaged_shard_format() -> Format:
    """Return the format of shards that were damaged after the manifest was written."""
    files = _indexed()
    plain = {name: data for name, data in files.items() if name != _INDEX}
    without_index = _rewritten(plain, index=None)

    def case(mutant: tuple[bytes, str]) -> list[Case]:
        data, note = mutant
        return [
            Case({**files, SHARD: data}, note, covered=True),
            Case({**without_index, SHARD: data}, f"{note}, without an index", covered=True),
        ]

    same_size = edited(files[SHARD]).map(
        lambda mutant: (mutant[0][: len(files[SHARD])].ljust(len(files[SHARD]), b"\0"), mutant[1])
    )
    return Format(
        name="damaged shard",
        error=DataError,
        valid=Case(files, "nothing"),
        cases=st.one_of(same_size, same_size, edited(files[SHARD]))
        .map(case)
        .flatmap(st.sampled_from),
        load=_read_all,
        wrong=_same,
    )


def shard_format() -> Format:
    """Return the format of foreign shards, as `dmtg shards index` and a run read them."""
    valid = {SHARD: tar_bytes(_members()), MAP: yaml.safe_dump(_MAP).encode()}
    return Format(
        name="foreign shard",
        error=DataError,
        valid=Case(valid, "nothing"),
        cases=tar_files(_members()).map(lambda m: Case({**valid, SHARD: m[0]}, m[1])),
        load=_index_and_read,
        wrong=_wrong_samples,
    )


def _index_and_read(folder: Path) -> list[Sample]:
    manifest = index_shards(folder, FieldMap.load(folder / MAP), progress=False)
    labelled = {name for split in manifest.splits.values() for name in split.labelled}
    extract_images(folder, folder / "images", split="train", limit=_NUM_SAMPLES)
    counted = {
        name: field
        for name, field in manifest.fields.items()
        if field.kind == "image"
        or (name in labelled and all(s.labelled[name] for s in manifest.splits.values()))
    }
    return _samples(folder, manifest.model_copy(update={"fields": counted}))


def _wrong_samples(_: Case, result: list[Sample], __: object) -> str | None:
    for sample in result:
        if sample.image.shape != (3, *_SIZE) or not np.isfinite(sample.scalars).all():
            return f"sample {sample.key!r} has shape {sample.image.shape}, {sample.scalars}"
    return None


def stream_format() -> Format:
    """Return the format of tars without a manifest (`data.tar_urls`)."""
    manifest = _described()
    labels = resolve_labels(manifest, None, _requests(manifest), flip=False)
    builder = SampleBuilder(manifest.fields["rgb"].member, labels, Geometry(_SIZE))

    def load(folder: Path) -> list[Sample]:
        streaming.SHUFFLE_BUFFER = 4  # in this process: a buffer is full after a few tars
        stream = streaming.TarStream([str(folder / SHARD)], builder, (0,), "stop", 0.0)
        return list(islice(stream, 2 * _NUM_SAMPLES))

    valid = {SHARD: tar_bytes(_members())}
    return Format(
        name="streamed tar",
        error=DataError,
        valid=Case(valid, "nothing"),
        cases=tar_files(_members()).map(lambda mutant: Case({SHARD: mutant[0]}, mutant[1])),
        load=load,
        wrong=_wrong_samples,
    )


def _described() -> Manifest:
    with tempfile.TemporaryDirectory() as name:
        write_files(_indexed(), Path(name))
        return Manifest.load(name)


def mapping_format() -> Format:
    """Return the format of mapping files, as `dmtg shards index` reads them."""
    shard = tar_bytes(_members())
    valid = {SHARD: shard, MAP: yaml.safe_dump(_MAP).encode()}

    def load(folder: Path) -> Manifest:
        return index_shards(folder, FieldMap.load(folder / MAP), progress=False)

    def case(mutant: tuple[bytes, str]) -> Case:
        return Case({**valid, MAP: mutant[0]}, mutant[1])

    return Format(
        name="mapping file",
        error=DataError,
        valid=Case(valid, "nothing"),
        cases=yaml_texts(_MAP).map(case),
        load=load,
        wrong=lambda case, *_: repeated_key(case.files[MAP]),
        places=("fields.", "splits."),
    )
