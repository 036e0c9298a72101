"""Data sets of the datasets library: parquet and image folders, streamed into shuffled shards."""

import io

import datasets
import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from data_pipelines.convert import streamed_dataset
from data_pipelines.convert.huggingface import write_huggingface
from data_pipelines.convert.mapping import FieldMap
from data_pipelines.convert.options import ConversionOptions
from data_pipelines.decode.codecs import decode
from data_pipelines.errors import DataError, UnreadableColumnsError
from data_pipelines.shards.manifest import Manifest
from data_pipelines.shards.store import ShardStore

HEIGHT, WIDTH, ROWS = 12, 18, 23
MAP = FieldMap(
    image="rgb",
    fields={
        "rgb": {"column": "photo", "kind": "image"},
        "depth": {"kind": "dense_regression", "dtype": "uint16"},
        "heights": {"kind": "dense_regression"},
        "seg": {"kind": "dense_classification", "classes": 5},
        "age": {"kind": "regression"},
        "mood": {"kind": "multiclass", "classes": ["glad", "sad"]},
        "species": {"kind": "multiclass"},
        "old": {"kind": "binary"},
    },
)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def row(number):
    rng = np.random.default_rng(number)
    heights = rng.normal(size=(HEIGHT // 2, WIDTH // 2)).astype(np.float32)
    return {
        "photo": png(np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8)),
        "depth": png(rng.integers(0, 2**16, (HEIGHT, WIDTH)).astype(np.uint16)),
        "heights": None if number % 5 == 4 else heights.tolist(),
        "seg": png(rng.integers(0, 5, (HEIGHT, WIDTH)).astype(np.uint8)),
        "age": None if number % 3 == 2 else float(number),
        "mood": ("glad", "sad", "bored")[number % 3],
        "species": number % 4 - 1,
        "old": number % 2 == 0,
    }


@pytest.fixture(autouse=True)
def nothing_remembered():
    streamed_dataset._opened.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two parquet files of train, one of validation; -1 of a class label means no label."""
    root = tmp_path_factory.mktemp("parquet")
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "depth": datasets.Image(),
            "heights": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
            "seg": datasets.Image(),
            "age": datasets.Value("float64"),
            "mood": datasets.Value("string"),
            "species": datasets.ClassLabel(names=["cat", "dog", "owl"]),
            "old": datasets.Value("bool"),
        }
    )
    for name, numbers in (
        ("train-00000-of-00002", range(14)),
        ("train-00001-of-00002", range(14, 20)),
        ("validation-00000-of-00001", range(20, ROWS)),
    ):
        table = datasets.Dataset.from_list([row(n) for n in numbers], features=features)
        table.to_parquet(str(root / f"{name}.parquet"))
    return root


def write(source, out, field_map=MAP, **options):
    asked = ConversionOptions(progress=False, **options)
    return write_huggingface(str(source), out, field_map, asked)


def read(out, split):
    manifest = Manifest.load(out)
    store = ShardStore(out, manifest.split(split).shards)
    members = {field.member for field in manifest.fields.values()}
    samples = {}
    for number in range(len(store)):
        key, data = store.read(number, members)
        samples[key] = {m.partition(".")[0]: decode(m, d) for m, d in data.items()}
    return samples


def test_every_column_of_a_parquet_folder(folder, tmp_path):
    manifest = write(folder, tmp_path / "out", samples_per_shard=6)
    assert {name: s.num_samples for name, s in manifest.splits.items()} == {"train": 20, "val": 3}
    samples = read(tmp_path / "out", "train") | read(tmp_path / "out", "val")
    by_number = {round(float(s["rgb"].mean()) / 10): s for s in samples.values()}
    assert sorted(by_number) == list(range(ROWS))
    for number, sample in by_number.items():
        source = row(number)
        assert sample["rgb"].shape == (3, HEIGHT, WIDTH)
        for name in ("depth", "seg"):
            expected = np.asarray(Image.open(io.BytesIO(source[name]["bytes"])))
            np.testing.assert_array_equal(sample[name][0], expected)
            assert sample[name].dtype == expected.dtype
        if source["heights"] is None:
            assert "heights" not in sample
        else:
            np.testing.assert_array_equal(sample["heights"][0], np.float32(source["heights"]))
        expected = {"old": int(source["old"])}
        if source["age"] is not None:
            expected["age"] = source["age"]
        if number % 3 != 2:
            expected["mood"] = number % 3
        if number % 4:
            expected["species"] = number % 4 - 1
        assert sample["labels"] == expected
    ages = [n for n in range(20) if n % 3 != 2]
    assert manifest.fields["age"].mean == pytest.approx(np.mean(ages))
    assert manifest.fields["species"].classes == ("cat", "dog", "owl")
    assert manifest.fields["seg"].classes == ("0", "1", "2", "3", "4")
    assert manifest.conversion.missing == {
        "mood": {"'bored'": 7},
        "species": {"'-1'": 6},
    }
    order = [round(float(s["rgb"].mean()) / 10) for s in read(tmp_path / "out", "train").values()]
    assert max(order[:6]) > 10 > min(order[:6])  # rows of both files meet in a shard
    assert not (tmp_path / "out" / "conversion").exists()


def test_a_rerun_continues_and_a_finished_one_is_recognised(folder, tmp_path, monkeypatch):
    expected = write(folder, tmp_path / "whole", samples_per_shard=6)
    rows = streamed_dataset.StreamedDataset.rows
    asked = []

    def failing(self, split, part, pictures):
        asked.append((split, part))
        for number, row in enumerate(rows(self, split, part, pictures)):
            if part.startswith("1/") and number == 3:
                raise ConnectionError("the hub went away")
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(streamed_dataset.StreamedDataset, "rows", failing)
        with pytest.raises(ConnectionError, match="hub went away"):
            write(folder, tmp_path / "out", samples_per_shard=6)
    assert asked == [("train", "0/2/0/1"), ("train", "1/2/0/1")]
    with pytest.raises(DataError, match="begun with other arguments: size is 6, was None"):
        write(folder, tmp_path / "out", samples_per_shard=6, image_size=6)
    asked.clear()
    monkeypatch.setattr(
        streamed_dataset.StreamedDataset,
        "rows",
        lambda *a: (asked.append(a[1:3]), rows(*a))[1],
    )
    assert write(folder, tmp_path / "out", samples_per_shard=6) == expected
    assert asked == [("train", "1/2/0/1"), ("validation", "0/1/0/1")]
    asked.clear()
    assert write(folder, tmp_path / "out", samples_per_shard=6) == expected
    assert asked == []
    with pytest.raises(DataError, match="a data set is already here, from other arguments"):
        write(folder, tmp_path / "out", samples_per_shard=7)


@pytest.fixture
def image_folder(tmp_path):
    for split, counts in (("train", {"cat": 70, "dog": 30}), ("test", {"cat": 2, "dog": 3})):
        for kind, count in counts.items():
            (tmp_path / "pets" / split / kind).mkdir(parents=True)
            for number in range(count):
                picture = Image.new("RGB", (9, 6), (number, 0, 200 if kind == "cat" else 0))
                picture.save(tmp_path / "pets" / split / kind / f"{number}.jpg", quality=95)
    return tmp_path / "pets"


PETS = FieldMap(image="image", fields={"image": {"kind": "image"}, "label": {"kind": "multiclass"}})


def test_an_image_folder_is_read_in_parts_and_its_files_kept(image_folder, tmp_path):
    manifest = write(image_folder, tmp_path / "out", PETS)
    assert manifest.fields["label"].classes == ("cat", "dog")
    assert {name: s.num_samples for name, s in manifest.splits.items()} == {"train": 100, "test": 5}
    store = ShardStore(tmp_path / "out", manifest.split("train").shards)
    samples = [store.read(n, ["image.jpg", "labels.json"])[1] for n in range(100)]
    labels = [decode("a.json", members["labels.json"])["label"] for members in samples]
    assert sum(labels) == 30
    assert 3 < sum(labels[:25]) < 13  # sorted by class in the source, mixed here
    sources = {path.read_bytes() for path in (image_folder / "train").glob("*/*.jpg")}
    assert {members["image.jpg"] for members in samples} == sources


def test_a_limit_reads_a_part_of_the_stream(image_folder, tmp_path):
    manifest = write(image_folder, tmp_path / "out", PETS, limit=10)
    assert {name: s.num_samples for name, s in manifest.splits.items()} == {"train": 10, "test": 5}
    labels = [s["labels"]["label"] for s in read(tmp_path / "out", "train").values()]
    assert 0 < sum(labels) < 10


def test_named_splits_tasks_size_and_portable(folder, tmp_path):
    field_map = MAP.model_copy(update={"splits": {"held_out": "validation"}, "dataset": "pets"})
    manifest = write(
        folder, tmp_path / "out", field_map, tasks=("depth", "old"), image_size=6, portable=True
    )
    assert list(manifest.splits) == ["held_out"]
    assert manifest.dataset == "pets"
    assert [f.member for f in manifest.fields.values()] == ["rgb.png", "depth.png", "labels.json"]
    sample = read(tmp_path / "out", "held_out")
    assert {s["depth"].shape for s in sample.values()} == {(1, 6, 9)}
    assert {tuple(s["labels"]) for s in sample.values()} == {("old",)}


def test_a_single_parquet_file_is_a_data_set(folder, tmp_path):
    source = folder / "validation-00000-of-00001.parquet"
    manifest = write(source, tmp_path / "out", tasks=("age",))
    assert {name: s.num_samples for name, s in manifest.splits.items()} == {"train": 3}


def test_faults_of_rows_are_counted(tmp_path):
    good = png(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    transparent = png(np.zeros((HEIGHT, WIDTH, 4), np.uint8))
    rows = [
        {"photo": {"bytes": b"garbage", "path": None}, "depth": good},
        {"photo": {"bytes": None, "path": str(tmp_path / "source/absent.png")}, "depth": good},
        {"photo": None, "depth": good},
        {"photo": good, "depth": transparent},
        {"photo": good, "depth": png(np.zeros((HEIGHT, HEIGHT), np.uint8))},
        {"photo": transparent, "depth": png(np.full((HEIGHT, WIDTH), 7, np.uint8))},
    ]
    features = datasets.Features({"photo": datasets.Image(), "depth": datasets.Image()})
    (tmp_path / "source").mkdir()
    table = datasets.Dataset.from_list(rows, features=features)
    parquet.write_table(table.data.table, tmp_path / "source" / "train.parquet")
    manifest = write(tmp_path / "source", tmp_path / "out", tasks=("depth",))
    assert manifest.conversion.skipped == {"image: no file": 1, "image: unreadable": 2}
    assert manifest.conversion.missing == {
        "depth": {"another shape than the image": 1, "picture of mode RGBA": 1}
    }
    depths = [s["depth"] for s in read(tmp_path / "out", "train").values() if "depth" in s]
    assert [(d.dtype, int(d.max())) for d in depths] == [(np.uint16, 7)]


def test_maps_that_do_not_fit_are_refused(folder, tmp_path):
    def with_fields(**fields):
        return MAP.model_copy(update={"fields": {"rgb": MAP.fields["rgb"], **fields}})

    cases = [
        (
            with_fields(x={"kind": "binary"}),
            {},
            r"fields\.x\.column 'x': no such column; allowed: age, depth",
        ),
        (with_fields(mood={"kind": "multiclass"}), {}, r"fields\.mood.*needs at least two names"),
        (
            with_fields(age={"kind": "number"}),
            {},
            r"fields\.age: kind: found 'number'; allowed: 'image', 'binary'",
        ),
        (MAP, {"tasks": ("depth", "hat")}, "tasks hat: the map has age, depth"),
        (MAP.model_copy(update={"splits": {"train": "dev"}}), {}, "no split 'dev', allowed are tr"),
    ]
    for field_map, options, expected in cases:
        with pytest.raises(DataError, match=expected):
            write(folder, tmp_path / "out", field_map, **options)
    with pytest.raises(DataError, match="nowhere: cannot be opened"):
        write(tmp_path / "nowhere", tmp_path / "out")


TINY = FieldMap(
    image="photo", fields={"photo": {"kind": "image"}, "number": {"kind": "regression"}}
)


@pytest.fixture
def numbered(tmp_path):
    """Three parquet files of one split, with 7, 5 and 8 rows that are numbered."""
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "number": datasets.Value("int64"),
            "flag": datasets.Value("string"),
            "group": datasets.Value("int64"),
        }
    )
    (tmp_path / "source").mkdir()
    start = 0
    for file, count in enumerate((7, 5, 8)):
        rows = [
            {
                "photo": png(np.full((4, 4, 3), n, np.uint8)),
                "number": n,
                "flag": ("yes", "no", "maybe", "")[n % 4],
                "group": n // 4,
            }
            for n in range(start, start + count)
        ]
        table = datasets.Dataset.from_list(rows, features=features)
        table.to_parquet(str(tmp_path / "source" / f"train-{file:05d}-of-00003.parquet"))
        start += count
    return tmp_path / "source"


def numbers_of(out):
    return {
        split: sorted(int(s["labels"]["number"]) for s in read(out, split).values())
        for split in Manifest.load(out).splits
    }


@pytest.mark.parametrize("limit", [None, 3])
def test_slices_divide_the_rows_of_a_split(numbered, tmp_path, limit):
    splits = {"train": "train[:80%]", "val": "train[80%:]", "test": "train[5:8]"}
    field_map = TINY.model_copy(update={"splits": splits})
    write(numbered, tmp_path / "out", field_map, limit=limit)
    expected = {"train": list(range(16)), "val": [16, 17, 18, 19], "test": [5, 6, 7]}
    found = numbers_of(tmp_path / "out")
    for split, numbers in expected.items():
        assert set(found[split]) <= set(numbers)
        assert len(found[split]) == min(len(numbers), limit or 99)


def test_the_rows_of_other_files_are_counted_for_a_slice(image_folder, tmp_path):
    splits = {"train": "train[:-30%]", "val": "train[70:]"}
    manifest = write(image_folder, tmp_path / "out", PETS.model_copy(update={"splits": splits}))
    sizes = {name: split.num_samples for name, split in manifest.splits.items()}
    assert sizes == {"train": 70, "val": 30}


def test_splits_with_common_rows_are_said_to_be(numbered, tmp_path, caplog):
    splits = {"train": "train", "val": "train[:10%]"}
    write(numbered, tmp_path / "out", TINY.model_copy(update={"splits": splits}))
    assert "splits train and val have rows in common" in caplog.text


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("train[:80]%", "allowed are a name, or a slice"),
        ("train[:200%]", "allowed are a name, or a slice"),
        ("train[15:10]", r"train\[15:10\]: no rows, split train has 20"),
        ("dev[:10%]", "no split 'dev', allowed are train"),
    ],
)
def test_wrong_slices_are_refused(numbered, tmp_path, source, expected):
    field_map = TINY.model_copy(update={"splits": {"train": source}})
    with pytest.raises(DataError, match=expected):
        write(numbered, tmp_path / "out", field_map)


def test_a_share_becomes_val_and_groups_stay_together(numbered, tmp_path):
    field_map = TINY.updated(val_share=0.4, group_by="group")
    write(numbered, tmp_path / "out", field_map, samples_per_shard=3)
    found = numbers_of(tmp_path / "out")
    assert sorted(found["train"] + found["val"]) == list(range(20))
    assert len(found["val"]) == 8
    assert not {n // 4 for n in found["train"]} & {n // 4 for n in found["val"]}
    store = ShardStore(tmp_path / "out", Manifest.load(tmp_path / "out").split("val").shards)
    assert all("@" not in store.read(number, ())[0] for number in range(8))
    write(numbered, tmp_path / "single", TINY.updated(val_share=0.25))
    assert len(numbers_of(tmp_path / "single")["val"]) == 5
    for splits in ({"val": "train"}, {"train": "train[:50%]", "val": "train[50%:]"}):
        with pytest.raises(DataError, match=r"val_share 0\.4: divides the split train where there"):
            write(numbered, tmp_path / "x", field_map.model_copy(update={"splits": splits}))


def test_values_that_cannot_be_read_are_counted_or_end_the_conversion(numbered, tmp_path):
    def with_flag(**entry):
        fields = TINY.fields | {"flag": {"kind": "binary", **entry}}
        return TINY.model_copy(update={"fields": fields})

    manifest = write(numbered, tmp_path / "out", with_flag())
    assert manifest.conversion.missing == {"flag": {"'maybe'": 5}}
    train = manifest.split("train")
    assert (train.labelled["flag"], train.class_counts) == (10, {"flag": (5, 5)})
    known = {"yes": None, "no": None, "maybe": 1}
    manifest = write(numbered, tmp_path / "known", with_flag(values=known))
    assert manifest.split("train").class_counts == {"flag": (0, 5)}
    unreadable = {"kind": "multiclass", "classes": ["a", "b"]}
    with pytest.raises(UnreadableColumnsError, match=r"fields\.flag: none of 15 .*'maybe' x 5"):
        write(numbered, tmp_path / "none", with_flag(**unreadable))
    assert not (tmp_path / "none" / "manifest.json").exists()


def test_the_number_of_rows_is_known_before_they_are_read(numbered, image_folder):
    stream = streamed_dataset.StreamedDataset(str(numbered), None, 0, None)
    assert (stream.num_rows("train"), stream.num_rows("train[:50%]")) == (20, 10)
    stream = streamed_dataset.StreamedDataset(str(image_folder), None, 0, None)
    assert stream.num_rows("train") is None
