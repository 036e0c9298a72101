"""Damage leads to an error or a counted replacement, never to a wrong sample."""

import dataclasses
import json
import os
import shutil
import warnings

import numpy as np
import pytest

from data_pipelines.decode.codecs import encode_jpeg, encode_json, encode_png
from data_pipelines.decode.planes import encode_planes
from data_pipelines.errors import DataError, SourceError
from data_pipelines.reading.collate import Collate
from data_pipelines.reading.dataset import ShardDataset
from data_pipelines.reading.fields import LabelRequest
from data_pipelines.reading.loader import eval_loader, train_loader
from data_pipelines.shards.manifest import Field, Manifest
from data_pipelines.shards.sources import LocalFile
from data_pipelines.shards.store import ShardStore
from data_pipelines.shards.writer import ShardWriter
from data_pipelines.transforms import Geometry

FIELDS = {
    "rgb": Field(member="rgb.jpg", kind="image", channels=3),
    "depth": Field(member="depth.planes", kind="dense_regression", dtype="uint16"),
    "height": Field(member="height.planes", kind="dense_regression", dtype="float32"),
    "normal": Field(member="normal.png", kind="dense_regression", channels=3, dtype="uint8"),
    "odd": Field(member="attributes.json", key="odd", kind="binary"),
}
REQUESTS = tuple(
    LabelRequest(name, name, field.channels)
    for name, field in FIELDS.items()
    if field.kind != "image"
)


def members_of(number):
    rng = np.random.default_rng(number)
    return {
        "rgb.jpg": encode_jpeg(rng.integers(0, 256, (8, 12, 3)).astype(np.uint8)),
        "depth.planes": encode_planes(rng.integers(0, 2**16, (8, 12)).astype(np.uint16)),
        "height.planes": encode_planes(rng.normal(size=(8, 12)).astype(np.float32)),
        "normal.png": encode_png(rng.integers(0, 256, (4, 6, 3)).astype(np.uint8)),
        "attributes.json": encode_json({"odd": number % 2}),
    }


def write(root, samples):
    with ShardWriter(root, "train", 3) as writer:
        for number, members in enumerate(samples):
            writer.write(f"s{number}", members)
    labelled = dict.fromkeys(FIELDS, len(samples))
    manifest = Manifest(dataset="small", fields=FIELDS, splits={"train": writer.split(labelled)})
    manifest.save(root)
    return manifest


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    write(root, [members_of(number) for number in range(6)])
    return root


def dataset_of(root, on_error="stop", manifest=None):
    manifest = manifest or Manifest.load(root)
    return ShardDataset(root, manifest, "train", REQUESTS, Geometry((8, 12)), 0, on_error)


def same(one, other):
    return (
        one.key == other.key
        and np.array_equal(one.image, other.image)
        and np.array_equal(one.scalars, other.scalars)
        and np.array_equal(one.valid, other.valid)
        and one.dense.keys() == other.dense.keys()
        and all(np.array_equal(one.dense[name], other.dense[name]) for name in one.dense)
    )


def unchecked_planes(value):
    """Return planes without the checks of the encoder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "isfinite", lambda array: np.ones(array.shape, bool))
        return encode_planes(np.full((8, 12), value, np.float32))


DEPTH = encode_planes(np.zeros((8, 12), np.uint16))
BAD_MEMBERS = {
    "missing image": ({"rgb.jpg": None}, "no member rgb.jpg, every sample needs its image"),
    "garbage": ({"rgb.jpg": b"garbage"}, "rgb.jpg: damaged JPEG of 7 bytes"),
    "empty": ({"normal.png": b""}, "normal.png: damaged PNG of 0 bytes"),
    "truncated": ({"depth.planes": DEPTH[:-3]}, "depth.planes: "),
    "wrong size": (
        {"normal.png": encode_png(np.zeros((6, 6, 3), np.uint8))},
        "field normal: normal.png is 6 x 6, another shape than the image's 8 x 12",
    ),
    "wrong dtype": (
        {"depth.planes": encode_planes(np.zeros((8, 12), np.uint8))},
        "field depth: depth.planes is uint8, manifest says uint16",
    ),
    "wrong channels": (
        {"normal.png": encode_png(np.zeros((8, 12), np.uint8))},
        "field normal: normal.png has 1 channels, task normal needs 3",
    ),
    "NaN": ({"height.planes": unchecked_planes(np.nan)}, "height.planes: a value is not finite"),
    "infinity": ({"height.planes": unchecked_planes(np.inf)}, "a value is not finite"),
    "NaN in JSON": ({"attributes.json": b'{"odd":NaN}'}, "attributes.json: damaged JSON"),
    "not allowed": ({"attributes.json": b'{"odd":2}'}, "entry 'odd' is 2, allowed is an integer"),
}


@pytest.mark.parametrize("kind", BAD_MEMBERS)
def test_a_bad_sample_stops_or_is_replaced(tmp_path, kind):
    changes, expected = BAD_MEMBERS[kind]
    bad = {k: v for k, v in (members_of(1) | changes).items() if v is not None}
    write(tmp_path, [members_of(0), bad, members_of(2)])
    with pytest.raises(DataError) as caught:
        dataset_of(tmp_path)[0, 1]
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/train-000000.tar: sample s1: ")
    assert expected in message
    dataset = dataset_of(tmp_path, "replace")
    replaced = dataset[0, 1]
    assert replaced.damage.startswith(message.partition(" object at 0x")[0])  # Pillow's address
    assert replaced.image.shape == (3, 8, 12)
    assert not replaced.valid.any()
    assert dataset[0, 0].valid.all()
    assert dataset[0, 2].valid.all()


def test_a_label_that_is_half_a_pixel_off_is_the_same_shape(tmp_path):
    odd = np.zeros((9, 13, 3), np.uint8)
    for height, width in ((4, 6), (5, 7), (4, 7), (18, 26)):
        sample = members_of(0) | {
            "rgb.jpg": encode_jpeg(odd),
            "normal.png": encode_png(np.zeros((height, width, 3), np.uint8)),
            "depth.planes": encode_planes(np.zeros((9, 13), np.uint16)),
            "height.planes": encode_planes(np.zeros((9, 13), np.float32)),
        }
        write(tmp_path, [sample])
        assert dataset_of(tmp_path)[0, 0].valid.all()


def test_a_damaged_shard_replaces_its_samples_alone(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "train-000001.tar").unlink()
    samples = [dataset_of(tmp_path, "replace")[0, n] for n in range(6)]
    assert [s.key for s in samples] == ["s0", "s1", "s2", "", "", ""]
    assert {s.damage for s in samples[3:]} == {f"{tmp_path}/train-000001.tar: missing shard"}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_keep_their_shape_and_hold_the_damage(whole, tmp_path, workers):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    os.truncate(tmp_path / "train-000000.tar", 100)
    options = {"seed": 0, "global_batch": 2, "num_steps": 6, "on_error": "replace"}
    manifest = Manifest.load(tmp_path)
    batches = list(
        train_loader(tmp_path, manifest, REQUESTS, Geometry((8, 12)), workers=workers, **options)
    )
    good = train_loader(whole, manifest, REQUESTS, Geometry((8, 12)), **options)
    for batch, expected in zip(batches, good, strict=True):
        assert batch.images.shape == expected.images.shape
        kept = [key in {"s3", "s4", "s5"} for key in expected.keys]
        assert batch.keys == tuple(
            key if keep else "" for key, keep in zip(expected.keys, kept, strict=True)
        )
        assert batch.valid_rows.all(0).tolist() == batch.valid_rows.any(0).tolist() == kept
        assert len(batch.damage) == kept.count(False)
    assert sum(len(batch.damage) for batch in batches) == 6
    evaluated = list(
        eval_loader(
            tmp_path, manifest, REQUESTS, (8, 12), batch_size=4, split="train", on_error="replace"
        )
    )
    assert [len(batch.damage) for batch in evaluated] == [3, 0]


def test_fillers_are_no_damage(whole):
    dataset = dataset_of(whole, "replace")
    batch = Collate(dataset.labels)([dataset[0, -1], dataset[0, 0]])
    assert batch.keys == ("", "s0")
    assert batch.damage == ()


def test_a_source_that_does_not_answer_is_never_replaced(whole, monkeypatch):
    def silent(*_):
        raise SourceError("s3://x: failed 6 times")

    dataset = dataset_of(whole, "replace")
    monkeypatch.setattr(dataset.store, "read", silent)
    with pytest.raises(SourceError, match="failed 6 times"):
        dataset[0, 0]


def test_a_flip_of_any_bit_of_a_member_is_detected(whole, tmp_path):
    """Every bit of one JSON and some of the JPEG, encodings without checksums."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    manifest = Manifest.load(tmp_path)
    path = tmp_path / "train-000000.tar"
    content = path.read_bytes()
    store = ShardStore(tmp_path, manifest.split("train").shards)
    store.read(0, ["rgb.jpg"])
    members = {m.suffix: m for m in store._indexes[0].members(0)}
    record, picture = members["attributes.json"], members["rgb.jpg"]
    rng = np.random.default_rng(0)
    places = [(record, bit) for bit in range(record.size * 8)]
    places += [(picture, bit) for bit in rng.integers(0, picture.size * 8, 200).tolist()]
    for member, bit in places:
        at = member.offset + bit // 8
        with open(path, "r+b") as file:
            file.write(content[:at] + bytes([content[at] ^ 1 << bit % 8]) + content[at + 1 :])
        with pytest.raises(DataError, match=rf"{path}: member s0\.{member.suffix}: damaged: crc32"):
            store.read(0, [member.suffix])


def test_truncation_at_any_byte_is_detected(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    size = (tmp_path / "train-000000.tar").stat().st_size
    dataset = dataset_of(tmp_path)
    for length in range(size - 1, 0, -97):
        os.truncate(tmp_path / "train-000000.tar", length)
        dataset.store.close()
        with pytest.raises(DataError, match=rf"truncated shard: {length} bytes, manifest says"):
            dataset[0, 0]


def mutate(content, rng):
    """Damage of one kind at a random place."""
    data = bytearray(content)
    at = int(rng.integers(len(data)))
    length = int(rng.choice([1, 2, 16, 512, 1536]))
    source = int(rng.integers(len(data)))
    kind = rng.integers(8)
    if kind == 0:
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        data[at : at + length] = rng.bytes(min(length, len(data) - at))
    elif kind == 2:
        del data[at:]
    elif kind == 3:
        del data[at : at + length]
    elif kind == 4:
        data[at:at] = rng.bytes(length)
    elif kind == 5:
        data[at : at + length] = bytes(min(length, len(data) - at))
    elif kind == 6:
        data[at:at] = data[source : source + length]
    else:  # a whole header or block over another one
        at, source = at // 512 * 512, source // 512 * 512
        data[at : at + 512] = data[source : source + 512]
    return bytes(data)


def plain(manifest):
    """The manifest without indexes, as of shards that another program wrote."""
    split = manifest.split("train")
    shards = tuple(shard.model_copy(update={"index": None}) for shard in split.shards)
    return manifest.model_copy(
        update={"splits": {"train": split.model_copy(update={"shards": shards})}}
    )


def read_all(root, on_error, without_index):
    """Return the samples, a damaged one as its error; or the error of the manifest."""
    try:
        manifest = Manifest.load(root)
        dataset = dataset_of(root, on_error, plain(manifest) if without_index else manifest)
    except DataError as error:
        assert str(error)
        return str(error)
    samples = []
    for number in range(len(dataset)):
        try:
            samples.append(dataset[0, number])
        except DataError as error:  # noqa: PERF203
            assert on_error == "stop"
            samples.append(dataclasses.replace(dataset.builder.blank(), damage=str(error)))
    return samples


def check_one_mutation(whole, root, originals, seed):
    rng = np.random.default_rng(seed)
    names = ["train-000000.tar"] * 3 + ["train-000001.tar.index", "manifest.json"]
    name = str(rng.choice(names))
    without_index = bool(rng.random() < 0.3)
    content = (whole / name).read_bytes()
    damaged = mutate(content, rng)
    if name == "manifest.json" and rng.random() < 0.3:  # as after an edit by hand
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            damaged = damaged.replace(b'"checksum": "', b'"checksum": null, "was": "')
    (root / name).write_bytes(damaged)
    requested = []
    with pytest.MonkeyPatch.context() as patch:
        read = LocalFile.read
        patch.setattr(LocalFile, "read", lambda *args: (requested.append(args[2]), read(*args))[1])
        try:
            actual = {mode: read_all(root, mode, without_index) for mode in ("stop", "replace")}
        finally:
            (root / name).write_bytes(content)
    # A damaged size or count must not make the reader request many or large ranges
    assert len(requested) < 200 and sum(requested) < 20 * sum(map(os.path.getsize, whole.iterdir()))
    assert actual["stop"] == actual["replace"] or len(actual["stop"]) == len(actual["replace"])
    if isinstance(actual["stop"], str):
        return "refused"
    for samples in actual.values():
        for sample, original in zip(samples, originals, strict=True):
            if sample.damage:
                assert not sample.valid.any()
                assert not sample.key
            elif not without_index:
                assert same(sample, original), f"seed {seed}: {name}: silently wrong"
    replaced = sum(bool(sample.damage) for sample in actual["replace"])
    return "replaced" if replaced else "unchanged"


@pytest.mark.parametrize(
    "seeds", [range(200), pytest.param(range(200, 2200), marks=pytest.mark.slow)], ids=["200", "2k"]
)
def test_mutated_shards_indexes_and_manifests(whole, tmp_path, seeds):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    originals = [dataset_of(whole)[0, number] for number in range(6)]
    outcomes = [check_one_mutation(whole, tmp_path, originals, seed) for seed in seeds]
    counts = {kind: outcomes.count(kind) for kind in ("refused", "replaced", "unchanged")}
    assert min(counts.values()) > len(seeds) / 20, counts


def test_a_manifest_edited_by_hand_loses_its_checksum_first(whole, tmp_path):
    content = json.loads((whole / "manifest.json").read_text())
    content["fields"]["depth"]["channels"] = 2
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"manifest\.json: checksum: \w+ is not that of the content"
    ):
        Manifest.load(tmp_path)
    del content["checksum"]
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    assert Manifest.load(tmp_path).fields["depth"].channels == 2
