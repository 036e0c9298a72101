"""Tables to shards: the stored labels against the cells, splits, files, resumes and faults."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines.convert import columns
from data_pipelines.convert.mapping import FieldMap
from data_pipelines.convert.options import ConversionOptions
from data_pipelines.convert.table.source import TableOptions, convert_table, open_table
from data_pipelines.decode.codecs import decode
from data_pipelines.errors import DataError, SourceError, UnreadableColumnsError
from data_pipelines.shards import remote
from data_pipelines.shards.manifest import Manifest
from data_pipelines.shards.store import ShardStore
from tests.servers import FileServer

NUM_ROWS, HEIGHT, WIDTH = 40, 8, 12
MOODS = ("glad", "sad", "angry", "")


def cells(number):
    """One row: every fourth has no mood, every fifth no age, every tenth no number as its age."""
    return {
        "file": f"sub/{number:02d}.png",
        "person": f"p{number % 7}",
        "old": ("0.0", "1.0")[number % 2],
        "mood": MOODS[number % 4],
        "age": "?!" if number % 10 == 3 else "" if number % 5 == 4 else f"{20 + number / 4}",
        "mask": f"masks/{number:02d}.png" if number % 3 else "",
        "caption": f"the picture {number}",
    }


def mask_of(number):
    return np.full((HEIGHT, WIDTH), number % 4, np.uint8)


@pytest.fixture
def photos(tmp_path):
    for folder in ("sub", "masks"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
    for number in range(NUM_ROWS):
        name = f"{number:02d}.png"
        picture = Image.fromarray(np.full((HEIGHT, WIDTH, 3), 5 * number, np.uint8))
        picture.save(tmp_path / "photos" / "sub" / name)
        Image.fromarray(mask_of(number)).save(tmp_path / "photos" / "masks" / name)
    return tmp_path / "photos"


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def table(tmp_path, photos):  # noqa: ARG001
    return write_csv(tmp_path / "labels.csv", [cells(number) for number in range(NUM_ROWS)])


def opened(table, photos, field_map=None, options=None, **of_table):
    options = options or ConversionOptions(progress=False)
    images = None if photos is None else str(photos)
    return open_table(table, field_map, options, TableOptions(images=images, **of_table))


def converted(table, out, photos, field_map=None, of_table=None, **options):
    asked = ConversionOptions(progress=False, **options)
    source = opened(table, photos, field_map, asked, **(of_table or {}))
    return convert_table(source, out, asked)


def samples(out):
    """Members of every sample by the number of its row, which its picture shows."""
    manifest = Manifest.load(out)
    found = {}
    for split in manifest.splits:
        store = ShardStore(out, manifest.split(split).shards)
        members = {field.member for field in manifest.fields.values()}
        for number in range(len(store)):
            key, data = store.read(number, members)
            decoded = {m.partition(".")[0]: decode(m, d) for m, d in data.items()}
            row = round(float(decoded["file"].mean()) / 5)
            found[row] = decoded | {"key": key, "split": split}
    return found


def test_every_cell_is_stored_or_counted(table, photos, tmp_path):
    manifest = converted(table, tmp_path / "out", photos, samples_per_shard=7)
    assert {name: field.kind for name, field in manifest.fields.items()} == {
        "file": "image", "person": "multiclass", "old": "binary", "mood": "multiclass",
        "age": "regression", "mask": "dense_classification",
    }  # fmt: skip
    assert manifest.fields["mood"].classes == ("angry", "glad", "sad")
    assert not any(field.values for field in manifest.fields.values())
    assert manifest.conversion.missing == {"age": {"'?!'": 4}}
    found = samples(tmp_path / "out")
    assert sorted(found) == list(range(NUM_ROWS))
    for number, sample in found.items():
        row = cells(number)
        expected = {"old": number % 2, "person": number % 7}
        if row["mood"]:
            expected["mood"] = ("angry", "glad", "sad").index(row["mood"])
        if row["age"] not in ("", "?!"):
            expected["age"] = float(row["age"])
        assert sample["labels"] == expected
        assert ("mask" in sample) == bool(row["mask"])
        if row["mask"]:
            np.testing.assert_array_equal(sample["mask"][0], mask_of(number))
        assert sample["key"] == f"sub_{number:02d}"
    counts = np.zeros(2, int)
    for split in manifest.splits.values():
        counts += np.array(split.class_counts["old"])
        assert sum(split.class_counts["mood"]) == split.labelled["mood"]
    assert counts.tolist() == [20, 20]
    moods = [sample["labels"].get("mood") for sample in found.values() if sample["split"] == "val"]
    of_val = manifest.split("val").class_counts["mood"]
    assert of_val == tuple(moods.count(number) for number in range(3))


@pytest.mark.parametrize("suffix", ["tsv", "jsonl", "parquet"])
def test_other_formats_give_the_same_samples(table, photos, tmp_path, suffix):
    rows = [cells(number) for number in range(NUM_ROWS)]
    other = tmp_path / f"labels.{suffix}"
    if suffix == "tsv":
        other.write_text(table.read_text().replace(",", "\t"))
    elif suffix == "jsonl":
        typed = [{n: v if n != "old" else v == "1.0" for n, v in r.items() if v} for r in rows]
        other.write_text("".join(json.dumps(row) + "\n" for row in typed))
    else:
        import pyarrow
        from pyarrow import parquet

        typed = [row | {"old": float(row["old"])} for row in rows]
        parquet.write_table(pyarrow.Table.from_pylist(typed), other)
    converted(table, tmp_path / "a", photos)
    converted(other, tmp_path / "b", photos)
    first, second = samples(tmp_path / "a"), samples(tmp_path / "b")
    for number, sample in first.items():
        assert sample["labels"] == second[number]["labels"]
        assert sample["split"] == second[number]["split"]


def test_the_share_of_val_keeps_groups_together_and_does_not_depend_on_the_seed(
    table, photos, tmp_path
):
    for seed in (0, 1):
        of_table = {"val_share": 0.3, "group_by": "person"}
        converted(table, tmp_path / str(seed), photos, of_table=of_table, seed=seed)
    split_of = [{n: s["split"] for n, s in samples(tmp_path / d).items()} for d in ("0", "1")]
    assert split_of[0] == split_of[1]
    persons = {
        name: {n % 7 for n, s in split_of[0].items() if s == name} for name in ("train", "val")
    }
    assert not persons["train"] & persons["val"]
    num_val = list(split_of[0].values()).count("val")
    assert abs(num_val - 0.3 * NUM_ROWS) <= 3  # half of a group
    manifest = Manifest.load(tmp_path / "0")
    assert "person" not in manifest.fields


def test_a_column_of_splits_is_found_or_named(table, photos, tmp_path):
    rows = [cells(n) | {"split": ("training", "Valid", "")[n % 3]} for n in range(NUM_ROWS)]
    write_csv(table, rows)
    source = opened(table, photos)
    assert {name: len(rows) for name, rows in source.splits.items()} == {"train": 14, "val": 13}
    assert source.skipped == {"no split": 13}
    manifest = converted(table, tmp_path / "out", photos)
    assert manifest.conversion.skipped == {"no split": 13}
    assert {s["split"] for n, s in samples(tmp_path / "out").items() if n % 3 == 1} == {"val"}
    rows = [cells(n) | {"part": str(n % 3)} for n in range(NUM_ROWS)]
    write_csv(table, rows)
    source = opened(table, photos, split_column="part")
    assert list(source.splits) == ["train", "val", "test"]
    assert all(row % 3 == 2 for row in source.splits["test"])
    fields = {"file": {"kind": "image"}, "old": {"kind": "binary"}}
    source = opened(table, photos, FieldMap(image="file", fields=fields), split_column="part")
    assert list(source.splits) == ["train", "val", "test"]
    with pytest.raises(DataError, match=r"val_share 0\.2: .* the splits are train, val, test"):
        opened(table, photos, split_column="part", val_share=0.2)
    with pytest.raises(
        DataError, match=r"--split-column 'prt': no such column; .*did you mean 'part'"
    ):
        opened(table, photos, split_column="prt")


def test_the_inferred_mapping_can_be_given_back(table, photos, tmp_path):
    source = opened(table, photos)
    converted(table, tmp_path / "a", photos)
    tree = source.field_map.model_dump(exclude_defaults=True)
    tree["fields"]["age"]["values"] = {"?!": None}
    tree["fields"]["mood"] = {"kind": "multiclass", "classes": ["glad", "sad", "angry"]}
    corrected = FieldMap.checked("test", tree)
    manifest = converted(table, tmp_path / "b", photos, corrected)
    assert manifest.conversion.missing == {}
    assert manifest.fields["mood"].classes == ("glad", "sad", "angry")
    first, second = samples(tmp_path / "a"), samples(tmp_path / "b")
    for number in range(NUM_ROWS):
        assert first[number]["split"] == second[number]["split"]
        assert first[number]["labels"].get("age") == second[number]["labels"].get("age")


def test_a_rerun_continues_and_another_table_is_refused(table, photos, tmp_path, monkeypatch):
    expected = converted(table, tmp_path / "whole", photos, samples_per_shard=6)
    convert_image, asked = columns.convert_image, []

    def failing(*arguments):
        asked.append(1)
        if len(asked) == 20:
            raise OSError("the disk went away")
        return convert_image(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(columns, "convert_image", failing)
        with pytest.raises(OSError, match="went away"):
            converted(table, tmp_path / "out", photos, samples_per_shard=6)
    assert not (tmp_path / "out" / "manifest.json").exists()
    (tmp_path / "other").mkdir()
    rows = [cells(n) | {"old": "1"} for n in range(NUM_ROWS)]
    write_csv(tmp_path / "other" / table.name, rows)
    with pytest.raises(DataError, match=r"begun with other arguments: .*table_sha256"):
        converted(tmp_path / "other" / table.name, tmp_path / "out", photos, samples_per_shard=6)
    asked.clear()
    monkeypatch.setattr(
        columns, "convert_image", lambda *a: (asked.append(1), convert_image(*a))[1]
    )
    assert converted(table, tmp_path / "out", photos, samples_per_shard=6) == expected
    assert len(asked) == NUM_ROWS - 3 * 6  # 19 images were converted, three shards are whole
    with pytest.raises(DataError, match="a data set is already here, from other arguments"):
        converted(table, tmp_path / "out", photos, samples_per_shard=7)


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(table, photos, tmp_path):
    manifest = converted(table, tmp_path / "out", photos, samples_per_shard=9, workers=2)
    expected = converted(table, tmp_path / "one", photos, samples_per_shard=9)
    assert manifest == expected


def test_a_column_of_which_nothing_can_be_read_ends_it_before_anything_is_written(
    table, photos, tmp_path
):
    fields = {
        "file": {"kind": "image"},
        "caption": {"kind": "regression"},
        "old": {"kind": "binary"},
    }
    field_map = FieldMap(image="file", fields=fields)
    with pytest.raises(
        UnreadableColumnsError, match=r"fields\.caption: none of 40 labels"
    ) as caught:
        converted(table, tmp_path / "out", photos, field_map)
    assert "'the picture 0' x 1" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_minus_one_is_negative_or_ambiguous(table, photos, tmp_path):
    write_csv(table, [cells(n) | {"old": ("-1", "1.0")[n % 2]} for n in range(NUM_ROWS)])
    converted(table, tmp_path / "out", photos)
    assert {s["labels"]["old"] for n, s in samples(tmp_path / "out").items() if n % 2 == 0} == {0}
    write_csv(table, [cells(n) | {"old": ("-1", "1", "0")[n % 3]} for n in range(NUM_ROWS)])
    fields = {"file": {"kind": "image"}, "old": {"kind": "binary"}}
    with pytest.raises(DataError, match=r"fields\.old: binary, with -1 as well as 0; say what"):
        opened(table, photos, FieldMap(image="file", fields=fields))
    fields["old"]["values"] = {"-1": None}
    source = opened(table, photos, FieldMap(image="file", fields=fields))
    [old] = [column for column in source.columns if column.column == "old"]
    assert (old.found, old.empty) == ("0 x 13, 1 x 13", 14)


def test_names_of_images_may_lack_their_suffix(table, photos, tmp_path):
    rows = [cells(n) | {"file": f"sub/{n:02d}", "mask": ""} for n in range(NUM_ROWS)]
    write_csv(table, rows)
    source = opened(table, photos)
    assert source.field_map.fields["file"] == {"kind": "image", "suffix": ".png"}
    converted(table, tmp_path / "out", photos)
    assert sorted(samples(tmp_path / "out")) == list(range(NUM_ROWS))


def test_missing_images_are_counted_and_a_wrong_folder_is_refused(table, photos, tmp_path):
    for number in (3, 4, 5):
        (photos / "sub" / f"{number:02d}.png").unlink()
    (photos / "sub" / "06.png").write_bytes(b"no picture")
    (photos / "masks" / "07.png").unlink()
    manifest = converted(table, tmp_path / "out", photos)
    assert manifest.conversion.skipped == {"image: no file": 3, "image: unreadable": 1}
    assert manifest.conversion.missing["mask"] == {"no file": 1}
    with pytest.raises(
        DataError, match=r"column 'file': none of the first 40 images is below .*--im"
    ):
        opened(table, tmp_path)
    with pytest.raises(DataError, match=r"--images .*nowhere: is no folder"):
        opened(table, tmp_path / "nowhere")


@pytest.mark.parametrize("path", ["../secret.png", "sub/link.png", "file:///etc/passwd"])
def test_rows_name_no_file_outside_the_folder(table, photos, tmp_path, path):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (photos / "sub" / "link.png").symlink_to(tmp_path / "secret.png")
    write_csv(
        table, [cells(n) | {"file": path if n == 20 else cells(n)["file"]} for n in range(40)]
    )
    with pytest.raises(
        DataError, match=r"a row names the file .* allowed are files of the dataset"
    ):
        converted(table, tmp_path / "out", photos)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("values", "entry"),
    [
        (np.uint8([0, 255]), {"kind": "dense_classification", "classes": 2, "values": {255: 1}}),
        (np.uint8([0, 4, 255]), {"kind": "dense_classification", "classes": 5}),
        (np.arange(96, dtype=np.uint8), {"kind": "dense_regression", "dtype": "uint8"}),
        (np.uint16([500, 60000]), {"kind": "dense_regression", "dtype": "uint16"}),
        (np.float32([0.5, 2]), {"kind": "dense_regression", "dtype": "float32"}),
    ],
)
def test_label_pictures_by_what_is_in_them(table, photos, tmp_path, values, entry):
    suffix = "tif" if values.dtype == np.float32 else "png"
    picture = np.resize(values, (HEIGHT, WIDTH))
    Image.fromarray(picture).save(photos / f"label.{suffix}")
    write_csv(table, [cells(n) | {"mask": f"label.{suffix}"} for n in range(NUM_ROWS)])
    source = opened(table, photos)
    assert source.field_map.fields["mask"] == entry
    converted(table, tmp_path / "out", photos)
    expected = np.where(picture == 255, 1, picture) if "values" in entry else picture
    for sample in samples(tmp_path / "out").values():
        np.testing.assert_array_equal(sample["mask"][0], expected)


def test_photos_are_no_labels(table, photos):
    Image.new("RGB", (WIDTH, HEIGHT)).save(photos / "label.jpg")
    write_csv(table, [cells(n) | {"mask": "label.jpg"} for n in range(NUM_ROWS)])
    source = opened(table, photos)
    [mask] = [column for column in source.columns if column.column == "mask"]
    assert (mask.kind, mask.note) == ("", "JPEG changes values: no labels")


@pytest.fixture
def served(photos, monkeypatch):
    pytest.importorskip("aiohttp", reason="fsspec speaks HTTP through aiohttp")
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    with FileServer(photos) as server:
        yield server
        server.shutdown()


def with_urls(table, server, **changes):
    rows = [
        cells(n) | {"file": f"{server.url}/sub/{n:02d}.png?sig=x", "mask": ""} for n in range(40)
    ]
    for number, url in changes.items():
        rows[int(number[1:])]["file"] = url
    return write_csv(table, rows)


def test_urls_are_fetched_and_absent_ones_counted(table, served, tmp_path):
    with_urls(table, served, n3=f"{served.url}/nothing.png")
    manifest = converted(table, tmp_path / "out", None)
    assert manifest.conversion.skipped == {"image: no file": 1}
    found = samples(tmp_path / "out")
    assert sorted(found) == [n for n in range(NUM_ROWS) if n != 3]
    assert found[7]["labels"]["old"] == 1
    assert all("sig" not in sample["key"] for sample in found.values())


def test_paths_below_a_url(table, served, tmp_path):
    converted(table, tmp_path / "out", served.url)
    found = samples(tmp_path / "out")
    assert sorted(found) == list(range(NUM_ROWS))
    np.testing.assert_array_equal(found[7]["mask"][0], mask_of(7))
    rows = [cells(n) | {"file": "../x.png" if n == 9 else cells(n)["file"]} for n in range(40)]
    write_csv(table, rows)
    with pytest.raises(DataError, match=r"a row names '\.\./x\.png', allowed are files below it"):
        converted(table, tmp_path / "b", served.url)
    with_urls(table, served, n9="http://127.0.0.1:9/x.png")
    with pytest.raises(DataError, match=r"a row names 'http://127\.0\.0\.1:9/x\.png', allowed are"):
        converted(table, tmp_path / "c", served.url)


def test_a_server_without_an_answer_stops_the_conversion_or_is_left_out(
    table, served, tmp_path, monkeypatch
):
    for name in ("RETRY_SECONDS", "SKIP_SECONDS"):
        monkeypatch.setattr(f"data_pipelines.convert.table.files.{name}", 0.05)
    with_urls(table, served, n3="http://127.0.0.1:9/x.png")
    of_table = {"skip_unreachable": True}
    with pytest.raises(SourceError, match=r"run the command again to continue, or .*--skip-unr"):
        converted(table, tmp_path / "out", None, samples_per_shard=5)
    manifest = converted(table, tmp_path / "out", None, of_table=of_table, samples_per_shard=5)
    assert manifest.conversion.skipped == {"image: unreachable": 1}
    assert sum(split.num_samples for split in manifest.splits.values()) == NUM_ROWS - 1


def test_an_image_of_a_server_is_bounded(table, served, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipelines.shards.http_client.MAX_BODY_BYTES", 2000)
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(
        buffer, "PNG"
    )
    (photos / "sub" / "05.png").write_bytes(buffer.getvalue())
    with_urls(table, served)
    manifest = converted(table, tmp_path / "out", None)
    assert manifest.conversion.skipped == {"image: unreadable": 1}


def test_wrong_options_are_refused(table, photos):
    with pytest.raises(
        DataError, match=r"--image-column 'fle': no such column; .*did you mean 'file'"
    ):
        opened(table, photos, image_column="fle")
    with pytest.raises(DataError, match=r"val_share 0\.1: 1 groups in train, two are needed"):
        write_csv(table, [cells(n) | {"person": "one"} for n in range(NUM_ROWS)])
        opened(table, photos, group_by="person")
    write_csv(table, [{"a": n % 3, "b": f"text {n}"} for n in range(NUM_ROWS)])
    with pytest.raises(
        DataError, match=r"no column has paths or URLs of pictures.*\(columns: a, b\)"
    ):
        opened(table, photos)
