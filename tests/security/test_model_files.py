"""Model files from strangers: what they may name, how large they may be, what they may hold.

The files are loaded one after another in a process that cannot open a socket, and in which a
module of a stranger lies on the path. All of them are small.
"""

import copy
import json
import os
import re
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model import bounds
from model.bundle import BundleError, load_pruned, save_bundle
from model.bundle_file import MAX_DEPTH, MAX_DESCRIPTION_BYTES, MAX_HEADER_BYTES
from model.encoders import build_encoder
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec
from tests.processes import ROOT, TIMM

SIZE = (16, 16)
MAX_MB = 200  # that the loader may need for a small file
MAX_CPU_SECONDS = 4  # on a busy machine; it takes a fraction of one

LOAD = """
import json, os, resource, socket, sys, time

attempts = []
def refuse(*arguments, **keywords):
    attempts.append(str(arguments))
    raise OSError("a socket was opened")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse

from model.bundle import BundleError, load_pruned

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

for path in json.load(sys.stdin):
    before, start, message = peak(), time.process_time(), None
    try:
        load_pruned(path)
    except BundleError as error:
        message = str(error)
    except BaseException as error:
        message = f"{type(error).__name__}: {error}"
    print(json.dumps({
        "message": message,
        "mb": peak() - before,
        "seconds": time.process_time() - start,
        "sockets": attempts,
        "foreign": "foreign" in sys.modules,
    }))
"""


@dataclass(frozen=True)
class Loaded:
    """What loading a file did: the message of its `BundleError`, None if it was loaded."""

    message: str | None
    mb: float
    seconds: float
    sockets: list[str]
    foreign: bool


def load_all(folder: Path, paths: list[Path]) -> list[Loaded]:
    """Load files in a fresh process; the first ones let it import what the others need."""
    (folder / "foreign.py").write_text("raise SystemExit('a foreign module was imported')")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {
        "PYTHONPATH": f"{ROOT}:{folder}:{TIMM}",
        "OMP_NUM_THREADS": "1",
        "HOME": str(folder),
    }
    end = subprocess.run(
        [sys.executable, "-c", LOAD],
        input=json.dumps([str(path) for path in paths]),
        capture_output=True,
        text=True,
        env={**environment, "CUDA_VISIBLE_DEVICES": ""},
        cwd=folder,
        check=False,
    )
    assert end.returncode == 0, end.stderr
    return [Loaded(**json.loads(line)) for line in end.stdout.splitlines() if line.startswith("{")]


def encoder(name, **options):
    return lambda d, _: d["network"]["encoder"].update(name=name, options=options)


def backbone(model_type, **options):
    return encoder("backbone", model_type=model_type, **options)


def network(**entries):
    return lambda d, _: d["network"].update(entries)


def task(**entries):
    return lambda d, _: d["network"]["tasks"][0].update(entries)


def tasks(count, **entries):
    listed = [{"name": f"t{i}", "kind": "binary", **entries} for i in range(count)]
    return network(tasks=listed, heads=[[i, 0] for i in range(count)], num_branches=1)


def image(side, change=lambda *_: None):
    def both(description, tensors):
        description["network"]["image_size"] = [side, side]
        description["network"]["encoder"]["image_size"] = [side, side]
        change(description, tensors)

    return both


def broken(value, count):
    def change(_, tensors):
        tensors["trunk.0.weight"].view(-1)[:count] = value

    return change


def decoder_of(stages):
    """A decoder whose stages are all in the file, each of which doubles the map."""

    def change(description, tensors):
        description["network"]["dense_widths"] = [8] * stages
        stack = "stacked_heads.dense_regression_1_l1"
        for stage in range(1, stages):
            for name, shape in (("weight", (1, 8, 8, 3, 3)), ("gain", (1, 8)), ("shift", (1, 8))):
                tensors[f"{stack}.{name}{stage}"] = torch.zeros(shape)

    return change


# What a file may name.
LOADERS = {
    "weights elsewhere": (
        lambda d, _: d["network"]["encoder"].update(pretrained="someone/model"),
        "network.encoder.pretrained is 'someone/model', must be left out; allowed are name, "
        "image_size, trunk_depth, options",
    ),
    "start values": (
        lambda d, _: d["network"]["encoder"].update(init="copies"),
        "network.encoder.init is 'copies', must be left out",
    ),
    "remote code": (
        lambda d, _: d["network"].update(trust_remote_code=True),
        "network.trust_remote_code is True, must be left out",
    ),
    "a kernel of the hub": (
        backbone("vit", _attn_implementation="kernels-community/flash-attn"),
        "model.encoder.options has '_attn_implementation', vit knows only attention_probs_dropout",
    ),
    "a kernel by its public name": (
        backbone("vit", attn_implementation="someone/kernel:forward"),
        "model.encoder.options has 'attn_implementation', vit knows only",
    ),
    "experts": (
        backbone("vit", experts_implementation="someone/kernel"),
        "model.encoder.options has 'experts_implementation'",
    ),
    "a class of the hub": (
        backbone("vit", auto_map={"AutoConfig": "foreign.Config"}),
        "model.encoder.options has 'auto_map'",
    ),
    "a path": (backbone("vit", _name_or_path="/etc"), "model.encoder.options has '_name_or_path'"),
    "another type": (backbone("vit", torch_dtype="float16"), "options has 'torch_dtype'"),
    "quantization": (
        backbone("vit", quantization_config={"quant_method": "gptq"}),
        "model.encoder.options has 'quantization_config'",
    ),
    "a backbone of timm": (
        backbone("timm_backbone", backbone="hf-hub:someone/model"),
        "model.encoder.options.model_type is 'timm_backbone', must be one of beit",
    ),
    "a model of timm elsewhere": (
        encoder("timm", model="hf-hub:someone/model"),
        "model.encoder.options.model is 'hf-hub:someone/model', must be a name of timm",
    ),
    "weights of timm": (
        encoder("timm", model="resnet18", pretrained=True),
        "model.encoder.options has 'pretrained', which cannot be chosen",
    ),
    "a file for timm": (
        encoder("timm", model="resnet18", checkpoint_path="/etc/passwd"),
        "model.encoder.options has 'checkpoint_path', which cannot be chosen",
    ),
    "a config inside": (
        backbone("vit", hidden_act={"model_type": "timm_backbone", "backbone": "someone/model"}),
        "model.encoder.options.hidden_act is {'model_type': 'timm_backbone'",
    ),
    "a repository as text": (
        backbone("vit", hidden_act="someone/model"),
        "model.encoder.options.hidden_act is 'someone/model', must be a word",
    ),
    "an activation that there is not": (
        backbone("vit", hidden_act="nonesuch"),
        "with which transformers cannot build it: KeyError: 'nonesuch'",
    ),
    "text for a number": (
        backbone("vit", hidden_size="768"),
        "Field 'hidden_size' expected int, got str",
    ),
    "a number for a choice": (
        backbone("vit", qkv_bias=1.5),
        "Field 'qkv_bias' expected bool, got float",
    ),
    "a plug-in": (
        lambda d, _: d.update(plugins={"foreign": ["encoder tiny"]}),
        "needs plug-ins that are not registered: encoder tiny of foreign",
    ),
    "an encoder of a module": (
        encoder("foreign.Encoder"),
        "model.encoder.name is 'foreign.Encoder', must be one of backbone, mlp",
    ),
    "options of the decoder": (
        network(decoder_options={"num_heads": 3}),
        "model.decoder_options: inspect.Signature.bind() got multiple values for keyword argument",
    ),
}

# How large it may be.
SIZES = {
    "channels": (
        encoder("residual64", channels=10**9),
        f"channels is 1000000000, must be an integer above 0 and at most {bounds.MAX_WIDTH}",
    ),
    "channels within the bound": (
        encoder("residual64", channels=10**6),
        "a tensor 'weight' of shape (1000000, 3, 3, 3) would have 108000000 bytes",
    ),
    "channels that would fit": (
        encoder("residual64", channels=900),
        "tensor 'trunk.0.weight' has shape (4, 3, 3, 3), must be (900, 3, 3, 3)",
    ),
    "inputs of an mlp": (encoder("mlp", widths=[10**9, 1]), "options.widths is [1000000000, 1]"),
    "layers of an mlp": (encoder("mlp", widths=[1] * 9000), "has more than the"),
    "too many options": (
        encoder("mlp", widths=[1] * 20_000),
        "model.encoder.options.widths holds 20000 values, allowed are 10000",
    ),
    "stages of xception": (encoder("xception", sizes=[1] * 9000), "has more than the"),
    "a huge integer": (encoder("residual64", channels=10**4000), "must be a number of at most"),
    "options in options": (
        encoder("residual64", channels=[[[[[[[[1]]]]]]]]),
        "is nested deeper than 6 levels",
    ),
    "layers of vit": (backbone("vit", num_hidden_layers=60_000), "has more than the"),
    "more layers of vit": (
        backbone("vit", num_hidden_layers=10**9),
        "num_hidden_layers is 1000000000, must be at most 65536",
    ),
    "width of vit": (backbone("vit", hidden_size=60_000), "a tensor 'weight' of shape (60000,"),
    "positions of vit": (
        backbone("vit", image_size=60_000, patch_size=1),
        "a tensor 'position_embeddings' of shape (1, 3600000001, 768)",
    ),
    "layers of convnext": (
        backbone("convnextv2", depths=[60_000], hidden_sizes=[8], num_stages=1),
        "has more than the",
    ),
    "layers of stages": (
        backbone("convnextv2", depths=[60_000] * 900, hidden_sizes=[8] * 900, num_stages=900),
        "must be at most 65536, the sum for a list",
    ),
    "window of swin": (
        image(4096, backbone("swinv2", window_size=1024, depths=[1], num_heads=[1])),
        "a tensor 'relative_position_index' of shape (1048576, 1048576)",
    ),
    "a gradient scale too few": (
        network(gradient_scale=[1.0]),
        "gradient_scale is [1.0], must be two numbers",
    ),
    "a deviation too few": (
        network(image_std=[0.2, 0.2]),
        "image_std is [0.2, 0.2], must have 3 numbers",
    ),
    "image": (image(100_000), "network.image_size is [100000, 100000], must be integers from 1 to"),
    "image of the encoder only": (
        lambda d, _: d["network"]["encoder"].update(image_size=[100_000, 100_000]),
        "network.encoder.image_size is [100000, 100000]",
    ),
    "an image of one side": (
        lambda d, _: d["network"].update(image_size=[16]),
        "network.image_size is [16], must be height and width",
    ),
    "branches": (
        network(num_branches=10**6),
        "network.num_branches is 1000000, must be an integer from 1 to 1000",
    ),
    "branches within the bound": (
        network(num_branches=1000),
        "network has 2 heads for 2 tasks and 1000 branches, must have one per task",
    ),
    "tasks": (tasks(20_000), "len(network.tasks) is 20000, must be from 1 to 10000"),
    "tasks within the bound": (tasks(9000), "must be (9000, 1, 36)"),
    "different tasks": (
        lambda d, t: (
            tasks(9000, kind="multiclass")(d, t),
            [s.update(channels=i + 2) for i, s in enumerate(d["network"]["tasks"])],
        ),
        "has more than the",
    ),
    "heads": (
        network(heads=[[0, 0]] * 100_000),
        "len(network.heads) is 100000, must be at most 4",
    ),
    "empty heads": (
        network(heads=[[]] * 10**6),
        "len(network.heads) is 1000000, must be at most 4",
    ),
    "tensors": (
        lambda _, t: t.update({str(number): torch.zeros(0) for number in range(50_000)}),
        "holds an unknown tensor '0'",
    ),
    "classes": (
        task(kind="multiclass", channels=10**9),
        f"task 'a': channels is 1000000000, must be an integer of at most {bounds.MAX_CLASSES}",
    ),
    "classes of pixels": (
        task(kind="dense_classification", channels=10**5, loss="cross_entropy"),
        "channels is 100000, must be an integer of at most 4096",
    ),
    "widths of a decoder": (network(dense_widths=[10**9]), "network.dense_widths is [1000000000]"),
    "stages of a decoder": (
        network(dense_widths=[8] * 1000),
        "must be a list of at most 16 integers",
    ),
    "a map that doubles and doubles": (decoder_of(14), "a prediction would need a map of shape"),
    "channels of an image": (
        network(image_mean=[0.0] * 2_000_000),
        f"its description has 10000946 characters, allowed are {MAX_DESCRIPTION_BYTES}",
    ),
}

# What it may hold.
VALUES = {
    "all NaN": (
        lambda _, t: [v.fill_(torch.nan) for v in t.values() if v.is_floating_point()],
        "108 of 108 values of tensor 'trunk.0.weight' are NaN or infinite",
    ),
    "one NaN": (broken(torch.nan, 1), "1 of 108 values of tensor 'trunk.0.weight' are NaN or inf"),
    "infinite": (broken(-torch.inf, 3), "3 of 108 values of tensor 'trunk.0.weight' are NaN"),
    "half precision": (
        lambda _, t: t.update({"trunk.0.weight": t["trunk.0.weight"].half()}),
        "tensor 'trunk.0.weight' is of torch.float16, must be torch.float32",
    ),
    "a number that is none": (
        lambda d, _: d["network"]["tasks"][0].update(unit_scale=torch.nan),
        "its description is not JSON (NaN is no number)",
    ),
    "two heads of a task": (
        network(heads=[[0, 0], [1, 0], [1, 1]]),
        "network has 3 heads for 2 tasks and 2 branches",
    ),
    "metadata": (lambda d, _: d.update(metadata=[]), "its metadata is list, must be an object"),
    "a list": (lambda d, _: [d], "its description is '[{"),
    "deep lists": (
        lambda d, _: d.update(metadata={"a": eval("[" * 30 + "]" * 30)}),
        f"its description is nested deeper than {MAX_DEPTH} levels",
    ),
}

CASES = LOADERS | SIZES | VALUES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def model(folder):
    """A small model with a trunk, two branches, a linear and a dense head."""
    torch.manual_seed(0)
    tasks = [TaskSpec("a", "binary"), TaskSpec("d", "dense_regression")]
    options = {"image_size": SIZE, "trunk_depth": 1, "options": {"channels": 4}}
    network = MultiTaskNetwork(
        tasks, build_encoder("residual64", 2, **options), SIZE, [(0, 0), (1, 1)], dense_widths=(8,)
    )
    save_bundle(folder / "model", network, {})
    return folder / "model"


def changed(model, path, change):
    """Save a changed copy of a model."""
    with safe_open(model, framework="pt") as file:
        description = copy.deepcopy(json.loads(file.metadata()["dmtg"]))
    tensors = load_file(model)
    new = change(description, tensors)
    description = new if isinstance(new, list) and change is VALUES["a list"][0] else description
    save_file(tensors, path, metadata={"dmtg": json.dumps(description)})
    return path


@pytest.fixture(scope="module")
def results(folder, model):
    """What loading each file of `CASES` did, by its name."""
    warm = {
        "vit": backbone("vit", hidden_size=24, num_attention_heads=2, num_hidden_layers=1),
        "swinv2": backbone("swinv2", embed_dim=8, depths=[1], num_heads=[1], window_size=4),
        "convnext": backbone("convnextv2", depths=[1], hidden_sizes=[8], num_stages=1),
    }
    changes = warm | {name: change for name, (change, _) in CASES.items()}
    paths = [changed(model, folder / f"case{n}", c) for n, c in enumerate(changes.values())]
    found = load_all(folder, [model, *paths])
    assert found[0].message is None, "the model itself is loaded"
    return dict(zip(changes, found[1:], strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_file_that_is_refused(name, results):
    found = results[name]
    assert found.message is not None, "it was loaded"
    assert found.message.startswith("/") and "/case" in found.message, found.message
    assert CASES[name][1] in found.message
    assert len(found.message) < 6000 and "\n" not in found.message
    assert found.sockets == [] and not found.foreign
    assert found.mb < MAX_MB and found.seconds < MAX_CPU_SECONDS


def test_a_file_for_large_images_is_loaded_without_computing_one(folder, model):
    """One pass of the encoder over such an image would need more than a gigabyte."""
    with torch.device("meta"):
        options = {"image_size": (4096, 4096), "options": {"channels": 16}}
        encoder = build_encoder("residual64", 1, **options)
        tasks = [TaskSpec("d", "dense_regression")]
        large = MultiTaskNetwork(tasks, encoder, (4096, 4096), dense_widths=(8,))
    network = large.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.zero_()
    save_bundle(folder / "large", network, {})
    assert (folder / "large").stat().st_size < 100_000
    _, found = load_all(folder, [model, folder / "large"])
    assert found.message is None and found.mb < MAX_MB


def test_a_header_that_is_too_long(folder, model):
    content = model.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    path = folder / "long"
    padded = content[8 : 8 + length] + b" " * (MAX_HEADER_BYTES - length + 8)
    path.write_bytes(struct.pack("<Q", len(padded)) + padded + content[8 + length :])
    with pytest.raises(BundleError, match=rf"header has {len(padded)} bytes, allowed are 16777216"):
        load_pruned(path)
    path.write_bytes(struct.pack("<Q", 2**40) + content[8:])
    with pytest.raises(BundleError, match="not a readable safetensors file"):
        load_pruned(path)


def test_a_description_that_exhausts_the_parser(folder, model):
    tensors = load_file(model)
    for text, message in (
        ("[" * 200_000, "nested deeper than 20 levels"),
        ('{"version": ' + "9" * 5000 + "}", "its description is not JSON"),
        (" " * (MAX_DESCRIPTION_BYTES + 1), "its description has 4194305 characters"),
    ):
        save_file(tensors, folder / "parser", metadata={"dmtg": text})
        with pytest.raises(BundleError, match=message):
            load_pruned(folder / "parser")


def test_weights_that_are_not_finite_are_not_saved(model, folder):
    network = load_pruned(model).network
    with torch.no_grad():
        network.trunk[0].weight[0] = torch.nan
    with pytest.raises(ValueError, match=r"27 of 108 values of tensor 'trunk.0.weight' are NaN"):
        save_bundle(folder / "spoilt", network, {})
    assert not (folder / "spoilt").exists()


def test_a_checkpoint_that_names_weights_is_refused(tmp_path):
    from trainer.checkpoints.checkpoint import load_checkpoint
    from trainer.errors import UserError

    old = ROOT / "tests/fixtures/version1/affinity/checkpoints/step-000000004"
    for file in old.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    progress = json.loads((tmp_path / "progress.json").read_text())
    progress["network"]["encoder"]["pretrained"] = "someone/model"
    (tmp_path / "progress.json").write_text(json.dumps(progress))
    message = re.escape("network.encoder.pretrained is 'someone/model', must be left out")
    with pytest.raises(UserError, match=rf"{tmp_path}: progress.json cannot be used: {message}"):
        load_checkpoint(tmp_path, verified=True)
