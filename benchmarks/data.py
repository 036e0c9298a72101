"""Measure reading: samples per second and bytes per sample by format, large indexes, loading.

python benchmarks/data.py [--views DIR]

A sample has six fields at 256 pixels: rgb, normal, depth, keypoints and edges (16-bit), ids.
Writes benchmarks/results/data.json; the exit code is 1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from data_pipelines.decode.codecs import decode, encode_jpeg, encode_png
from data_pipelines.decode.planes import encode_planes
from data_pipelines.reading.fields import LabelRequest
from data_pipelines.reading.loader import train_loader
from data_pipelines.reading.order import EpochOrder, TrainBatches
from data_pipelines.shards.manifest import Field, Manifest, Shard, Split
from data_pipelines.shards.store import ShardStore
from data_pipelines.shards.writer import ShardWriter
from data_pipelines.synthetic.labels import dense_labels
from data_pipelines.synthetic.sample import visible_scene
from data_pipelines.synthetic.shading import render
from data_pipelines.transforms import Geometry

RESULTS = Path(__file__).resolve().parent / "results" / "data.json"
SIZE = 256
ROOM_LABELS = ("normal", "depth_zbuffer", "keypoints2d", "edge_texture", "segment_semantic")
VIEW_LABELS = ("normal", "depth_zbuffer", "keypoints3d", "edge_texture", "segment_unsup25d")
SHARDS, SAMPLES_PER_SHARD, GLOBAL_BATCH, STREAMS = 5000, 920, 256, 64
Arrays = dict[str, np.ndarray]


def rooms(count: int) -> Iterator[Arrays]:
    """Yield ray-cast rooms with five of their labels."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        scene, hits = visible_scene(rng, SIZE)
        picture = render(scene, hits, SIZE, rng)
        labels = dense_labels(scene, hits, picture)
        yield {"rgb": picture, **{name: labels[name] for name in ROOM_LABELS}}


def views(root: Path) -> Iterator[Arrays]:
    """Yield the views of a folder in the released layout that have all six fields, at half size."""
    for path in sorted(root.glob("rgb/*/*_domain_rgb.png")):
        labels = {
            name: Path(str(path).replace("/rgb/", f"/{name}/").replace("_rgb.", f"_{name}."))
            for name in VIEW_LABELS
        }
        if all(label.is_file() for label in labels.values()):
            with Image.open(path) as image:
                arrays = {"rgb": np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))}
            for name, label in labels.items():
                with Image.open(label) as image:
                    array = np.asarray(image)
                step = array.shape[0] // SIZE
                arrays[name] = np.ascontiguousarray(array[::step, ::step])
            yield arrays


def as_zstd(arrays: Arrays) -> dict[str, bytes]:
    """Encode a sample in the default format: JPEG for rgb, planes for labels."""
    labels = {f"{name}.planes": encode_planes(a) for name, a in arrays.items() if name != "rgb"}
    return {"rgb.jpg": encode_jpeg(arrays["rgb"]), **labels}


def as_portable(arrays: Arrays) -> dict[str, bytes]:
    """Encode all fields of a sample as PNG."""
    return {f"{name}.png": encode_png(array) for name, array in arrays.items()}


def as_pickles(arrays: Arrays) -> dict[str, bytes]:
    """Encode each field of a sample as a float32 pickle, channels first."""
    return {
        f"{name}.pickle": pickle.dumps(np.atleast_3d(array).transpose(2, 0, 1).astype(np.float32))
        for name, array in arrays.items()
    }


def _unpickle(_: str, data: bytes) -> np.ndarray:
    return pickle.loads(data)


FORMS: dict[str, tuple[Callable[[Arrays], dict[str, bytes]], Callable[[str, bytes], Any]]] = {
    "zstd": (as_zstd, decode),
    "portable": (as_portable, decode),
    "pickle": (as_pickles, _unpickle),
}


def write_form(root: Path, form: str, samples: list[Arrays]) -> tuple[ShardStore, list[str], Split]:
    """Write the samples as one shard; return the store, the members of a sample and the split."""
    encode, _ = FORMS[form]
    members: Mapping[str, bytes] = {}
    with ShardWriter(root, form, len(samples)) as writer:
        for number, arrays in enumerate(samples):
            members = encode(arrays)
            writer.write(f"s{number}", members)
    split = writer.split({})
    return ShardStore(root, split.shards), sorted(members), split


def compare_forms(root: Path, samples: list[Arrays], rounds: int) -> dict[str, dict[str, float]]:
    """Return the samples per second of one core and the bytes per sample of every format.

    Measure the formats alternately and use the fastest round, because other programs on the machine
    can only slow a round down.
    """
    stores = {form: write_form(root, form, samples) for form in FORMS}
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(rounds):
        for form, (store, members, _) in stores.items():
            start = time.process_time()
            for number in range(len(samples)):
                for member, data in store.read(number, members)[1].items():
                    FORMS[form][1](member, data)
            seconds[form].append((time.process_time() - start) / len(samples))
    return {
        form: {
            "samples_per_second_per_core": round(1 / min(seconds[form]), 1),
            "bytes_per_sample": round(split.shards[0].bytes / len(samples)),
        }
        for form, (_, _, split) in stores.items()
    }


def resident() -> float:
    """Return the resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure_scale(root: Path) -> None:
    """Open a manifest of millions of samples, resume at several steps, and print JSON."""
    before, start = resident(), time.perf_counter()
    manifest = Manifest.load(root)
    opened = time.perf_counter()
    split = manifest.split("train")
    order = EpochOrder(tuple(shard.samples for shard in split.shards), seed=0, num_streams=STREAMS)
    resume_ms = []
    for step in np.random.default_rng(0).integers(0, 10**6, 9).tolist():
        begin = time.perf_counter()
        batches = TrainBatches(
            order, global_batch=GLOBAL_BATCH, num_steps=step + 1, start_step=step
        )
        next(iter(batches))
        resume_ms.append(1000 * (time.perf_counter() - begin))
    values = {
        "samples": split.num_samples,
        "shards": len(split.shards),
        "open_seconds": round(opened - start, 3),
        "resume_ms": round(statistics.median(resume_ms), 2),
        "memory_mib": round(resident() - before, 1),
    }
    sys.stdout.write(json.dumps(values) + "\n")


def scale(root: Path) -> dict[str, float]:
    """Run `measure_scale` in a new process, so that its memory contains nothing else."""
    shards = tuple(
        Shard(name=f"train-{n:06d}.tar", samples=SAMPLES_PER_SHARD, bytes=10240, sha256=f"{n:064x}")
        for n in range(SHARDS)
    )
    fields = {"rgb": Field(member="rgb.jpg", kind="image", channels=3)}
    split = Split(shards=shards, labelled={"rgb": SHARDS * SAMPLES_PER_SHARD})
    Manifest(dataset="large", fields=fields, splits={"train": split}).save(root)
    command = [sys.executable, __file__, "--measure-scale", str(root)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def loader_overhead(root: Path, split: Split, batch: int, steps: int) -> dict[str, float]:
    """Return the CPU time of the main process for each batch that a worker has loaded."""
    ids = {"kind": "dense_classification", "classes": tuple("abcdefghijklmnopqr")}
    special: dict[str, dict[str, Any]] = {"normal": {"channels": 3}, "segment_semantic": ids}
    fields = {"rgb": Field(member="rgb.jpg", kind="image", channels=3)}
    for name in ROOM_LABELS:
        options = {"kind": "dense_regression", **special.get(name, {})}
        fields[name] = Field(member=f"{name}.planes", **options)
    labelled = dict.fromkeys(fields, split.num_samples)
    split = split.model_copy(update={"labelled": labelled})
    manifest = Manifest(dataset="rooms", fields=fields, splits={"train": split})
    loader = train_loader(
        root,
        manifest,
        [LabelRequest(name, name, fields[name].channels) for name in ROOM_LABELS],
        Geometry((SIZE, SIZE)),
        seed=0,
        global_batch=batch,
        num_steps=steps + 4,
        workers=1,
    )
    seconds = []
    batches = iter(loader)
    for _ in range(steps + 4):
        start = time.process_time()
        next(batches)
        seconds.append(1000 * (time.process_time() - start))
    return {"batch": batch, "main_process_ms_per_step": round(statistics.median(seconds[4:]), 2)}


def claims(results: dict[str, Any]) -> dict[str, bool]:
    """Return whether each claim holds."""
    holds = {}
    for name, forms in results["formats"].items():
        zstd, portable, pickles = (forms[form] for form in FORMS)
        speed = "samples_per_second_per_core"
        holds[f"{name}: zstd is at least 3.5 times portable"] = zstd[speed] >= 3.5 * portable[speed]
        holds[f"{name}: zstd takes at most a tenth of the pickles' bytes"] = (
            10 * zstd["bytes_per_sample"] <= pickles["bytes_per_sample"]
        )
    holds["4.6 million samples open in a second"] = results["scale"]["open_seconds"] < 1
    holds["4.6 million samples take less than 50 MiB"] = results["scale"]["memory_mib"] < 50
    return holds


def main() -> int:
    """Measure, write the results and return 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--views", type=Path, help="folder of views in the released layout")
    parser.add_argument("--samples", type=int, default=32, help="rooms to read")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--measure-scale", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure_scale:
        measure_scale(arguments.measure_scale)
        return 0
    results: dict[str, Any] = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "formats": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        samples = list(rooms(arguments.samples))
        results["formats"]["rooms"] = compare_forms(root / "rooms", samples, arguments.rounds)
        if arguments.views:
            originals = list(views(arguments.views))
            repeated = originals * -(-arguments.samples // len(originals))
            results["formats"]["views"] = compare_forms(root / "views", repeated, arguments.rounds)
        _, _, split = write_form(root / "loader", "zstd", samples)
        results["loader"] = loader_overhead(root / "loader", split, batch=16, steps=20)
        results["scale"] = scale(root)
    results["claims"] = claims(results)
    text = json.dumps(results, indent=1)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text + "\n")
    sys.stdout.write(text + "\n")
    return 0 if all(results["claims"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
