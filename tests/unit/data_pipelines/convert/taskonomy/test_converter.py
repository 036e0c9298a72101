"""Taskonomy: stored labels against their source files, missing labels, splits of buildings."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.convert.options import ConversionOptions
from data_pipelines.convert.taskonomy.buildings import BuildingSplits
from data_pipelines.convert.taskonomy.converter import write_taskonomy
from data_pipelines.convert.taskonomy.tree import SEMANTIC_CLASSES
from data_pipelines.decode.codecs import decode
from data_pipelines.errors import DataError
from data_pipelines.shards.manifest import Manifest
from data_pipelines.shards.store import ShardStore

SAMPLE = Path(__file__).resolve().parents[6] / "shared" / "data" / "taskonomy_sample"
SIDE = 24
BUILDINGS = ("ash", "birch", "cedar", "elm")
TAILS = {"segment_semantic": "segmentsemantic"}  # as the release has it


def save(root, domain, building, view, array):
    folder = root / domain / building
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{view}_domain_{TAILS.get(domain, domain)}.png"
    Image.fromarray(array).save(path)
    return path


def view_arrays(number):
    rng = np.random.default_rng(number)
    depth = rng.integers(1000, 5000, (SIDE, SIDE)).astype(np.uint16)
    depth[rng.random((SIDE, SIDE)) < 0.2] = 65535
    grey = rng.integers(0, 256, (SIDE, SIDE, 1)).astype(np.uint8)
    return {
        "rgb": np.full((SIDE, SIDE, 3), 10 * number, np.uint8),
        "depth_zbuffer": depth,
        "normal": rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8),
        "reshading": np.repeat(grey, 3, axis=2),
        "segment_semantic": rng.integers(0, 18, (SIDE, SIDE)).astype(np.uint8),
        "segment_unsup2d": rng.integers(0, 256, (SIDE, SIDE)).astype(np.uint8),
    }


@pytest.fixture
def tree(tmp_path):
    """Four buildings with three views each; view v of building b is number 3b + v."""
    root = tmp_path / "release"
    for number in range(12):
        for domain, array in view_arrays(number).items():
            save(root, domain, BUILDINGS[number // 3], f"point_{number}_view_{number % 3}", array)
    return root


def write(root, out, splits=None, **options):
    splits = splits or BuildingSplits(val_fraction=0)
    return write_taskonomy(root, out, splits, ConversionOptions(progress=False, **options))


def read(out, split="train"):
    manifest = Manifest.load(out)
    members = {field.member for field in manifest.fields.values()}
    store = ShardStore(out, manifest.split(split).shards)
    samples = {}
    for number in range(len(store)):
        key, data = store.read(number, members)
        samples[key] = {m.partition(".")[0]: decode(m, d) for m, d in data.items()}
    return samples


@pytest.mark.parametrize("portable", [False, True])
def test_every_value_is_kept(tree, tmp_path, portable):
    out = tmp_path / "out"
    manifest = write(tree, out, portable=portable)
    samples = read(out)
    assert len(samples) == 12
    for number in range(12):
        building = BUILDINGS[number // 3]
        sample = samples[f"{building}-point_{number}_view_{number % 3}"]
        arrays = view_arrays(number)
        np.testing.assert_array_equal(sample["depth_zbuffer"][0], arrays["depth_zbuffer"])
        np.testing.assert_array_equal(sample["normal"], arrays["normal"].transpose(2, 0, 1))
        np.testing.assert_array_equal(sample["reshading"][0], arrays["reshading"][..., 0])
        np.testing.assert_array_equal(sample["segment_semantic"][0], arrays["segment_semantic"])
        assert np.abs(sample["rgb"].astype(int) - 10 * number).max() <= (0 if portable else 2)
        assert "segment_unsup2d" not in sample  # its ids mean nothing from picture to picture
    endings = {name: field.member.rpartition(".")[2] for name, field in manifest.fields.items()}
    assert endings["rgb"] == ("png" if portable else "jpg")
    assert {v for k, v in endings.items() if k != "rgb"} == {"png" if portable else "planes"}
    assert manifest.fields["normal"].on_flip == "negate_x"
    assert manifest.fields["segment_semantic"].classes == SEMANTIC_CLASSES
    assert manifest.fields["reshading"].channels == 1
    assert manifest.fields["depth_zbuffer"].dtype == "uint16"
    assert manifest.conversion.skipped == manifest.conversion.missing == {}


def test_labels_shrink_without_being_mixed_and_images_with_antialiasing(tree, tmp_path):
    checks = np.kron(np.indices((SIDE, SIDE)).sum(axis=0) % 2 * 255, np.ones((1, 1)))
    picture = np.repeat(checks.astype(np.uint8)[..., None], 3, axis=2)
    save(tree, "rgb", "ash", "point_0_view_0", picture)
    write(tree, tmp_path / "out", image_size=8, tasks=("depth_zbuffer", "segment_semantic"))
    samples = read(tmp_path / "out")
    for number in range(12):
        sample = samples[f"{BUILDINGS[number // 3]}-point_{number}_view_{number % 3}"]
        arrays = view_arrays(number)
        for name in ("depth_zbuffer", "segment_semantic"):
            np.testing.assert_array_equal(sample[name][0], arrays[name][1::3, 1::3])
        assert set(sample) == {"rgb", "depth_zbuffer", "segment_semantic"}
    shrunk = samples["ash-point_0_view_0"]["rgb"]
    assert shrunk.shape == (3, 8, 8)
    assert 60 < shrunk.min() <= shrunk.max() < 195  # picking pixels would give 0 and 255


def test_pictures_never_grow(tree, tmp_path):
    write(tree, tmp_path / "out", image_size=100, tasks=("normal",))
    assert read(tmp_path / "out")["ash-point_0_view_0"]["normal"].shape == (3, SIDE, SIDE)


def test_what_cannot_be_used_is_counted_and_the_rest_kept(tree, tmp_path):
    def path(domain, number):
        tail = TAILS.get(domain, domain)
        name = f"point_{number}_view_{number % 3}_domain_{tail}.png"
        return tree / domain / BUILDINGS[number // 3] / name

    path("depth_zbuffer", 0).write_bytes(b"garbage")
    path("depth_zbuffer", 1).write_bytes(path("depth_zbuffer", 1).read_bytes()[:200])
    path("depth_zbuffer", 2).unlink()
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(path("depth_zbuffer", 3))
    Image.fromarray(np.zeros((SIDE, 2 * SIDE), np.uint16)).save(path("depth_zbuffer", 4))
    Image.fromarray(np.full((SIDE, SIDE), 18, np.uint8)).save(path("segment_semantic", 5))
    path("rgb", 6).unlink()
    path("rgb", 7).write_bytes(b"\x89PNG\r\n\x1a\n")
    (tree / "rgb" / "ash" / "notes.txt").write_text("hello")
    manifest = write(tree, tmp_path / "out")
    assert manifest.conversion.missing == {
        "depth_zbuffer": {
            "unreadable": 2,
            "no file": 1,
            "wrong dtype or channels": 1,
            "another shape than the image": 1,
        },
        "segment_semantic": {"class id out of range": 1},
    }
    assert manifest.conversion.skipped == {
        "no rgb file": 1,
        "rgb: unreadable": 1,
        "file name not understood": 1,
    }
    train = manifest.split("train")
    assert train.num_samples == 10
    assert train.labelled["depth_zbuffer"] == 5
    assert train.labelled["normal"] == 10
    sample = read(tmp_path / "out")["ash-point_0_view_0"]
    assert "depth_zbuffer" not in sample
    assert "normal" in sample


def test_workers_change_nothing_and_a_rerun_continues(tree, tmp_path):
    def hashes(folder):
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}

    options = {"tasks": ("normal", "reshading"), "samples_per_shard": 5}
    write(tree, tmp_path / "one", **options)
    write(tree, tmp_path / "two", workers=2, **options)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert len(list((tmp_path / "one").glob("*.tar"))) == 3
    with pytest.raises(DataError, match="a data set is already here, from other arguments"):
        write(tree, tmp_path / "one", **options, image_size=8)


def test_a_limit_takes_views_from_all_over(tree, tmp_path):
    manifest = write(tree, tmp_path / "out", limit=6)
    assert manifest.split("train").num_samples == 6
    assert len({key.partition("-")[0] for key in read(tmp_path / "out")}) > 2


def buildings_of(out, split):
    return {key.partition("-")[0] for key in read(out, split)}


def test_the_releases_table_decides_the_splits(tree, tmp_path):
    table = tree / "train_val_test_tiny.csv"
    table.write_text("id,train,val,test\nash,1,0,0\nbirch,0,1,0\ncedar,0,0,1\nfir,1,0,0\n")
    manifest = write(tree, tmp_path / "out", BuildingSplits())
    assert buildings_of(tmp_path / "out", "train") == {"ash"}
    assert buildings_of(tmp_path / "out", "val") == {"birch"}
    assert buildings_of(tmp_path / "out", "test") == {"cedar"}
    assert manifest.conversion.skipped == {"building in no split": 3}
    (tree / "train_val_test_full.csv").write_text("id,train,val,test\nelm,1,0,0\n")
    with pytest.raises(DataError, match=r"several split tables, name one of train_val_test_full"):
        write(tree, tmp_path / "other", BuildingSplits())
    write(tree, tmp_path / "other", BuildingSplits(table=table))
    assert buildings_of(tmp_path / "other", "val") == {"birch"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id,train,val,test\nash,yes,0,0\n", "line 2: train is 'yes'; needed are 0 or 1"),
        ("id,train,val,test\nash,1,1,0\n", "line 2: in train and val"),
        ("name,train,val,test\nash,1,0,0\n", "and a column id"),
        ("", "no samples found"),
    ],
)
def test_a_wrong_table_is_refused(tree, tmp_path, text, expected):
    table = tmp_path / "table.csv"
    table.write_text(text)
    with pytest.raises(DataError, match=expected):
        write(tree, tmp_path / "out", BuildingSplits(table=table))
    with pytest.raises(DataError, match=r"missing\.csv: cannot be read"):
        write(tree, tmp_path / "out", BuildingSplits(table=tmp_path / "missing.csv"))


def test_named_and_hashed_buildings_are_held_out_whole(tree, tmp_path):
    write(tree, tmp_path / "named", BuildingSplits(val=("birch", "elm")))
    assert buildings_of(tmp_path / "named", "train") == {"ash", "cedar"}
    assert buildings_of(tmp_path / "named", "val") == {"birch", "elm"}
    with pytest.raises(DataError, match="val buildings oak: not there, allowed are ash, birch"):
        write(tree, tmp_path / "unknown", BuildingSplits(val=("oak",)))
    many = {f"b{n}" for n in range(200)}
    assigned = BuildingSplits(val_fraction=0.25).assign(tree, many)
    held = {name for name, split in assigned.items() if split == "val"}
    assert len(held) == 50
    assert held != {f"b{n}" for n in range(50)}
    assert held == {n for n, s in BuildingSplits(val_fraction=0.25).assign(tree, many).items()
                    if s == "val"}  # fmt: skip
    assert list(BuildingSplits().assign(tree, ["ash", "elm"]).values()).count("val") == 1
    assert BuildingSplits().assign(tree, ["ash"]) == {"ash": "train"}


def test_bad_split_arguments_are_refused():
    with pytest.raises(ValueError, match="val_fraction: 1 must be at least 0 and below 1"):
        BuildingSplits(val_fraction=1)
    with pytest.raises(ValueError, match="val and table: give at most one"):
        BuildingSplits(Path("a.csv"), ("ash",))


def test_tasks_that_are_not_there_are_named(tree, tmp_path):
    with pytest.raises(DataError, match=r"tasks depth_euclidean, rgb: .*allowed are depth_zbuffer"):
        write(tree, tmp_path / "out", tasks=("rgb", "normal", "depth_euclidean"))
    with pytest.raises(DataError, match="no folder rgb"):
        write(tmp_path, tmp_path / "out")
    manifest = write(tree, tmp_path / "out", tasks=("segment_unsup2d",))
    assert manifest.split("train").labelled == {"rgb": 12, "segment_unsup2d": 12}


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"{SAMPLE} is absent")
@pytest.mark.parametrize("size", [pytest.param(None, marks=pytest.mark.slow), 128])
def test_real_views_keep_every_label_of_the_source(tmp_path, size):
    tasks = sorted(p.name for p in SAMPLE.iterdir() if p.is_dir() and p.name != "rgb")
    write(SAMPLE, tmp_path, tasks=tasks, image_size=size)
    samples = read(tmp_path)
    step = 1 if size is None else 512 // size
    checked = 0
    for path in SAMPLE.glob("*/*/*.png"):
        domain, building = path.parts[-3:-1]
        sample = samples[f"{building}-{path.name.partition('_domain_')[0]}"]
        source = np.asarray(Image.open(path))
        source = source[None] if source.ndim == 2 else source.transpose(2, 0, 1)
        if domain == "rgb":
            rows = source.reshape(3, 512 // step, step, 512 // step, step).mean(axis=(2, 4))
            assert np.abs(rows - sample["rgb"]).mean() < 4
        else:
            stored = sample[domain]
            picked = source[: len(stored), step // 2 :: step, step // 2 :: step]
            np.testing.assert_array_equal(stored, picked)
            if domain == "reshading":
                assert (source == source[:1]).all()
            checked += 1
    assert checked == sum(len(sample) - 1 for sample in samples.values()) == 30
