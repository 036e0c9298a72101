"""Pretrained backbones: by folder, from the cache of the hub, from a stand-in of the hub."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoConfig

from model.bundle import load_pruned, save_bundle
from model.encoders import build_encoder
from model.encoders.pretrained import preprocessor_normalisation
from model.network import IMAGE_MEAN, MultiTaskNetwork
from model.tasks.spec import TaskSpec
from tests.processes import ROOT
from tests.unit.model.encoders.hub_cache import COMMIT, cached_repository

SIZE = (32, 32)
RESNET = {
    "embedding_size": 8,
    "hidden_sizes": [8, 12],
    "depths": [1, 1],
    "layer_type": "basic",
}
PREPROCESSOR = {
    "do_normalize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.25, 0.5, 0.75],
    "size": {"height": 224, "width": 224},
}


def write_checkpoint(folder, preprocessor=PREPROCESSOR, **saving):
    """Write a small ResNet with random weights and return what it computes."""
    config = AutoConfig.for_model("resnet", **RESNET)
    config.out_features = [config.stage_names[-1]]
    torch.manual_seed(7)
    model = MODEL_FOR_BACKBONE_MAPPING[type(config)](config).eval()
    model.save_pretrained(folder, **saving)
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return lambda images: model(images).feature_maps[-1]


def build(pretrained, num_branches=2, **arguments):
    return build_encoder(
        "backbone", num_branches, image_size=SIZE, pretrained=str(pretrained), **arguments
    )


def assert_computes(encoder, expected):
    images = torch.randn(2, 3, *SIZE)
    for branch in encoder.branches:
        maps = branch.eval()(encoder.trunk.eval()(images))
        torch.testing.assert_close(maps, expected(images))


@pytest.mark.parametrize("name", ["someone/tiny", f"someone/tiny@{COMMIT}"])
@pytest.mark.parametrize("saving", [{}, {"max_shard_size": "5KB"}])
def test_a_repository_in_the_cache_of_the_hub(name, saving, hub_cache):
    expected = write_checkpoint(cached_repository(hub_cache, "someone/tiny"), **saving)
    encoder = build(name, trunk_depth=1)
    assert_computes(encoder, expected)
    assert (encoder.image_mean, encoder.image_std) == ((0.5, 0.4, 0.3), (0.25, 0.5, 0.75))
    network = MultiTaskNetwork([TaskSpec("a", "binary")], encoder, SIZE, heads=[(0, 0)])
    network.branches = network.branches[:1]
    assert network.image_mean.flatten().tolist() == pytest.approx([127.5, 102, 76.5])
    assert "someone" not in json.dumps(network.config())


def test_an_exported_model_has_the_normalisation_and_needs_no_network(hub_cache, tmp_path):
    folder = cached_repository(hub_cache, "someone/tiny")
    write_checkpoint(folder)
    tasks = [TaskSpec("a", "binary"), TaskSpec("b", "binary")]
    network = MultiTaskNetwork(tasks, build("someone/tiny"), SIZE, heads=[(0, 0), (1, 1)]).eval()
    save_bundle(tmp_path / "m.safetensors", network, {})
    for path in folder.iterdir():
        path.unlink()
    loaded = load_pruned(tmp_path / "m.safetensors").network
    assert torch.equal(loaded.image_mean, network.image_mean)
    assert torch.equal(loaded.image_std, network.image_std)
    images = torch.randint(256, (2, 3, *SIZE), dtype=torch.uint8)
    for one, other in zip(
        *(n(images, n.select(n.heads))["predictions"].values() for n in (network, loaded)),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_given_values_win_over_those_of_the_checkpoint(tmp_path):
    write_checkpoint(tmp_path)
    network = MultiTaskNetwork(
        [TaskSpec("a", "binary")], build(tmp_path, 1), SIZE, image_mean=[0.1, 0.2, 0.3]
    )
    assert network.config()["image_mean"] == [0.1, 0.2, 0.3]
    assert network.config()["image_std"] == [0.25, 0.5, 0.75]


@pytest.mark.parametrize("preprocessor", [None, {"size": 224}])
def test_without_them_they_are_those_of_imagenet(preprocessor, tmp_path):
    write_checkpoint(tmp_path, preprocessor)
    network = MultiTaskNetwork([TaskSpec("a", "binary")], build(tmp_path, 1), SIZE)
    assert tuple(network.config()["image_mean"]) == IMAGE_MEAN


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [110, 120, 130], "image_std": [50, 60, 70]},
        {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
    ],
)
def test_images_become_what_the_preprocessor_makes_of_them(entries, tmp_path):
    """Against the library's own preprocessor, on an image that it need not resize."""
    from transformers import ViTImageProcessorPil

    values = {**PREPROCESSOR, **entries, "do_resize": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    levels = torch.randint(256, (3, 8, 8), dtype=torch.uint8)
    processor = ViTImageProcessorPil(**values)
    expected = torch.as_tensor(processor(levels.numpy(), return_tensors="np")["pixel_values"][0])
    found = preprocessor_normalisation(tmp_path)
    mean, std = (255 * torch.tensor(v).view(3, 1, 1) for v in (found.mean, found.std))
    torch.testing.assert_close((levels - mean) / std, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 10**5, "is not JSON"),
        ("[1]", "holds list, must hold an object"),
        ('{"image_mean": [1, 2], "image_std": [1, 1, 1]}', r"image_mean \[1, 2\], must be three"),
        ('{"image_mean": [1, 2, NaN], "image_std": [1, 1, 1]}', "must be three numbers"),
        ('{"image_mean": [1, 2, 3], "image_std": [1, 0, 1]}', "must be above 0"),
        ('{"image_mean": [1, 1, 1], "image_std": [1, 1, 1], "rescale_factor": 0}', "rescale_fac"),
    ],
)
def test_a_damaged_preprocessor_is_one_line(text, message, tmp_path):
    write_checkpoint(tmp_path, None)
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        build(tmp_path)
    assert "model.encoder.pretrained" in str(caught.value) and "\n" not in str(caught.value)


def test_weights_that_are_not_safetensors_are_refused(tmp_path):
    """The formats that they have else can run code."""
    write_checkpoint(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights can be read from it") as caught:
        build(tmp_path)
    assert "safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_checkpoint_lacks_is_logged_once(tmp_path, caplog, capfd):
    """The library's own tables and bars, one for each branch, are not shown."""
    write_checkpoint(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "encoder.stages.0.layers.0.layer.0.normalization.weight"
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    capfd.readouterr()
    build(tmp_path, 3)
    assert [record.getMessage().count(name) for record in caplog.records] == [1]
    assert capfd.readouterr().err == ""
    save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="which has no weights of this resnet"):
        build(tmp_path)


def test_code_beside_a_checkpoint_is_not_run(tmp_path):
    write_checkpoint(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    classes = {"AutoConfig": "code.Config", "AutoBackbone": "code.Model"}
    (tmp_path / "config.json").write_text(json.dumps({**values, "auto_map": classes}))
    (tmp_path / "code.py").write_text("raise SystemExit('code of the hub was run')")
    build(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({**values, "model_type": "mine", "auto_map": classes})
    )
    with pytest.raises(ValueError):
        build(tmp_path)


@pytest.mark.parametrize(
    ("pretrained", "message"),
    [
        ("someone/absent", "config.json of a repository .* not in the cache, and the hub is off"),
        ("../folder", "'../folder', must be a folder with a config.json, or a repository"),
        ("someone/a/b", "must be a folder with a config.json, or a repository"),
        ("resnet18", "must be a folder with a config.json, or a repository"),
        (True, "model.encoder.pretrained is true, must be a folder or a repository for backbone"),
    ],
)
@pytest.mark.usefixtures("hub_cache")
def test_faults_are_one_line(pretrained, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_encoder("backbone", 1, image_size=SIZE, pretrained=pretrained)
    assert "\n" not in str(caught.value)


FETCH = """
import sys
from model.encoders.pretrained import checkpoint_folder
for name in sys.argv[1:]:
    try:
        print("folder", checkpoint_folder(name, ["preprocessor_config.json"]))
    except ValueError as error:
        print("error", error)
"""


NAMES = ("someone/tiny", "nobody/none", "pickled/only", "someone/tiny")


def test_only_json_and_safetensors_are_fetched(tmp_path):
    """From a server that answers as the hub does."""
    files = tmp_path / "files"
    write_checkpoint(files)
    (files / "modeling.py").write_text("raise SystemExit")
    (files / "pytorch_model.bin").write_bytes(b"pickle")
    save_file({"a": torch.zeros(1)}, files / "other.safetensors")
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def answer(self, body):
            owner, _, _, _, name = self.path.strip("/").split("/", 4)
            asked.append((owner, name))
            path = files / name
            found = owner == "someone" and path.is_file()
            if owner == "pickled" and name == "config.json":
                found, path = True, files / name
            data = path.read_bytes() if found else b""
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Repo-Commit", COMMIT)
            if found:
                self.send_header("ETag", f'"{len(data)}{name}"')
            else:
                known = owner in ("someone", "pickled")
                self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.end_headers()
            if body:
                self.wfile.write(data)

        def do_HEAD(self):
            self.answer(False)

        def do_GET(self):
            self.answer(True)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "127.0.0.1",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", FETCH, *NAMES],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        server.shutdown()
        server.server_close()
    lines = done.stdout.splitlines()
    assert len(lines) == len(NAMES), done.stdout
    # What is in the cache is taken without asking: one request for the size, one for the content.
    assert lines[3] == lines[0] and asked.count(("someone", "config.json")) <= 2
    folder = lines[0].removeprefix("folder ")
    assert sorted(os.listdir(folder)) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert "there is none, or it is private" in lines[1]
    assert "no model.safetensors; only weights in the format safetensors are read" in lines[2]
    names = {name for _, name in asked}
    assert names == {
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
    }
