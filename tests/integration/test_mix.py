"""`dmtg shards mix` and `data.mix` as a user types them, on rooms and digits."""

import json

import numpy as np
import pytest

from data_pipelines.decode.codecs import decode, encode_json, encode_png
from data_pipelines.shards.manifest import Field, Manifest, Split
from data_pipelines.shards.store import ShardStore
from data_pipelines.shards.writer import ShardFile

TASKS = ["depth_zbuffer", "has_sphere", "camera_pitch", "left_is_0", "order", "ink"]


@pytest.fixture(scope="module")
def mixed(rooms, digits, dmtg, tmp_path_factory):
    out = tmp_path_factory.mktemp("mix") / "both"
    end = dmtg("shards", "mix", rooms, digits, "--out", out)
    assert end.code == 0, end.stderr
    assert all(len(line) <= 80 or str(out) in line for line in end.stdout.splitlines())
    assert "rooms" in end.stdout and "tasks: 55" in end.stdout
    return out


@pytest.fixture(scope="module")
def naive(rooms, digits, tmp_path_factory):
    """All samples written anew to one data set with one record, image and depth for each."""
    root = tmp_path_factory.mktemp("naive")
    sources = {"rooms": (rooms, Manifest.load(rooms)), "digits": (digits, Manifest.load(digits))}
    fields = {"rgb": Field(member="rgb.png", kind="image", channels=3)}
    for _, manifest in sources.values():
        for name in (name for name in TASKS if name in manifest.fields):
            field = manifest.fields[name]
            place = {"member": "all.json", "key": name} if field.is_scalar else {}
            fields[name] = field.model_copy(update=place)
    splits = {}
    for split in ("train", "val"):
        shards, labelled = [], dict.fromkeys(fields, 0)
        for folder, manifest in sources.values():
            for shard in manifest.split(split).shards:
                file = ShardFile(root / f"{split}-{len(shards):03d}.tar")
                store = ShardStore(folder, [shard])
                for number in range(len(store)):
                    members = rewritten(manifest, *store.read(number, members_of(manifest)))
                    file.add(f"{len(shards)}-{number}", members)
                    record = json.loads(members["all.json"])
                    present = {*record, *(n for n in ("depth_zbuffer",) if f"{n}.png" in members)}
                    labelled = {n: c + (n in present or n == "rgb") for n, c in labelled.items()}
                shards.append(file.finish())
        splits[split] = Split(shards=tuple(shards), labelled=labelled)
    Manifest(dataset="naive", fields=fields, splits=splits).save(root)
    return root


def members_of(manifest):
    return {field.member for field in manifest.fields.values()}


def rewritten(manifest, _key, members):
    record = {}
    for name in (n for n in TASKS if n in manifest.fields and manifest.fields[n].is_scalar):
        field = manifest.fields[name]
        stored = json.loads(members[field.member]) if field.member in members else {}
        record |= {name: stored[field.key]} if field.key in stored else {}
    picture = decode(manifest.image_member(None), members[manifest.image_member(None)])
    new = {"rgb.png": encode_png(np.moveaxis(picture, 0, -1) if len(picture) == 3 else picture[0])}
    if "depth_zbuffer.png" in members:
        new["depth_zbuffer.png"] = members["depth_zbuffer.png"]
    return new | {"all.json": encode_json(record)}


@pytest.fixture(scope="module")
def train(main_script, rooms_yaml, tmp_path_factory):
    def run(shards, *overrides):
        out = tmp_path_factory.mktemp("run") / "run"
        names = ",".join(TASKS)
        end = main_script(
            "--config", rooms_yaml, f"run.out={out}", f"data.shards={shards}", "run.steps=5",
            f"tasks.names=[{names}]", "tasks.define={}", *overrides,
        )  # fmt: skip
        return end, out

    return run


@pytest.mark.slow
def test_a_run_equals_that_on_a_naive_joined_data_set(train, mixed, naive):
    metrics = []
    for shards in (mixed, naive):
        end, out = train(shards)
        assert end.code == 0, end.stderr
        metrics.append((out / "metrics.jsonl").read_bytes())
    assert b'"kind": "eval"' in metrics[0] or b'"kind":"eval"' in metrics[0]
    assert metrics[0] == metrics[1]


def test_weights_change_the_stream_and_are_recorded(train, mixed):
    end, out = train(mixed, "data.mix.rooms=3", "run.epochs=0.25", "run.steps=null")
    assert end.code == 0, end.stderr
    assert "rooms: 3.0" in (out / "config.yaml").read_text()
    result = json.loads((out / "result.json").read_text())
    assert result["num_steps"] == (36 + 64) // 8 // 4  # an epoch has as many samples as the split
    assert set(result["constants"]) == set(result["metrics"]) == set(TASKS)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.mix.room=3", "data.mix.room: no source of this name .* did you mean 'rooms'?"),
        ("data.mix.rooms=0", "data.mix.rooms: found 0; allowed: a number above 0"),
        ("data.mix.rooms=.inf", "data.mix.rooms: found inf; allowed: a number above 0"),
        ("data.mix.rooms=true", "data.mix.rooms: found true; allowed: a number above 0"),
        ("data.mix={}", "data.mix: found {}; allowed: one or more names of sources"),
    ],
)
def test_weights_that_are_wrong_are_one_line(train, mixed, override, words):
    end, out = train(mixed, override)
    assert end.code == 2
    assert words.split(" .* ")[0] in end.stderr and words.split(" .* ")[-1] in end.stderr
    assert "Traceback" not in end.stderr and not out.exists()


def test_weights_need_a_mix(train, naive):
    end, out = train(naive, "data.mix.rooms=3")
    assert end.code == 2 and not out.exists()
    assert "data.mix: given, but data.shards is no mix of sources" in end.stderr


def test_doctor_sees_every_source(mixed, dmtg, tmp_path):
    end = dmtg("doctor", mixed, "--samples", "20", "--out", tmp_path / "sheet.png", "--json")
    report = json.loads(end.stdout.splitlines()[-1])
    findings = {task["task"]: task["findings"] for task in report["tasks"]}
    for name in TASKS:
        assert not [f for f in findings[name] if "no label" in f["message"]], name


def test_a_clash_says_how_to_solve_it(mixed, digits, dmtg, tmp_path):
    other = tmp_path / "other"
    assert dmtg("shards", "mix", digits, mixed, "--out", other).code == 2
    end = dmtg("shards", "mix", f"again={digits}", mixed, "--out", other, "--prefix", "again")
    assert end.code == 0, end.stderr
    assert "again_order" in Manifest.load(other).fields
    end = dmtg("shards", "mix", digits, "--out", tmp_path / "one")
    assert end.code == 2 and "a mix joins two or more" in end.stderr
