"""The wheel in a fresh environment: what is in it, and its commands without a checkout."""

import json
import os
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"accelerate_configs", "data_pipelines", "dmtg", "model", "trainer"}
NOT_SOURCES = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
LAUNCHERS = ("cpu", "ddp", "ddp_cpu", "zero1", "zero2", "zero2_cpu", "zero3", "fsdp2")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The wheel, built from the sdist, and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCES)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    # Not from this checkout: an environment of the caller may put it on the path.
    subprocess.run([*command, str(source)], check=True, cwd=folder, env=clean_environment())
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    shutil.rmtree(source)
    return wheel, sdist


def clean_environment():
    hidden = ("PYTHONPATH", "PYTHONHOME", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def sources(package, suffix):
    return {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob(f"*{suffix}")}


def test_the_wheel_holds_the_packages_and_nothing_else(archives):
    with zipfile.ZipFile(archives[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = set().union(*(sources(package, ".py") for package in PACKAGES))
    expected |= sources("accelerate_configs", ".yaml") | sources("accelerate_configs", ".sbatch")
    expected |= sources("trainer/report/web", "")
    icons = "data_pipelines/synthetic/icons"
    expected |= {f"{icons}/NOTICE", f"{icons}/material_design_icons.json.xz"}
    assert names == expected
    assert {f"accelerate_configs/{name}.yaml" for name in LAUNCHERS} <= names


def test_the_sdist_holds_what_the_wheel_is_built_from(archives):
    with tarfile.open(archives[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "accelerate_configs/zero2.yaml"} <= names
    assert not {name for name in names if name.startswith("tests")}


@dataclass(frozen=True)
class Installed:
    """A fresh environment with the wheel in it, and an empty folder to work in."""

    bin: Path
    folder: Path

    def run(self, *command, check=True):
        """Run a program of the environment in the folder; its standard output."""
        done = subprocess.run(
            [str(self.bin / command[0]), *map(str, command[1:])],
            cwd=self.folder,
            env={**clean_environment(), "PATH": f"{self.bin}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert not check or done.returncode == 0, done.stderr[-4000:]
        return done.stdout if check else done

    def holds(self, path):
        """Whether a path is in the environment."""
        return Path(path).resolve().is_relative_to(self.bin.parent.resolve())

    def dmtg(self, *arguments):
        """The JSON object that a command of `dmtg` prints."""
        return json.loads(self.run("dmtg", *arguments, "--json").splitlines()[-1])


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory):
    place = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", str(archives[0])], check=True)
    # The dependencies of the tests' environment. A folder named in a .pth file is not searched for
    # other .pth files, so an editable install of the checkout has no effect.
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return Installed(place / "bin", tmp_path_factory.mktemp("empty"))


@pytest.fixture(scope="module")
def short_run(installed):
    """The demo's configuration, and overrides for a run of seconds on a few rooms."""
    written = installed.dmtg(
        "shards", "rooms", "--out", "rooms", "--samples", "16", "--size", "64",
        "--val-fraction", "0.25",
    )  # fmt: skip
    assert written["samples"] == {"train": 12, "val": 4}
    shutil.copy(ROOT / "experiments" / "demo.yaml", installed.folder)
    options = ("run.steps=2", "data.global_batch=4", "data.workers=0", "log.progress=false")
    return "demo.yaml", "data.shards=rooms", *options


def test_every_package_comes_from_the_wheel(installed):
    code = "import sys\nfor name in sys.argv[1:]: print(__import__(name).__file__)"
    files = installed.run("python", "-c", code, *PACKAGES).splitlines()
    assert len(files) == len(PACKAGES) and all(map(installed.holds, files)), files


def test_help(installed):
    text = installed.run("dmtg", "--help")
    assert all(name in text for name in ("slurm", "bench", "launch-files", "compare"))


def test_launch_files_are_listed(installed):
    listed = installed.dmtg("launch-files")
    assert listed["files"].keys() >= set(LAUNCHERS)
    assert listed["files"]["cpu"]["description"] == "One process on the CPU."
    assert all(Path(file["path"]).is_file() for file in listed["files"].values())
    assert installed.holds(listed["script"]) and Path(listed["script"]).is_file()


def test_a_slurm_script_names_installed_files(installed, short_run):
    installed.run("dmtg", "slurm", *short_run, "run.out=job", "--gpus-per-node", "1")
    lines = (installed.folder / "job.sbatch").read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines if line.split("=")[0].isupper())
    for name, end in (("TRAIN_SCRIPT", "trainer/main.py"), ("ACCELERATE_CONFIG", "/zero2.yaml")):
        path = Path(values[name])
        assert path.is_file() and str(path).endswith(end) and installed.holds(path)
    installed.run("dmtg", "slurm", *short_run, "--compare", "other", "--seeds", "1")
    assert "dmtg compare" in (installed.folder / "job.sbatch").read_text()


def test_a_comparison(installed, short_run):
    result = installed.dmtg(
        "compare", *short_run, "--out", "compared", "--recipes", "random", "--seeds", "1"
    )
    assert [(row["recipe"], row["done"]) for row in result["recipes"]] == [("random", 1)]
    assert (installed.folder / "compared" / "compare.png").is_file()


def test_the_step_beside_the_published_one(installed):
    result = installed.dmtg(
        "bench", "step", "--tasks", "3", "--branches", "2", "--batch", "4", "--size", "16",
        "--repeats", "1",
    )  # fmt: skip
    assert result["loss_difference"] <= 1e-4


def test_a_training_by_an_installed_launch_file(installed, short_run):
    listed = installed.dmtg("launch-files")
    installed.run(
        "python", "-m", "accelerate.commands.launch", "--config_file",
        listed["files"]["cpu"]["path"], listed["script"], "--config", *short_run, "run.out=run",
    )  # fmt: skip
    assert installed.dmtg("status", "run")["state"] == "finished"
    assert installed.dmtg("report", "run") == {"report": "run/report.html"}
    assert "</html>" in (installed.folder / "run" / "report.html").read_text()
    exported = installed.dmtg("export", "run", "--out", "model.safetensors")
    assert exported and (installed.folder / "model.safetensors").is_file()


def test_the_short_form_of_a_training(installed, short_run):
    for name, options in (("one", ()), ("two", ("--processes", "2"))):
        text = installed.run("dmtg", "train", *short_run, f"run.out={name}", *options)
        assert f"{name}: finished after 2 steps" in text
        groups = installed.dmtg("groups", name)["groups"]
        assert sum(map(len, groups)) == 19
    code = "from trainer import Trainer; print(len(Trainer.from_run('one').groups))"
    assert int(installed.run("python", "-c", code)) >= 1


def test_an_error_is_one_message(installed):
    done = installed.run("dmtg", "export", "nowhere", "--out", "m.safetensors", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
