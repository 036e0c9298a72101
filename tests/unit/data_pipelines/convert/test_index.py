"""Existing shards: their manifest from a mapping file, and training batches from them."""

import io
import json
import tarfile

import numpy as np
import pytest

from data_pipelines.convert.index import index_shards
from data_pipelines.convert.mapping import FieldMap
from data_pipelines.decode.codecs import encode_jpeg, encode_json, encode_png
from data_pipelines.errors import DataError, UnreadableColumnsError
from data_pipelines.reading.fields import LabelRequest, resolve_labels
from data_pipelines.reading.loader import eval_loader
from data_pipelines.shards.manifest import Manifest, check_shards

MAP_FILE = """
dataset: zoo
image: picture
fields:
  picture: {member: jpg, kind: image, channels: 3}
  species: {member: cls, kind: multiclass, key: cls, classes: 4}
  weight: {member: json, kind: regression, key: kg}
  mask: {member: seg.png, kind: dense_classification, classes: [ground, animal]}
"""


def members_of(number):
    rng = np.random.default_rng(number)
    members = {
        "jpg": encode_jpeg(np.full((8, 8, 3), 5 * number, np.uint8)),
        "cls": str(number % 4).encode(),
        "json": encode_json({"kg": number / 2, "name": "x"}),
        "seg.png": encode_png(rng.integers(0, 2, (8, 8)).astype(np.uint8)),
        "txt": b"a caption that nobody asked for",
    }
    if number % 5 == 4:
        del members["seg.png"]
    if number % 3 == 2:
        del members["json"]
    return members


def write_tar(path, samples):
    """As Python's tarfile writes it: pax headers, folders in the names."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for key, members in samples.items():
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                info.mtime = 1.5
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def root(tmp_path):
    """zoo-train: 0 to 11 in two shards; zoo-val: 12 to 16."""
    for name, numbers in (
        ("zoo-train-000000", range(7)),
        ("zoo-train-000001", range(7, 12)),
        ("zoo-val-000000", range(12, 17)),
    ):
        samples = {f"animals/n{n:03d}": members_of(n) for n in numbers}
        write_tar(tmp_path / f"{name}.tar", samples)
    return tmp_path


@pytest.fixture
def field_map(tmp_path):
    path = tmp_path / "fields.yaml"
    path.write_text(MAP_FILE)
    return FieldMap.load(path)


def with_splits(field_map):
    splits = {"train": "zoo-train-*.tar", "val": "zoo-val-*.tar"}
    return field_map.model_copy(update={"splits": splits})


def index(root, field_map, **options):
    return index_shards(root, field_map, progress=False, **options)


def test_the_manifest_counts_what_is_there(root, field_map):
    manifest = index(root, with_splits(field_map))
    assert manifest == Manifest.load(root)
    assert manifest.dataset == "zoo"
    train, val = manifest.split("train"), manifest.split("val")
    assert [shard.samples for shard in train.shards] == [7, 5]
    for split, numbers in ((train, range(12)), (val, range(12, 17))):
        check_shards(root, split)
        assert split.labelled == {
            "picture": len(numbers),
            "species": len(numbers),
            "weight": sum(n % 3 != 2 for n in numbers),
            "mask": sum(n % 5 != 4 for n in numbers),
        }
    weights = [n / 2 for n in range(12) if n % 3 != 2]
    assert manifest.fields["weight"].mean == pytest.approx(np.mean(weights))
    assert manifest.fields["weight"].std == pytest.approx(np.std(weights))
    assert manifest.fields["species"].classes == ("0", "1", "2", "3")


def test_the_shards_can_be_read_as_batches(root, field_map):
    manifest = index(root, with_splits(field_map))
    requests = [LabelRequest(n, n) for n in ("species", "weight", "mask")]
    loader = eval_loader(root, manifest, requests, (8, 8), batch_size=12, split="train")
    (batch,) = loader
    for place, key in enumerate(batch.keys):
        number = int(key[-3:])
        assert abs(int(batch.images[place, 0, 0, 0]) - 5 * number) <= 2
        assert batch.labels["species"][place] == number % 4
        assert batch.valid["weight"][place] == (number % 3 != 2)
        assert batch.valid["mask"][place] == (number % 5 != 4)
        if number % 3 != 2:
            assert batch.labels["weight"][place] == number / 2


def test_splits_follow_from_the_names(root, field_map):
    write_tar(root / "00000.tar", {"a": members_of(0)})
    manifest = index(root, field_map)
    assert {n: s.num_samples for n, s in manifest.splits.items()} == {
        "train": 1, "zoo-train": 12, "zoo-val": 5,
    }  # fmt: skip


def test_temporary_files_of_a_killed_process_are_no_shards(root, field_map):
    expected = index(root, field_map)
    (root / "manifest.json").unlink()
    (root / ".partial-host-17-zoo-train-000007.tar").write_bytes(b"half a shard")
    assert index(root, field_map) == expected


def test_the_number_of_workers_changes_nothing(root, field_map):
    one = index(root, with_splits(field_map))
    (root / "manifest.json").unlink()
    assert index(root, with_splits(field_map), workers=2) == one


def test_a_manifest_is_not_overwritten(root, field_map):
    index(root, field_map)
    with pytest.raises(DataError, match=r"manifest\.json: is already there; remove it"):
        index(root, field_map)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"cls": b"cat"}, r"zoo-val-000001\.tar: sample k: cls: b'cat' is not a class id"),
        ({"json": b"{"}, "damaged JSON"),
        ({"jpg": None}, "sample k: no member jpg"),
        ({"jpg": b"x"}, "damaged JPEG"),
        ({"seg.png": b"x"}, r"seg\.png: damaged PNG"),
    ],
)
def test_errors_name_shard_and_sample(root, field_map, change, expected):
    members = {k: v for k, v in (members_of(0) | change).items() if v is not None}
    write_tar(root / "zoo-val-000001.tar", {"k": members})
    with pytest.raises(DataError, match=expected):
        index(root, field_map)
    assert not (root / "manifest.json").exists()


def test_damaged_and_empty_shards_are_refused(root, field_map):
    path = root / "zoo-val-000001.tar"
    path.write_bytes(bytes(10240))
    with pytest.raises(DataError, match=r"holds no sample|no samples"):
        index(root, field_map)
    path.write_bytes((root / "zoo-val-000000.tar").read_bytes()[:-11000])
    with pytest.raises(DataError, match=r"zoo-val-000001\.tar: "):
        index(root, field_map)


def test_too_few_channels_are_refused(root, field_map):
    mask = {"member": "seg.png", "kind": "dense_regression", "channels": 3}
    wide = field_map.model_copy(update={"fields": {**field_map.fields, "mask": mask}})
    with pytest.raises(DataError, match=r"seg\.png: 1 channels, field mask has 3"):
        index(root, wide)


def test_patterns_must_fit_and_not_overlap(root, field_map, tmp_path):
    def splits(**patterns):
        return field_map.model_copy(update={"splits": patterns})

    with pytest.raises(DataError, match=r"splits.test 'x\*': none of 3 shards fits"):
        index(root, splits(test="x*"))
    with pytest.raises(DataError, match=r"zoo-train-000000\.tar is in more than one"):
        index(root, splits(train="*", val="zoo-train*"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no \.tar files"):
        index(tmp_path / "empty", field_map)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a", r"found \['a'\]; allowed: a mapping"),
        ("a: [", "not YAML"),
        ("image: a\nfields: {a: {member: jpg, kind: multiclass}}", "image 'a': must name a field"),
        (
            "image: a\nfields: {a: {kind: image}}\nsplit: x",
            "split: unknown key; allowed: .*; did you mean 'splits'",
        ),
        ("fields: {}", "image: required and not given"),
        ("image: !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_wrong_mapping_files_are_refused(tmp_path, text, expected):
    path = tmp_path / "map.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"map\.yaml: .*{expected}|map\.yaml: {expected}"):
        FieldMap.load(path)


def test_faulty_entries_are_refused(root, field_map):
    fields = {**field_map.fields, "species": {"member": "cls", "kind": "multiclass"}}
    with pytest.raises(DataError, match=r"fields\.species: .*needs a json or cls member and the k"):
        index(root, field_map.model_copy(update={"fields": fields}))
    with pytest.raises(DataError, match=r"absent\.yaml: cannot be read"):
        FieldMap.load(root / "absent.yaml")


LABELS_MAP = """
image: picture
fields:
  picture: {member: jpg, kind: image}
  flag: {member: json, key: flag, kind: binary}
  sign: {member: json, key: sign, kind: binary}
  mood: {member: json, key: mood, kind: multiclass, classes: [glad, sad, angry]}
  kg: {member: json, key: kg, kind: regression, values: {heavy: 99.5}}
"""
RECORDS = [
    {"flag": "yes", "sign": 1, "mood": "sad", "kg": 1.5},
    {"flag": "no", "sign": -1, "mood": 2.0, "kg": "2.5"},
    {"flag": True, "sign": -1, "mood": "maybe", "kg": "heavy"},
    {"flag": "maybe", "sign": 1, "mood": 0, "kg": "?"},
    {"flag": None, "mood": "", "kg": 3},
]
EXPECTED = {
    "flag": [1, 0, 1, None, None],
    "sign": [1, 0, 0, 1, None],
    "mood": [1, 2, None, 0, None],
    "kg": [1.5, 2.5, 99.5, None, 3],
}


@pytest.fixture
def labelled(tmp_path):
    """Shards with labels of many types, and a function that indexes them."""
    root = tmp_path / "labelled"
    root.mkdir()
    (tmp_path / "labels.yaml").write_text(LABELS_MAP)

    def indexed(records, **options):
        samples = {
            f"n{n}": {"jpg": members_of(n % 50)["jpg"], "json": json.dumps(record).encode()}
            for n, record in enumerate(records)
        }
        write_tar(root / "train-0.tar", samples)
        return index(root, FieldMap.load(tmp_path / "labels.yaml"), **options)

    indexed.root = root
    return indexed


@pytest.mark.parametrize("workers", [1, 2])
def test_stored_values_are_read_in_training_as_they_were_indexed(labelled, workers):
    manifest = labelled(RECORDS, workers=workers)
    assert manifest.conversion.missing == {
        "flag": {"'maybe'": 1}, "mood": {"'maybe'": 1}, "kg": {"'?'": 1},
    }  # fmt: skip
    split = Manifest.load(labelled.root).split("train")
    assert split.labelled == {"picture": 5, "flag": 3, "sign": 4, "mood": 3, "kg": 4}
    assert split.class_counts == {"flag": (1, 2), "sign": (2, 2), "mood": (1, 1, 1)}
    assert manifest.fields["sign"].values == {"-1": 0}
    assert manifest.fields["mood"].values[""] is None  # of an empty text; without it, it is damage
    requests = [LabelRequest(name, name) for name in EXPECTED]
    (batch,) = eval_loader(labelled.root, manifest, requests, (8, 8), batch_size=5, split="train")
    for name, expected in EXPECTED.items():
        for place, key in enumerate(batch.keys):
            value = expected[int(key[1:])]
            assert bool(batch.valid[name][place]) == (value is not None)
            if value is not None:
                assert batch.labels[name][place] == value


def test_a_value_that_was_not_indexed_is_damage(labelled):
    manifest = labelled(RECORDS)
    label = resolve_labels(manifest, "train", [LabelRequest("mood", "mood")], flip=False)[0]
    with pytest.raises(DataError, match="entry 'mood' is 'bored', allowed is an integer"):
        label.scalar({"mood": "bored"})


def test_ids_as_they_are_need_no_values(root, field_map):
    manifest = index(root, field_map)
    assert not any(field.values for field in manifest.fields.values())


def test_faulty_columns_end_the_index(labelled):
    with pytest.raises(UnreadableColumnsError, match=r"fields\.flag: none of 4 .*'maybe' x 4"):
        labelled([{"flag": "maybe", "sign": 1}] * 4)
    with pytest.raises(DataError, match=r"fields\.sign: binary, with -1 as well as 0"):
        labelled([{"flag": 1, "sign": -1}, {"flag": 1, "sign": 0}])
    with pytest.raises(DataError, match=r"fields\.kg: more than 1000 different values"):
        labelled([{"kg": f"{n}.5"} for n in range(1001)])
    assert not (labelled.root / "manifest.json").exists()


def test_options_of_tables_are_refused(root, field_map):
    with pytest.raises(DataError, match="val_share: existing shards stay as they are"):
        index(root, field_map.updated(val_share=0.1))
