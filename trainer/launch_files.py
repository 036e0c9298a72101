"""Paths of the training script, the launch files and the job templates, also without a checkout."""

from __future__ import annotations

from pathlib import Path

import accelerate_configs

TRAIN_SCRIPT = Path(__file__).resolve().with_name("main.py")
_FOLDER = Path(accelerate_configs.__file__).resolve().parent


def find_launch_files() -> dict[str, Path]:
    """Return the files that `accelerate launch --config_file` takes, by name."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.yaml"))}


def launch_file(name: str) -> Path:
    """Return the path of a launch file, for example of `zero2`."""
    return _FOLDER / f"{name}.yaml"


def job_template(name: str) -> Path:
    """Return the path of a template of a Slurm job: `train.sbatch` or `compare.sbatch`."""
    return _FOLDER / "slurm" / name


def describe(path: Path) -> str:
    """Return the comment in the first line of a launch file."""
    with path.open(encoding="utf-8") as lines:
        return lines.readline().removeprefix("#").strip()
