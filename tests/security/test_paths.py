"""Names from data and models stay in the folder they are used in, and no file of a user is lost."""

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.convert.celeba import write_celeba
from data_pipelines.convert.index import index_shards
from data_pipelines.convert.jobs import ConversionJobs
from data_pipelines.convert.mapping import FieldMap, described_field
from data_pipelines.convert.options import ConversionOptions
from data_pipelines.decode.codecs import encode_jpeg, encode_png
from data_pipelines.errors import DataError
from data_pipelines.shards.extract import extract_images
from data_pipelines.shards.index_file import write_index
from data_pipelines.shards.manifest import MANIFEST_NAME, Manifest
from data_pipelines.shards.writer import ShardWriter
from model.bundle import save_bundle
from model.encoders import build_encoder
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec
from trainer.commands import app as cli
from trainer.doctor.examine import examine
from trainer.errors import UserError
from trainer.prediction.predict import Options, predict_files

CODE = b"raise SystemExit('run by the next start of Python')\n"
PICTURE = np.full((8, 8, 3), 7, np.uint8)
MANIFEST = """{{"format": "dmtg-shards", "version": 1, "dataset": "gift", "image": "rgb",
 "fields": {{"rgb": {{"member": "{member}", "kind": "image", "channels": 3}},
             "cat": {{"member": "a.json", "key": "cat", "kind": "binary"}}}},
 "splits": {{"val": {{"labelled": {{}}, "shards": [{shard}]}}}}}}"""


@pytest.fixture
def dmtg(monkeypatch, capsys):
    """Run a command; return its exit code and its errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dmtg", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, capsys.readouterr().err

    return run


@pytest.fixture
def gift(tmp_path):
    """Write a data set as a stranger would, with any member names and without this project."""

    def write(members, suffix, split="val"):
        root = tmp_path / "gift"
        root.mkdir()
        with tarfile.open(root / "val-0.tar", "w") as tar:
            for name, data in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        samples, index = write_index(root / "val-0.tar")
        size = (root / "val-0.tar").stat().st_size
        shard = (
            f'{{"name": "val-0.tar", "samples": {samples}, "bytes": {size}, "sha256": "{"0" * 64}",'
            f' "index": {index.model_dump_json()}}}'
        )
        text = MANIFEST.format(member=suffix, shard=shard).replace('"val":', f'"{split}":')
        (root / MANIFEST_NAME).write_text(text)
        return root

    return write


@pytest.fixture
def outside(tmp_path):
    """A folder in which nothing may appear."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    return folder


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_python_code_as_an_image_is_written_nowhere(gift, dmtg, outside, tmp_path):
    root = gift({f"{outside}/usercustomize.py": CODE}, "py")
    code, message = dmtg("shards", "images", root, "--out", tmp_path / "out")
    assert code == 2
    assert "fields.rgb" in message and "'py'" in message and "jpeg, jpg, planes, png" in message
    assert files(outside) == [] and not (tmp_path / "out").exists()


def test_python_code_with_the_name_of_an_image_is_not_written(gift, dmtg, outside, tmp_path):
    root = gift({f"{outside}/usercustomize.png": CODE}, "png")
    code, message = dmtg("shards", "images", root, "--out", tmp_path / "out")
    assert code == 2 and "val-0.tar" in message and "png: damaged PNG" in message
    assert files(outside) == [] and files(tmp_path / "out") == []


@pytest.mark.parametrize("key", ["{outside}/a", "../site-packages/a", "../../a", "b/../../a"])
def test_an_image_with_a_path_as_key_stays_in_the_folder(gift, dmtg, outside, tmp_path, key):
    root = gift({f"{key.format(outside=outside)}.png": encode_png(PICTURE)}, "png")
    before = files(tmp_path)
    code, message = dmtg("shards", "images", root, "--out", tmp_path / "deep" / "out")
    assert code == 0, message
    (written,) = set(files(tmp_path)) - set(before)
    folder, name = written.rsplit("/", 1)
    assert folder == "deep/out" and name.endswith("_a.png")


def test_keys_with_one_file_name_are_refused_before_anything_is_written(gift, tmp_path):
    root = gift({"a/b.png": encode_png(PICTURE), "a_b.png": encode_png(PICTURE)}, "png")
    with pytest.raises(DataError, match=r"a_b\.png: would be both sample a/b and sample a_b"):
        extract_images(root, tmp_path / "out", split="val", limit=6)
    assert not (tmp_path / "out").exists()
    assert len(extract_images(root, tmp_path / "out", split="val", limit=1)) == 1


def test_label_planes_are_no_image_file(gift, tmp_path):
    root = gift({"a.planes": b"x"}, "planes")
    with pytest.raises(DataError, match=r"fields\.rgb\.member: found 'planes'; .* jpeg, jpg, png"):
        extract_images(root, tmp_path / "out", split="val", limit=6)
    assert not (tmp_path / "out").exists()


def test_an_image_of_the_user_is_not_replaced_without_saying_so(gift, dmtg, tmp_path):
    root, out = gift({"a.png": encode_png(PICTURE)}, "png"), tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"mine")
    command = ("shards", "images", root, "--out", out)
    code, message = dmtg(*command)
    assert code == 2 and f"{out / 'a.png'}: exists and would be replaced by sample a" in message
    assert "--overwrite" in message and (out / "a.png").read_bytes() == b"mine"
    assert dmtg(*command, "--overwrite")[0] == 0
    assert (out / "a.png").read_bytes() == encode_png(PICTURE)


def test_a_key_of_many_lines_is_one_line_of_the_contact_sheet(gift, tmp_path):
    key = "a\n\x1b[2J" + "b" * 4_000
    root = gift({f"{key}.png": encode_png(PICTURE)}, "png")
    report = examine(root, 1, "val", tmp_path / "sheet.png")
    assert report.read == 1 and (tmp_path / "sheet.png").stat().st_size


BAD_NAMES = ["../x", "/x", "a/b", "..", "-x", ".x", "\x1b[2Jx", "x" * 101]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_fields_and_splits_of_a_manifest_have_names_of_files(gift, name):
    good = Manifest.load(gift({"a.png": encode_png(PICTURE)}, "png"))
    for part in ("fields", "splits"):
        tree = good.model_dump()
        tree[part][name] = next(iter(tree[part].values()))
        with pytest.raises(ValueError, match="must be 1 to 100 letters, digits"):
            Manifest.model_validate(tree)
        mapping = {"image": "rgb", "fields": {}, part: {name: "x" if part == "splits" else {}}}
        with pytest.raises(ValueError, match="must be 1 to 100 letters, digits"):
            FieldMap.model_validate(mapping)


def test_a_bad_split_in_a_manifest_file_is_one_message(gift, dmtg, tmp_path):
    root = gift({"a.png": encode_png(PICTURE)}, "png", split="../val")
    code, message = dmtg("shards", "images", root, "--split", "../val", "--out", tmp_path / "out")
    assert code == 2 and "manifest.json: splits" in message and "'../val'" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [*BAD_NAMES, "a b", ""])
def test_no_shard_is_named_after_a_bad_split(name, tmp_path):
    with pytest.raises(DataError, match=r"split: found .*; allowed are 1 to 100 of A-Z a-z"):
        ShardWriter(tmp_path / "out", name)
    with pytest.raises(DataError, match="split: found"):
        ConversionJobs("gift", {}, {name: ["a"]}, 10)
    assert files(tmp_path) == [] and not (tmp_path / "out").exists()


def test_a_shard_with_a_bad_split_in_its_name_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "-x-000.tar").write_bytes(b"")
    field_map = FieldMap(image="rgb", fields={"rgb": {"member": "png", "kind": "image"}})
    with pytest.raises(DataError, match="split '-x' of its shards: must be 1 to 100 letters"):
        index_shards(tmp_path, field_map, progress=False)


def test_celeba_reads_no_file_outside_its_folder(tmp_path):
    root = tmp_path / "celeba"
    (root / "img_align_celeba").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(encode_jpeg(PICTURE))
    (root / "list_attr_celeba.txt").write_text("1\nBald\n../../secret.jpg 1\n")
    (root / "list_eval_partition.txt").write_text("../../secret.jpg 0\n")
    message = r"partition\.txt: line 1: the file is '\.\./\.\./secret\.jpg', must be 1 to 100"
    with pytest.raises(DataError, match=message):
        write_celeba(root, tmp_path / "out", ConversionOptions(progress=False))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", BAD_NAMES)
def test_tasks_have_names_of_files(name):
    with pytest.raises(ValueError, match=r"^task name is .*, must be 1 to 100 letters, digits"):
        TaskSpec(name, "binary")


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "x" * 501])
def test_classes_and_units_are_printable_and_short(text):
    with pytest.raises(ValueError, match=r"task 't': a field, unit or class is .* at most 500 ch"):
        TaskSpec("t", "multiclass", channels=2, classes=("a", text))
    with pytest.raises(ValueError, match=r"task 't': a field, unit or class is .* at most 500 ch"):
        TaskSpec("t", "regression", unit=text)
    entry = {"member": "a.json", "key": "a", "kind": "multiclass", "classes": ("a", text)}
    with pytest.raises(ValueError, match=r"class 1 is .*, must be at most 500 characters"):
        described_field("fields.t", entry)


@pytest.fixture
def export(tmp_path):
    """Write an untrained model with the tasks."""

    def write(*tasks):
        torch.manual_seed(0)
        encoder = build_encoder("residual64", 1, image_size=(16, 16), options={"channels": 4})
        heads = [(task, 0) for task in range(len(tasks))]
        network = MultiTaskNetwork(list(tasks), encoder, (16, 16), heads=heads, dense_widths=(8,))
        save_bundle(tmp_path / "model.safetensors", network, {})
        return tmp_path / "model.safetensors"

    return write


def predict_images(model, images, out, **options):
    return list(predict_files(model, images, out, Options(**options)))


@pytest.fixture
def photo(tmp_path):
    def write(name):
        path = tmp_path / "photos" / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(PICTURE).save(path)
        return path

    return write


DEPTH = TaskSpec("depth", "dense_regression")


def test_a_task_with_the_name_of_the_overview_is_refused(export, photo, tmp_path):
    model = export(DEPTH, TaskSpec("overview", "dense_regression"))
    message = (
        r"room\.overview\.png: would be both task 'overview' of room\.png and the overview of room"
    )
    with pytest.raises(UserError, match=message):
        predict_images(model, [photo("room.png")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_outputs_of_two_images_do_not_meet(export, photo, tmp_path):
    model = export(TaskSpec("b.c", "dense_regression"), TaskSpec("c", "dense_regression"))
    with pytest.raises(UserError, match=r"a\.b\.c\.png: would be both task 'b\.c' of a\.png and"):
        predict_images(model, [photo("a.png"), photo("a.b.png")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_predict_never_replaces_an_input(export, photo, overwrite):
    model, images = export(DEPTH), [photo("room.png"), photo("room.depth.png")]
    before = images[1].read_bytes()
    message = r"room\.depth\.png: is an input and would be replaced by task 'depth' of room\.png"
    with pytest.raises(UserError, match=message):
        predict_images(model, images, images[0].parent, overwrite=overwrite)
    assert images[1].read_bytes() == before
    assert files(images[0].parent) == ["room.depth.png", "room.png"]


def test_an_input_behind_a_link_is_not_replaced(export, photo, tmp_path):
    model, image = export(DEPTH), photo("room.png")
    out = tmp_path / "out"
    out.mkdir()
    (out / "room.depth.png").symlink_to(image)
    with pytest.raises(UserError, match="is an input"):
        predict_images(model, [image], out, overwrite=True)


def test_predict_replaces_files_only_when_it_is_told_to(export, photo, dmtg, tmp_path):
    model, image, out = export(DEPTH), photo("room.png"), tmp_path / "out"
    command = ("predict", model, image, "--out", out)
    assert dmtg(*command)[0] == 0
    assert files(out) == ["room.depth.png", "room.json", "room.overview.png"]
    (out / "room.json").write_text("mine")
    (out / "room.depth.png").unlink()
    code, message = dmtg(*command)
    assert code == 2 and "--overwrite" in message
    assert f"{out / 'room.json'}: exists and would be replaced by the attributes of" in message
    assert files(out) == ["room.json", "room.overview.png"]
    assert (out / "room.json").read_text() == "mine"
    assert dmtg(*command, "--overwrite")[0] == 0
    assert (out / "room.json").read_text() != "mine"


def test_math_markup_in_names_is_only_text(export, photo, tmp_path):
    """`$\\frac{$` ends matplotlib's parser of math with an error."""
    names = (r"$\frac{$", r"$\undefined{$ $")
    model = export(
        TaskSpec("depth", "dense_regression", unit=r"$\frac{$"),
        TaskSpec("shape", "multiclass", channels=2, classes=names),
    )
    (record,) = predict_images(model, [photo("room.png")], tmp_path / "out")
    assert record["attributes"]["shape"]["value"] in names
    assert Path(tmp_path / "out" / "room.overview.png").stat().st_size
