"""Conversions: continued after an interruption, refused with other arguments, and counted."""

import hashlib
import json
import signal
from dataclasses import dataclass, field, replace
from multiprocessing import get_context

import numpy as np
import pytest
from filelock import FileLock

from data_pipelines.convert import run as conversion
from data_pipelines.convert.jobs import ConversionJobs, shuffled
from data_pipelines.convert.run import convert
from data_pipelines.convert.tally import (
    OTHER_REASONS,
    bounded_reasons,
    moments_of,
    summed_class_counts,
    with_statistics,
)
from data_pipelines.convert.unreadable import counted
from data_pipelines.decode.codecs import encode_json, encode_png
from data_pipelines.errors import DataError, UnreadableColumnsError
from data_pipelines.progress import progress_bar
from data_pipelines.shards.encoded import EncodedSample
from data_pipelines.shards.manifest import Field, Manifest, check_shards
from data_pipelines.shards.sources import LocalFolder
from data_pipelines.shards.store import ShardStore

PICTURE = encode_png(np.zeros((4, 4), np.uint8))
FIELDS = {
    "rgb": Field(member="rgb.png", kind="image"),
    "depth": Field(member="depth.png", kind="dense_regression"),
    "age": Field(member="a.json", key="age", kind="regression"),
}


@dataclass
class Numbers:
    """Sample n is skipped where n % 10 == 9, has no depth where n % 4 == 3, and age n."""

    fields: dict[str, Field] = field(default_factory=lambda: FIELDS)
    breaks_at: str | None = None
    asked: list[str] = field(default_factory=list)

    def samples(self, refs, tally):
        for ref in refs:
            if ref == self.breaks_at:
                raise OSError("the disk went away")
            self.asked.append(ref)
            number = int(ref)
            if number % 10 == 9:
                tally.skipped["unlucky"] += 1
                continue
            members = {"rgb.png": PICTURE, "a.json": encode_json({"age": number})}
            if number % 4 == 3:
                tally.missing["depth"]["lost"] += 1
            else:
                members["depth.png"] = PICTURE
            yield EncodedSample(f"n{number}", members, {"age": number})


def jobs_of(train=57, val=12, seed=0, limit=None, **changes):
    refs = {"train": map(str, range(train)), "val": map(str, range(100, 100 + val)), "test": []}
    arguments = {"seed": seed, "limit": limit}
    jobs = ConversionJobs("numbers", arguments, shuffled(refs, seed=seed, limit=limit), 10)
    return replace(jobs, **changes)


def run(root, source, jobs):
    return convert(root, "numbers", "rgb", source, jobs, workers=1, progress=False)


def keys(root, split):
    store = ShardStore(root, Manifest.load(root).split(split).shards)
    return [store.read(number, [])[0] for number in range(len(store))]


def hashes(root):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in root.iterdir()}


def test_everything_is_written_once_and_counted(tmp_path):
    manifest = run(tmp_path, Numbers(), jobs_of(skipped={"not listed": 3}))
    for name, numbers in (("train", range(57)), ("val", range(100, 112))):
        split = manifest.split(name)
        check_shards(tmp_path, split)
        kept = [n for n in numbers if n % 10 != 9]
        assert sorted(keys(tmp_path, name)) == sorted(f"n{n}" for n in kept)
        assert split.labelled == {
            "rgb": len(kept),
            "depth": sum(n % 4 != 3 for n in kept),
            "age": len(kept),
        }
    assert "test" not in manifest.splits
    lost = [n for n in (*range(57), *range(100, 112)) if n % 10 != 9 and n % 4 == 3]
    assert manifest.conversion.skipped == {"not listed": 3, "unlucky": 6}
    assert manifest.conversion.missing == {"depth": {"lost": len(lost)}}
    assert manifest == Manifest.load(tmp_path)
    ages = [n for n in range(57) if n % 10 != 9]
    assert manifest.fields["age"].mean == pytest.approx(np.mean(ages))
    assert manifest.fields["age"].std == pytest.approx(np.std(ages))
    assert {p.suffix for p in tmp_path.iterdir()} == {".tar", ".index", ".json"}


def test_the_order_is_global_and_depends_on_the_seed(tmp_path):
    for name, seed in (("a", 0), ("again", 0), ("b", 1)):
        run(tmp_path / name, Numbers(), jobs_of(seed=seed))
    orders = {name: keys(tmp_path / name, "train") for name in ("a", "again", "b")}
    assert orders["a"] == orders["again"]
    assert orders["a"] != orders["b"]
    assert sorted(orders["a"]) == sorted(orders["b"])
    numbers = [int(key[1:]) for key in orders["a"]]
    spread = [max(numbers[i : i + 9]) - min(numbers[i : i + 9]) for i in range(0, 45, 9)]
    assert min(spread) > 20  # each shard draws from everywhere
    assert hashes(tmp_path / "a") == hashes(tmp_path / "again")


def test_a_limit_takes_some_of_each_split():
    jobs = jobs_of(limit=5)
    assert [len(refs) for refs in jobs.splits.values()] == [5, 5]
    assert jobs.splits["train"] != sorted(jobs.splits["train"])
    assert set(jobs.splits["train"]) < {str(n) for n in range(57)}


def test_a_rerun_writes_what_is_missing_and_gives_the_same_bytes(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    jobs = jobs_of()
    expected = run(whole, Numbers(), jobs)
    first = Numbers(breaks_at=jobs.splits["train"][34])
    with pytest.raises(OSError, match="disk went away"):
        run(broken, first, jobs)
    assert len(list(broken.glob("*.tar"))) == 3
    assert not list(broken.glob("*partial*"))
    assert not (broken / "manifest.json").exists()
    second = Numbers()
    assert run(broken, second, jobs) == expected
    assert set(second.asked).isdisjoint(first.asked[:30])
    assert hashes(whole) == hashes(broken)
    third = Numbers()
    assert run(broken, third, jobs) == expected
    assert third.asked == []


@pytest.mark.parametrize("damage", ["shard gone", "shard cut", "index gone", "record garbled"])
def test_a_shard_that_is_not_whole_is_written_again(tmp_path, damage):
    jobs = jobs_of()
    with pytest.raises(OSError, match="disk went away"):
        run(tmp_path, Numbers(breaks_at=jobs.splits["train"][34]), jobs)
    shard = tmp_path / "train-000001.tar"
    if damage == "shard gone":
        shard.unlink()
    elif damage == "shard cut":
        shard.write_bytes(shard.read_bytes()[:-512])
    elif damage == "index gone":
        (tmp_path / "train-000001.tar.index").unlink()
    else:
        (tmp_path / "conversion" / "train-000001.tar.json").write_text("{")
    second = Numbers()
    manifest = run(tmp_path, second, jobs)
    assert set(jobs.splits["train"][10:20]) <= set(second.asked)
    check_shards(tmp_path, manifest.split("train"))


def test_a_rerun_lists_the_folder_once(tmp_path, monkeypatch):
    jobs = jobs_of()
    with pytest.raises(OSError, match="disk went away"):
        run(tmp_path, Numbers(breaks_at=jobs.splits["train"][54]), jobs)
    listed = []
    sizes = LocalFolder.sizes
    monkeypatch.setattr(LocalFolder, "sizes", lambda self: (listed.append(self), sizes(self))[1])
    second = Numbers()
    run(tmp_path, second, jobs)
    assert sorted(second.asked) == sorted(jobs.splits["train"][50:] + jobs.splits["val"])
    assert len(listed) == 1


@pytest.mark.parametrize(
    "name",
    [
        ".partial-host-17-train-000099.tar",
        ".partial-host-17-train-000099.tar.index",
        "train-000099.tar.partial",
        "train-000099.tar.index.partial",
    ],
)
def test_left_over_partial_files_are_removed(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    run(tmp_path, Numbers(), jobs_of())
    assert not list(tmp_path.glob("*partial*"))


def test_other_arguments_are_refused_while_unfinished(tmp_path):
    jobs = jobs_of()
    with pytest.raises(OSError, match="disk went away"):
        run(tmp_path, Numbers(breaks_at=jobs.splits["val"][3]), jobs)
    before = {p.name for p in tmp_path.iterdir()}
    with pytest.raises(DataError, match=r"other arguments: limit is 5, was None; seed is 1, was 0"):
        run(tmp_path, Numbers(), jobs_of(seed=1, limit=5))
    with pytest.raises(DataError, match="source's files changed"):
        run(tmp_path, Numbers(), jobs_of(train=58))
    with pytest.raises(DataError, match="samples_per_shard is 9, was 10"):
        run(tmp_path, Numbers(), jobs_of(samples_per_shard=9))
    assert {p.name for p in tmp_path.iterdir()} == before


def test_a_finished_data_set_is_not_overwritten(tmp_path):
    run(tmp_path, Numbers(), jobs_of())
    before = hashes(tmp_path)
    with pytest.raises(DataError, match=r"manifest\.json: a data set is already here"):
        run(tmp_path, Numbers(), jobs_of(seed=1))
    assert hashes(tmp_path) == before


def hold_lock(path, locked):
    lock = FileLock(path)
    lock.acquire()
    locked.set()
    signal.pause()


def test_two_conversions_do_not_share_a_folder(tmp_path):
    """The lock of another process is respected, and released when that process is killed."""
    (tmp_path / "conversion").mkdir()
    context = get_context("fork")
    locked = context.Event()
    holder = context.Process(target=hold_lock, args=(tmp_path / "conversion/lock", locked))
    holder.start()
    try:
        assert locked.wait(60)
        with pytest.raises(DataError, match="another process is converting into this folder"):
            run(tmp_path, Numbers(), jobs_of())
    finally:
        holder.kill()
        holder.join()
    assert run(tmp_path, Numbers(), jobs_of()).split("val").num_samples == 11


def test_a_conversion_that_an_earlier_version_began_is_continued(tmp_path):
    """Earlier versions recorded the arguments in the same file, without a lock file."""
    jobs = jobs_of()
    with pytest.raises(OSError, match="disk went away"):
        run(tmp_path, Numbers(breaks_at=jobs.splits["train"][34]), jobs)
    recorded = json.loads((tmp_path / "conversion" / "plan.json").read_text())
    assert recorded == {
        "source": "numbers",
        "samples_per_shard": 10,
        "seed": 0,
        "limit": None,
        "digest": "1289d32904120b7ac7d5e0001f6f48da6eb8d56c8148a3488062730a4603e8b8",
    }
    (tmp_path / "conversion" / "lock").unlink()
    second = Numbers()
    run(tmp_path, second, jobs)
    assert set(second.asked).isdisjoint(jobs.splits["train"][:30])


def test_a_shard_without_samples_is_left_out(tmp_path):
    refs = {"train": [str(n) for n in range(9, 100, 10)] + [str(n) for n in range(5)]}
    source = Numbers()
    manifest = run(tmp_path, source, jobs_of(splits=refs, samples_per_shard=10))
    assert [shard.name for shard in manifest.split("train").shards] == ["train-000001.tar"]
    assert manifest.conversion.skipped == {"unlucky": 10}


def test_no_samples_at_all_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"numbers: no samples found \(7 without a file\)"):
        ConversionJobs("numbers", {}, {"train": []}, 10, {"without a file": 7})
    with pytest.raises(DataError, match=r"numbers: no sample was left: {'unlucky': 2}"):
        run(tmp_path, Numbers(), jobs_of(splits={"train": ["9", "19"]}))
    with pytest.raises(ValueError, match="samples_per_shard: 0 must be at least 1"):
        jobs_of(samples_per_shard=0)


def test_the_manifest_stays_small_and_its_digest_ignores_the_conversion(tmp_path):
    manifest = run(tmp_path, Numbers(), jobs_of())
    other = manifest.model_copy(update={"conversion": None})
    assert manifest.digest() == other.digest()
    entry = json.loads((tmp_path / "manifest.json").read_text())["splits"]["train"]["shards"][0]
    assert len(json.dumps(entry)) < 400


def test_the_bar_counts_source_samples_also_those_of_an_earlier_run(tmp_path, monkeypatch):
    bars = []

    def recorded(num_samples, progress):
        bars.append(progress_bar(num_samples, progress))
        return bars[-1]

    monkeypatch.setattr(conversion, "progress_bar", recorded)
    with pytest.raises(OSError, match="went away"):
        convert(
            tmp_path, "numbers", "rgb", Numbers(breaks_at="30"), jobs_of(), workers=1, progress=True
        )
    done = bars[-1].n
    assert 0 < done < 69
    convert(tmp_path, "numbers", "rgb", Numbers(), jobs_of(), workers=1, progress=True)
    assert (bars[-1].n, bars[-1].total) == (69, 69)
    assert bars[-1].initial == done // 10 * 10  # of whole shards


@dataclass
class Unreadable(Numbers):
    """No age can be read, and the depths of few."""

    def samples(self, refs, tally):
        for sample in super().samples(refs, tally):
            tally.missing["age"][f"'about {int(sample.key[1:]) % 30}'"] += 1
            members = {name: data for name, data in sample.members.items() if name != "a.json"}
            yield EncodedSample(sample.key, members, {})


def test_a_field_of_which_nothing_could_be_read_ends_the_conversion(tmp_path):
    with pytest.raises(
        UnreadableColumnsError, match=r"fields\.age: none of \d+ labels can be"
    ) as e:
        run(tmp_path, Unreadable(), jobs_of())
    assert "x" in str(e.value) and "remove the folder of shards" in str(e.value)
    assert not (tmp_path / "manifest.json").exists()


def test_many_reasons_are_summed_up():
    parts = [{f"'{n}'": n for n in range(1, 31)}, {"'30'": 1, OTHER_REASONS: 5}]
    bounded = bounded_reasons(parts)
    assert bounded["'30'"] == 31 and "'10'" not in bounded
    assert len(bounded) == 21
    assert bounded[OTHER_REASONS] == 5 + sum(range(1, 11))
    assert counted({"'maybe'": 312, "no file": 2, OTHER_REASONS: 400}, 2) == (
        "'maybe' x 312, no file x 2, 1 more"
    )


def test_classes_are_counted_unless_an_earlier_version_wrote_a_shard():
    fields = {
        "a": Field(member="a.json", key="a", kind="binary"),
        "b": Field(member="a.json", key="b", kind="multiclass", classes=("x", "y", "z")),
    }
    parts = [{"a": {0: 3}, "b": {2: 1}}, {"a": {1: 2, 0: 1}, "b": {}}]
    assert summed_class_counts(fields, parts) == {"a": (4, 2), "b": (0, 0, 1)}
    assert summed_class_counts(fields, [*parts, None]) == {}


def test_moments_of_parts_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    values = rng.normal(1e6, 0.5, 1000)
    cuts = np.split(values, [1, 10, 500])
    parts = [(len(c), float(c.mean()), float(((c - c.mean()) ** 2).sum())) for c in cuts]
    field = with_statistics(FIELDS["age"], parts)
    assert field.mean == pytest.approx(values.mean(), rel=1e-12)
    assert field.std == pytest.approx(values.std(), rel=1e-6)
    given = FIELDS["age"].model_copy(update={"mean": 1.0, "std": 2.0})
    assert with_statistics(given, parts) == given
    assert with_statistics(FIELDS["age"], [(3, 5.0, 0.0)]).std is None


@pytest.mark.parametrize("value", [0.1, 0.7, 1e-3, 123.456])
def test_equal_values_have_no_deviation(value):
    parts = [moments_of([value] * count) for count in range(1, 40)]
    assert {mean for _, mean, _ in parts} == {value}
    assert with_statistics(FIELDS["age"], parts).std is None
