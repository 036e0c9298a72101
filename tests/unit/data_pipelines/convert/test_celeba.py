"""CelebA: attributes and partition from the released text files, faces kept or shrunk."""

import numpy as np
import pytest
from PIL import Image

from data_pipelines.convert.celeba import write_celeba
from data_pipelines.convert.options import ConversionOptions
from data_pipelines.decode.codecs import decode
from data_pipelines.errors import DataError
from data_pipelines.shards.manifest import Manifest
from data_pipelines.shards.store import ShardStore

NAMES = ("Bald", "Smiling", "Young")
HEIGHT, WIDTH = 30, 20


def value(number, column):
    return 1 if (number >> column) % 2 else -1


@pytest.fixture
def root(tmp_path):
    """Faces 1 to 12; 1-8 train, 9-10 val, 11-12 test; attribute c of face n is bit c of n."""
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    rows, parts = ["12", " ".join(NAMES) + " "], []
    for number in range(1, 13):
        picture = np.full((HEIGHT, WIDTH, 3), 15 * number, np.uint8)
        name = f"{number:06d}.jpg"
        Image.fromarray(picture).save(folder / "img_align_celeba" / name)
        rows.append(f"{name} " + " ".join(f"{value(number, c):2d}" for c in range(3)))
        parts.append(f"{name} {0 if number < 9 else 1 if number < 11 else 2}")
    (folder / "list_attr_celeba.txt").write_text("\n".join(rows) + "\n")
    (folder / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    return folder


def write(root, out, **options):
    return write_celeba(root, out, ConversionOptions(progress=False, **options))


def read(out, split):
    manifest = Manifest.load(out)
    store = ShardStore(out, manifest.split(split).shards)
    members = {field.member for field in manifest.fields.values()}
    return dict(store.read(number, members) for number in range(len(store)))


def test_the_official_partition_and_every_attribute(root, tmp_path):
    manifest = write(root, tmp_path / "out")
    assert {name: s.num_samples for name, s in manifest.splits.items()} == {
        "train": 8, "val": 2, "test": 2,
    }  # fmt: skip
    samples = {}
    for split, numbers in (("train", range(1, 9)), ("val", (9, 10)), ("test", (11, 12))):
        stored = read(tmp_path / "out", split)
        assert sorted(stored) == [f"{n:06d}" for n in numbers]
        samples |= stored
    for number in range(1, 13):
        members = samples[f"{number:06d}"]
        record = decode("a.json", members["attributes.json"])
        assert record == {name: (number >> c) % 2 for c, name in enumerate(NAMES)}
        source = (root / "img_align_celeba" / f"{number:06d}.jpg").read_bytes()
        assert members["rgb.jpg"] == source  # nothing is lost by a second compression
    assert [n for n, f in manifest.fields.items() if f.kind == "binary"] == list(NAMES)
    assert list(samples)[:8] != sorted(list(samples)[:8])


def test_faces_shrink_and_portable_shards_are_png(root, tmp_path):
    write(root, tmp_path / "small", image_size=10)
    members = read(tmp_path / "small", "train")["000004"]
    assert decode("rgb.jpg", members["rgb.jpg"]).shape == (3, 15, 10)
    write(root, tmp_path / "png", portable=True)
    picture = decode("rgb.png", read(tmp_path / "png", "train")["000004"]["rgb.png"])
    assert picture.shape == (3, HEIGHT, WIDTH)
    assert abs(int(picture.mean()) - 60) <= 1


def test_tasks_choose_attributes(root, tmp_path):
    manifest = write(root, tmp_path / "out", tasks=("Young", "Bald"))
    assert list(manifest.fields) == ["rgb", "Bald", "Young"]
    record = decode("a.json", read(tmp_path / "out", "train")["000005"]["attributes.json"])
    assert record == {"Bald": 1, "Young": 1}
    with pytest.raises(DataError, match="tasks Hat: allowed are Bald, Smiling, Young"):
        write(root, tmp_path / "other", tasks=("Bald", "Hat"))


def test_the_official_folders_are_found_too(root, tmp_path):
    for folder, name in (
        ("Anno", "list_attr_celeba.txt"),
        ("Eval", "list_eval_partition.txt"),
        ("Img", "img_align_celeba"),
    ):
        (root / folder).mkdir()
        (root / name).rename(root / folder / name)
    assert write(root, tmp_path / "out").split("train").num_samples == 8


def test_faults_of_single_faces_are_counted(root, tmp_path):
    images = root / "img_align_celeba"
    (images / "000001.jpg").unlink()
    (images / "000002.jpg").write_bytes(b"\xff\xd8garbage")
    attributes = root / "list_attr_celeba.txt"
    lines = attributes.read_text().splitlines()
    lines[2 + 2] = "000003.jpg 0 1 1"
    del lines[2 + 3]
    lines.append("000099.jpg 1 1 1")
    attributes.write_text("\n".join(lines))
    manifest = write(root, tmp_path / "out")
    assert manifest.conversion.skipped == {
        "no attributes": 1,
        "not in the partition": 1,
        "rgb: no file": 1,
        "rgb: unreadable": 1,
    }
    assert manifest.conversion.missing == {"Bald": {"neither 1 nor -1": 1}}
    assert manifest.split("train").labelled == {"rgb": 5, "Bald": 4, "Smiling": 5, "Young": 5}
    record = decode("a.json", read(tmp_path / "out", "train")["000003"]["attributes.json"])
    assert record == {"Smiling": 1, "Young": 1}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("list_attr_celeba.txt", "2\nBald Young\n000001.jpg 1\n", r"line 3: 1 values, the 2 attr"),
        ("list_attr_celeba.txt", "", "no attribute names in line 2"),
        ("list_eval_partition.txt", "000001.jpg 3\n", r"line 1: '000001.jpg 3' is not FILE and 0"),
        ("list_eval_partition.txt", "000001.jpg\n", "is not FILE and 0, 1 or 2"),
    ],
)
def test_damaged_lists_are_refused_with_the_line(root, tmp_path, name, text, expected):
    (root / name).write_text(text)
    with pytest.raises(DataError, match=expected):
        write(root, tmp_path / "out")


def test_a_missing_part_is_named(root, tmp_path):
    (root / "list_eval_partition.txt").unlink()
    with pytest.raises(DataError, match=r"no list_eval_partition.txt nor Eval/list_eval_part"):
        write(root, tmp_path / "out")
