"""Every mistake has a message of its own and exit code 2, and leaves nothing behind."""

import json
import shutil

import pytest
from PIL import Image

from trainer.run_folder import RunFolder


@pytest.fixture
def fails(main_script, rooms_yaml, tmp_path, snapshot):
    """Start a run that must fail; what lay in the test's folder must lie there unchanged."""

    def start(*overrides, config=rooms_yaml, out=None):
        before = snapshot(tmp_path)
        folders = sorted(tmp_path.rglob("*"))
        out = out or tmp_path / "run"
        end = main_script("--config", config, f"run.out={out}", *overrides)
        assert end.code == 2, end
        assert end.stderr.startswith("error: ") and "Traceback" not in end.stderr
        assert snapshot(tmp_path) == before and sorted(tmp_path.rglob("*")) == folders
        return end.stderr

    return start


@pytest.fixture
def copied_rooms(rooms, tmp_path):
    return shutil.copytree(rooms, tmp_path / "shards")


def edit_manifest(root, edit):
    path = root / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    manifest.pop("checksum", None)  # as the message tells those who edit by hand
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learnig_rate=1", "weight_decay; did you mean optim.lr?"),
        ("run.steps=many", "run.steps: found 'many'; allowed: a whole number from 1 to 10^12"),
        ("data.global_batch=9999", "data.global_batch: 9999"),
        ("data.num_streams=3", "data.num_streams: 3 must be a multiple of"),
        (
            "optim.gradient_accumulation_steps=3",
            "data.global_batch is 8; it must be a multiple of processes x",
        ),
        ("tasks.names=[has_sphere]", "tasks.define: camera_pitch, depth_zbuffer, normal is not"),
        ("model.encoder.name=vgg", "model.encoder.name: found 'vgg'; allowed: backbone"),
        ("data.train_split=trian", "split 'trian': rooms has train, val; did you mean 'train'?"),
        ("data.shards=/no/such/folder", "/no/such/folder/manifest.json: cannot be read"),
    ],
)
def test_bad_value(override, message, fails):
    assert message in fails(override)


def test_task_that_nothing_describes(fails):
    message = fails("tasks.names=[has_sphere, no_such]", "tasks.define={}")
    assert "tasks.names: found 'no_such', which is no label of rooms" in message
    assert "tasks.define.no_such" in message and "labels in rooms: camera_pitch, " in message


def test_task_with_a_wrong_letter(fails):
    assert "did you mean 'has_sphere'?" in fails("tasks.names=[has_spere]", "tasks.define={}")


def test_flip_that_makes_a_label_wrong(fails):
    message = fails("data.flip=true", "tasks.names=[light_from_left]", "tasks.define={}")
    assert "task light_from_left: field light_from_left becomes wrong" in message


def test_missing_config_file(fails, tmp_path):
    assert "none.yaml: No such file or directory" in fails(config=tmp_path / "none.yaml")


def test_config_is_a_required_option(main_script):
    end = main_script()
    assert end.code == 2 and "--config" in end.stderr


@pytest.mark.parametrize("split", ["train", "val"])
def test_task_without_labels_in_the_split(split, fails, copied_rooms):
    def edit(manifest):
        manifest["splits"][split]["labelled"]["has_sphere"] = 0
        del manifest["splits"][split]["class_counts"]["has_sphere"]

    edit_manifest(copied_rooms, edit)
    message = fails(f"data.shards={copied_rooms}")
    assert f"task has_sphere: no labels in split {split} of rooms (field has_sphere)" in message


def test_task_without_labels_in_the_manifest(fails, copied_rooms):
    edit_manifest(copied_rooms, lambda manifest: manifest["fields"].pop("depth_zbuffer"))
    for split in ("train", "val"):
        edit_manifest(
            copied_rooms, lambda m, s=split: m["splits"][s]["labelled"].pop("depth_zbuffer")
        )
    message = fails(f"data.shards={copied_rooms}")
    assert "task depth_zbuffer: no label field 'depth_zbuffer' in rooms, allowed are" in message


def test_missing_shard(fails, copied_rooms):
    shard = sorted(copied_rooms.glob("*train*.tar"))[1]
    shard.unlink()
    assert f"{shard}: missing shard" in fails(f"data.shards={copied_rooms}")


def test_truncated_shard(fails, copied_rooms):
    shard = sorted(copied_rooms.glob("*val*.tar"))[0]
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-512])
    message = fails(f"data.shards={copied_rooms}")
    assert f"{shard}: truncated shard: {size - 512} bytes, manifest says {size}" in message


@pytest.fixture(scope="module")
def finished_run(main_script, rooms_yaml, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    options = ("run.steps=2", "run.checkpoint_every=1")
    assert main_script("--config", rooms_yaml, f"run.out={out}", *options).code == 0
    return out


@pytest.fixture
def a_run(finished_run, tmp_path):
    """A run of two steps, finished."""
    return RunFolder(shutil.copytree(finished_run, tmp_path / "run"))


def test_folder_that_holds_a_run(fails, a_run):
    message = fails("run.steps=2")
    assert f"run.out: {a_run.out} already holds a run; set run.resume=auto" in message


def test_folder_that_holds_another_run(fails, a_run):
    message = fails("run.steps=2", "run.resume=auto", "run.seed=9", "model.branches=2")
    assert f"{a_run.out} holds another run" in message
    assert "model.branches was 3, is 2" in message and "run.seed was 5, is 9" in message
    assert f"dmtg export {a_run.out} --out model.safetensors" in message
    assert "model.init_from=[model.safetensors]" in message and "optim.lr" in message


@pytest.mark.usefixtures("a_run")
def test_checkpoint_of_other_tasks(fails, copied_rooms, rooms):
    """The config is the same, but the manifest that the tasks come from is not."""

    def edit(manifest):
        manifest["fields"]["camera_pitch"]["mean"] += 1.0

    edit_manifest(copied_rooms, edit)
    options = ("run.steps=2", "run.checkpoint_every=1", "run.resume=auto")
    message = fails(*options, f"data.shards={copied_rooms}")
    assert "checkpoints/step-000000002 is of another run" in message
    mean = json.loads((rooms / "manifest.json").read_text())["fields"]["camera_pitch"]["mean"]
    assert f"task camera_pitch: mean was [{mean}], is [{mean + 1.0}]" in message


@pytest.mark.usefixtures("a_run")
def test_checkpoint_of_other_data(fails, copied_rooms):
    edit_manifest(copied_rooms, lambda manifest: manifest.update(dataset="other"))
    options = ("run.steps=2", "run.checkpoint_every=1", "run.resume=auto")
    message = fails(*options, f"data.shards={copied_rooms}")
    splits = "train: 36 samples in 4 shards, val: 12 samples in 2 shards"
    assert f"data.shards was rooms ({splits}) with manifest " in message
    assert f"is other ({splits}) with manifest " in message


def test_folder_that_is_not_a_run(fails, tmp_path):
    (tmp_path / "file").write_text("mine")
    message = fails(out=tmp_path / "file")
    assert "file exists and is not the folder of a run" in message


def test_a_finished_run_is_only_evaluated_again(main_script, rooms_yaml, a_run, snapshot):
    before = snapshot(a_run.out)
    options = (f"run.out={a_run.out}", "run.steps=2", "run.checkpoint_every=1", "run.resume=auto")
    end = main_script("--config", rooms_yaml, *options)
    assert end.code == 0 and "is complete (2 steps)" in end.stderr
    after = snapshot(a_run.out)
    before.pop("config.yaml"), after.pop("config.yaml")  # it says resume: auto now
    assert after == before


def test_print_config_starts_nothing(main_script, rooms_yaml, tmp_path):
    out = f"run.out={tmp_path / 'run'}"
    end = main_script("--config", rooms_yaml, out, "optim.lr=7e-3", "--print-config")
    assert end.code == 0 and "lr: 0.007" in end.stdout and not (tmp_path / "run").exists()


@pytest.fixture
def dmtg_fails(dmtg, tmp_path, snapshot):
    def start(*arguments):
        before = snapshot(tmp_path)
        end = dmtg(*arguments)
        assert end.code == 2, end
        assert "error: " in end.stderr and "Traceback" not in end.stderr
        assert snapshot(tmp_path) == before
        return end.stderr

    return start


def test_export_of_a_folder_without_a_run(dmtg_fails, tmp_path):
    message = dmtg_fails("export", tmp_path, "--out", tmp_path / "m.safetensors")
    assert "holds no run (config.yaml is missing)" in message


def test_export_of_a_run_without_a_checkpoint(dmtg_fails, a_run, tmp_path):
    shutil.rmtree(a_run.checkpoints)
    message = dmtg_fails("export", a_run.out, "--out", tmp_path / "m.safetensors")
    assert "no whole checkpoint" in message


def test_eval_of_a_file_that_is_no_model(dmtg_fails, rooms, tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"something else")
    message = dmtg_fails("eval", tmp_path / "m.safetensors", "--shards", rooms)
    assert "m.safetensors: not a readable safetensors file" in message
    message = dmtg_fails("eval", tmp_path / "none.safetensors", "--shards", rooms)
    assert "none.safetensors: no such file" in message


def test_eval_of_weights_that_are_no_exported_model(dmtg_fails, rooms, a_run):
    weights = a_run.checkpoints / "step-000000002" / "weights.safetensors"
    message = dmtg_fails("eval", weights, "--shards", rooms)
    assert "not an exported model (its metadata has no 'dmtg')" in message


@pytest.fixture
def a_model(a_run, dmtg, tmp_path):
    path = tmp_path / "model.safetensors"
    assert dmtg("export", a_run.out, "--out", path).code == 0
    return path


def test_predict_on_a_file_that_is_no_image(dmtg_fails, a_model, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    message = dmtg_fails("predict", a_model, tmp_path / "text.png", "--out", tmp_path / "out")
    assert "text.png: cannot be read" in message and not (tmp_path / "out").exists()


def test_predict_on_two_images_of_one_name(dmtg, a_model, tmp_path):
    paths = [tmp_path / "one" / "a.png", tmp_path / "two" / "a.png"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    end = dmtg("predict", a_model, *paths, "--out", tmp_path / "out", "--json")
    assert end.code == 0, end.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["one", "two"]
    for folder, path in zip(("one", "two"), paths, strict=True):
        written = json.loads((tmp_path / "out" / folder / "a.json").read_text())
        assert written["image"] == str(path)


def test_eval_on_other_data(dmtg_fails, a_model, digits):
    message = dmtg_fails("eval", a_model, "--shards", digits)
    assert "no label field 'depth_zbuffer' in digits" in message


def test_report_of_a_folder_without_a_run(dmtg_fails, tmp_path):
    assert "holds no run" in dmtg_fails("report", tmp_path)


def test_shards_into_a_folder_that_has_a_data_set(dmtg_fails, copied_rooms):
    message = dmtg_fails("shards", "rooms", "--out", copied_rooms, "--samples", "2")
    assert str(copied_rooms) in message and "manifest.json" in message
    assert str(copied_rooms) in dmtg_fails("shards", "digits", "--out", copied_rooms)


def test_shards_with_an_argument_out_of_range(dmtg_fails, tmp_path):
    message = dmtg_fails("shards", "rooms", "--out", tmp_path / "s", "--size", "8")
    assert "size is 8, must be at least 32 pixels" in message


@pytest.mark.distributed
def test_exit_codes_of_real_processes(launcher, rooms_yaml, tmp_path):
    end = launcher.train(rooms_yaml, f"run.out={tmp_path / 'run'}", "optim.x=1").finish()
    assert end.code == 2 and end.stderr.startswith("error: ") and "optim.x" in end.stderr
    end = launcher.dmtg("export", str(tmp_path), "--out", str(tmp_path / "m.safetensors"))
    assert end.code == 2 and "holds no run" in end.stderr
