"""Joined data sets: labels stay with their source, statistics are those of all samples."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.convert import mix as module
from data_pipelines.convert.mix import mix_shards
from data_pipelines.decode.codecs import decode, encode_jpeg, encode_json, encode_png
from data_pipelines.errors import DataError
from data_pipelines.reading.class_counts import class_counts
from data_pipelines.reading.fields import LabelRequest
from data_pipelines.reading.loader import eval_loader, train_loader
from data_pipelines.shards.encoded import EncodedSample
from data_pipelines.shards.extract import extract_images
from data_pipelines.shards.manifest import Field, Manifest, Split
from data_pipelines.shards.writer import ShardFile
from data_pipelines.synthetic.dataset_writer import DatasetWriter
from data_pipelines.transforms import Geometry
from tests.servers import FileServer

CATS = {
    "photo": Field(member="photo.png", kind="image", channels=3),
    "breed": Field(member="labels.json", key="breed", kind="multiclass", classes=("a", "b", "c")),
    "age": Field(member="labels.json", key="age", kind="regression"),
    "indoor": Field(member="labels.json", key="indoor", kind="binary"),
}
# Another member for the image and another key for the age; records hold an entry `indoor`, too,
# which is no field of theirs.
DOGS = {
    "rgb": Field(member="rgb.jpg", kind="image", channels=1),
    "breed": Field(member="labels.json", key="breed", kind="multiclass", classes=("x", "y")),
    "age": Field(member="labels.json", key="years", kind="regression", values={"-1": None}),
    "size": Field(member="labels.json", key="size", kind="regression"),
}
PREFIX = ("cats", "dogs")


def cat(number):
    rng = np.random.default_rng(number)
    labels = {"breed": number % 3, "age": number / 2, "indoor": number % 2}
    if number % 4 == 3:
        del labels["age"]
    picture = rng.integers(0, 256, (8, 12, 3)).astype(np.uint8)
    members = {"photo.png": encode_png(picture), "labels.json": encode_json(labels)}
    return EncodedSample(f"{number:04d}", members, labels)


def dog(number):
    rng = np.random.default_rng(1000 + number)
    labels = {"breed": number % 2, "years": 10.0 + number, "size": 3.5, "indoor": 1}
    picture = rng.integers(0, 256, (20, 10)).astype(np.uint8)
    members = {"rgb.jpg": encode_jpeg(picture), "labels.json": encode_json(labels)}
    return EncodedSample(f"{number:04d}", members, labels)


def write(root, fields, sample, image, sizes):
    writer = DatasetWriter(root, fields, samples_per_shard=10)
    start = 0
    for split, size in sizes.items():
        writer.write_split(split, [sample(n) for n in range(start, start + size)])
        start += size
    writer.finish(root.name, image)
    return root


@pytest.fixture(scope="module")
def cats(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "cats"
    return write(root, CATS, cat, "photo", {"train": 25, "val": 8})


@pytest.fixture(scope="module")
def dogs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "dogs"
    return write(root, DOGS, dog, "rgb", {"train": 12, "test": 5})


def join(*sources, out, **options):
    return mix_shards(list(map(str, sources)), out, progress=False, **options)


@pytest.fixture(scope="module")
def joined(cats, dogs, tmp_path_factory):
    out = tmp_path_factory.mktemp("mix") / "pets"
    return out, join(cats, dogs, out=out, prefix=PREFIX)


def requests_of(manifest):
    return [LabelRequest(n, n) for n, f in manifest.fields.items() if f.kind != "image"]


def labels_of(root, split, image_size=(8, 8)):
    """The valid labels of every sample of a split, by key."""
    manifest = Manifest.load(root)
    (batch,) = eval_loader(
        root,
        manifest,
        [r for r in requests_of(manifest) if manifest.split(split).labelled[r.field]],
        image_size,
        batch_size=manifest.split(split).num_samples,
        split=split,
    )
    return {
        key: {t: float(batch.labels[t][row]) for t in batch.tasks if batch.valid[t][row]}
        for row, key in enumerate(batch.keys)
    }


def test_samples_have_the_labels_of_their_source_only(joined):
    labels = labels_of(joined[0], "train")
    assert len(labels) == 37
    for number in range(25):
        expected = {"cats_breed": number % 3, "cats_indoor": number % 2}
        expected |= {} if number % 4 == 3 else {"cats_age": number / 2}
        assert labels[f"cats/{number:04d}"] == expected
    for number in range(12):
        expected = {"dogs_breed": number % 2, "dogs_age": 10 + number, "dogs_size": 3.5}
        assert labels[f"dogs/{number:04d}"] == expected


def test_the_manifest_names_the_sources(joined):
    out, manifest = joined
    assert Manifest.load(out) == manifest
    assert manifest.dataset == "cats + dogs" and manifest.image == "photo"
    assert {n: s.num_samples for n, s in manifest.splits.items()} == {
        "train": 37,
        "val": 8,
        "test": 5,
    }
    assert [(s.name, s.source) for s in manifest.split("train").shards] == [
        *((f"cats-train-{n:06d}.tar", "cats") for n in range(3)),
        *((f"dogs-train-{n:06d}.tar", "dogs") for n in range(2)),
    ]
    train = manifest.split("train")
    assert train.labelled["photo"] == 37 and train.labelled["cats_age"] == 19
    assert train.labelled["dogs_breed"] == 12 and manifest.split("val").labelled["dogs_breed"] == 0
    assert train.class_counts["cats_breed"] == (9, 8, 8)
    assert train.class_counts["dogs_breed"] == (6, 6)
    content = json.loads((out / "manifest.json").read_text())
    assert content["sources"]["dogs"]["fields"]["photo"] == {"member": "rgb.jpg"}
    assert content["sources"]["dogs"]["fields"]["dogs_age"]["key"] == "years"


def test_files_are_links_with_the_sums_and_indexes_of_the_sources(joined, cats):
    out, manifest = joined
    names = {path.name for path in out.iterdir()}
    shards = [s for split in manifest.splits.values() for s in split.shards]
    assert names == {
        "manifest.json",
        *(s.name for s in shards),
        *(f"{s.name}.index" for s in shards),
    }
    of_cats = {s.name: s for s in Manifest.load(cats).split("train").shards}
    for shard in manifest.split("train").shards[:3]:
        own = of_cats[shard.name.removeprefix("cats-")]
        assert (shard.sha256, shard.index, shard.bytes) == (own.sha256, own.index, own.bytes)
        assert os.path.samefile(out / shard.name, cats / own.name)


def test_what_agrees_is_one_task_with_the_statistics_of_all(cats, tmp_path):
    """Means against those of all values; class counts against a pass over the labels."""

    def kitten(number):
        labels = {"breed": 2, "years": 100.0 + number**2}
        members = {**cat(number).members, "labels.json": encode_json(labels)}
        return EncodedSample(f"{number:04d}", members, labels)

    fields = {
        "photo": CATS["photo"],
        "breed": CATS["breed"],
        "age": Field(member="labels.json", key="years", kind="regression"),
    }
    kittens = write(tmp_path / "kittens", fields, kitten, "photo", {"train": 14})
    manifest = join(cats, kittens, out=tmp_path / "mix")
    ages = [n / 2 for n in range(25) if n % 4 != 3] + [100.0 + n**2 for n in range(14)]
    assert manifest.fields["age"].mean == pytest.approx(np.mean(ages), rel=1e-12)
    assert manifest.fields["age"].std == pytest.approx(np.std(ages), rel=1e-12)
    train = manifest.split("train")
    assert train.labelled["age"] == len(ages) and train.labelled["indoor"] == 25
    assert train.class_counts["breed"] == (9, 8, 8 + 14)
    uncounted = manifest.model_copy(
        update={
            "splits": {
                n: s.model_copy(update={"class_counts": {}}) for n, s in manifest.splits.items()
            }
        }
    )
    requests = [LabelRequest("breed", "breed", num_classes=3)]
    counted = class_counts(tmp_path / "mix", uncounted, "train", requests, progress=False)
    assert counted == {"breed": (9, 8, 22)}
    labels = labels_of(tmp_path / "mix", "train")
    assert labels["kittens/0003"] == {"breed": 2, "age": 109}


def test_a_mean_of_equal_values_is_read_from_the_labels(dogs, tmp_path):
    """`size` is 3.5 in all dogs: their manifest has no mean of it."""
    assert Manifest.load(dogs).fields["size"].mean is None

    def wolf(number):
        labels = {"size": float(number)}
        return EncodedSample(
            f"{number}", {**dog(number).members, "labels.json": encode_json(labels)}, labels
        )

    fields = {"rgb": DOGS["rgb"], "size": DOGS["size"]}
    wolves = write(tmp_path / "wolves", fields, wolf, "rgb", {"train": 9})
    manifest = join(dogs, wolves, out=tmp_path / "mix")
    values = [3.5] * 12 + list(map(float, range(9)))
    assert manifest.fields["size"].mean == pytest.approx(np.mean(values), rel=1e-12)
    assert manifest.fields["size"].std == pytest.approx(np.std(values), rel=1e-12)


def test_counts_that_a_source_lacks_are_counted_when_needed(cats, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(cats, old)
    content = json.loads((old / "manifest.json").read_text())
    for split in content["splits"].values():
        del split["class_counts"]
    content |= {"dataset": "old", "checksum": None}
    # Another data set: the same one twice is refused.
    content["splits"]["train"]["shards"].pop()
    content["splits"]["train"]["labelled"] |= {"photo": 20, "breed": 20, "age": 15, "indoor": 20}
    (old / "manifest.json").write_text(json.dumps(content))
    manifest = join(cats, old, out=tmp_path / "mix")
    assert not manifest.split("train").class_counts
    requests = [LabelRequest("breed", "breed", num_classes=3)]
    counted = class_counts(tmp_path / "mix", manifest, "train", requests, progress=False)
    assert counted == {"breed": (9 + 7, 8 + 7, 8 + 6)}


def test_fields_that_are_not_one_task_are_refused_together(cats, dogs, tmp_path):
    out = tmp_path / "mix"
    with pytest.raises(DataError) as caught:
        join(cats, dogs, out=out)
    message = str(caught.value)
    assert message == (
        "field 'breed': not one task in cats and dogs: 3 and 2 classes; convert one of them anew, "
        "or keep the tasks apart with --prefix cats,dogs (cats_breed, dogs_breed)"
    )
    assert not out.exists()
    assert "cats_breed" in join(cats, dogs, out=out, prefix=("cats",)).fields


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "binary", "classes": ()}, "kind multiclass and binary"),
        ({"classes": ("a", "c", "b")}, "class 1 is 'b' and 'c'"),
        ({"on_flip": "forbid"}, "on_flip keep and forbid"),
    ],
)
def test_what_differs_is_named(cats, tmp_path, change, words):
    field = Field.model_validate({**dict(CATS["breed"]), **change})
    other = write(tmp_path / "x", {**CATS, "breed": field}, cat, "photo", {"train": 2})
    with pytest.raises(DataError, match=rf"field 'breed': not one task in cats and x: {words}"):
        join(cats, other, out=tmp_path / "mix")


@pytest.mark.parametrize(
    ("sources", "options", "words"),
    [
        (["{cats}"], {}, "found 1 data set; a mix joins two or more"),
        (["{cats}", "{cats}"], {}, "the same data set as one before it"),
        (["a={cats}", "a={dogs}"], {}, "source 'a': the name of .*cats and of .*dogs; name"),
        (["../a={cats}", "{dogs}"], {}, "manifest.json: cannot be read"),
        (["..={cats}", "{dogs}"], {}, "NAME=FOLDER needs a folder and a name"),
        (["a b={cats}", "{dogs}"], {}, "NAME=FOLDER needs a folder and a name"),
        (["all={cats}", "{dogs}"], {}, "other than 'all'"),
        (["a=", "{dogs}"], {}, "NAME=FOLDER needs a folder"),
        (["{cats}", "pipe:cat"], {}, "pipe: would run a command"),
        (["{cats}", "{dogs}"], {"prefix": ("cat",)}, "found 'cat'; allowed: all, or of cats, dogs"),
        (["{cats}", "{dogs}/nothing"], {}, "manifest.json: cannot be read"),
    ],
)
def test_bad_arguments_leave_nothing_behind(cats, dogs, tmp_path, sources, options, words):
    out = tmp_path / "mix"
    named = [text.format(cats=cats, dogs=dogs) for text in sources]
    with pytest.raises(DataError, match=words):
        join(*named, out=out, **options)
    assert not out.exists()


def test_a_folder_in_use_is_not_touched(cats, dogs, joined, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds notes\.txt; name an empty or a new folder"):
        join(cats, dogs, out=tmp_path, prefix=PREFIX)
    assert os.listdir(tmp_path) == ["notes.txt"]
    before = (cats / "manifest.json").read_bytes()
    with pytest.raises(DataError, match="a data set is already here"):
        join(cats, dogs, out=cats, prefix=PREFIX)
    assert (cats / "manifest.json").read_bytes() == before
    with pytest.raises(DataError, match="a data set is already here, of other sources or arg"):
        join(cats, dogs, out=joined[0], prefix=("cats",))
    assert join(cats, dogs, out=joined[0], prefix=PREFIX).digest() == joined[1].digest()


def test_a_missing_or_truncated_shard_is_found_before_anything_is_written(cats, dogs, tmp_path):
    broken = tmp_path / "cats"
    shutil.copytree(cats, broken)
    os.truncate(broken / "val-000000.tar", 512)
    with pytest.raises(DataError, match=r"val-000000\.tar: truncated shard"):
        join(broken, dogs, out=tmp_path / "mix", prefix=PREFIX)
    assert not (tmp_path / "mix").exists()


def test_without_links_files_are_copied_and_compared(cats, dogs, tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(module.os, "link", refused)
    out = tmp_path / "mix"
    manifest = join(cats, dogs, out=out, prefix=PREFIX)
    for shard in manifest.split("train").shards:
        assert (out / shard.name).stat().st_nlink == 1
    assert (out / "cats-train-000000.tar").read_bytes() == (cats / "train-000000.tar").read_bytes()
    damaged = tmp_path / "cats"
    shutil.copytree(cats, damaged)
    data = bytearray((damaged / "train-000001.tar").read_bytes())
    data[600] ^= 1
    (damaged / "train-000001.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"train-000001\.tar: damaged: sha256"):
        join(damaged, dogs, out=tmp_path / "other", prefix=PREFIX, copy=True)
    left = os.listdir(tmp_path / "other")
    assert "cats-train-000001.tar" not in left and "manifest.json" not in left
    assert not [name for name in left if name.startswith(".partial")]


def test_a_symbolic_link_is_copied_and_compared(cats, dogs, tmp_path):
    """It may lead to a file of the user that has the size of the shard."""
    linked = tmp_path / "cats"
    shutil.copytree(cats, linked)
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * (cats / "val-000000.tar").stat().st_size)
    (linked / "val-000000.tar").unlink()
    (linked / "val-000000.tar").symlink_to(secret)
    with pytest.raises(DataError, match=r"val-000000\.tar: damaged: sha256"):
        join(linked, dogs, out=tmp_path / "mix", prefix=PREFIX)
    assert not (tmp_path / "mix" / "cats-val-000000.tar").exists()
    secret.write_bytes((cats / "val-000000.tar").read_bytes())
    join(linked, dogs, out=tmp_path / "mix", prefix=PREFIX)
    assert secret.stat().st_nlink == 1


def test_two_files_of_one_name_are_refused(cats, dogs, tmp_path):
    """Source `a` with a shard `b-train-...`, and source `a-b` with `train-...`."""
    other = tmp_path / "dogs"
    shutil.copytree(dogs, other)
    content = json.loads((other / "manifest.json").read_text()) | {"checksum": None}
    for shard in content["splits"]["train"]["shards"]:
        old, shard["name"] = shard["name"], f"b-{shard['name']}"
        for end in ("", ".index"):
            (other / f"{old}{end}").rename(other / f"b-{old}{end}")
    (other / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"would be a-b-train-000000\.tar\.index, and so would"):
        join(f"a={other}", f"a-b={cats}", out=tmp_path / "mix", prefix=("all",))
    assert not (tmp_path / "mix").exists()


def test_an_interrupted_call_continues(cats, dogs, tmp_path, monkeypatch):
    out, placed, place = tmp_path / "mix", [], module._copy

    def interrupted(transfer, target):
        if len(placed) == 3:
            raise KeyboardInterrupt
        placed.append(target.name)
        place(transfer, target)

    monkeypatch.setattr(module, "_copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        join(cats, dogs, out=out, prefix=PREFIX, copy=True)
    assert not (out / "manifest.json").exists()
    with pytest.raises(DataError, match="begun with other sources or arguments"):
        join(cats, dogs, out=out, prefix=("cats",), copy=True)
    first = set(placed)
    monkeypatch.setattr(module, "_copy", lambda t, p: (placed.append(p.name), place(t, p)))
    manifest = join(cats, dogs, out=out, prefix=PREFIX, copy=True)
    assert len(placed) == len(set(placed)) and first < set(placed)
    assert sorted(os.listdir(out)) == sorted(["manifest.json", *placed])
    assert len(labels_of(out, "train")) == manifest.split("train").num_samples


def test_shards_behind_a_url_are_copied(cats, dogs, tmp_path):
    pytest.importorskip("aiohttp", reason="fsspec speaks HTTP through aiohttp")
    with FileServer(dogs) as server:
        url = server.url.replace("://", "://me:secret@")
        manifest = join(cats, f"hounds={url}", out=tmp_path / "mix", prefix=("hounds",))
        server.shutdown()
    assert manifest.conversion.arguments["sources"] == (str(cats), f"hounds={server.url}")
    assert "secret" not in (tmp_path / "mix" / "manifest.json").read_text()
    assert list(manifest.sources) == ["cats", "hounds"]
    assert labels_of(tmp_path / "mix", "test")["hounds/0012"]["hounds_age"] == 22


def test_a_mix_of_a_mix_keeps_the_sources_apart(joined, tmp_path):
    def bird(number):
        return EncodedSample(f"{number}", cat(number).members, cat(number).scalars)

    birds = write(tmp_path / "birds", {**CATS}, bird, "photo", {"train": 6})
    manifest = join(joined[0], birds, out=tmp_path / "mix")
    assert list(manifest.sources) == ["cats", "dogs", "birds"]
    assert {s.source for s in manifest.split("train").shards} == {"cats", "dogs", "birds"}
    assert labels_of(tmp_path / "mix", "train")["dogs/0002"] == {
        "dogs_breed": 0,
        "dogs_age": 12,
        "dogs_size": 3.5,
    }
    named = join(f"old={joined[0]}", birds, out=tmp_path / "named")
    assert list(named.sources) == ["old_cats", "old_dogs", "birds"]
    assert "old_cats-train-000000.tar" in {s.name for s in named.split("train").shards}


def test_batches_are_those_of_a_naive_joined_data_set(joined, tmp_path):
    """The samples are written anew to one data set with one member for every field."""
    out, manifest = joined
    fields = {
        "photo": Field(member="photo.png", kind="image", channels=3),
        **{
            name: field.model_copy(update={"member": "all.json", "key": name, "values": {}})
            for name, field in manifest.fields.items()
            if field.kind != "image"
        },
    }

    def samples():
        for name, make in (("cats", cat), ("dogs", dog)):
            for number in range({"cats": 25, "dogs": 12}[name]):
                sample = make(number)
                own = {"cats": CATS, "dogs": DOGS}[name]
                record = {
                    f"{name}_{field}": sample.scalars[entry.key]
                    for field, entry in own.items()
                    if entry.key in sample.scalars
                }
                members = {"photo.png": as_png(sample), "all.json": encode_json(record)}
                yield EncodedSample(f"{name}-{number:04d}", members, record)

    def as_png(sample):
        if "photo.png" in sample.members:
            return sample.members["photo.png"]
        return encode_png(decode("rgb.jpg", sample.members["rgb.jpg"])[0])

    # Shards of the same sizes: 10, 10, 5 cats and 10, 2 dogs.
    everything = list(samples())
    naive = tmp_path / "naive"
    written = write_shards(naive, fields, everything, [10, 10, 5, 10, 2])
    options = {"seed": 3, "global_batch": 8, "num_steps": 9}
    requests = requests_of(written)
    geometry = Geometry((6, 6), crop=0.5, flip=True)
    ours = train_loader(out, manifest, requests, geometry, **options)
    theirs = train_loader(naive, written, requests, geometry, **options)
    for one, other in zip(ours, theirs, strict=True):
        assert [key.replace("/", "-") for key in one.keys] == list(other.keys)
        assert one.images.equal(other.images)
        assert one.scalars.equal(other.scalars)
        assert one.valid_rows.equal(other.valid_rows)


def write_shards(root, fields, samples, sizes):
    """Write shards of given sizes as one split."""
    root.mkdir()
    shards, start = [], 0
    for number, size in enumerate(sizes):
        file = ShardFile(root / f"train-{number:06d}.tar")
        for sample in samples[start : start + size]:
            file.add(sample.key, sample.members)
        shards.append(file.finish())
        start += size
    labelled = {name: sum(name in s.present(fields) for s in samples) for name in fields}
    manifest = Manifest(
        dataset="naive",
        image="photo",
        fields=fields,
        splits={"train": Split(shards=tuple(shards), labelled=labelled)},
    )
    manifest.save(root)
    return manifest


def test_images_of_a_mix_are_extracted_from_their_members(joined, tmp_path):
    paths = extract_images(joined[0], tmp_path, split="train", limit=37)
    names = [path.name for path in paths]
    assert names[0] == "cats_0000.png" and names[-1] == "dogs_0011.jpg"
    assert paths[-1].read_bytes() == dog(11).members["rgb.jpg"]
